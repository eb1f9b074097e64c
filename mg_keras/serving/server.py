"""The local development server: TF Serving's REST and gRPC interfaces in front of an exported model."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import grpc

from mg_keras.errors import UserError
from mg_keras.serving import grpc_api
from mg_keras.serving.batching import Batcher
from mg_keras.serving.rest_api import RestServer
from mg_keras.serving.service import Limits, Service
from mg_keras.serving.versions import Versions

_STOP_SECONDS = 10


class LocalServer:
    """Serves the versions of a model until it is stopped; a context manager.

    For development: one process of Python, no encryption, no authentication. TF Serving takes the same requests.

    Args:
        model: the folder with the numbered versions, such as `models/multigrain`.
        name: str, what requests call the model.
        host: the address to listen on; the default is reached from this machine only.
        grpc_port: int; 0 takes a free one.
        rest_port: int; 0 takes a free one.
        num_versions: int >= 0, how many of the newest versions are served; 0 serves all.
        version_labels: {label: version}.
        poll_seconds: float > 0, time between two looks for new versions.
        max_batch_size: int >= 1, rows in a batch, and in a request.
        batch_timeout: float >= 0, seconds that a request waits for others to join it.
        batch_threads: int >= 1, batches that run at the same time.
        limits: `Limits`.

    Attributes:
        grpc_port: int.
        rest_port: int.
        versions: `Versions`.

    Raises:
        UserError: no folder, no version in it, or a port that is taken.

    Example:
        >>> with LocalServer("models/multigrain", rest_port=0, grpc_port=0) as server:  # doctest: +SKIP
        ...     client = RestClient(f"http://127.0.0.1:{server.rest_port}")
        ...     prediction = client.embed([Path("photo.jpg").read_bytes()], resolution=224)
    """

    def __init__(
        self,
        model: str | os.PathLike,
        name: str = "multigrain",
        host: str = "127.0.0.1",
        grpc_port: int = 8500,
        rest_port: int = 8501,
        num_versions: int = 1,
        version_labels: Mapping[str, int] | None = None,
        poll_seconds: float = 1.0,
        max_batch_size: int = 16,
        batch_timeout: float = 0.002,
        batch_threads: int = 2,
        limits: Limits | None = None,
    ):
        limits = limits or Limits()
        self.versions = Versions(model, name, num_versions, version_labels, poll_seconds)
        self._batcher = Batcher(max_batch_size, batch_timeout, batch_threads)
        self._service = service = Service(self.versions, self._batcher, limits)
        try:
            self._rest = RestServer(host, rest_port, service)
        except (OSError, OverflowError) as error:
            self._stop_running()
            raise UserError(f"cannot listen on {host}, REST port {rest_port}: {error}") from error
        self.rest_port = self._rest.port
        self._grpc = grpc.server(
            ThreadPoolExecutor(limits.max_in_flight, thread_name_prefix="grpc"),
            # beyond it, calls are refused with RESOURCE_EXHAUSTED
            maximum_concurrent_rpcs=limits.max_in_flight,
            options=[
                ("grpc.max_receive_message_length", limits.max_request_bytes),
                # otherwise a second server would get half of the calls
                ("grpc.so_reuseport", 0),
            ],
        )
        grpc_api.register(self._grpc, service)
        address = f"[{host}]" if ":" in host else host
        try:
            self.grpc_port = self._grpc.add_insecure_port(f"{address}:{grpc_port}")
        except RuntimeError as error:
            self._rest.stop()
            self._stop_running()
            raise UserError(f"cannot listen on {host}, gRPC port {grpc_port}: {error}") from error
        self._grpc.start()
        self._rest.start()

    def stop(self) -> None:
        """Take no more requests, finish those that run, free the model."""
        calls_ended = self._grpc.stop(_STOP_SECONDS)
        self._rest.stop()
        calls_ended.wait()
        self._service.wait_idle(_STOP_SECONDS)
        self._stop_running()

    def _stop_running(self) -> None:
        self._batcher.stop()
        self.versions.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
