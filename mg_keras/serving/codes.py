"""The status codes of gRPC, and the HTTP statuses that TF Serving's REST interface gives them."""

from collections.abc import Mapping

# name -> (number in gRPC and TensorFlow, HTTP status)
CODES = {
    "OK": (0, 200),
    "CANCELLED": (1, 499),
    "UNKNOWN": (2, 500),
    "INVALID_ARGUMENT": (3, 400),
    "DEADLINE_EXCEEDED": (4, 504),
    "NOT_FOUND": (5, 404),
    "ALREADY_EXISTS": (6, 409),
    "PERMISSION_DENIED": (7, 403),
    "RESOURCE_EXHAUSTED": (8, 429),
    "FAILED_PRECONDITION": (9, 400),
    "ABORTED": (10, 409),
    "OUT_OF_RANGE": (11, 400),
    "UNIMPLEMENTED": (12, 501),
    "INTERNAL": (13, 500),
    "UNAVAILABLE": (14, 503),
    "DATA_LOSS": (15, 500),
    "UNAUTHENTICATED": (16, 401),
}

_NAMES = {number: name for name, (number, _) in CODES.items()}
# back again: INVALID_ARGUMENT stands for all that are sent as 400, and for 413, since a request stays too large
_FROM_HTTP = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    411: "INVALID_ARGUMENT",
    413: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    501: "UNIMPLEMENTED",
    # a proxy whose server is away
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class ServingError(Exception):
    """A request that was refused or failed.

    Attributes:
        code: str, the name of a gRPC status code, such as "INVALID_ARGUMENT".
        http_status: int, what the REST interface says (or said); 413 is a request that is too large.
        photos: {position: reason} of the photos or descriptors at fault, as the caller of `Client.embed` or
            `Client.classify` counts them; else empty.
    """

    def __init__(
        self, code: str, message: str, http_status: int | None = None, photos: Mapping[int, str] | None = None
    ):
        super().__init__(message)
        self.code = code
        self.http_status = CODES[code][1] if http_status is None else http_status
        self.photos = dict(photos or {})

    def __str__(self) -> str:
        return f"{self.code}: {self.args[0]}"


def code_of_number(number: int) -> str:
    """The name of a gRPC or TensorFlow status code; one that is not known is UNKNOWN."""
    return _NAMES.get(number, "UNKNOWN")


def code_of_http(status: int) -> str:
    """The gRPC code nearest to an HTTP status of an error; one that is not known is UNKNOWN."""
    return _FROM_HTTP.get(status, "UNKNOWN")
