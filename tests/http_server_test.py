"""The bounds of a connection, with an application that echoes."""

import asyncio
import http.client
import json
import socket
import threading
import time

import pytest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from mg_keras import http_server
from mg_keras.http_server import HttpServer, read_body

MAX_BYTES = 2**17
IDLE = 0.3


class Application:
    """Echoes a POST; /large is more than sockets hold, /broken fails, /slow waits to be let go."""

    def __init__(self):
        self.left = threading.Event()
        self.slow = threading.Event()
        self.go = threading.Event()
        get = {"/large": self.large, "/broken": self.broken, "/slow": self.wait}
        self.asgi = Starlette(
            routes=[Route("/", self.echo, methods=["POST"]), *(Route(path, function) for path, function in get.items())]
        )

    async def echo(self, request):
        try:
            return Response(bytes(await read_body(request, MAX_BYTES)))
        except ClientDisconnect:
            self.left.set()
            return Response()

    async def large(self, request):
        del request
        return Response(bytes(2**25))

    async def broken(self, request):
        raise RuntimeError("nobody thought of it")

    async def wait(self, request):
        del request
        self.slow.set()
        await asyncio.get_running_loop().run_in_executor(None, self.go.wait)
        return PlainTextResponse("done")


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(http_server, "_IDLE_SECONDS", IDLE)
    monkeypatch.setattr(http_server, "_LEAST_BYTES_A_SECOND", 2**26)


@pytest.fixture(scope="module")
def application():
    return Application()


@pytest.fixture(scope="module")
def server(application):
    server = started(application)
    yield server
    server.stop()


def refusal(status, message):
    return json.dumps({"error": f"{status} {message}"}).encode()


def started(application, host="127.0.0.1", connections=100):
    server = HttpServer(application.asgi, host, 0, connections, refusal)
    server.start()
    return server


def connected(server, sent=b"", host="127.0.0.1"):
    connection = socket.create_connection((host, server.port), timeout=20)
    connection.sendall(sent)
    return connection


def everything(connection):
    """What comes until the end, which may be a reset."""
    parts = []
    try:
        while part := connection.recv(2**16):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def post(server, body, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("POST", "/", body, headers or {})
    response = connection.getresponse()
    answer = response.status, response.read()
    connection.close()
    return answer


def test_bodies_of_told_and_untold_length(server):
    for body in (b"", b"photo", bytes(MAX_BYTES)):
        assert post(server, body) == (200, body)
        assert post(server, iter([body, b"end"] if len(body) < MAX_BYTES else [body]))[0] == 200
    for body in (bytes(MAX_BYTES + 1), iter([bytes(MAX_BYTES), b"1"])):
        status, text = post(server, body)
        assert status == 413
        assert b"131072" in text


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(server):
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n"
    with connected(server, head) as connection:
        assert connection.recv(2**16).startswith(b"HTTP/1.1 413 ")


def test_a_connection_serves_several_requests_at_once_or_one_by_one(server):
    request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"
    with connected(server, (request + b"ab") * 2) as connection:
        last = request.replace(b"Host", b"Connection: close\r\nHost") + b"yz"
        answer = connection.recv(2**16)
        (end,) = (
            end.transport.get_extra_info("socket")
            for end in list(server._server.server_state.connections)
            if end.client == connection.getsockname()
        )
        # else each further answer takes 40 ms
        assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        connection.sendall(last)
        answer += everything(connection)
    assert answer.count(b"HTTP/1.1 200 ") == 3
    assert answer.count(b"ab") == 2
    assert answer.endswith(b"yz")


def test_connections_beyond_the_bound_and_what_is_no_http(application):
    server = started(application, connections=3)
    held = [connected(server, b"P") for _ in range(3)]
    with connected(server) as refused:
        answer = everything(refused)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert answer.endswith(refusal(503, "too many connections"))
    held[0].sendall(b"\x00\r\n\r\n")
    answer = everything(held[0])
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"].startswith("400 ")
    for connection in held:
        connection.close()
    server.stop()


SHORT = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"


@pytest.mark.parametrize("sent", [b"", b"POST / HTTP/1.1\r\nHost: ", SHORT])
def test_a_client_that_sends_nothing_or_a_byte_now_and_then_is_given_up(impatient, server, sent):
    start = time.monotonic()
    with connected(server, sent) as connection:
        connection.settimeout(0.05)
        answer = None
        while answer is None and time.monotonic() - start < 10:
            try:
                if sent and sent != SHORT:
                    connection.sendall(b"1")
                answer = connection.recv(2**16)
            except TimeoutError:
                pass
            except ConnectionError:
                answer = b""
    assert IDLE * 0.9 < time.monotonic() - start < 5
    assert answer.startswith(b"HTTP/1.1 408 ") if sent == SHORT else answer == b""


def test_a_kept_connection_ends_when_it_is_idle(impatient, server):
    with connected(server, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab") as connection:
        start = time.monotonic()
        assert everything(connection).endswith(b"ab")
        assert time.monotonic() - start < 5


def test_a_client_that_does_not_read_is_given_up(impatient, server):
    with connected(server, b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n") as connection:
        connections = server._server.server_state.connections
        until = time.monotonic() + 10
        # the head is there, and part of the answer
        assert connection.recv(5) == b"HTTP/"
        while connections and time.monotonic() < until:
            time.sleep(0.01)
        assert not connections
        assert len(everything(connection)) < 2**25


def test_a_client_that_leaves_is_no_failure_and_a_failure_is_told(server, application, caplog):
    connected(server, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nab").close()
    assert application.left.wait(10)
    connected(server, b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n").close()
    with connected(server, b"\x00\r\n\r\n") as connection:
        everything(connection)
    assert not caplog.records
    with connected(server, b"GET /broken HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") as connection:
        assert everything(connection).startswith(b"HTTP/1.1 500 ")
    (record,) = caplog.records
    assert "nobody thought of it" in str(record.exc_info[1])


def test_stopping_finishes_what_is_under_way(application):
    server = started(application)
    idle = connected(server)
    with connected(server, b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n") as connection:
        assert application.slow.wait(10)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        assert everything(idle) == b""
        application.go.set()
        assert everything(connection).endswith(b"done")
        stopping.join(10)
    with pytest.raises(ConnectionRefusedError):
        connected(server)


def test_stopping_cuts_off_what_takes_too_long(application, monkeypatch, caplog):
    monkeypatch.setattr(http_server, "_STOP_SECONDS", 0.2)
    server = started(application)
    with connected(server, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nab") as connection:
        server.stop()
        assert b"200" not in everything(connection)
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_ipv6_and_a_server_that_never_started(application):
    try:
        server = started(application, "::1")
    except OSError:
        pytest.skip("no IPv6 address here")
    with connected(server, b"GET /none HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "::1") as connection:
        assert everything(connection).startswith(b"HTTP/1.1 404 ")
    server.stop()
    bound = HttpServer(application.asgi, "127.0.0.1", 0, 1, str.encode)
    with pytest.raises(OSError, match="in use"):
        HttpServer(application.asgi, "127.0.0.1", bound.port, 1, str.encode)
    bound.stop()
