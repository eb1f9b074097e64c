"""Clients of a served model, by REST (NumPy alone) and by gRPC: photos in, descriptors and classes out as NumPy arrays.

Both talk to TF Serving and to the local server of `mg-keras serve`:

>>> client = RestClient("http://127.0.0.1:8501")  # or GrpcClient("127.0.0.1:8500")
>>> photos = [Path("a.jpg").read_bytes(), Path("b.png").read_bytes()]  # doctest: +SKIP
>>> prediction = client.embed(photos, resolution=500)  # doctest: +SKIP
>>> prediction.embedding @ prediction.embedding.T  # cosine similarities  # doctest: +SKIP
>>> client.classify(prediction.embedding).classes  # of stored descriptors, without their photos  # doctest: +SKIP
"""

import base64
import contextlib
import functools
import http.client
import json
import os
import random
import re
import socket
import ssl
import threading
import time
import urllib.parse
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from mg_keras.data.bounds import in_0_to_1
from mg_keras.serving.codes import ServingError, code_of_http, code_of_number

RETRIED = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")
_FILE = (bytes, bytearray, memoryview)
_FIRST_DELAY = 0.1
_LONGEST_DELAY = 5.0
_MAX_MESSAGE_BYTES = 256 * 2**20
# how the graph tells what it can't use, by the numbers of photos or descriptors in its batch
_UNUSABLE = re.compile(r"(photo|descriptor) (\d+): (.*?)(?=; (?:photo|descriptor) \d+: |\]|\n|$)")
_NO_DESCRIPTOR = "no descriptor: it holds NaN"
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
        errors: {position: reason} of what has no class: photos that were skipped, and for `classify` rows with a NaN.
            Their classes are -1, all else in their rows is NaN.
    """

    embedding: np.ndarray
    logits: np.ndarray
    classes: np.ndarray
    probability: np.ndarray
    errors: Mapping[int, str] = field(default_factory=dict)


class Client(ABC):
    """What both clients do. One may be shared by threads, each of which then has its own request under way.

    Args:
        address: where the server listens: a URL for REST, HOST:PORT for gRPC.
        name: str, the model's name there.
        version: int, the version to ask; default: the newest.
        label: str, such as "stable", instead of a version.
        timeout: float > 0, seconds for one request, from connecting to its answer's last byte, retries included. A
            call that takes several requests has as much for each.
        retries: int >= 0, how often a request is sent again that met UNAVAILABLE or RESOURCE_EXHAUSTED (HTTP 429, 502,
            503), unless it is too large; nothing else is. Before the k-th time it waits 0 to 0.1 * 2^(k-1) seconds,
            drawn evenly, 5 at most. Default: as often as the timeout has room for.
        batch_size: int >= 1, photos in one request; no more than the server's max_batch_size.
        batch_bytes: int >= 1, bytes in one request, as they are sent; a photo that is larger goes alone.
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
        retries: int | None = None,
        batch_size: int = 8,
        batch_bytes: int = 32 * 2**20,
        seed: int | None = None,
    ):
        at_least = {"retries": (retries, 0), "batch_size": (batch_size, 1), "batch_bytes": (batch_bytes, 1)}
        for key, (value, least) in at_least.items():
            if value is not None and not isinstance(value, int | np.integer):
                raise ValueError(f"{key} must be a whole number, received {value!r}")
            if value is not None and value < least:
                raise ValueError(f"{key} must be at least {least}, received {value}")
        # a NaN is not
        if not timeout > 0:
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
        self._batch_bytes = batch_bytes
        self._random = random.Random(seed)

    def embed(
        self,
        photos: Sequence[bytes] | Sequence[np.ndarray],
        resolution: int | Sequence[int] | None = None,
        p_star: float | Sequence[float] = 0.0,
        on_error: str = "raise",
    ) -> Prediction:
        """Descriptors and classes of photos.

        Args:
            photos: files as bytes (JPEG, PNG, WebP, GIF, BMP), of any sizes, which the server decodes and resizes; or
                arrays [H, W, 3], RGB in 0-255, which are taken as they are. Arrays of one shape share requests.
            resolution: pixels of the largest side, one for all or one a photo; 0 leaves the photo's own. Files need it:
                descriptors of one resolution compare best, from that of the training to twice it.
            p_star: the pooling exponent, one for all or one a photo. For files, 0 is the model's choice for the
                resolution; arrays need one greater than 0.
            on_error: "skip" goes on without the photos that can't be used, and tells them in `Prediction.errors`;
                "raise" stops at the first request that holds any.

        Returns:
            `Prediction`, in the order of the photos.

        Raises:
            ValueError: no photos, one photo that is not in a list, files mixed with arrays, files without `resolution`,
                arrays of another shape, with `resolution` or without `p_star`; or, unless they are skipped, arrays in
                0-1.
            ServingError: the server refused or could not be reached in time. Where photos are at fault, its message and
                its `photos` tell them by their positions.
        """
        if isinstance(photos, (*_FILE, str, os.PathLike)) or (isinstance(photos, np.ndarray) and photos.ndim == 3):
            raise ValueError(f"give a list of photos, of one as well, received a single {type(photos).__name__}")
        if on_error not in ("raise", "skip"):
            raise ValueError(f'on_error must be "raise" or "skip", received {on_error!r}')
        photos = list(photos)
        resolutions = _one_each(0 if resolution is None else resolution, len(photos), np.int32)
        exponents = _one_each(p_star, len(photos), np.float32)
        files = bool(photos) and isinstance(photos[0], _FILE)
        signature, kind = ("encoded", _FILE) if files else ("serving_default", np.ndarray)
        if not photos or not all(isinstance(photo, kind) for photo in photos):
            raise ValueError("photos must be bytes or arrays, at least one and all of one kind")
        if files and resolution is None:
            raise ValueError("files need a resolution: pixels of the largest side, such as 224; 0 for each photo's own")
        if not files and (np.any(resolutions) or not np.all(exponents > 0)):
            raise ValueError(f"arrays need p_star > 0 and no resolution, received {p_star} and {resolution}")

        def inputs_of(places):
            given = [photos[place] for place in places]
            inputs = {"p_star": exponents[places]}
            if files:
                return inputs | {"image_bytes": _objects(map(bytes, given)), "resolution": resolutions[places]}
            return inputs | {"images": np.stack(given)}

        black = {} if files else {place: why for place, photo in enumerate(photos) if (why := in_0_to_1(photo))}
        if black and on_error == "raise":
            raise ValueError("; ".join(f"photo {place}: {why}" for place, why in black.items()))
        errors = black if on_error == "skip" else None
        rows = self._rows(signature, inputs_of, self._batches(photos, black.keys()), errors, len(photos))
        return _prediction(rows["embedding"], rows, errors or {})

    def describe(self, *arguments: Any, **keywords: Any) -> Prediction:
        """The former name of `embed`; it warns."""
        warnings.warn("Client.describe is called embed now", DeprecationWarning, stacklevel=2)
        return self.embed(*arguments, **keywords)

    def classify(self, embeddings: np.ndarray) -> Prediction:
        """Classes of stored descriptors, float32 [N, D] as `embed` gave them.

        A row with a NaN, as `embed` leaves for a photo that it skipped, is no descriptor: its class is -1, logits
        and probability are NaN, and `Prediction.errors` has its place.

        Raises:
            ValueError: not [N, D] with N >= 1.
            ServingError: as `embed`; rows that are infinite or all 0 are at fault.
        """
        embeddings = np.asarray(embeddings, np.float32)
        if embeddings.ndim != 2 or not len(embeddings):
            raise ValueError(f"embeddings must be [N, D] with N >= 1, received shape {embeddings.shape}")
        missing = np.isnan(embeddings).any(axis=1)
        known = np.flatnonzero(~missing).tolist()
        batches = (known[start : start + self._batch_size] for start in range(0, len(known), self._batch_size))

        def inputs_of(places):
            return {"embedding": embeddings[places]}

        rows = self._rows("classify_embedding", inputs_of, batches, None, len(embeddings))
        return _prediction(embeddings, rows, dict.fromkeys(np.flatnonzero(missing).tolist(), _NO_DESCRIPTOR))

    def predict(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One request as it is: the arrays of a signature's inputs to those of its outputs.

        Raises:
            ServingError: as `embed`.
        """
        return self._with_retries(functools.partial(self._predict, signature, inputs))

    def status(self) -> dict[int, str]:
        """{version: state}, the state such as "AVAILABLE"."""
        return self._with_retries(self._status)

    @abstractmethod
    def close(self) -> None:
        """Close the connections."""

    @abstractmethod
    def _predict(self, signature: str, inputs: Mapping[str, np.ndarray], until: float) -> dict[str, np.ndarray]:
        """One attempt, which ends when `time.monotonic()` is `until`; so do the next two."""

    @abstractmethod
    def _status(self, until: float) -> dict[int, str]: ...

    @abstractmethod
    def _output_sizes(self, signature: str, until: float) -> dict[str, list[int]]:
        """{output: its shape without the batch}."""

    @abstractmethod
    def _sent_bytes(self, photo: bytes | np.ndarray) -> int:
        """About how many bytes a photo takes in a request."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _batches(self, photos: Sequence[bytes] | Sequence[np.ndarray], skipped: Collection[int]) -> Iterator[list[int]]:
        """The places of photos that share a request, files or arrays of one shape, without those that are skipped."""
        groups = {}
        for place, photo in enumerate(photos):
            shape = photo.shape if isinstance(photo, np.ndarray) else None
            if shape is not None and (len(shape) != 3 or shape[2] != 3):
                raise ValueError(f"photos must be arrays [H, W, 3], received shape {shape}")
            if place not in skipped:
                groups.setdefault(shape, []).append(place)
        for places in groups.values():
            batch, size = [], 0
            for place in places:
                more = self._sent_bytes(photos[place])
                if batch and (len(batch) == self._batch_size or size + more > self._batch_bytes):
                    yield batch
                    batch, size = [], 0
                batch.append(place)
                size += more
            yield batch

    def _rows(
        self,
        signature: str,
        inputs_of: Callable[[list[int]], Mapping[str, np.ndarray]],
        batches: Iterable[list[int]],
        errors: dict[int, str] | None,
        count: int,
    ) -> dict[str, np.ndarray]:
        """The outputs for `count` photos or descriptors, in order; NaN or -1 where no batch has an answer for them."""
        answers = list(self._answers(signature, inputs_of, batches, errors))
        if not answers:
            sizes = self._with_retries(functools.partial(self._output_sizes, signature))
            answers = [([], {name: np.zeros((0, *size), _DTYPES.get(name)) for name, size in sizes.items()})]
        return _in_order(answers, count)

    def _answers(
        self,
        signature: str,
        inputs_of: Callable[[list[int]], Mapping[str, np.ndarray]],
        batches: Iterable[list[int]],
        errors: dict[int, str] | None,
    ) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
        """(places, outputs) of each request that was answered.

        `errors` takes the photos that can't be used, place to reason; where it is None, a `ServingError` tells them.
        """
        for batch in batches:
            pending = [batch]
            while pending:
                places = pending.pop()
                try:
                    send = functools.partial(self._predict, signature, inputs_of(places))
                    outputs = self._with_retries(send, len(places))
                except ServingError as error:
                    pending += _instead(places, error, errors)
                else:
                    yield places, outputs

    def _with_retries(self, send: Callable[[float], Any], photos: int | None = None) -> Any:
        until = time.monotonic() + self._timeout
        attempt = 0
        while True:
            try:
                return send(until)
            except ServingError as error:
                # evenly from 0 on: clients that were refused together don't come back together
                longest = min(_FIRST_DELAY * 2 ** min(attempt, 10), _LONGEST_DELAY)
                delay = self._random.uniform(0, longest)
                if not _may_pass(error, photos) or attempt == self._retries or time.monotonic() + delay >= until:
                    raise
                time.sleep(delay)
                attempt += 1


class RestClient(Client):
    """A client by REST; needs NumPy alone. See `Client`; `address` is a URL such as http://127.0.0.1:8501.

    Args:
        headers: {name: value} sent with every request, such as {"Authorization": "Bearer ..."}.
        context: what an https address is checked against, such as `ssl.create_default_context(cafile="ca.pem")`;
            default: the system's certificates.
    """

    def __init__(
        self,
        address: str,
        *arguments: Any,
        headers: Mapping[str, str] | None = None,
        context: ssl.SSLContext | None = None,
        **keywords: Any,
    ):
        super().__init__(address, *arguments, **keywords)
        url = urllib.parse.urlsplit(address)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(f"address must be a URL such as http://127.0.0.1:8501, received {address!r}")
        if context is not None and url.scheme == "http":
            raise ValueError(f"a context is for https, received {address!r}")
        self._headers = dict(headers or {})
        self._context = None if url.scheme == "http" else context or ssl.create_default_context()
        if self._context is None:
            self._connection = lambda: http.client.HTTPConnection(url.hostname, url.port)
        else:
            self._connection = lambda: http.client.HTTPSConnection(url.hostname, url.port, context=self._context)
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

    def _sent_bytes(self, photo):
        if isinstance(photo, np.ndarray):
            # digits, as in "[255, 255, 255], " or "[127.30000305175781, ...], "
            return photo.size * (6 if photo.dtype.kind in "iu" else 21)
        return memoryview(photo).nbytes * 4 // 3

    def _predict(self, signature, inputs, until):
        values = {name: _listed(name, array) for name, array in inputs.items()}
        body = json.dumps({"signature_name": signature, "inputs": values}).encode()
        answer = self._request("POST", f"{self._asked()}:predict", body, until)
        with self._understood():
            return {name: np.asarray(value, _DTYPES.get(name)) for name, value in answer["outputs"].items()}

    def _status(self, until):
        answer = self._request("GET", self._asked(), None, until)
        with self._understood():
            return {int(status["version"]): status["state"] for status in answer["model_version_status"]}

    def _output_sizes(self, signature, until):
        answer = self._request("GET", f"{self._asked()}/metadata", None, until)
        with self._understood():
            outputs = answer["metadata"]["signature_def"]["signature_def"][signature]["outputs"]
            return {
                name: [int(dim["size"]) for dim in info["tensor_shape"]["dim"][1:]] for name, info in outputs.items()
            }

    @contextlib.contextmanager
    def _understood(self):
        """What is read in this block is said to be no answer of TF Serving's where it is another."""
        try:
            yield
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ServingError("UNKNOWN", f"{self._address} does not answer as TF Serving does", 200) from error

    def _request(self, method: str, path: str, body: bytes | None, until: float) -> dict[str, Any]:
        status, text = self._exchange(method, path, body, until)
        try:
            answer = json.loads(text)
        except ValueError:
            answer = {"error": text[:200].decode(errors="replace")}
        if not isinstance(answer, dict):
            answer = {"error": text[:200].decode(errors="replace")}
        if status != 200 or "error" in answer:
            message = answer.get("error", "")
            if status == 200:
                message = f"{self._address} does not answer as TF Serving does: {message}"
            raise ServingError(code_of_http(status), f"HTTP {status}: {message}", status)
        return answer

    def _exchange(self, method: str, path: str, body: bytes | None, until: float) -> tuple[int, bytes]:
        """Status and body of the answer."""
        while True:
            with self._lock:
                waited = bool(self._idle)
                connection = self._idle.pop() if waited else self._connection()
            try:
                response, text = self._exchange_by(connection, method, path, body, until)
            except TimeoutError as error:
                connection.close()
                raise ServingError("DEADLINE_EXCEEDED", f"no answer within {self._timeout:.3g} seconds") from error
            except ssl.SSLCertVerificationError as error:
                connection.close()
                raise ServingError("UNAUTHENTICATED", f"{self._address}: {error}") from error
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                # the server closed it while it waited: the others will be no better, a new one may
                self.close()
                if not waited:
                    raise ServingError("UNAVAILABLE", f"{self._address}: {type(error).__name__}: {error}") from error
            else:
                if connection.sock is not None:
                    with self._lock:
                        self._idle.append(connection)
                return response.status, text

    def _exchange_by(self, connection, method, path, body, until):
        if connection.sock is None:
            connection.sock = _connected(connection.host, connection.port, until)
            if self._context is not None:
                # the handshake is left for later, when the deadline holds for it
                connection.sock = self._context.wrap_socket(
                    connection.sock, server_hostname=connection.host, do_handshake_on_connect=False
                )
        headers = {"Content-Type": "application/json"} if body else {}
        with _deadline(connection.sock, until):
            if self._context is not None:
                connection.sock.do_handshake()
            # a body that is too large may be refused before its end: the answer says so
            with contextlib.suppress(ConnectionError):
                connection.request(method, path, body, headers | self._headers)
            response = connection.getresponse()
            return response, response.read()


class GrpcClient(Client):
    """A client by gRPC; needs tensorflow-serving-api. See `Client`; `address` is such as 127.0.0.1:8500.

    Where a name has several addresses (dns:///multigrain:8500), requests go to all of them in turns.

    Args:
        credentials: `grpc.ChannelCredentials`, such as `grpc.ssl_channel_credentials()`; default: no encryption.
        metadata: (name, value) pairs sent with every request, such as [("authorization", "Bearer ...")].
    """

    def __init__(
        self,
        address: str,
        *arguments: Any,
        credentials: Any = None,
        metadata: Sequence[tuple[str, str]] = (),
        **keywords: Any,
    ):
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
            # by default a server that was away is tried again after up to two minutes
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        if credentials is None:
            self._channel = grpc.insecure_channel(address, options)
        else:
            self._channel = grpc.secure_channel(address, credentials, options)
        self._metadata = tuple(metadata)
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

    def _sent_bytes(self, photo):
        return 4 * photo.size if isinstance(photo, np.ndarray) else memoryview(photo).nbytes

    def _predict(self, signature, inputs, until):
        import tensorflow as tf
        from tensorflow_serving.apis.predict_pb2 import PredictRequest

        request = PredictRequest()
        self._fill(request.model_spec)
        request.model_spec.signature_name = signature
        for name, array in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(np.asarray(array, _DTYPES.get(name))))
        response = self._call(self._prediction.Predict, request, until)
        return {name: tf.make_ndarray(value) for name, value in response.outputs.items()}

    def _status(self, until):
        from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest, ModelVersionStatus

        request = GetModelStatusRequest()
        self._fill(request.model_spec)
        statuses = self._call(self._model.GetModelStatus, request, until).model_version_status
        return {status.version: ModelVersionStatus.State.Name(status.state) for status in statuses}

    def _output_sizes(self, signature, until):
        from tensorflow_serving.apis.get_model_metadata_pb2 import GetModelMetadataRequest, SignatureDefMap

        request = GetModelMetadataRequest(metadata_field=["signature_def"])
        self._fill(request.model_spec)
        response = self._call(self._prediction.GetModelMetadata, request, until)
        signatures = SignatureDefMap.FromString(response.metadata["signature_def"].value).signature_def
        outputs = signatures[signature].outputs
        return {name: [dim.size for dim in info.tensor_shape.dim[1:]] for name, info in outputs.items()}

    def _call(self, method, request, until: float):
        import grpc

        try:
            return method(request, timeout=max(until - time.monotonic(), 1e-3), metadata=self._metadata)
        except grpc.RpcError as error:
            code, message = code_of_number(error.code().value[0]), error.details() or ""
            # these two would be the same the next time
            too_large = code == "RESOURCE_EXHAUSTED" and "larger than max" in message
            if code == "UNAVAILABLE" and "CERTIFICATE_VERIFY_FAILED" in message:
                code = "UNAUTHENTICATED"
            raise ServingError(code, message, 413 if too_large else None) from error


