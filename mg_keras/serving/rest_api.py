"""TF Serving's REST interface as a Starlette application.

The event loop reads requests and writes answers; JSON and the model keep a thread each.
"""

import asyncio
import functools
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from tensorflow_serving.apis.get_model_metadata_pb2 import SignatureDefMap

from mg_keras.http_server import HttpServer, failure, read_body
from mg_keras.serving import rest_format
from mg_keras.serving.codes import ServingError
from mg_keras.serving.grpc_api import metadata_response, status_response
from mg_keras.serving.service import Service


class _Name(Convertor[str]):
    """A model's name or a version's label; a verb follows a colon."""

    regex = "[^/:]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


class _Version(Convertor[int]):
    regex = "[0-9]{1,18}"

    def convert(self, value: str) -> int:
        return int(value)

    def to_string(self, value: int) -> str:
        return str(value)


register_url_convertor("model_name", _Name())
register_url_convertor("model_version", _Version())
_MODELS = tuple(
    f"/v1/models/{{name:model_name}}{version}"
    for version in ("", "/versions/{version:model_version}", "/labels/{label:model_name}")
)


class RestServer(HttpServer):
    """Answers REST requests with a service; at most twice as many connections as requests in flight.

    Args:
        host: str, the address to listen on.
        port: int; 0 takes a free one.
        service: what answers.

    Raises:
        OSError: the address can't be listened on.
        OverflowError: a port that is none.
    """

    def __init__(self, host: str, port: int, service: Service):
        connections = 2 * service.limits.max_in_flight
        # one for each connection, so that a status is told while all places are taken
        self._threads = ThreadPoolExecutor(connections, thread_name_prefix="rest")
        super().__init__(rest_application(service, self._threads), host, port, connections, rest_format.error)

    def stop(self) -> None:
        """As `HttpServer.stop`."""
        super().stop()
        self._threads.shutdown(wait=False)


def rest_application(service: Service, threads: ThreadPoolExecutor) -> Starlette:
    """The application; `threads` run what would block the event loop."""

    async def in_thread(function: Callable[[], bytes]) -> Response:
        body = await asyncio.get_running_loop().run_in_executor(threads, function)
        return Response(body, media_type="application/json")

    async def status(request: Request) -> Response:
        return await in_thread(functools.partial(_status, service, request.path_params))

    async def metadata(request: Request) -> Response:
        return await in_thread(functools.partial(_metadata, service, request.path_params))

    async def predict(request: Request) -> Response:
        # before its body is read: they bound the memory that bodies take together
        with service.place():
            body = await read_body(request, service.limits.max_request_bytes)
            return await in_thread(functools.partial(_predict, service, request.path_params, body))

    async def unimplemented(request: Request) -> Response:
        verb = request.scope["path"].rpartition(":")[2]
        raise ServingError("UNIMPLEMENTED", f"{verb} is not implemented, use predict")

    routes = []
    for model in _MODELS:
        routes += [
            Route(f"{model}:predict", predict, methods=["POST"]),
            Route(f"{model}:classify", unimplemented, methods=["POST"]),
            Route(f"{model}:regress", unimplemented, methods=["POST"]),
            Route(model, status, methods=["GET"]),
            Route(f"{model}/metadata", metadata, methods=["GET"]),
        ]
    kinds = (ServingError, HTTPException, ClientDisconnect, Exception)
    application = Starlette(routes=routes, exception_handlers=dict.fromkeys(kinds, _refusal))
    application.router.redirect_slashes = False
    return application


def _status(service: Service, asked: dict[str, Any]) -> bytes:
    return json.dumps(_dict(status_response(service.versions.statuses(**asked))), indent=1).encode()


def _metadata(service: Service, asked: dict[str, Any]) -> bytes:
    with service.versions.use(**asked) as servable:
        response = metadata_response(asked["name"], servable)
    signatures = SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    value = {"model_spec": _dict(response.model_spec), "metadata": {"signature_def": _dict(signatures)}}
    return json.dumps(value, indent=1).encode()


def _predict(service: Service, asked: dict[str, Any], body: bytearray) -> bytes:
    request = rest_format.parse(body, service.limits.max_json_elements)
    with service.versions.use(**asked) as servable:
        name = rest_format.signature_name(request)
        inputs = rest_format.tensors(request, servable.signature(name))
        return rest_format.answer(request, service.predict(servable, name, inputs))


def _dict(message: Message) -> dict[str, Any]:
    return MessageToDict(message, always_print_fields_with_no_presence=True, preserving_proto_field_name=True)


async def _refusal(request: Request, error: Exception) -> Response:
    """The answer to a request that failed, whatever the reason."""
    headers = None
    match error:
        case ServingError():
            status, message = error.http_status, error.args[0]
        # no route leads there: TF Serving has one answer for paths and methods
        case HTTPException(status_code=404 | 405):
            status, message = 400, f"Malformed request: {request.method} {request.scope['path'][:200]}"
        case _:
            status, message, headers = failure(error)
    return Response(rest_format.error(status, message), status, headers, "application/json")
