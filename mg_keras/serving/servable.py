"""One version of a model, loaded as TF Serving loads it: through a session, by the tensors' names."""

import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from mg_keras.quiet import tensorflow_says
from mg_keras.serving.codes import ServingError, code_of_number


@dataclass(frozen=True)
class Tensor:
    """An input or output of a signature: its name in the graph, NumPy dtype (object for strings) and shape.

    The shape's sizes are None where the graph leaves them open; it is None as a whole where the rank is open.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class Signature:
    """The named inputs and outputs of one function of a SavedModel."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


class Servable:
    """A loaded version.

    Args:
        path: the version's folder, whose name is the version's number.

    Attributes:
        version: int.
        signature_defs: {name: SignatureDef}, as the SavedModel has them.

    Raises:
        ServingError: what the folder holds cannot be loaded, or its warm-up requests fail.
    """

    def __init__(self, path: str | os.PathLike):
        self.version = int(Path(path).name)
        self._lock = threading.Lock()
        self._users = 0
        self._retired = False
        try:
            self._open(Path(path))
        # what a damaged version makes TensorFlow raise is one of many types, and none of them may end the server
        except Exception as error:
            code = error.code if isinstance(error, ServingError) else "UNKNOWN"
            raise ServingError(code, f"{path} cannot be loaded: {_reason(error)}") from error

    def signature(self, name: str) -> Signature:
        """The signature of that name.

        Raises:
            ServingError: FAILED_PRECONDITION, there is none.
        """
        if name not in self._signatures:
            known = ", ".join(sorted(key for key in self._signatures if not key.startswith("__")))
            raise ServingError("FAILED_PRECONDITION", f'Serving signature key "{name}" not found; known: {known}')
        return self._signatures[name]

    def run(self, name: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs of a signature for inputs of its names and dtypes.

        Raises:
            ServingError: what the graph refused, with its code and message.
        """
        signature = self._signatures[name]
        try:
            values = self._runs[name](*(inputs[key] for key in signature.inputs))
        except tf.errors.OpError as error:
            raise ServingError(code_of_number(error.error_code), _message(error)) from error
        return dict(zip(signature.outputs, values, strict=True))

    def acquire(self) -> None:
        """Count one more user, who must know that the version is not retired, or that another user has not left yet."""
        with self._lock:
            self._users += 1

    def release(self) -> None:
        """Count one user less; the last one of a retired version frees its memory."""
        with self._lock:
            self._users -= 1
            last = self._retired and self._users == 0
        if last:
            self._session.close()

    def retire(self) -> None:
        """Free the memory once there are no users."""
        with self._lock:
            self._retired = True
            unused = self._users == 0
        if unused:
            self._session.close()

    def _open(self, path: Path) -> None:
        graph = tf.Graph()
        config = tf.compat.v1.ConfigProto()
        # else it keeps a copy of every signature's graph, with the trunk's weights in it, for who asks to see them
        config.experimental.disable_output_partition_graphs = True
        self._session = tf.compat.v1.Session(graph=graph, config=config)
        try:
            # it says that this loader is old; TF Serving goes by it
            with graph.as_default(), tensorflow_says(logging.ERROR):
                meta_graph = tf.compat.v1.saved_model.load(self._session, [tf.saved_model.SERVING], os.fspath(path))
            self.signature_defs = dict(meta_graph.signature_def)
            self._signatures = {name: _signature(proto) for name, proto in self.signature_defs.items()}
            self._runs = {name: self._callable(signature) for name, signature in self._signatures.items()}
            self._warm_up(path)
        except BaseException:
            self._session.close()
            raise

    def _callable(self, signature: Signature):
        # looked up here, since the session would do so at the first request only
        outputs, inputs = (
            [self._session.graph.get_tensor_by_name(tensor.name) for tensor in tensors.values()]
            for tensors in (signature.outputs, signature.inputs)
        )
        return self._session.make_callable(outputs, inputs)

    def _warm_up(self, path: Path) -> None:
        records = path / "assets.extra" / "tf_serving_warmup_requests"
        if not records.is_file():
            return
        for record in tf.data.TFRecordDataset(os.fspath(records)).as_numpy_iterator():
            request = PredictionLog.FromString(record).predict_log.request
            name = request.model_spec.signature_name or "serving_default"
            missing = set(self.signature(name).inputs) - set(request.inputs)
            if missing:
                raise ServingError(
                    "INVALID_ARGUMENT", f"a warm-up request for {name} lacks {', '.join(sorted(missing))}"
                )
            try:
                self.run(name, {key: tf.make_ndarray(value) for key, value in request.inputs.items()})
            except ServingError as error:
                raise ServingError(error.code, f"a warm-up request for {name} fails: {error.args[0]}") from error


def _signature(proto: SignatureDef) -> Signature:
    inputs, outputs = (
        {
            name: Tensor(
                name=info.name,
                dtype=np.dtype(tf.as_dtype(info.dtype).as_numpy_dtype),
                shape=None
                if info.tensor_shape.unknown_rank
                else tuple(None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim),
            )
            for name, info in sorted(infos.items())
            # an operation without value, such as the one that initialises
            if info.dtype
        }
        for infos in (proto.inputs, proto.outputs)
    )
    return Signature(inputs, outputs)


def _message(error: tf.errors.OpError) -> str:
    """What an operation says of its failure, without the names of the graph's nodes."""
    return error.message.removeprefix("Graph execution error:").split("\n\t [[")[0].strip()


def _reason(error: Exception) -> str:
    """Why a version cannot be loaded, in one line."""
    if isinstance(error, ServingError):
        text = error.args[0]
    else:
        text = _message(error) if isinstance(error, tf.errors.OpError) else str(error).strip()
        text = f"{type(error).__name__}: {text}"
    return text.splitlines()[0]
