"""The search over HTTP: a page, and the API that it stands on (docs/search.md).

Photos are addressed by their numbers, never by paths. Nothing that a photo is called or holds is sent as anything but
JSON or a JPEG that was made here.
"""

import asyncio
import contextlib
import datetime
import functools
import hmac
import ipaddress
import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mg_keras.data.bounds import MAX_PIXELS
from mg_keras.databases.collection import Away
from mg_keras.errors import UserError
from mg_keras.files import printable_name
from mg_keras.http_server import HttpServer, failure, read_body
from mg_keras.search import openapi
from mg_keras.search.album import Album, NotThere, NotYet
from mg_keras.search.duplicates import KINDS
from mg_keras.search.thumbnails import LOOK, as_jpeg, thumbnail

MAX_UPLOAD_BYTES = 32 << 20
"""Of a photo that is sent as a query."""

_PAGE = Path(__file__).with_name("page")
_FILES = {
    "page.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "token.html": "text/html; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
# who has no token is asked for it by a page of these
_PUBLIC = ("/page.css", "/icon.svg")
_PICTURE_SIDE = 1600
_LARGEST_PAGE = 500
_LARGEST_DECISION = 1 << 20
# photos whose pixels are compared with a query's: some 20 ms each
_COMPARED = 32
_MAX_CONNECTIONS = 64
# bodies that are held at the same time
_UPLOADS_AT_ONCE = 4
_SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self' blob:; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class SearchServer(HttpServer):
    """Serves an album's page and API.

    Args:
        album: `Album`.
        host: str, the address to listen on.
        port: int; 0 takes a free one.
        token: str that each request must bring; None where only this machine can reach the address.

    Attributes:
        url: of the page; with the token, if there is one.

    Raises:
        UserError: the address is reached from elsewhere, and there is no token.
        OSError: the address can't be listened on.
    """

    def __init__(self, album: Album, host: str = "127.0.0.1", port: int = 0, token: str | None = None):
        if token is None and not is_loopback(host):
            raise UserError(f"{host} is reached from elsewhere: a token is needed")
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="search")
        # so that pictures, of which a page asks for hundreds, don't keep a query waiting
        self._pictures = ThreadPoolExecutor(4, thread_name_prefix="pictures")
        application = search_application(album, self._threads, self._pictures, token)
        super().__init__(application, host, port, _MAX_CONNECTIONS, _error_body)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.port}/" + (f"?token={token}" if token else "")

    def stop(self) -> None:
        """As `HttpServer.stop`."""
        super().stop()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._pictures.shutdown(wait=False, cancel_futures=True)


def search_application(
    album: Album, threads: ThreadPoolExecutor, pictures: ThreadPoolExecutor, token: str | None = None
) -> ASGIApp:
    """The application; `threads` and `pictures` run what would block the event loop."""
    files = {name: (_PAGE / name).read_bytes() for name in _FILES}
    uploads = asyncio.Semaphore(_UPLOADS_AT_ONCE)

    def answers(function: Callable[[Album, Request], Any]) -> Callable:
        @functools.wraps(function)
        async def endpoint(request: Request) -> Response:
            return _json(await _in(threads, function, album, request))

        return endpoint

    def shows(function: Callable[[Album, Request], tuple[bytes | None, bool]]) -> Callable:
        @functools.wraps(function)
        async def endpoint(request: Request) -> Response:
            picture, lasts = await _in(pictures, function, album, request)
            if picture is None:
                raise HTTPException(404, "the photo can't be opened any more")
            # its address changes with its content
            lasts = lasts and "v" in request.query_params
            keep = "private, max-age=31536000, immutable" if lasts else "no-store"
            return Response(picture, media_type="image/jpeg", headers={"Cache-Control": keep})

        return endpoint

    async def search_by_upload(request: Request) -> Response:
        how = _how(request)
        async with uploads:
            body = await read_body(request, MAX_UPLOAD_BYTES)
            upload = await _in(threads, album.upload, body)
            del body
        return _json(await _in(threads, _found, album, upload, **how))

    async def decide(request: Request) -> Response:
        body = await read_body(request, _LARGEST_DECISION)
        return _json(await _in(threads, _decide, album, bytes(body)))

    async def file(request: Request) -> Response:
        name = request.path_params.get("name", "page.html")
        if name not in files or (name.endswith(".html") and "name" in request.path_params):
            raise HTTPException(404)
        return Response(files[name], media_type=_FILES[name], headers={"Cache-Control": "no-cache"})

    routes = [
        Route("/", file),
        Route("/api/status", answers(_status)),
        Route("/api/update", answers(_update), methods=["POST"]),
        Route("/api/search", answers(_search)),
        Route("/api/search", search_by_upload, methods=["POST"]),
        Route("/api/same", answers(_same)),
        Route("/api/uploads/{id}/picture", shows(_upload_picture)),
        Route("/api/photos", answers(_photos)),
        Route("/api/photos/{id}", answers(_photo)),
        Route("/api/photos/{id}/thumbnail", shows(_thumbnail)),
        Route("/api/photos/{id}/picture", shows(_picture)),
        Route("/api/unusable", answers(_unusable)),
        Route("/api/classes", answers(_classes)),
        Route("/api/duplicates", answers(_duplicates)),
        Route("/api/duplicates", answers(_compare), methods=["POST"]),
        Route("/api/decisions", decide, methods=["POST"]),
        Route("/api/openapi.json", answers(lambda album, request: openapi.description())),
        Route("/{name}", file),
    ]
    kinds = (UserError, HTTPException, ClientDisconnect, Exception)
    application = Starlette(routes=routes, exception_handlers=dict.fromkeys(kinds, _refusal))
    application.router.redirect_slashes = False
    return _Guard(application, token, files["token.html"])


