"""A local server for development that answers TF Serving's REST and gRPC calls.

Write and test an application against it, then put TF Serving in its place (docs/serving.md): the calls are the same.
It listens on this machine only, without encryption or authentication.
"""

import math
import signal
import threading
from collections.abc import Sequence

from mg_keras.errors import UserError
from mg_keras.programs.common import Parser
from mg_keras.quiet import import_tensorflow

_DAY = 24 * 60 * 60
# flag: least and most
_RANGES = {
    "grpc_port": (0, 65535),
    "rest_port": (0, 65535),
    "num_versions": (0, math.inf),
    "poll_seconds": (0.001, _DAY),
    "max_batch_size": (1, math.inf),
    "batch_timeout_ms": (0, 60_000),
    "batch_threads": (1, 256),
    # gRPC counts bytes in 32 bits, one of them for the sign
    "max_request_mb": (0.001, 2047),
    "max_in_flight": (1, 10_000),
    "timeout": (0.001, _DAY),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments, the server, and where it listens."""
    parser = Parser("mg-keras serve", __doc__)
    add = parser.add_argument
    add("--model", type=str, required=True, help="the model's folder, such as models/multigrain")
    add("--name", type=str, default="multigrain", help="what requests call the model")
    add("--host", type=str, default="127.0.0.1", help="the address to listen on")
    add("--grpc_port", type=int, default=8500, help="0 takes a free one")
    add("--rest_port", type=int, default=8501, help="0 takes a free one")
    add("--num_versions", type=int, default=1, help="how many of the newest versions are served; 0 serves all")
    add("--version_labels", type=dict[str, int], default={}, help="such as '{stable: 1, canary: 2}'")
    add("--poll_seconds", type=float, default=1.0, help="time between two looks for new versions")
    add("--max_batch_size", type=int, default=16, help="photos in a batch, and in a request")
    add("--batch_timeout_ms", type=float, default=2.0, help="how long a request waits for others to join it")
    add("--batch_threads", type=int, default=2, help="batches that run at the same time")
    add("--max_request_mb", type=float, default=64.0, help="size of a request")
    add("--max_in_flight", type=int, default=64, help="requests at the same time")
    add("--timeout", type=float, default=30.0, help="seconds that a request may take")
    options = parser.parse_args(arguments)
    # before the model is loaded, which takes long
    for name, (least, most) in _RANGES.items():
        # nan is in no range
        if not options[name] >= least:
            raise UserError(f"--{name} must be at least {least}, received {options[name]}")
        if options[name] > most:
            raise UserError(f"--{name} must be at most {most}, received {options[name]}")
    # in a REST path, what is behind them is something else
    if not options.name or set("/:") & set(options.name):
        raise UserError(f"--name must be a name without / and :, received {options.name!r}")
    import_tensorflow()
    try:
        from mg_keras.serving.server import LocalServer
        from mg_keras.serving.service import Limits
    except ModuleNotFoundError as error:
        raise UserError(
            f'{error}: pip install "mg-keras[serving]" (in a checkout: -e ".[serving]") brings what it needs'
        ) from error

    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    limits = Limits(
        max_request_bytes=int(options.max_request_mb * 2**20),
        max_in_flight=options.max_in_flight,
        timeout=options.timeout,
    )
    with LocalServer(
        options.model,
        options.name,
        options.host,
        options.grpc_port,
        options.rest_port,
        options.num_versions,
        options.version_labels,
        options.poll_seconds,
        options.max_batch_size,
        options.batch_timeout_ms / 1000,
        options.batch_threads,
        limits,
    ) as server:
        available = [status.version for status in server.versions.statuses() if status.state == "AVAILABLE"]
        host = f"[{options.host}]" if ":" in options.host else options.host
        print("Local server for development; in production, TF Serving takes the same calls (docs/serving.md).")
        print(f"{options.model}: versions {available}")
        print(f"REST http://{host}:{server.rest_port}/v1/models/{options.name}")
        print(f"gRPC {host}:{server.grpc_port}")
        print("Ctrl-C stops it.", flush=True)
        stopped.wait()