def _may_pass(error: ServingError, photos: int | None) -> bool:
    """Whether the same request may be answered the next time; `photos` is how many it holds."""
    if error.code in RETRIED:
        return error.http_status != 413
    # TF Serving refuses a joint batch as a whole, and another client's photo may be to blame
    return photos == 1 and any(number > 0 for number in _unusable(error))


def _unusable(error: ServingError) -> dict[int, str]:
    """{number: reason} of the photos or descriptors that the graph says it can't use."""
    if error.code != "INVALID_ARGUMENT":
        return {}
    return {int(number): reason for _, number, reason in _UNUSABLE.findall(error.args[0])}


def _instead(places: list[int], error: ServingError, errors: dict[int, str] | None) -> list[list[int]]:
    """What to send instead of a request that was refused, the last first.

    Args:
        places: the photos in the request.
        error: the refusal; it is raised if it is not about photos.
        errors: takes photos that can't be used; where it is None, they are raised as a `ServingError` of the caller's
            positions.
    """
    named = _unusable(error)
    if error.http_status == 413:
        if len(places) > 1:
            middle = len(places) // 2
            return [places[middle:], places[:middle]]
        named = {0: error.args[0]}
    fitting = all(number < len(places) for number in named)
    if not named or (len(places) == 1 and not fitting):
        raise error
    if fitting and (errors is None or len(places) == 1):
        found = {places[number]: reason for number, reason in named.items()}
        if errors is None:
            kind = match[1] if (match := _UNUSABLE.search(error.args[0])) else "photo"
            message = "; ".join(f"{kind} {place}: {reason}" for place, reason in found.items())
            raise ServingError(error.code, message, error.http_status, found) from error
        errors.update(found)
        return []
    # the numbers may count other clients' photos in a joint batch: no photo is given up before it was refused alone
    suspects = [places[number] for number in named] if fitting else places
    rest = [place for place in places if place not in suspects]
    return [[place] for place in suspects] + ([rest] if rest else [])


