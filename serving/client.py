"""Clients of a served model, by REST (NumPy alone) and by gRPC: photos in, descriptors and classes out as NumPy arrays.

Both talk to TF Serving and to the local server of serving/run.py:

>>> client = RestClient("http://127.0.0.1:8501")  # or GrpcClient("127.0.0.1:8500")
>>> photos = [Path("a.jpg").read_bytes(), Path("b.png").read_bytes()]
>>> prediction = client.describe(photos, resolution=500)
>>> prediction.embedding @ prediction.embedding.T  # cosine similarities
>>> client.classify(prediction.embedding).classes  # the classes of stored descriptors, without their photos
"""

import base64
import http.client
import json
import random
import threading
import time
import urllib.parse
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.codes import ServingError, code_of_http, code_of_number

RETRIED = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")
_FILE = (bytes, bytearray, memoryview)
_FIRST_DELAY = 0.1
_LONGEST_DELAY = 5.0
_MAX_MESSAGE_BYTES = 256 * 2**20
_DTYPES = {
    "image_bytes": object,
    "images": np.float32,
    "p_star": np.float32,
    "resolution": np.int32,
    "embedding": np.float32,
    "logits": np.float32,
    "class": np.int64,
    "probability": np.float32,
}


@dataclass(frozen=True)
class Prediction:
    """What the model says of N photos or descriptors.

    Attributes:
        embedding: float32 [N, D], unit norm, whitened; the descriptors that were given, for `classify`.
        logits: float32 [N, C].
        classes: int64 [N], the class with the highest logit.
        probability: float32 [N], of that class.
    """

    embedding: np.ndarray
    logits: np.ndarray
    classes: np.ndarray
    probability: np.ndarray