class _Guard:
    """Whom a request comes from, before it is looked at; and what a browser must not do with the answer."""

    def __init__(self, application: ASGIApp, token: str | None, ask: bytes):
        self._application, self._token, self._ask = application, token, ask

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_SECURITY)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refusal = self._refusal(Request(scope)) if scope["type"] == "http" else None
        await (refusal or self._application)(scope, receive, secured)

    def _refusal(self, request: Request) -> Response | None:
        host = request.headers.get("host", "")
        # a page of another site that has its name lead to this machine
        if self._token is None and not is_loopback(_split(f"//{host}").hostname or ""):
            return _json({"error": f"this server is asked as localhost, received {host[:100]!r}"}, 403)
        origin = request.headers.get("origin")
        if request.method not in ("GET", "HEAD") and origin and _split(origin).netloc != host:
            return _json({"error": "requests of other sites are refused"}, 403)
        if self._token is None or request.url.path in _PUBLIC:
            return None
        cookie = f"mg_keras_{(request.scope.get('server') or ('', 0))[1]}"
        if request.url.path == "/" and self._fits(request.query_params.get("token")):
            # it is kept out of the browser's history
            answer = RedirectResponse("/", 303)
            answer.set_cookie(cookie, self._token, httponly=True, samesite="lax", path="/")
            return answer
        if self._fits(_bearer(request.headers)) or self._fits(request.cookies.get(cookie)):
            return None
        if request.url.path == "/":
            return Response(self._ask, 401, media_type="text/html; charset=utf-8")
        told = "a token is needed, that of the address that the server printed: Authorization: Bearer TOKEN"
        return _json({"error": told}, 401, {"WWW-Authenticate": "Bearer"})

    def _fits(self, given):
        return given is not None and hmac.compare_digest(given.encode(errors="replace"), self._token.encode())


def _split(address):
    try:
        return urlsplit(address)
    except ValueError:
        # such as an IPv6 address without its end
        return urlsplit("")


def _bearer(headers: Headers):
    kind, _, value = headers.get("authorization", "").partition(" ")
    return value.strip() if kind.lower() == "bearer" else None


async def _in(threads, function, *arguments, **keywords):
    return await asyncio.get_running_loop().run_in_executor(
        threads, functools.partial(function, *arguments, **keywords)
    )


# what is answered


def _status(album, request):
    index = _begun(album)
    return {
        "folder": printable_name(album.title),
        "collection": album.is_collection,
        "photos": len(album),
        "unusable": 0 if index is None else index.unusable_count(),
        "passed_over": album.passed_over,
        "why_passed_over": album.why_passed_over,
        "classes": index is not None and bool(index.about["class_names"]),
        "indexing": vars(album.indexing),
        "comparing": vars(album.comparing),
        "limits": {"bytes": MAX_UPLOAD_BYTES, "pixels": MAX_PIXELS},
    }


