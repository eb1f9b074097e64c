"""The program: what it prints, how it ends, and what it says of mistakes."""

import runpy
import signal
import socket
import sys
import urllib.request

import numpy as np
import pytest

from serving.client import GrpcClient, RestClient
from serving.process import PROGRAM, server_process
from tests.serving import stand_in


def test_it_serves_until_it_is_told_to_stop(model):
    photo = stand_in.photo(3)
    with server_process(model, "--name", "photos", "--version_labels", "{stable: 1}") as server:
        assert server.rest.startswith("http://127.0.0.1:")
        assert server.grpc.startswith("127.0.0.1:")
        for make, chosen in ((RestClient, server.rest), (GrpcClient, server.grpc)):
            with make(chosen, name="photos", label="stable") as client:
                got = client.describe([stand_in.png(photo)], p_star=2.0)
                np.testing.assert_allclose(got.embedding, stand_in.expected([photo], [2.0])["embedding"], atol=1e-5)
        assert urllib.request.urlopen(f"{server.rest}/v1/models/photos").status == 200
        assert server.resident_bytes() > 2**24
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 0
        assert "Ctrl-C stops it." in server.process.stdout.read()


def mistake(arguments, monkeypatch, capsys):
    """The exit status and the last line on standard error."""
    monkeypatch.setattr(sys, "argv", ["serving/run.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(PROGRAM), run_name="__main__")
    return stopped.value.code, capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nothing/there"], "error: no such folder: nothing/there"),
        (["--model", "x", "--max_batch_size", "0"], "error: --max_batch_size must be at least 1, received 0"),
        (["--model", "x", "--num_versions", "-1"], "error: --num_versions must be at least 0, received -1"),
        (["--model", "x", "--poll_seconds", "0"], "error: --poll_seconds must be greater than 0, received 0"),
        (["--model", "x", "--max_in_flight", "0"], "error: --max_in_flight must be greater than 0, received 0"),
    ],
)
def test_mistakes_get_one_line(arguments, message, monkeypatch, capsys):
    status, line = mistake(arguments, monkeypatch, capsys)
    assert status == 2
    assert line.startswith(message)


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
