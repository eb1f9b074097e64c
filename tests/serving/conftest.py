"""The servers that the tests of the interfaces run against: the local one, and TF Serving's own where there is one."""

import contextlib
import shutil
import socket
import subprocess
import time
from types import SimpleNamespace

import pytest

from mg_keras.serving.client import GrpcClient, RestClient
from mg_keras.serving.codes import ServingError
from mg_keras.serving.server import LocalServer
from mg_keras.serving.service import Limits
from tests.serving import stand_in

MAX_REQUEST_BYTES = 2 * 2**20
TF_SERVING = shutil.which("tensorflow_model_server")


def address(rest_port, grpc_port, kind):
    return SimpleNamespace(rest=f"http://127.0.0.1:{rest_port}", grpc=f"127.0.0.1:{grpc_port}", kind=kind)


def free_port():
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        return chosen.getsockname()[1]


@contextlib.contextmanager
def local_server(folder, **keywords):
    limits = Limits(max_request_bytes=MAX_REQUEST_BYTES, max_json_elements=200_000)
    with LocalServer(
        folder, grpc_port=0, rest_port=0, **{"limits": limits, "poll_seconds": 0.05, **keywords}
    ) as server:
        yield address(server.rest_port, server.grpc_port, "local")


@contextlib.contextmanager
def tensorflow_model_server(folder):
    grpc_port, rest_port = free_port(), free_port()
    process = subprocess.Popen(
        [
            TF_SERVING,
            f"--port={grpc_port}",
            f"--rest_api_port={rest_port}",
            "--model_name=multigrain",
            f"--model_base_path={folder}",
            "--file_system_poll_wait_seconds=1",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 60
        with RestClient(f"http://127.0.0.1:{rest_port}", timeout=5) as client:
            while process.poll() is None and time.monotonic() < until:
                with contextlib.suppress(ServingError):
                    if "AVAILABLE" in client.status().values():
                        break
                time.sleep(0.2)
        yield address(rest_port, grpc_port, "tensorflow_model_server")
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A folder with the stand-in as version 1."""
    folder = tmp_path_factory.mktemp("stand_in") / "multigrain"
    stand_in.save(folder)
    return folder


SERVERS = {"local": local_server, "tensorflow_model_server": tensorflow_model_server}
KINDS = [
    "local",
    pytest.param(
        "tensorflow_model_server",
        marks=pytest.mark.skipif(not TF_SERVING, reason="no tensorflow_model_server on the PATH"),
    ),
]


@pytest.fixture(scope="session", params=KINDS)
def server(request, model):
    """The addresses (`rest`, `grpc`) of a server of the stand-in, which answers to "multigrain"."""
    with SERVERS[request.param](model) as running:
        yield running


@pytest.fixture(params=[RestClient, GrpcClient], ids=["rest", "grpc"])
def client(request, server):
    """Of the server that the test's own module has, or else of the stand-in's."""
    chosen = server.rest if request.param is RestClient else server.grpc
    with request.param(chosen, seed=0) as opened:
        yield opened
