"""TF Serving's gRPC interface, on the published stubs."""

import functools
import math
import sys
import traceback
from collections.abc import Callable

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc
from tensorflow_serving.apis.get_model_metadata_pb2 import GetModelMetadataResponse, SignatureDefMap
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusResponse, ModelVersionStatus
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.apis.predict_pb2 import PredictResponse

from mg_keras.serving.codes import CODES, ServingError
from mg_keras.serving.servable import Servable
from mg_keras.serving.service import Service
from mg_keras.serving.versions import VersionStatus

# trailers, which carry it, have room for 8 KiB
_MAX_MESSAGE = 1000
_POINTER_BYTES = 8


def register(server: grpc.Server, service: Service) -> None:
    """Add PredictionService (Predict, GetModelMetadata) and ModelService (GetModelStatus) to a gRPC server."""
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Prediction(service), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Model(service), server)


def status_response(statuses: list[VersionStatus]) -> GetModelStatusResponse:
    """What ModelService says of versions."""
    response = GetModelStatusResponse()
    for status in statuses:
        entry = response.model_version_status.add(
            version=status.version, state=ModelVersionStatus.State.Value(status.state)
        )
        entry.status.error_code = CODES[status.code][0]
        entry.status.error_message = status.message
    return response


def metadata_response(name: str, servable: Servable) -> GetModelMetadataResponse:
    """What PredictionService says of a version's signatures."""
    response = GetModelMetadataResponse()
    response.model_spec.name = name
    response.model_spec.version.value = servable.version
    signatures = SignatureDefMap()
    for key, signature in servable.signature_defs.items():
        signatures.signature_def[key].CopyFrom(signature)
    response.metadata["signature_def"].Pack(signatures)
    return response


def _answering(method: Callable) -> Callable:
    """Turn a `ServingError` into the call's status."""

    @functools.wraps(method)
    def wrapped(self, request, context):
        try:
            return method(self, request, context)
        except ServingError as error:
            code, message = error.code, error.args[0]
        except Exception:
            traceback.print_exc(file=sys.stderr)
            code, message = "INTERNAL", "the server failed; its standard error says how"
        context.abort(grpc.StatusCode[code], message[:_MAX_MESSAGE])

    return wrapped


class _Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, service: Service):
        self._service = service

    @_answering
    def Predict(self, request, context):
        service = self._service
        with service.place(), service.versions.use(**_asked(request.model_spec)) as servable:
            name = request.model_spec.signature_name or "serving_default"
            signature = servable.signature(name)
            unknown = set(request.output_filter) - set(signature.outputs)
            if unknown:
                raise ServingError(
                    "INVALID_ARGUMENT",
                    f"output_filter: {', '.join(sorted(unknown))} not in signature; its outputs: "
                    f"{', '.join(signature.outputs)}",
                )
            inputs = {
                key: _array(key, tensor, service.limits.max_request_bytes) for key, tensor in request.inputs.items()
            }
            outputs = service.predict(servable, name, inputs, context.time_remaining())
            response = PredictResponse()
            response.model_spec.name = request.model_spec.name
            response.model_spec.version.value = servable.version
            response.model_spec.signature_name = name
            for key in request.output_filter or outputs:
                response.outputs[key].CopyFrom(tf.make_tensor_proto(outputs[key]))
            return response

    @_answering
    def GetModelMetadata(self, request, context):
        if list(request.metadata_field) != ["signature_def"]:
            raise ServingError(
                "INVALID_ARGUMENT", f"metadata_field must be ['signature_def'], received {list(request.metadata_field)}"
            )
        with self._service.place(), self._service.versions.use(**_asked(request.model_spec)) as servable:
            return metadata_response(request.model_spec.name, servable)


class _Model(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, service: Service):
        self._service = service

    @_answering
    def GetModelStatus(self, request, context):
        return status_response(self._service.versions.statuses(**_asked(request.model_spec)))


def _asked(spec: ModelSpec) -> dict:
    """Name, version and label that a request asks for."""
    if not spec.name:
        raise ServingError("INVALID_ARGUMENT", "ModelSpec has no name specified")
    choice = spec.WhichOneof("version_choice")
    return {
        "name": spec.name,
        "version": spec.version.value if choice == "version" else None,
        "label": spec.version_label if choice == "version_label" else None,
    }


def _array(name: str, proto: TensorProto, max_bytes: int) -> np.ndarray:
    """The array of an input.

    Raises:
        ServingError: INVALID_ARGUMENT, the message contradicts itself or unpacks to more than `max_bytes`.
    """
    try:
        dtype = tf.as_dtype(proto.dtype)
        sizes = [dim.size for dim in proto.tensor_shape.dim]
        # a shape costs nothing to write, and one value stands for as many equal ones as the shape has room for
        # a string has no size of its own, but each takes a pointer
        count, size = math.prod(sizes), dtype.size or _POINTER_BYTES
        if proto.tensor_shape.unknown_rank or min(sizes, default=0) < 0 or count * size > max_bytes:
            raise ServingError("INVALID_ARGUMENT", f"input {name}: shape {sizes} is not allowed, or too large")
        return tf.make_ndarray(proto)
    # KeyError: a dtype that NumPy has none for, such as DT_RESOURCE
    except (KeyError, TypeError, ValueError) as error:
        raise ServingError("INVALID_ARGUMENT", f"input {name}: not a tensor: {error}") from None