class Client(ABC):
    """What both clients do. One may be shared by threads, each of which then has its own request under way.

    Args:
        address: where the server listens: a URL for REST, HOST:PORT for gRPC.
        name: str, the model's name there.
        version: int, the version to ask; default: the newest.
        label: str, such as "stable", instead of a version.
        timeout: float > 0, seconds for one request, its retries included.
        retries: int >= 0, how often a request is sent again that met UNAVAILABLE, RESOURCE_EXHAUSTED or HTTP 429 or
            503; nothing else is. Before the k-th time it waits 0 to 0.1 * 2^(k-1) seconds, drawn evenly, 5 at most.
        batch_size: int >= 1, photos in one request; no more than the server's max_batch_size.
        seed: int, of the waits; default: different each time.

    Raises:
        ValueError: a value out of its range, or both a version and a label.
    """

    def __init__(
        self,
        address: str,
        name: str = "multigrain",
        version: int | None = None,
        label: str | None = None,
        timeout: float = 30.0,
        retries: int = 4,
        batch_size: int = 8,
        seed: int | None = None,
    ):
        for key, value, least in (("retries", retries, 0), ("batch_size", batch_size, 1)):
            if value < least:
                raise ValueError(f"{key} must be at least {least}, received {value}")
        if timeout <= 0:
            raise ValueError(f"timeout must be greater than 0, received {timeout}")
        if version is not None and label is not None:
            raise ValueError(f"give a version or a label, not both, received {version} and {label!r}")
        self._address = address
        self._name = name
        self._version = version
        self._label = label
        self._timeout = timeout
        self._retries = retries
        self._batch_size = batch_size
        self._random = random.Random(seed)

    def describe(
        self,
        photos: Sequence[bytes] | Sequence[np.ndarray],
        resolution: int | Sequence[int] = 0,
        p_star: float | Sequence[float] = 0.0,
    ) -> Prediction:
        """Descriptors and classes of photos.

        Args:
            photos: files as bytes (JPEG, PNG, GIF, BMP), of any sizes mixed, which the server decodes and resizes; or
                arrays [H, W, 3], RGB in 0-255, which are taken as they are. Arrays of one shape share requests.
            resolution: pixels of the largest side, for files; 0 leaves the photo's own. One for all, or one a photo.
            p_star: the pooling exponent, one for all or one a photo. For files, 0 is the model's choice for the
                resolution; arrays need one greater than 0.

        Returns:
            `Prediction`, in the order of the photos.

        Raises:
            ValueError: no photos, files mixed with arrays, arrays of another shape, with `resolution` or without
                `p_star`.
            ServingError: the server refused or could not be reached in time.
        """
        photos = list(photos)
        resolutions = _one_each(resolution, len(photos), np.int32)
        exponents = _one_each(p_star, len(photos), np.float32)
        files = bool(photos) and isinstance(photos[0], _FILE)
        signature, kind = ("encoded", _FILE) if files else ("serving_default", np.ndarray)
        if not photos or not all(isinstance(photo, kind) for photo in photos):
            raise ValueError("photos must be bytes or arrays, at least one and all of one kind")
        if not files and (np.any(resolutions) or not np.all(exponents > 0)):
            raise ValueError(f"arrays need p_star > 0 and no resolution, received {p_star} and {resolution}")
        answers, order = [], []
        for places in self._batches(photos):
            given = [photos[place] for place in places]
            inputs = {"p_star": exponents[places]}
            if files:
                inputs["image_bytes"] = _objects([bytes(photo) for photo in given])
                inputs["resolution"] = resolutions[places]
            else:
                inputs["images"] = np.stack(given)
            answers.append(self.predict(signature, inputs))
            order += places
        together = {key: np.concatenate([answer[key] for answer in answers])[np.argsort(order)] for key in answers[0]}
        return _prediction(together["embedding"], together)

    def classify(self, embeddings: np.ndarray) -> Prediction:
        """Classes of stored descriptors, float32 [N, D] as `describe` gave them.

        Raises:
            ValueError: not [N, D] with N >= 1.
            ServingError: as `describe`.
        """
        embeddings = np.asarray(embeddings, np.float32)
        if embeddings.ndim != 2 or not len(embeddings):
            raise ValueError(f"embeddings must be [N, D] with N >= 1, received shape {embeddings.shape}")
        answers = [
            self.predict("classify_embedding", {"embedding": embeddings[start : start + self._batch_size]})
            for start in range(0, len(embeddings), self._batch_size)
        ]
        return _prediction(embeddings, {key: np.concatenate([each[key] for each in answers]) for key in answers[0]})

    def predict(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One request as it is: the arrays of a signature's inputs to those of its outputs.

        Raises:
            ServingError: as `describe`.
        """
        return self._with_retries(lambda timeout: self._predict(signature, inputs, timeout))

    def status(self) -> dict[int, str]:
        """{version: state}, the state such as "AVAILABLE"."""
        return self._with_retries(self._status)

    @abstractmethod
    def close(self) -> None:
        """Close the connections."""

    @abstractmethod
    def _predict(self, signature: str, inputs: Mapping[str, np.ndarray], timeout: float) -> dict[str, np.ndarray]: ...

    @abstractmethod
    def _status(self, timeout: float) -> dict[int, str]: ...

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def _batches(self, photos: Sequence[bytes] | Sequence[np.ndarray]) -> Iterator[list[int]]:
        """The places of photos that share a request: files, or arrays of one shape."""
        groups = {}
        for place, photo in enumerate(photos):
            shape = photo.shape if isinstance(photo, np.ndarray) else None
            if shape is not None and (len(shape) != 3 or shape[2] != 3):
                raise ValueError(f"photos must be arrays [H, W, 3], received shape {shape}")
            groups.setdefault(shape, []).append(place)
        for places in groups.values():
            for start in range(0, len(places), self._batch_size):
                yield places[start : start + self._batch_size]

    def _with_retries(self, send: Callable[[float], Any]) -> Any:
        until = time.monotonic() + self._timeout
        attempt = 0
        while True:
            try:
                return send(max(until - time.monotonic(), 1e-3))
            except ServingError as error:
                # evenly from 0 on: clients that were refused together don't come back together
                longest = min(_FIRST_DELAY * 2**attempt, _LONGEST_DELAY)
                delay = self._random.uniform(0, longest)
                if error.code not in RETRIED or attempt == self._retries or time.monotonic() + delay >= until:
                    raise
                time.sleep(delay)
                attempt += 1


class RestClient(Client):
    """A client by REST; needs NumPy alone. See `Client`; `address` is a URL such as http://127.0.0.1:8501."""

    def __init__(self, address: str, *arguments, **keywords):
        super().__init__(address, *arguments, **keywords)
        url = urllib.parse.urlsplit(address)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(f"address must be a URL such as http://127.0.0.1:8501, received {address!r}")
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        self._connect = lambda timeout: kind(url.hostname, url.port, timeout=timeout)
        self._path = f"{url.path.rstrip('/')}/v1/models/{urllib.parse.quote(self._name, safe='')}"
        # connections that wait for their next request
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            while self._idle:
                self._idle.pop().close()

    def _asked(self) -> str:
        if self._version is not None:
            return f"{self._path}/versions/{self._version}"
        return self._path if self._label is None else f"{self._path}/labels/{urllib.parse.quote(self._label, safe='')}"

    def _predict(self, signature, inputs, timeout):
        values = {name: _listed(name, array) for name, array in inputs.items()}
        body = json.dumps({"signature_name": signature, "inputs": values}).encode()
        outputs = self._request("POST", f"{self._asked()}:predict", body, timeout)["outputs"]
        return {name: np.asarray(value, _DTYPES.get(name)) for name, value in outputs.items()}

    def _status(self, timeout):
        statuses = self._request("GET", self._asked(), None, timeout)["model_version_status"]
        return {int(status["version"]): status["state"] for status in statuses}

    def _request(self, method: str, path: str, body: bytes | None, timeout: float) -> dict[str, Any]:
        with self._lock:
            connection = self._idle.pop() if self._idle else self._connect(timeout)
        try:
            connection.timeout = timeout
            if connection.sock:
                connection.sock.settimeout(timeout)
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            response = connection.getresponse()
            text = response.read()
        except TimeoutError as error:
            connection.close()
            raise ServingError("DEADLINE_EXCEEDED", f"no answer within {timeout:.3g} seconds") from error
        except (OSError, http.client.HTTPException) as error:
            # maybe the server closed an idle connection: the others will be no better
            connection.close()
            self.close()
            raise ServingError("UNAVAILABLE", f"{self._address}: {type(error).__name__}: {error}") from error
        with self._lock:
            self._idle.append(connection)
        try:
            answer = json.loads(text)
        except ValueError:
            answer = {"error": text[:200].decode(errors="replace")}
        if response.status != 200 or "error" in answer:
            message = answer.get("error", "") if isinstance(answer, dict) else ""
            raise ServingError(code_of_http(response.status), f"HTTP {response.status}: {message}", response.status)
        return answer


class GrpcClient(Client):
    """A client by gRPC; needs tensorflow-serving-api. See `Client`; `address` is such as 127.0.0.1:8500.

    Where a name has several addresses (dns:///multigrain:8500), requests go to all of them in turns.
    """

    def __init__(self, address: str, *arguments, **keywords):
        super().__init__(address, *arguments, **keywords)
        import grpc
        from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

        if address.startswith(("http://", "https://")):
            raise ValueError(f"address must be such as 127.0.0.1:8500, received {address!r}")
        options = [
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            # the retries are this client's own
            ("grpc.enable_retries", 0),
            # a name with several addresses has its requests spread over all of them
            ("grpc.lb_policy_name", "round_robin"),
        ]
        self._channel = grpc.insecure_channel(address, options)
        self._prediction = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._model = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def _fill(self, spec) -> None:
        spec.name = self._name
        if self._version is not None:
            spec.version.value = self._version
        if self._label is not None:
            spec.version_label = self._label

    def _predict(self, signature, inputs, timeout):
        import tensorflow as tf
        from tensorflow_serving.apis.predict_pb2 import PredictRequest

        request = PredictRequest()
        self._fill(request.model_spec)
        request.model_spec.signature_name = signature
        for name, array in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(np.asarray(array, _DTYPES.get(name))))
        response = self._call(self._prediction.Predict, request, timeout)
        return {name: tf.make_ndarray(value) for name, value in response.outputs.items()}

    def _status(self, timeout):
        from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest, ModelVersionStatus

        request = GetModelStatusRequest()
        self._fill(request.model_spec)
        statuses = self._call(self._model.GetModelStatus, request, timeout).model_version_status
        return {status.version: ModelVersionStatus.State.Name(status.state) for status in statuses}

    def _call(self, method, request, timeout: float):
        import grpc

        try:
            return method(request, timeout=timeout)
        except grpc.RpcError as error:
            raise ServingError(code_of_number(error.code().value[0]), error.details()) from error


def _one_each(value: Any, count: int, dtype: type) -> np.ndarray:
    """One value for all, or one for each, as an array [count]."""
    array = np.asarray(value, dtype)
    if array.shape not in ((), (count,)):
        raise ValueError(f"one value for all {count} photos or one a photo, received shape {array.shape}")
    return np.broadcast_to(array, count)


def _objects(values: Iterable[bytes]) -> np.ndarray:
    """An array [N] of Python's bytes: NumPy's own strings lose zeros at their end."""
    values = list(values)
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _listed(name: str, array: np.ndarray) -> list:
    if name == "image_bytes":
        return [{"b64": base64.b64encode(value).decode()} for value in array]
    return np.asarray(array).tolist()


def _prediction(embedding: np.ndarray, answer: Mapping[str, np.ndarray]) -> Prediction:
    return Prediction(embedding, answer["logits"], answer["class"], answer["probability"])