def _begun(album):
    """The index, or None where there is none yet; one without photos that can be used may have others."""
    with contextlib.suppress(NotYet):
        return album.index


def _update(album, request):
    return {"started": album.update()}


def _search(album, request):
    return _found(album, _query(album, request), **_how(request))


def _same(album, request):
    numbers = request.query_params.get("of", "").split(",")
    if len(numbers) > _COMPARED or not all(map(_is_number, numbers)):
        raise UserError(f"of must be numbers of photos by commas, {_COMPARED} at most")
    photos = []
    for number in numbers:
        # one that is gone since the search leaves the others their answers
        with contextlib.suppress(NotThere):
            photos.append(album.photo(int(number)))
    found = album.same_pixels(_query(album, request), photos, _box(request))
    return [{"id": number, "verified": share} for number, share in found.items()]


def _query(album, request):
    asked = request.query_params
    if ("photo" in asked) == ("upload" in asked):
        raise UserError("one of photo and upload is needed: what to look for")
    if "photo" in asked:
        return album.photo(_number(request, "photo", None, 0, 2**62))
    return album.uploaded(asked["upload"])


def _box(request):
    box = request.query_params.get("box")
    if box is not None:
        try:
            box = tuple(map(float, box.split(",")))
        except ValueError:
            box = ()
        if len(box) != 4 or not all(map(math.isfinite, box)):
            raise UserError(f"box must be left,top,right,bottom, received {request.query_params['box'][:100]!r}")
    return box


def _how(request):
    return {
        "box": _box(request),
        "k": _number(request, "k", 20, 1, _LARGEST_PAGE),
        "precision": _share(request, 0.9),
        "expand": _number(request, "expand", 0, 0, 50),
    }


def _found(album, query, box, k, precision, expand):
    index = album.index
    answer = album.find(query, box, k, precision, expand)
    is_photo = not hasattr(query, "image")
    return {
        "query": {
            "photo": _told(query) if is_photo else None,
            "upload": None if is_photo else query.id,
            "picture": _told(query)["picture"] if is_photo else f"/api/uploads/{query.id}/picture?v=1",
            "box": box,
        },
        "classes": [{"name": name, "probability": share} for name, share in answer.classes],
        **{
            title: [{"photo": _told(hit.photo), "similarity": hit.similarity} for hit in getattr(answer, title)]
            for title in ("copies", "instances", "kind")
        },
        "thresholds": {kind: index.threshold(kind, precision) for kind in ("copy", "instance")},
        "estimated": not index.calibrated,
        "photos": len(index),
    }


def _photos(album, request):
    if not len(album):
        return {"total": 0, "more": False, "photos": []}
    index, (offset, limit) = album.index, _part(request)
    text, name = request.query_params.get("text"), request.query_params.get("class")
    if text:
        found = index.find_class(text[:200], limit + 1, offset)
        # the probability is that of what was asked for
        told = [_told(photo) | {"probability": probability} for photo, probability in found[:limit]]
        return {"total": None, "more": len(found) > limit, "photos": told}
    total = index.listed(name)
    found = [] if name is not None and not total else index.photos(offset, limit, name)
    return {"total": total, "more": offset + len(found) < total, "photos": list(map(_told, found))}


def _photo(album, request):
    return _told(_addressed(album, request))


def _thumbnail(album, request):
    photo = _addressed(album, request)
    # a file that was changed since is no picture of the content that the index knows
    lasts = photo.is_as_it_was()
    return album.thumbnails.get(album.file_of(photo), photo.sha256 if lasts else None), lasts


def _picture(album, request):
    photo = _addressed(album, request)
    return thumbnail(album.file_of(photo), _PICTURE_SIDE), photo.is_as_it_was()


def _upload_picture(album, request):
    return as_jpeg(album.uploaded(request.path_params["id"]).image), True


def _unusable(album, request):
    if album.indexing.running and _begun(album) is None:
        return []
    offset, limit = _part(request)
    found = album.index.unusable()[offset : offset + limit]
    return [{"name": printable_name(photo.name), "problem": printable_name(photo.problem or "")} for photo in found]


def _classes(album, request):
    if not len(album) or not album.index.about["class_names"]:
        return []
    return [{"name": name, "photos": count} for name, count in album.index.class_counts().items()]


def _compare(album, request):
    return {"started": album.compare(_share(request, 0.99))}


