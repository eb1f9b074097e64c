"""Times the local server by REST and gRPC, and soaks it in good and malformed requests.

    python -m benchmarks.serving --model models/multigrain
    python -m benchmarks.serving --model models/multigrain --soak 10000

The first prints latency and throughput of requests for one photo each (a JPEG of about 320x240 pixels, signature
`encoded`), from 1, 4 and 16 clients at a time; clients and server share the machine's cores.

The second sends N requests from 16 clients, half of them by REST, half by gRPC. One in ten is malformed, in nine ways
by each. In every fifth of them but the first, the same model appears as the next version, and the one before is taken
away. It fails (status 1) unless every good request is answered right, every malformed one is refused with its code, and
the server's memory is at the end what it was after the first such swap. (The first one needs more: while both versions
are loaded, TensorFlow's pool of CPU memory grows, and it keeps for later what it once had.)
"""

import collections
import functools
import http.client
import io
import shutil
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.arguments import benchmark_parser
from benchmarks.timing import machine, print_table
from mg_keras.errors import UserError
from mg_keras.files import atomic_path
from mg_keras.programs.common import run_program
from mg_keras.quiet import import_tensorflow

CLIENTS = (1, 4, 16)
MAX_REQUEST_MB = 4
TOLERANCE = 1e-4
PARTS = 5
# of the memory after the first swap of versions
MEMORY_GROWTH = 1.05