def _in_order(answers: Sequence[tuple[list[int], Mapping[str, np.ndarray]]], count: int) -> dict[str, np.ndarray]:
    """The outputs of `count` photos; NaN or -1 where there is no answer."""
    order = [place for places, _ in answers for place in places]
    together = {}
    for name in answers[0][1]:
        values = np.concatenate([outputs[name] for _, outputs in answers])
        together[name] = np.full((count, *values.shape[1:]), np.nan if values.dtype.kind == "f" else -1, values.dtype)
        together[name][order] = values
    return together


def _connected(host: str, port: int, until: float) -> socket.socket:
    """A socket to the first of a host's addresses that answers; TimeoutError where none does by `until`."""
    failure = OSError(f"{host} has no address")
    for *kind, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        connection = socket.socket(*kind)
        try:
            connection.settimeout(max(until - time.monotonic(), 1e-3))
            connection.connect(address)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
        except OSError as error:
            connection.close()
            failure = error
    raise failure


@contextlib.contextmanager
def _deadline(connection: socket.socket, until: float) -> Iterator[None]:
    """Ends what the block waits for with a TimeoutError at `until`.

    A socket's own timeout is for each read: who sends a byte now and then would be listened to for ever.
    """
    late = threading.Event()

    def end():
        late.set()
        with contextlib.suppress(OSError):
            # not the method of TLS, which takes away what the reader works with
            socket.socket.shutdown(connection, socket.SHUT_RDWR)

    timer = threading.Timer(max(until - time.monotonic(), 0), end)
    timer.daemon = True
    timer.start()
    try:
        connection.settimeout(max(until - time.monotonic(), 1e-3))
        yield
    except (OSError, http.client.HTTPException) as error:
        if late.is_set():
            raise TimeoutError from error
        raise
    finally:
        timer.cancel()
    # an answer without a length ends where the connection does
    if late.is_set():
        raise TimeoutError


def _one_each(value: Any, count: int, dtype: type) -> np.ndarray:
    """One value for all, or one for each, as an array [count]."""
    array = np.asarray(value)
    if dtype == np.int32:
        if array.dtype.kind not in "iuf" or np.any(array != np.rint(array)):
            raise ValueError(f"whole numbers of pixels were expected, received {value!r}")
        if np.any(np.abs(array) > np.iinfo(np.int32).max):
            raise ValueError(f"no photo has so many pixels on a side: {value!r}")
    array = array.astype(dtype)
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


def _prediction(embedding: np.ndarray, answer: Mapping[str, np.ndarray], errors: Mapping[int, str]) -> Prediction:
    return Prediction(embedding, answer["logits"], answer["class"], answer["probability"], dict(sorted(errors.items())))
