"""HTTP in front of an ASGI application: uvicorn in a thread, and the bounds that it leaves to a proxy.

How many connections there are, how long each may make no headway, and how large a body is. Headers are bounded by h11.
"""

import asyncio
import functools
import logging
import socket
import threading
from collections.abc import Callable

import h11
import uvicorn
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

# how long a client is waited for: its request's head, the first bytes of a body, or its reading of an answer ...
_IDLE_SECONDS = 30
# ... and what it must send or read in each further second, so that dribbling keeps no place for ever
_LEAST_BYTES_A_SECOND = 2**16
_STOP_SECONDS = 10
_BACKLOG = 128

_LOGGER = logging.getLogger(__name__)
# an application's failures with their tracebacks; not what clients send, nor what was cut off when the server stopped
_LOGGER.setLevel(logging.ERROR)
_LOGGER.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)))


class HttpServer:
    """Answers HTTP/1.1 with an application, in a thread of its own; one event loop for all connections.

    Args:
        application: ASGI; what it does on the event loop must not block.
        host: str, the address to listen on: IPv4, IPv6, or a name.
        port: int; 0 takes a free one.
        max_connections: int >= 1; what comes beyond is told 503 and closed.
        error_body: HTTP status and message to the JSON that refuses what the application never sees.

    Attributes:
        port: int.

    Raises:
        OSError: the address can't be listened on.
        OverflowError: a port that is none.
    """

    def __init__(
        self,
        application: ASGIApp,
        host: str,
        port: int,
        max_connections: int,
        error_body: Callable[[int, str], bytes],
    ):
        ipv6 = ":" in host
        self._socket = socket.create_server(
            (host, port),
            family=socket.AF_INET6 if ipv6 else socket.AF_INET,
            backlog=_BACKLOG,
            dualstack_ipv6=ipv6 and socket.has_dualstack_ipv6(),
        )
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            application,
            loop="asyncio",
            http=functools.partial(_Connection, max_connections, error_body),
            ws="none",
            lifespan="off",
            interface="asgi3",
            # the program's own logging stays as it is
            log_config=None,
            proxy_headers=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_IDLE_SECONDS,
            timeout_graceful_shutdown=_STOP_SECONDS,
        )
        self._server = uvicorn.Server(config)
        # not in the main thread uvicorn leaves signals to the program
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), name="http", daemon=True)

    def start(self) -> None:
        """Answer from now on; who connected before has waited."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more connections, finish the requests that are under way (for 10 seconds at most), end the thread."""
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join()
        self._socket.close()


async def read_body(request: Request, max_bytes: int) -> bytearray:
    """The body of a request, with a Content-Length or in chunks.

    Raises:
        HTTPException: 413 for more than `max_bytes`, before any is read where the length is told; 408 for a sender that
            is too slow.
        ClientDisconnect: the client left.
    """
    told = request.headers.get("content-length")
    if told is not None and int(told) > max_bytes:
        raise HTTPException(413, f"the request has {told} bytes, more than the {max_bytes} allowed")
    body = bytearray()
    start = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout_at(start + _patience(0)) as limit:
            async for part in request.stream():
                body += part
                if len(body) > max_bytes:
                    raise HTTPException(413, f"the request has more than the {max_bytes} bytes allowed")
                limit.reschedule(start + _patience(len(body)))
    except TimeoutError:
        told = f"the request came too slowly, {len(body)} bytes so far"
        raise HTTPException(408, told, {"Connection": "close"}) from None
    return body


def failure(error: Exception) -> tuple[int, str, dict[str, str] | None]:
    """(status, message, headers) of the answer where a request failed for no reason of the application's own."""
    match error:
        case HTTPException():
            return error.status_code, error.detail, error.headers
        case ClientDisconnect():
            return 499, "the client left", None  # nobody reads it
        case _:
            return 500, "the server failed; its standard error says how", None


def _patience(size: int) -> float:
    """Seconds that a client may take to send or read so many bytes."""
    return _IDLE_SECONDS + size / _LEAST_BYTES_A_SECOND


class _Connection(H11Protocol):
    """A connection that is given up when its client is waited for too long.

    A timer runs while the next request's head is awaited, whether nothing of it came or a byte now and then, and while
    the client leaves an answer unread. A body is awaited by `read_body`; the time an answer takes is the application's.
    """

    def __init__(self, max_connections: int, error_body: Callable[[int, str], bytes], *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.logger = _LOGGER
        self.access_log = False
        self._max_connections = max_connections
        self._error_body = error_body
        self._awaited = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        # asyncio does so only for sockets that name TCP's number; else head and body of an answer are 40 ms apart
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.connections) > self._max_connections:
            self._refuse(503, "too many connections")
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # the next head has its own time
        self._awaited = None
        self._wait()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_waiting()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP, unless an answer is under way on the same connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(400, msg)
        else:
            self.transport.abort()

    def _refuse(self, status: int, message: str) -> None:
        body = self._error_body(status, message)
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")]
        for event in (h11.Response(status_code=status, headers=headers), h11.Data(body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event))
        self.transport.close()

    def _wait(self) -> None:
        """Have the timer run for what is awaited now, from its beginning."""
        answering = self.cycle is not None and not self.cycle.response_complete
        awaited = "reading" if self.flow.write_paused else None if answering else "head"
        if awaited == self._awaited:
            return
        self._stop_waiting()
        self._awaited = awaited
        if awaited is not None:
            seconds = _patience(self.transport.get_write_buffer_size())
            self._timer = self.loop.call_later(seconds, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