def draw_photos(count):
    """`count` JPEGs as bytes, about 320x240 pixels, every one of another size."""
    from PIL import Image

    random = np.random.default_rng(0)
    files = []
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8))
        file = io.BytesIO()
        coarse.resize((320 + number, 240 - number), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def clients_of(server):
    """{name: function that makes a client}."""
    from mg_keras.serving.client import GrpcClient, RestClient

    return {"REST": functools.partial(RestClient, server.rest), "gRPC": functools.partial(GrpcClient, server.grpc)}


def measure(make_client, clients, requests, photos, resolution):
    """Latencies in seconds, sorted, and requests a second."""
    with make_client(retries=0) as client:

        def ask(number):
            start = time.perf_counter()
            client.embed([photos[number % len(photos)]], resolution)
            return time.perf_counter() - start

        with ThreadPoolExecutor(clients) as threads:
            # connections, first runs of each batch size
            list(threads.map(ask, range(4 * clients)))
            start = time.perf_counter()
            latencies = sorted(threads.map(ask, range(requests)))
            return latencies, requests / (time.perf_counter() - start)


def latency_table(server, options, photos):
    """Prints latency and throughput of both interfaces."""
    rows = []
    for clients in CLIENTS:
        for name, make_client in clients_of(server).items():
            latencies, rate = measure(make_client, clients, options.requests, photos, options.resolution)
            cells = (f"{np.percentile(latencies, share) * 1e3:.1f}" for share in (50, 95, 99))
            rows.append([f"{name}, {clients}", *cells, f"{rate:.1f}"])
    print_table(
        f"Requests for one photo at {options.resolution or 'its own'} px, {options.requests} each",
        ("interface, clients", "p50 ms", "p95 ms", "p99 ms", "photos a second"),
        rows,
    )


def malformed_rest(address, resolution):
    """{what is wrong: (function that sends it and returns the HTTP status, the status it must be)}."""

    def send(body, path="/v1/models/multigrain:predict"):
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
        try:
            connection.request("POST", path, body)
            response = connection.getresponse()
            if b'"error"' not in response.read():
                raise AssertionError("a refusal without an error message")
            return response.status
        finally:
            connection.close()

    def encoded(image):
        return f'{{"signature_name": "encoded", "inputs": {{"image_bytes": [{image}], "resolution": [{resolution}], '

    bodies = {
        "not an image": (encoded('{"b64": "aGVsbG8="}') + '"p_star": [0]}}', 400),
        "an empty file": (encoded('{"b64": ""}') + '"p_star": [0]}}', 400),
        "huge": (b" " * (MAX_REQUEST_MB * 2**20 + 1), 413),
        "wrong type": (encoded("7") + '"p_star": [0]}}', 400),
        "wrong shape": ('{"signature_name": "classify_embedding", "inputs": {"embedding": [[1, 2]]}}', 400),
        "unknown signature": ('{"signature_name": "nothing", "inputs": {"x": [1]}}', 400),
        "truncated JSON": (encoded('{"b64": "aGVsbG8="}') + '"p_st', 400),
        "deep JSON": ('{"inputs": ' + "[" * 100_000, 400),
    }
    sends = {name: (functools.partial(send, body), status) for name, (body, status) in bodies.items()}
    sends["unknown model"] = (functools.partial(send, '{"inputs": [1]}', "/v1/models/nothing:predict"), 404)
    return sends


def malformed_grpc(client, nameless, resolution):
    """{what is wrong: (function that sends it and returns the code, the code it must be)}."""
    from mg_keras.serving.codes import ServingError

    def send(signature, to=client, **inputs):
        try:
            to.predict(signature, inputs)
        except ServingError as error:
            return error.code if error.args[0] else "no message"
        return "OK"

    photo = {"resolution": np.int32([resolution]), "p_star": np.float32([0])}
    requests = {
        "not an image": ("encoded", {"image_bytes": [b"hello"], **photo}, "INVALID_ARGUMENT"),
        "an empty file": ("encoded", {"image_bytes": [b""], **photo}, "INVALID_ARGUMENT"),
        "huge": ("encoded", {"image_bytes": [b" " * (MAX_REQUEST_MB * 2**20)], **photo}, "RESOURCE_EXHAUSTED"),
        "wrong type": ("encoded", {**photo, "image_bytes": [b""], "p_star": np.int64([1])}, "INVALID_ARGUMENT"),
        "wrong shape": ("classify_embedding", {"embedding": np.ones((1, 2))}, "INVALID_ARGUMENT"),
        "unknown signature": ("nothing", {"x": np.ones(1)}, "FAILED_PRECONDITION"),
        "missing input": ("encoded", photo, "INVALID_ARGUMENT"),
        "no photos": ("classify_embedding", {"embedding": np.ones((0, 2))}, "INVALID_ARGUMENT"),
    }
    sends = {name: (functools.partial(send, key, **inputs), code) for name, (key, inputs, code) in requests.items()}
    sends["unknown model"] = (functools.partial(send, "encoded", to=nameless), "NOT_FOUND")
    return sends


class Soak:
    """The requests of a soak, and what became of them."""

    def __init__(self, server, versions, photos, expected, resolution):
        """`versions` is the served folder, `expected` the SavedModel's own answers for `photos`."""
        makers = clients_of(server)
        self._clients = [make_client() for make_client in makers.values()]
        self._strict = makers["gRPC"](retries=0)
        self._nameless = makers["gRPC"](name="nothing", retries=0)
        self._malformed = [
            list(malformed_rest(server.rest, resolution).items()),
            list(malformed_grpc(self._strict, self._nameless, resolution).items()),
        ]
        self._server, self._versions = server, versions
        self._photos, self._expected, self._resolution = photos, expected, resolution
        self._lock = threading.Lock()
        self.refused = collections.Counter()
        self.answered = 0
        self.faults = []
        self.memory = []

    def run(self, requests, clients):
        """Send `requests` requests from `clients` threads; in each part but the first one version replaces another."""
        done = 0
        with ThreadPoolExecutor(clients) as threads:
            for part in range(PARTS):
                last = requests * (part + 1) // PARTS
                pending = [threads.submit(self._one, number) for number in range(done, last)]
                if part:
                    # under the load of this part
                    self._swap(part, part + 1)
                for future in pending:
                    future.result()
                self.memory.append(self._server.resident_bytes())
                done = last
        for client in (*self._clients, self._strict, self._nameless):
            client.close()

    def _one(self, number):
        try:
            fault = self._bad(number // 10) if number % 10 == 9 else self._good(number)
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
        if fault:
            with self._lock:
                self.faults.append(f"request {number}: {fault}")

    def _good(self, number):
        place = number // 2 % len(self._photos)
        got = self._clients[number % 2].embed([self._photos[place]], self._resolution)
        if got.classes[0] != self._expected["class"][place]:
            return "another class than the SavedModel's"
        difference = np.abs(got.embedding[0] - self._expected["embedding"][place]).max()
        if not difference < TOLERANCE:
            return f"the descriptor differs by {difference} from the SavedModel's"
        with self._lock:
            self.answered += 1
        return None

    def _bad(self, number):
        kinds = self._malformed[number % 2]
        name, (send, expected) = kinds[number // 2 % len(kinds)]
        got = send()
        if got != expected:
            return f"{name}: {got}, not {expected}"
        with self._lock:
            self.refused[name] += 1
        return None

    def _swap(self, old, new):
        with atomic_path(self._versions / str(new)) as partial:
            shutil.copytree(self._versions / str(old), partial)
        self._wait_for({old, new})
        shutil.rmtree(self._versions / str(old))
        self._wait_for({new})

    def _wait_for(self, versions):
        until = time.monotonic() + 60
        while time.monotonic() < until:
            states = self._clients[1].status()
            if {version for version, state in states.items() if state == "AVAILABLE"} == versions:
                return
            time.sleep(0.1)
        raise AssertionError(f"versions are {states}, not {versions}")


def saved_models_answers(folder, photos, resolution):
    """{output: array [N, ...]} of the SavedModel itself, one photo a call."""
    import tensorflow as tf

    encoded = tf.saved_model.load(folder).signatures["encoded"]
    answers = [
        encoded(image_bytes=tf.constant([photo]), resolution=tf.constant([resolution]), p_star=tf.constant([0.0]))
        for photo in photos
    ]
    return {name: np.concatenate([answer[name].numpy() for answer in answers]) for name in answers[0]}


def soak(server, versions, options, photos):
    """Prints what became of the requests, and returns whether all was well."""
    expected = saved_models_answers(versions / "1", photos, options.resolution)
    trial = Soak(server, versions, photos, expected, options.resolution)
    start = time.perf_counter()
    trial.run(options.soak, max(CLIENTS))
    seconds = time.perf_counter() - start
    refused = sum(trial.refused.values())
    print(
        f"{options.soak} requests from {max(CLIENTS)} clients in {seconds:.0f} s: {trial.answered} answered right, "
        f"{refused} malformed refused ({len(trial.refused)} kinds), {len(trial.faults)} faults"
    )
    before, *after = (f"{size / 2**20:.0f}" for size in trial.memory)
    print(f"server's memory, MB: {before} before the first swap of versions; after each swap {', '.join(after)}")
    for fault in trial.faults[:20]:
        print(fault)
    level = trial.memory[-1] <= trial.memory[1] * MEMORY_GROWTH
    if not level:
        print("the server's memory is not level")
    return level and not trial.faults and trial.answered + refused == options.soak


def check_that_it_answers(server, source, photo, resolution):
    """A UserError for a model that takes no photos as files, such as one exported before that signature was."""
    from mg_keras.serving.client import GrpcClient
    from mg_keras.serving.codes import ServingError

    with GrpcClient(server.grpc) as client:
        try:
            client.embed([photo], resolution)
        except ServingError as error:
            raise UserError(f"{source} does not answer (mg-keras export writes a model that does): {error}") from error


def newest_version(folder):
    """The folder of a model's newest version."""
    found = [path for path in Path(folder).glob("*") if path.name.isdecimal() and path.is_dir()]
    if not found:
        raise UserError(f"{folder} holds no version of a model: mg-keras export --out {folder} writes one")
    return max(found, key=lambda path: int(path.name))


def main():
    """Parses the arguments, starts a server on a copy of the model, and does what is asked for."""
    parser = benchmark_parser("serving", __doc__)
    parser.add_argument("--model", required=True, help="the model's folder, such as models/multigrain")
    parser.add_argument("--resolution", type=int, default=224, help="pixels of the largest side; 0: as the photos are")
    parser.add_argument("--requests", type=int, default=200, help="timed requests for each line (200)")
    parser.add_argument("--soak", type=int, default=0, help="requests of the soak, instead of the timing")
    options = parser.parse_args()
    for name, least in {"requests": 1, "soak": 0, "resolution": 0}.items():
        if getattr(options, name) < least:
            raise UserError(f"--{name} must be at least {least}, received {getattr(options, name)}")
    source = newest_version(options.model)
    import_tensorflow()
    from mg_keras.serving.process import server_process

    print(machine())
    photos = draw_photos(8)
    with tempfile.TemporaryDirectory() as folder:
        versions = Path(folder, "multigrain")
        shutil.copytree(source, versions / "1")
        flags = ("--num_versions", "2", "--poll_seconds", "0.2", "--max_request_mb", str(MAX_REQUEST_MB))
        with server_process(versions, *flags) as server:
            check_that_it_answers(server, source, photos[0], options.resolution)
            if not options.soak:
                latency_table(server, options, photos)
            elif not soak(server, versions, options, photos):
                sys.exit(1)


if __name__ == "__main__":
    run_program(main)