def _duplicates(album, request):
    offset, limit = _part(request)
    kind, found = request.query_params.get("kind"), album.duplicates
    if kind is not None and kind not in KINDS:
        raise UserError(f"kind must be one of {', '.join(KINDS)}, received {kind[:100]!r}")
    groups = [group for group in found.groups if kind in (None, group.kind)] if found else []
    shown = groups[offset : offset + limit]
    return {
        "found": found is not None,
        "total": len(groups),
        "spare": len(found.spare) if found else 0,
        "spare_bytes": found.spare_bytes if found else 0,
        "estimated": bool(found and found.estimated),
        "verified": bool(found and found.verified),
        "groups": [
            {
                "key": key,
                "decision": {
                    "skip": decision.skip,
                    "go": [photo.id for photo in group.photos if photo.name in decision.go],
                },
                "changed": album.has_changed(group),
                "kind": group.kind,
                "keep": _told(group.keep),
                "why": group.why,
                "members": [
                    {
                        "photo": _told(member.photo),
                        "relation": member.relation,
                        "similarity": member.similarity,
                        "verified": member.verified,
                        "spare": member.spare,
                    }
                    for member in group.members
                ],
            }
            for group, (key, decision) in zip(shown, album.decisions(shown), strict=True)
        ],
    }


def _decide(album, body):
    try:
        asked = json.loads(body)
        key, skip, go = asked["key"], asked["skip"], asked["go"]
        fits = isinstance(key, str) and isinstance(skip, bool) and all(type(number) is int for number in go)
    except (ValueError, KeyError, TypeError, RecursionError):
        fits = False
    if not fits:
        raise UserError('a decision is {"key": text, "skip": true or false, "go": [numbers of photos]}')
    album.decide(key, skip, go)
    return {"noted": True}


def _told(photo):
    """A photo, for JSON."""
    modified = None
    if photo.modified is not None:
        modified = datetime.datetime.fromtimestamp(photo.modified // 10**9, datetime.UTC).isoformat()
    # without a hash nothing tells another picture of the same name, and it is not kept
    version = f"?v={photo.sha256[:16]}-{LOOK}" if photo.sha256 else ""
    return {
        "id": photo.id,
        "name": printable_name(photo.name),
        "width": photo.width,
        "height": photo.height,
        "bytes": photo.file_size,
        "modified": modified,
        "class": photo.class_name,
        "probability": photo.probability,
        "thumbnail": f"/api/photos/{photo.id}/thumbnail{version}",
        "picture": f"/api/photos/{photo.id}/picture{version}",
    }


# what is asked


def _addressed(album, request):
    """The photo of the number in a path."""
    number = request.path_params["id"]
    if not _is_number(number):
        raise HTTPException(404)
    return album.photo(int(number))


def _is_number(text):
    # one that SQLite has room for
    return text.isascii() and text.isdigit() and len(text) < 19


def _part(request):
    return _number(request, "offset", 0, 0, 2**62), _number(request, "limit", 100, 1, _LARGEST_PAGE)


def _number(request, name, default, least, most):
    given = request.query_params.get(name)
    if given is None:
        return default
    if not (given.isascii() and given.isdigit() and len(given) < 20 and least <= int(given) <= most):
        raise UserError(f"{name} must be a whole number from {least} to {most}, received {given[:100]!r}")
    return int(given)


def _share(request, default):
    given = request.query_params.get("precision")
    try:
        share = default if given is None else float(given)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise UserError(f"precision must be above 0 and below 1, received {given[:100]!r}")
    return share


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(value).encode(), status, headers, "application/json")


def _error_body(status: int, message: str) -> bytes:
    del status
    return json.dumps({"error": message}).encode()


async def _refusal(request: Request, error: Exception) -> Response:
    """The answer to a request that failed, whatever the reason."""
    headers = None
    match error:
        case NotThere():
            status, message = 404, str(error)
        case NotYet() | Away():
            status, message, headers = 503, str(error), {"Retry-After": "2"}
        case UserError():
            status, message = 400, str(error)
        case HTTPException(status_code=404, detail="Not Found"):
            status, message = 404, f"there is nothing at {printable_name(request.url.path[:200])}"
        case _:
            status, message, headers = failure(error)
    return Response(_error_body(status, message), status, headers, "application/json")
