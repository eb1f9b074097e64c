"""The program: what it prints, how it ends, and what it says of mistakes."""

import signal
import socket
import urllib.request

import numpy as np
import pytest

from mg_keras.serving.client import GrpcClient, RestClient
from mg_keras.serving.process import server_process
from tests.serving import stand_in
from tests.train.tiny import run_in_process


@pytest.mark.slow
def test_it_serves_until_it_is_told_to_stop(model):
    photo = stand_in.photo(3)
    with server_process(model, "--name", "photos", "--version_labels", "{stable: 1}") as server:
        assert server.rest.startswith("http://127.0.0.1:")
        assert server.grpc.startswith("127.0.0.1:")
        for make, chosen in ((RestClient, server.rest), (GrpcClient, server.grpc)):
            with make(chosen, name="photos", label="stable") as client:
                got = client.embed([stand_in.png(photo)], 0, p_star=2.0)
                np.testing.assert_allclose(got.embedding, stand_in.expected([photo], [2.0])["embedding"], atol=1e-5)
        assert urllib.request.urlopen(f"{server.rest}/v1/models/photos").status == 200
        assert server.resident_bytes() > 2**24
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 0
        assert "Ctrl-C stops it." in server.process.stdout.read()


def mistake(arguments, monkeypatch, capsys):
    """The exit status and the last line on standard error."""
    return run_in_process("serving/run.py", arguments, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nothing/there"], "error: no such folder: nothing/there"),
        (["--model", "x", "--max_batch_size", "0"], "error: --max_batch_size must be at least 1, received 0"),
        (["--model", "x", "--num_versions", "-1"], "error: --num_versions must be at least 0, received -1"),
        (["--model", "x", "--poll_seconds", "0"], "error: --poll_seconds must be at least 0.001, received 0"),
        (["--model", "x", "--poll_seconds", "1e10"], "error: --poll_seconds must be at most 86400, received 1"),
        (["--model", "x", "--max_in_flight", "0"], "error: --max_in_flight must be at least 1, received 0"),
        (["--model", "x", "--max_in_flight", "1000000"], "error: --max_in_flight must be at most 10000, received 1"),
        (["--model", "x", "--max_request_mb", "2048"], "error: --max_request_mb must be at most 2047, received 2048"),
        (["--model", "x", "--max_request_mb", "1e-9"], "error: --max_request_mb must be at least 0.001, received 1"),
        (["--model", "x", "--timeout", ".nan"], "error: --timeout must be at least 0.001, received nan"),
        (["--model", "x", "--timeout", ".inf"], "error: --timeout must be at most 86400, received inf"),
        (["--model", "x", "--batch_timeout_ms", "1e30"], "error: --batch_timeout_ms must be at most 60000, received 1"),
        (["--model", "x", "--batch_threads", "1000000"], "error: --batch_threads must be at most 256, received 1"),
        (["--model", "x", "--grpc_port", "65536"], "error: --grpc_port must be at most 65535, received 65536"),
        (["--model", "x", "--name", ""], "error: --name must be a name without / and :, received ''"),
        (["--model", "x", "--name", "a/b"], "error: --name must be a name without / and :, received 'a/b'"),
        (["--model", "x", "--name", "a:b"], "error: --name must be a name without / and :, received 'a:b'"),
        (["--model", "x", "--rest_port", "-1"], "error: --rest_port must be at least 0, received -1"),
    ],
)
def test_mistakes_get_one_line(arguments, message, monkeypatch, capsys):
    status, line = mistake(arguments, monkeypatch, capsys)
    assert status == 2
    assert line.startswith(message)


@pytest.mark.slow
def test_the_largest_request_that_may_be_allowed(model):
    with server_process(model, "--max_request_mb", "2047") as server, GrpcClient(server.grpc) as client:
        assert len(client.embed([stand_in.png(stand_in.photo(3))], 0).classes) == 1
    # by SIGTERM, and not by force
    assert server.process.returncode == 0


@pytest.mark.parametrize("spoilt", stand_in.SPOILT)
def test_a_model_that_cannot_be_loaded_gets_one_line(spoilt, tmp_path, monkeypatch, capfd):
    stand_in.spoil(stand_in.save(tmp_path), spoilt)
    status, line = mistake(["--model", tmp_path], monkeypatch, capfd)
    assert status == 2
    assert line.startswith(f"error: {tmp_path} holds no version that can be served, numbered folders such as 1: ")
    assert stand_in.SPOILT[spoilt] in line


@pytest.mark.parametrize("flag", ["--rest_port", "--grpc_port"])
def test_a_port_that_is_taken(model, flag, monkeypatch, capsys):
    other = {"--rest_port": "--grpc_port", "--grpc_port": "--rest_port"}[flag]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, line = mistake(["--model", model, flag, port, other, "0"], monkeypatch, capsys)
    assert status == 2
    assert line.startswith("error: cannot listen on 127.0.0.1")
    assert str(port) in line
