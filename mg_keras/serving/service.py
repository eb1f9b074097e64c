"""What both interfaces of the local server share: limits, checks of inputs, and the run itself."""

import concurrent.futures
import contextlib
import functools
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from mg_keras.serving.batching import Batcher
from mg_keras.serving.codes import ServingError
from mg_keras.serving.servable import Servable, Signature
from mg_keras.serving.versions import Versions


@dataclass(frozen=True)
class Limits:
    """What the local server takes.

    Attributes:
        max_request_bytes: int, of a request's body, and of each of its tensors once unpacked.
        max_in_flight: int, requests at the same time; the next one is refused with RESOURCE_EXHAUSTED.
        max_json_elements: int, lists, objects and their elements in a REST request.
        timeout: float, seconds that a request may take, if its client has not set a shorter deadline.
    """

    max_request_bytes: int = 64 * 2**20
    max_in_flight: int = 64
    max_json_elements: int = 8_000_000
    timeout: float = 30.0

    def __post_init__(self):
        for name in ("max_request_bytes", "max_in_flight", "max_json_elements", "timeout"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be greater than 0, received {getattr(self, name)}")


class Service:
    """Answers requests with the versions of a model.

    Args:
        versions: the model.
        batcher: what joins requests.
        limits: what is taken.
    """

    def __init__(self, versions: Versions, batcher: Batcher, limits: Limits):
        self.versions = versions
        self.limits = limits
        self._batcher = batcher
        self._in_flight = threading.BoundedSemaphore(limits.max_in_flight)

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Counts as a request in flight while the block runs.

        Raises:
            ServingError: RESOURCE_EXHAUSTED, there are as many as there may be.
        """
        if not self._in_flight.acquire(blocking=False):
            raise ServingError("RESOURCE_EXHAUSTED", f"{self.limits.max_in_flight} requests are in flight already")
        try:
            yield
        finally:
            self._in_flight.release()

    def wait_idle(self, seconds: float) -> None:
        """Wait until no request is in flight, `seconds` at most."""
        until = time.monotonic() + seconds
        taken = 0
        while taken < self.limits.max_in_flight and self._in_flight.acquire(timeout=max(until - time.monotonic(), 0)):
            taken += 1
        for _ in range(taken):
            self._in_flight.release()

    def predict(
        self, servable: Servable, name: str, inputs: Mapping[str, np.ndarray], timeout: float | None = None
    ) -> dict[str, np.ndarray]:
        """The outputs of the signature called `name`, in a joint batch where there is company.

        Args:
            servable: a version in use.
            name: str, of one of its signatures.
            inputs: {name: array [B, ...]}.
            timeout: float, the seconds that the client has left; no more than `limits.timeout` are taken.

        Raises:
            ServingError: INVALID_ARGUMENT for inputs that the signature doesn't have; DEADLINE_EXCEEDED; what the
                graph refused.
        """
        check_inputs(inputs, servable.signature(name))
        timeout = min(self.limits.timeout, self.limits.timeout if timeout is None else timeout)
        servable.acquire()
        try:
            future = self._batcher.submit((servable.version, name), functools.partial(servable.run, name), inputs)
        except ServingError:
            servable.release()
            raise
        # not after the answer: a batch goes on when its caller has given up, and needs the model
        future.add_done_callback(lambda _: servable.release())
        try:
            return future.result(timeout)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise ServingError("DEADLINE_EXCEEDED", f"no answer within {timeout:.3g} seconds") from None


def check_inputs(inputs: Mapping[str, np.ndarray], signature: Signature) -> None:
    """Refuse inputs of other names, dtypes or shapes than the signature's, or without a common batch size.

    Raises:
        ServingError: INVALID_ARGUMENT.
    """
    if set(inputs) != set(signature.inputs):
        extra, missing = sorted(set(inputs) - set(signature.inputs)), sorted(set(signature.inputs) - set(inputs))
        raise ServingError(
            "INVALID_ARGUMENT",
            f"inputs do not match signature. Sent extra: {extra}. Missing but required: {missing}",
        )
    for name, tensor in signature.inputs.items():
        array = inputs[name]
        if array.dtype != tensor.dtype:
            raise ServingError("INVALID_ARGUMENT", f"input {name}: expected {tensor.dtype}, received {array.dtype}")
        fits = tensor.shape is None or (
            len(tensor.shape) == array.ndim
            and all(size in (None, given) for size, given in zip(tensor.shape, array.shape, strict=True))
        )
        if not fits:
            expected = ", ".join("?" if size is None else str(size) for size in tensor.shape)
            raise ServingError(
                "INVALID_ARGUMENT", f"input {name}: expected shape [{expected}], received {list(array.shape)}"
            )
    rows = {array.shape[0] if array.ndim else None for array in inputs.values()}
    if len(rows) != 1 or not rows.isdisjoint({None, 0}):
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
        raise ServingError("INVALID_ARGUMENT", f"inputs must have the same batch size, at least 1, received {shapes}")
