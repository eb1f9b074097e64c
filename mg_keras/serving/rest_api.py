"""TF Serving's REST interface, on the standard library's HTTP server."""

import contextlib
import json
import re
import socket
import sys
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from google.protobuf.json_format import MessageToDict
from tensorflow_serving.apis.get_model_metadata_pb2 import SignatureDefMap

from mg_keras.serving import rest_format
from mg_keras.serving.codes import ServingError
from mg_keras.serving.grpc_api import metadata_response, status_response
from mg_keras.serving.service import Service

_MODEL = r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>\d{1,18})|/labels/(?P<label>[^/:]+))?"
_GET = re.compile(_MODEL + r"(?P<metadata>/metadata)?")
_POST = re.compile(_MODEL + r":(?P<verb>predict|classify|regress)")
# a client that says nothing for that long has gone
_IDLE_SECONDS = 30
# how much of a refused body is read, and for how long, so that its sender comes to see the answer
_DRAINED_BYTES = 512 * 2**20
_DRAIN_SECONDS = 5


class RestServer(ThreadingHTTPServer):
    """An HTTP server with a thread a connection; at most twice as many connections as requests in flight.

    Args:
        address: (host, port); port 0 takes a free one.
        service: what answers.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], service: Service):
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        self.service = service
        self._connections = threading.BoundedSemaphore(2 * service.limits.max_in_flight)
        super().__init__(address, _Handler)

    def server_bind(self):
        """Bind without looking up the host's name, which can take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.server_address[:2]

    def process_request(self, request, client_address):
        """Serve a connection in a thread of its own, if there is room."""
        if not self._connections.acquire(blocking=False):
            body = b'{"error": "too many connections"}'
            head = f"HTTP/1.1 503 Service Unavailable\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
            with contextlib.suppress(OSError):
                request.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._connections.release()
            raise

    def process_request_thread(self, request, client_address):
        """Serve a connection until it ends."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def handle_error(self, request, client_address):
        """Say nothing of clients that left."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS
    # head and body in one packet, at once
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_GET(self):
        self._answer(self._get, contextlib.nullcontext)

    def do_POST(self):
        self._answer(self._post, self.server.service.place)

    def log_message(self, format, *args):
        pass

    def handle_expect_100(self):
        """Ask for the body of a client that waits to be asked, at once."""
        answer = super().handle_expect_100()
        self.wfile.flush()
        return answer

    def send_error(self, code, message=None, explain=None):
        """Answer in JSON what the standard library refuses by itself, such as an unknown method."""
        self.close_connection = True
        self._send(code, _error(message or explain or "malformed request"))

    def _answer(self, respond, place) -> None:
        # until a body has been read to its end, what follows on the connection is not a request
        self._unread = self._content_length()
        with contextlib.ExitStack() as held:
            try:
                if self._unread is None:
                    raise ServingError("INVALID_ARGUMENT", "the request needs a Content-Length", http_status=411)
                held.enter_context(place())
                status, body = 200, respond()
            except ServingError as error:
                status, body = error.http_status, _error(error.args[0])
            except (ConnectionError, TimeoutError):
                self.close_connection = True
                return
            except Exception:
                traceback.print_exc(file=sys.stderr)
                status, body = 500, _error("the server failed; its standard error says how")
            if self._unread != 0:
                self.close_connection = True
            self._send(status, body)
        if self._unread:
            self._drain()

    def _get(self) -> bytes:
        self._body()
        match = _GET.fullmatch(self.path)
        if not match:
            raise _malformed(self)
        versions = self.server.service.versions
        if not match["metadata"]:
            return _json(status_response(versions.statuses(**_asked(match))))
        with versions.use(**_asked(match)) as servable:
            response = metadata_response(match["name"], servable)
        signatures = SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        value = {"model_spec": _dict(response.model_spec), "metadata": {"signature_def": _dict(signatures)}}
        return json.dumps(value, indent=1).encode()

    def _post(self) -> bytes:
        match = _POST.fullmatch(self.path)
        if not match:
            raise _malformed(self)
        if match["verb"] != "predict":
            raise ServingError("UNIMPLEMENTED", f"{match['verb']} is not implemented, use predict")
        service = self.server.service
        request = rest_format.parse(self._body(), service.limits.max_json_elements)
        with service.versions.use(**_asked(match)) as servable:
            name = rest_format.signature_name(request)
            inputs = rest_format.tensors(request, servable.signature(name))
            return rest_format.answer(request, service.predict(servable, name, inputs))

    def _content_length(self) -> int | None:
        """The length of the body; None where it is not told."""
        given = self.headers.get("Content-Length")
        if given is None and self.command == "GET" and "Transfer-Encoding" not in self.headers:
            return 0
        return int(given) if given is not None and given.isdecimal() and len(given) < 19 else None

    def _body(self) -> bytes:
        limit = self.server.service.limits.max_request_bytes
        if self._unread > limit:
            raise ServingError(
                "RESOURCE_EXHAUSTED",
                f"the request has {self._unread} bytes, more than the {limit} allowed",
                http_status=413,
            )
        body = self.rfile.read(self._unread)
        if len(body) < self._unread:
            raise ConnectionError("the client left in the middle of its request")
        self._unread = 0
        return body

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def _drain(self) -> None:
        """Read on: closing with unread bytes would reset the connection and could destroy the answer on its way."""
        left = min(self._unread, _DRAINED_BYTES)
        until = time.monotonic() + _DRAIN_SECONDS
        self.connection.settimeout(1)
        with contextlib.suppress(OSError):
            while left > 0 and time.monotonic() < until:
                read = len(self.rfile.read1(2**16))
                if not read:
                    return
                left -= read


def _asked(match: re.Match) -> dict:
    version = match["version"]
    return {"name": match["name"], "version": None if version is None else int(version), "label": match["label"]}


def _dict(message) -> dict:
    return MessageToDict(message, always_print_fields_with_no_presence=True, preserving_proto_field_name=True)


def _json(message) -> bytes:
    return json.dumps(_dict(message), indent=1).encode()


def _error(message: str) -> bytes:
    return json.dumps({"error": message}).encode()


def _malformed(handler: BaseHTTPRequestHandler) -> ServingError:
    return ServingError("INVALID_ARGUMENT", f"Malformed request: {handler.command} {handler.path[:200]}")
