"""What the clients do by themselves: retries, deadlines, batches, and refusing what no server needs to see."""

import base64
import contextlib
import json
import math
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import numpy as np
import pytest
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusResponse

import mg_keras.serving.client
from mg_keras.serving.client import Client, GrpcClient, RestClient
from mg_keras.serving.codes import ServingError
from tests.serving import stand_in
from tests.serving.conftest import free_port

ROOT = Path(__file__).resolve().parents[2]
ANSWER = {"logits": [[1.0, 2.0]], "class": [1], "probability": [0.7]}


@pytest.fixture
def scripted_rest():
    """A server that answers with the statuses it is given, one after the other, then with 200."""
    script, requests = [], []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            requests.append((self.path, json.loads(body)))
            status = script.pop(0) if script else 200
            if status == "late":
                time.sleep(0.5)
                status = 200
            if status == "hang up":
                self.close_connection = True
                return
            answer = json.dumps({"outputs": ANSWER} if status == 200 else {"error": "not now"}).encode()
            if status == "no JSON":
                status, answer = 200, b"<html>"
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    # a client that did not wait for its answer
    server.handle_error = lambda request, address: None
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", script, requests
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def scripted_grpc():
    """A server that refuses with the codes it is given, one after the other, then with OUT_OF_RANGE."""
    script, requests = [], []

    class Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request, context):
            requests.append(request)
            context.abort(script.pop(0) if script else grpc.StatusCode.OUT_OF_RANGE, "not now")

    server = grpc.server(ThreadPoolExecutor(2))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Prediction(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", script, requests
    server.stop(None).wait()


@pytest.fixture
def waits(monkeypatch):
    """The waits between retries, which pass at once."""
    waited = []
    monkeypatch.setattr(mg_keras.serving.client.time, "sleep", waited.append)
    return waited


EMBEDDING = np.ones((1, 3), np.float32)


def test_rest_retries_what_may_pass(scripted_rest, waits):
    address, script, requests = scripted_rest
    script += [503, 429, 502, 503]
    assert RestClient(address, retries=4, seed=0).classify(EMBEDDING).classes == [1]
    assert len(requests) == 5
    assert len(waits) == 4
    for wait, longest in zip(waits, (0.1, 0.2, 0.4, 0.8), strict=True):
        assert 0 <= wait <= longest
    assert len(set(waits)) == 4


def test_rest_gives_up(scripted_rest, waits):
    address, script, requests = scripted_rest
    script += [503] * 9
    with pytest.raises(ServingError, match="HTTP 503: not now") as refused:
        RestClient(address, retries=3).classify(EMBEDDING)
    assert refused.value.code == "UNAVAILABLE"
    assert refused.value.http_status == 503
    assert len(requests) == 4


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "INVALID_ARGUMENT"), (404, "NOT_FOUND"), (413, "INVALID_ARGUMENT"), (500, "UNKNOWN"),
        (504, "DEADLINE_EXCEEDED"), ("no JSON", "UNKNOWN"),
    ],
)  # fmt: skip
def test_rest_does_not_retry_the_rest(scripted_rest, waits, status, code):
    address, script, requests = scripted_rest
    script.append(status)
    with pytest.raises(ServingError) as refused:
        RestClient(address).classify(EMBEDDING)
    assert refused.value.code == code
    assert len(requests) == 1
    assert not waits


@pytest.mark.parametrize("answer", ["[]", "3", "null", "{}", '{"outputs": 3}', '{"model_version_status": [{}]}', "hi"])
def test_what_is_no_tf_serving_is_told_in_one_error(monkeypatch, waits, answer):
    monkeypatch.setattr(RestClient, "_exchange", lambda *_: (200, answer.encode()))
    with RestClient("http://127.0.0.1:80") as client:
        for ask in (client.status, lambda: client.classify(EMBEDDING)):
            with pytest.raises(ServingError, match=r"^UNKNOWN: .*127\.0\.0\.1:80 does not answer as TF Serving does"):
                ask()
    assert not waits


def test_grpc_retries_what_may_pass(scripted_grpc, waits):
    address, script, requests = scripted_grpc
    script += [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED]
    with GrpcClient(address) as client, pytest.raises(ServingError, match="not now") as refused:
        client.classify(EMBEDDING)
    assert refused.value.code == "OUT_OF_RANGE"
    assert len(requests) == 3
    assert len(waits) == 2


class Refused(Client):
    """A client whose every request is refused."""

    def close(self):
        pass

    def _predict(self, signature, inputs, until):
        raise ServingError("UNAVAILABLE", "not now")

    def _status(self, until):
        raise ServingError("RESOURCE_EXHAUSTED", "not now")

    def _output_sizes(self, signature, until):
        raise ServingError("NOT_FOUND", "not there")

    def _sent_bytes(self, photo):
        return len(photo)


def test_waits_grow_to_five_seconds(waits):
    client = Refused("nowhere", timeout=3600, retries=300, seed=1)
    with pytest.raises(ServingError):
        client.classify(EMBEDDING)
    assert len(waits) == 300
    late = np.array(waits[6:])
    assert late.max() <= 5
    # evenly from 0 to 5: the mean of 294 has a standard deviation of 0.084
    assert abs(late.mean() - 2.5) < 0.42


@pytest.mark.parametrize("make", [RestClient, GrpcClient])
def test_a_seed_repeats_the_waits(make, waits):
    address = {RestClient: "http://127.0.0.1:9", GrpcClient: "127.0.0.1:9"}[make]
    seen = []
    for seed in (5, 5, 6):
        with make(address, retries=4, seed=seed) as client, pytest.raises(ServingError) as refused:
            client.classify(EMBEDDING)
        # nobody listens there
        assert refused.value.code == "UNAVAILABLE"
        seen.append(waits.copy())
        waits.clear()
    assert seen[0] == seen[1] != seen[2]


def test_the_deadline_covers_the_retries(scripted_rest):
    address, script, _ = scripted_rest
    script += [503] * 1000
    start = time.monotonic()
    with pytest.raises(ServingError) as refused:
        RestClient(address, timeout=0.3, retries=1000).classify(EMBEDDING)
    assert refused.value.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
    # far from the hour that a thousand waits would take
    assert time.monotonic() - start < 30


def test_an_answer_that_comes_late(scripted_rest):
    address, script, _ = scripted_rest
    script.append("late")
    with pytest.raises(ServingError, match="no answer within") as refused:
        RestClient(address, timeout=0.1).classify(EMBEDDING)
    assert refused.value.code == "DEADLINE_EXCEEDED"


@pytest.mark.parametrize(
    ("which", "path"),
    [
        ({}, "/v1/models/multigrain"),
        ({"version": 3}, "/v1/models/multigrain/versions/3"),
        ({"label": "stable"}, "/v1/models/multigrain/labels/stable"),
        ({"name": "a/b"}, "/v1/models/a%2Fb"),
    ],
)
def test_rest_addresses(scripted_rest, which, path):
    address, _, requests = scripted_rest
    RestClient(address + "/", **which).classify(EMBEDDING)
    RestClient(address + "/gateway", **which).classify(EMBEDDING)
    assert [request[0] for request in requests] == [f"{path}:predict", f"/gateway{path}:predict"]


def test_encrypted_rest_is_not_answered_in_plain(scripted_rest):
    address, _, requests = scripted_rest
    with pytest.raises(ServingError, match="SSL") as refused:
        RestClient(address.replace("http", "https"), retries=0).classify(EMBEDDING)
    assert refused.value.code == "UNAVAILABLE"
    assert not requests


def test_photos_are_sent_in_batches_and_come_back_in_order(client):
    photos = [stand_in.photo(seed, 4 + seed % 3, 5) for seed in range(20)]
    exponents = 1 + np.arange(20) / 10
    expected = stand_in.expected(photos, exponents)
    asked = []
    predict = client._predict
    client._predict = lambda signature, inputs, until: (
        asked.append((signature, len(inputs["p_star"]))) or predict(signature, inputs, until)
    )
    by_array = client.embed(photos, p_star=exponents)
    # 7, 7 and 6 photos of three shapes
    assert asked == [("serving_default", size) for size in (7, 7, 6)]
    asked.clear()
    by_file = client.embed([stand_in.png(photo) for photo in photos], 0, p_star=exponents)
    assert asked == [("encoded", size) for size in (8, 8, 4)]
    for prediction in (by_array, by_file):
        np.testing.assert_allclose(prediction.embedding, expected["embedding"], atol=1e-5)
        np.testing.assert_array_equal(prediction.classes, expected["class"])


def test_one_client_serves_many_threads(client):
    photos = [stand_in.photo(seed) for seed in range(6)]
    expected = stand_in.expected(photos, [2.0] * 6)["embedding"]

    def ask(number):
        return client.embed([stand_in.png(photos[number % 6])], 0, p_star=2.0).embedding[0]

    with ThreadPoolExecutor(8) as threads:
        for number, got in enumerate(threads.map(ask, range(60))):
            np.testing.assert_allclose(got, expected[number % 6], atol=1e-5)


@pytest.mark.parametrize(
    ("photos", "keywords", "message"),
    [
        ([], {}, "at least one"),
        ([b"", np.zeros((2, 2, 3))], {}, "all of one kind"),
        (["photo.jpg"], {}, "must be bytes or arrays"),
        ([np.zeros((2, 2))], {"p_star": 3}, r"received shape \(2, 2\)"),
        ([np.zeros((2, 2, 3))], {}, "p_star > 0"),
        ([np.zeros((2, 2, 3))], {"p_star": 3, "resolution": 224}, "no resolution, received 3 and 224"),
        ([b""], {}, "files need a resolution"),
        ([b""], {"resolution": 0, "on_error": "ignore"}, "received 'ignore'"),
        ([b""], {"resolution": 224.7}, "whole numbers of pixels were expected, received 224.7"),
        ([b"", b""], {"resolution": [224, 0.5]}, r"whole numbers of pixels .* \[224, 0.5\]"),
        ([b""], {"resolution": 2**32 + 224}, "no photo has so many pixels on a side: 4294967520"),
        ([b""], {"resolution": float("inf")}, "no photo has so many pixels on a side: inf"),
        (b"one", {"resolution": 0}, "give a list of photos.* single bytes"),
        (bytearray(b"one"), {"resolution": 0}, "give a list of photos.* single bytearray"),
        (Path("photo.jpg"), {"resolution": 0}, "give a list of photos.* single"),
        (np.zeros((4, 5, 3)), {"p_star": 3}, "give a list of photos.* single ndarray"),
        ([b"", b""], {"p_star": [1, 2, 3]}, r"2 photos or one a photo, received shape \(3,\)"),
    ],
)
def test_photos_that_no_server_needs_to_see(photos, keywords, message):
    with pytest.raises(ValueError, match=message):
        RestClient("http://127.0.0.1:9").embed(photos, **keywords)


def test_pixels_in_0_to_1_are_not_taken_for_a_black_photo(client):
    photo = stand_in.photo(1)
    message = "photo 1: an array with values in 0-1, where 0-255 was expected: multiply them by 255"
    given = [photo, photo / 255.0, np.zeros_like(photo, float), np.ones_like(photo)]
    with pytest.raises(ValueError, match=f"^{message}$"):
        client.embed(given, p_star=2)
    found = client.embed(given, p_star=2, on_error="skip")
    assert found.errors == {1: message.removeprefix("photo 1: ")}
    expected = client.embed([given[0], *given[2:]], p_star=2)
    np.testing.assert_allclose(found.embedding[[0, 2, 3]], expected.embedding, atol=1e-5)
    assert np.isnan(found.embedding[1]).all()
    assert found.classes[1] == -1
    alone = client.embed(given[1:2], p_star=2, on_error="skip")
    assert alone.errors.keys() == {0}
    assert alone.embedding.shape == found.embedding[:1].shape


@pytest.mark.parametrize("embeddings", [np.ones(3), np.ones((0, 3))])
def test_descriptors_that_no_server_needs_to_see(embeddings):
    with pytest.raises(ValueError, match="received shape"):
        RestClient("http://127.0.0.1:9").classify(embeddings)


@pytest.mark.parametrize(
    ("make", "address", "keywords", "message"),
    [
        (RestClient, "127.0.0.1:8501", {}, "a URL such as"),
        (GrpcClient, "http://127.0.0.1:8500", {}, "such as 127.0.0.1:8500"),
        (RestClient, "http://x", {"version": 1, "label": "stable"}, "not both"),
        (RestClient, "http://x", {"timeout": 0}, "timeout must be greater than 0, received 0"),
        (RestClient, "http://x", {"timeout": math.nan}, "timeout must be greater than 0, received nan"),
        (RestClient, "http://x", {"batch_size": 2.5}, "batch_size must be a whole number, received 2.5"),
        (RestClient, "http://x", {"retries": -1}, "retries must be at least 0, received -1"),
        (RestClient, "http://x", {"batch_size": 0}, "batch_size must be at least 1, received 0"),
        (RestClient, "http://x", {"batch_bytes": 0}, "batch_bytes must be at least 1, received 0"),
        (RestClient, "http://x", {"context": ssl.create_default_context()}, "a context is for https"),
    ],
)
def test_wrong_arguments(make, address, keywords, message):
    with pytest.raises(ValueError, match=message):
        make(address, **keywords)


REST_ALONE = """
import sys
for blocked in ("tensorflow", "keras", "grpc", "google.protobuf"):
    sys.modules[blocked] = None
from pathlib import Path
import numpy as np
from mg_keras.serving.client import RestClient
with RestClient(sys.argv[1]) as client:
    np.save(sys.argv[3], client.embed([Path(sys.argv[2]).read_bytes()], 0, p_star=2).embedding)
"""


def test_rest_needs_numpy_alone(server, tmp_path):
    photo = stand_in.photo(1)
    (tmp_path / "photo.png").write_bytes(stand_in.png(photo))
    command = [sys.executable, "-c", REST_ALONE, server.rest, str(tmp_path / "photo.png"), str(tmp_path / "answer.npy")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    got = np.load(tmp_path / "answer.npy")
    np.testing.assert_allclose(got, stand_in.expected([photo], [2.0])["embedding"], atol=1e-5)


class Graph(Client):
    """A client of a graph that answers each photo with its number, and names the broken ones as `encoded` does.

    Args:
        sizes: photos of each request, as they came.
        neighbours: {number of the request: photos of other clients that the server put before it}.
        max_photos: more are too large a request.
    """

    def __init__(self, neighbours=None, max_photos=99, **keywords):
        super().__init__("nowhere", **keywords)
        self.requests, self._neighbours, self._max_photos = [], neighbours or {}, max_photos

    def close(self):
        pass

    def _predict(self, signature, inputs, until):
        if signature == "classify_embedding":
            values = inputs["embedding"][:, :1]
            self.requests.append(list(values[:, 0]))
            if (zero := np.flatnonzero(values == 0)).size:
                told = "; ".join(f"descriptor {number}: all 0" for number in zero)
                raise ServingError("INVALID_ARGUMENT", f"assertion failed: [{told}]")
            return {"logits": values, "class": np.int64(values[:, 0]), "probability": values[:, 0]}
        files = list(inputs["image_bytes"])
        self.requests.append(files)
        if len(files) > self._max_photos:
            raise ServingError("RESOURCE_EXHAUSTED", "Received message larger than max (9 vs. 8)", 413)
        batch = self._neighbours.get(len(self.requests) - 1, []) + files
        broken = [f"photo {number}: {file.decode()}" for number, file in enumerate(batch) if file.startswith(b"bad")]
        if broken:
            raise ServingError("INVALID_ARGUMENT", f"assertion failed: [{'; '.join(broken)}]\n\t [[{{{{node x}}}}]]")
        values = np.float32([[int(file)] for file in files])
        return {
            "embedding": np.tile(values, 3), "logits": values, "class": np.int64(values[:, 0]),
            "probability": values[:, 0],
        }  # fmt: skip

    def _status(self, until):
        return {}

    def _output_sizes(self, signature, until):
        sizes = {"embedding": [3], "logits": [1], "class": [], "probability": []}
        return {name: size for name, size in sizes.items() if name != "embedding" or signature == "encoded"}

    def _sent_bytes(self, photo):
        return len(photo)


def numbered(count, broken=()):
    return [b"bad, %d; [no photo" % number if number in broken else b"%d" % number for number in range(count)]


def assert_only_these_are_missing(prediction, count, broken):
    expected = np.float32([np.nan if number in broken else number for number in range(count)])
    np.testing.assert_array_equal(prediction.embedding, np.tile(expected[:, None], 3))
    np.testing.assert_array_equal(prediction.logits, expected[:, None])
    np.testing.assert_array_equal(prediction.probability, expected)
    np.testing.assert_array_equal(prediction.classes, np.where(np.isnan(expected), -1, np.arange(count)))
    assert prediction.classes.dtype == np.int64
    assert list(prediction.errors) == sorted(broken)
    for number, reason in prediction.errors.items():
        assert reason == f"bad, {number}; [no photo"


def test_the_former_name_goes_on_working():
    with pytest.warns(DeprecationWarning, match="called embed now"):
        assert_only_these_are_missing(Graph().describe(numbered(3, {1}), 0, on_error="skip"), 3, {1})


def test_a_broken_photo_is_told_by_its_position():
    with pytest.raises(ServingError) as refused:
        Graph().embed(numbered(20, {13, 15}), 0)
    assert str(refused.value) == "INVALID_ARGUMENT: photo 13: bad, 13; [no photo; photo 15: bad, 15; [no photo"
    assert refused.value.photos == {13: "bad, 13; [no photo", 15: "bad, 15; [no photo"}
    assert refused.value.code == "INVALID_ARGUMENT"


@pytest.mark.parametrize("broken", [{13}, {0, 7, 8, 19}, {3, 4, 5}, set(range(8, 16)), set(range(20)), set()])
def test_broken_photos_are_skipped(broken):
    client = Graph()
    prediction = client.embed(numbered(20, broken), 0, on_error="skip")
    assert_only_these_are_missing(prediction, 20, broken)
    # each batch, what is left of it, and each broken photo by itself
    assert len(client.requests) <= 3 + 3 + len(broken)


@pytest.mark.parametrize("broken", [{13}, {0, 7, 8, 19}, set(range(8, 16)), set(range(20)), set()])
def test_a_photo_that_was_skipped_gets_no_class_from_its_row_either(broken):
    client = Graph()
    skipped = client.embed(numbered(20, broken), 0, on_error="skip").embedding
    skipped += 1
    client.requests.clear()
    found = client.classify(skipped)
    assert found.embedding is skipped
    expected = np.float32([np.nan if number in broken else number + 1 for number in range(20)])
    np.testing.assert_array_equal(found.logits, expected[:, None])
    np.testing.assert_array_equal(found.probability, expected)
    np.testing.assert_array_equal(found.classes, np.where(np.isnan(expected), -1, np.arange(20) + 1))
    assert found.errors == dict.fromkeys(sorted(broken), "no descriptor: it holds NaN")
    sent = [value for request in client.requests for value in request]
    assert sent == [value for value in expected if not np.isnan(value)]


def test_a_descriptor_at_fault_is_told_by_its_position():
    rows = np.arange(1, 21, dtype=np.float32)[:, None]
    rows[[3, 12, 14]] = [[np.nan], [0], [0]]
    with pytest.raises(ServingError) as refused:
        Graph().classify(rows)
    assert str(refused.value) == "INVALID_ARGUMENT: descriptor 12: all 0; descriptor 14: all 0"
    assert refused.value.photos == {12: "all 0", 14: "all 0"}


def test_photos_of_other_clients_in_a_joint_batch():
    # before the first request stand 2 photos of another client, one broken: photo 1 is not ours, though it could be
    joined = {0: [b"1", b"bad"], 1: [b"1"] * 10 + [b"bad"], 2: [b"1"] * 4 + [b"bad"]}
    for broken in (set(), {2}):
        client = Graph(neighbours=joined)
        assert_only_these_are_missing(client.embed(numbered(4, broken), 0, on_error="skip"), 4, broken)
    # numbers that can't be right
    client = Graph(neighbours={0: [b"1"] * 30 + [b"bad"]})
    assert_only_these_are_missing(client.embed(numbered(4), 0), 4, set())
    assert [len(request) for request in client.requests] == [4, 1, 1, 1, 1]
    with pytest.raises(ServingError, match="photo 2: bad, 2") as refused:
        Graph(neighbours={0: [b"1"] * 30 + [b"bad"]}).embed(numbered(4, {2}), 0)
    assert list(refused.value.photos) == [2]


def test_a_photo_beside_a_broken_one_of_another_client_again_and_again(waits):
    client = Graph(neighbours={number: [b"1", b"bad"] for number in range(100)}, retries=5)
    with pytest.raises(ServingError, match="photo 1: bad"):
        client.embed([b"7"], 0, on_error="skip")
    assert len(client.requests) == 6


def test_a_request_that_is_too_large_is_divided():
    client = Graph(max_photos=3)
    assert_only_these_are_missing(client.embed(numbered(8), 0), 8, set())
    assert [len(request) for request in client.requests] == [8, 4, 2, 2, 4, 2, 2]
    prediction = Graph(max_photos=0).embed([b"1", b"2"], 0, on_error="skip")
    assert set(prediction.errors) == {0, 1}
    with pytest.raises(ServingError, match="photo 0: Received message larger than max") as refused:
        Graph(max_photos=0).embed([b"1", b"2"], 0)
    assert refused.value.code == "RESOURCE_EXHAUSTED"


def test_what_is_no_photos_fault_is_not_skipped(scripted_rest):
    address, script, requests = scripted_rest
    script.append(400)
    with pytest.raises(ServingError, match="not now") as refused:
        RestClient(address).embed([b"1", b"2"], 0, on_error="skip")
    assert refused.value.photos == {}
    assert len(requests) == 1


@pytest.mark.parametrize(
    ("make", "address"), [(RestClient, "http://127.0.0.1:9"), (GrpcClient, "127.0.0.1:9")], ids=["rest", "grpc"]
)
def test_requests_are_bounded_by_bytes(make, address):
    with make(address, batch_bytes=1000) as client:
        sizes = []

        def answer(signature, inputs, until):
            values = inputs.get("images", inputs.get("image_bytes"))
            sizes.append([len(value) for value in values])
            count = len(sizes[-1])
            return {"embedding": np.ones((count, 3)), "logits": np.ones((count, 2)), "class": np.ones(count, np.int64),
                    "probability": np.ones(count)}  # fmt: skip

        client._predict = answer
        client.embed([bytes(size) for size in (100, 300, 300, 300, 2000, 10, 10)], 0)
        # REST sends four bytes for three
        in_rest, in_grpc = [[100, 300, 300], [300], [2000], [10, 10]], [[100, 300, 300, 300], [2000], [10, 10]]
        assert sizes == (in_rest if make is RestClient else in_grpc)
        sizes.clear()
        # 48 values each: 192 bytes by gRPC, 288 as digits
        client.embed([np.zeros((4, 4, 3), np.uint8)] * 8, p_star=3)
        assert [len(size) for size in sizes] == ([3, 3, 2] if make is RestClient else [5, 3])


def test_the_estimate_of_bytes_is_enough():
    random = np.random.default_rng(0)
    client = RestClient("http://127.0.0.1:9")
    for array in (
        random.integers(100, 256, (9, 9, 3), np.uint8),
        random.uniform(100, 255, (9, 9, 3)).astype(np.float32),
    ):
        assert len(json.dumps(array.tolist())) < client._sent_bytes(array) + 100
    assert len(base64.b64encode(bytes(3000))) <= client._sent_bytes(bytes(3000))


def test_a_message_that_is_too_large_is_not_sent_again(waits):
    requests = []

    class Count(grpc.ServerInterceptor):
        def intercept_service(self, continuation, details):
            requests.append(details.method)
            return continuation(details)

    server = grpc.server(
        ThreadPoolExecutor(1), options=[("grpc.max_receive_message_length", 1000)], interceptors=[Count()]
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        prediction_service_pb2_grpc.PredictionServiceServicer(), server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with GrpcClient(f"127.0.0.1:{port}") as client, pytest.raises(ServingError, match="larger than max") as refused:
        client.embed([bytes(2000)], 0)
    assert refused.value.code == "RESOURCE_EXHAUSTED"
    assert refused.value.http_status == 413
    assert len(requests) == 1
    assert not waits
    server.stop(None).wait()


def raw_server(serve):
    """The port of a server that has `serve(connection)` answer each connection, in a thread of its own."""
    listening = socket.create_server(("127.0.0.1", 0))

    def accept():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listening


def head_of(connection):
    text = b""
    while b"\r\n\r\n" not in text:
        more = connection.recv(4096)
        if not more:
            return None
        text += more
    return text


DRIBBLED = {
    "status line": b"HTTP/1.1 ",
    "headers": b"HTTP/1.1 200 OK\r\nX: ",
    "body": b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
    "body of unknown length": b"HTTP/1.1 200 OK\r\n\r\n",
}


@pytest.mark.parametrize("part", DRIBBLED)
def test_the_deadline_holds_for_an_answer_that_comes_byte_by_byte(part):
    def serve(connection):
        head_of(connection)
        with contextlib.suppress(OSError):
            connection.sendall(DRIBBLED[part])
            for _ in range(100):
                connection.sendall(b"1")
                time.sleep(0.1)
        connection.close()

    with raw_server(serve) as listening:
        start = time.monotonic()
        with pytest.raises(ServingError, match=r"no answer within 0\.5 seconds") as refused:
            RestClient(f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=0.5).status()
        assert time.monotonic() - start < 5
    assert refused.value.code == "DEADLINE_EXCEEDED"


def test_a_body_that_is_refused_before_its_end():
    heads = []

    def serve(connection):
        heads.append(head_of(connection))
        connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\nConnection: close\r\n\r\nlarge")
        time.sleep(0.2)
        connection.close()

    with raw_server(serve) as listening, pytest.raises(ServingError, match="HTTP 413: large") as refused:
        RestClient(f"http://127.0.0.1:{listening.getsockname()[1]}").embed([bytes(2**24)], 0)
    assert refused.value.code == "INVALID_ARGUMENT"
    assert len(heads) == 1


def test_a_connection_that_was_closed_while_it_waited():
    heads = []

    def serve(connection):
        heads.append(head_of(connection))
        body = b'{"model_version_status": [{"version": "1", "state": "AVAILABLE"}]}'
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        connection.close()

    with raw_server(serve) as listening:
        client = RestClient(f"http://127.0.0.1:{listening.getsockname()[1]}", retries=0)
        for _ in range(3):
            assert client.status() == {1: "AVAILABLE"}
            time.sleep(0.05)
        assert len(heads) == 3


def status_service(port):
    """A gRPC server on `port` that says that version 1 is there."""

    class Model(model_service_pb2_grpc.ModelServiceServicer):
        def GetModelStatus(self, request, context):
            return GetModelStatusResponse(model_version_status=[{"version": 1, "state": 30}])

    server = grpc.server(ThreadPoolExecutor(2))
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(Model(), server)
    assert server.add_insecure_port(f"127.0.0.1:{port}") == port
    server.start()
    return server


class StatusHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = json.dumps({"model_version_status": [{"version": "1", "state": "AVAILABLE"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.mark.slow
def test_a_server_that_is_away_for_some_seconds(monkeypatch):
    monkeypatch.setattr(mg_keras.serving.client, "_LONGEST_DELAY", 0.5)
    # both at once, as it takes its time
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(assert_it_is_waited_for, ["rest", "grpc"]))


def assert_it_is_waited_for(kind):
    """A server that comes after six seconds is asked soon after."""
    port = free_port()
    address = {"rest": f"http://127.0.0.1:{port}", "grpc": f"127.0.0.1:{port}"}[kind]
    running = []

    def come():
        if kind == "grpc":
            running.append(status_service(port))
        else:
            running.append(ThreadingHTTPServer(("127.0.0.1", port), StatusHandler))
            threading.Thread(target=running[0].serve_forever, args=(0.02,), daemon=True).start()

    timer = threading.Timer(6, come)
    timer.start()
    start = time.monotonic()
    try:
        with {"rest": RestClient, "grpc": GrpcClient}[kind](address, seed=0) as client:
            assert client.status() == {1: "AVAILABLE"}
        # by itself, gRPC would try again after nine seconds, and at its worst after two minutes
        assert time.monotonic() - start < 8
    finally:
        timer.join()
        if kind == "grpc":
            running[0].stop(None).wait()
        else:
            running[0].shutdown()
            running[0].server_close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """(key, certificate) files for 127.0.0.1, signed by itself."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl program to make a certificate with")
    folder = tmp_path_factory.mktemp("certificate")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key, "-out", certificate,
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    return key, certificate


@pytest.fixture
def encrypted_rest(certificate):
    """(address, the Authorization headers that came)."""
    tokens = []

    class Handler(StatusHandler):
        def do_GET(self):
            tokens.append(self.headers["Authorization"])
            super().do_GET()

    key, file = certificate
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda request, address: None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file, key)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"https://127.0.0.1:{server.server_port}", tokens
    server.shutdown()
    thread.join()
    server.server_close()


def test_encrypted_rest(certificate, encrypted_rest):
    address, tokens = encrypted_rest
    context = ssl.create_default_context(cafile=certificate[1])
    with RestClient(address, context=context, headers={"Authorization": "Bearer 7"}) as client:
        assert client.status() == client.status() == {1: "AVAILABLE"}
    assert tokens == ["Bearer 7"] * 2
    # unknown to the system: waiting would not help
    with pytest.raises(ServingError, match="certificate verify failed") as refused:
        RestClient(address, timeout=15).status()
    assert refused.value.code == "UNAUTHENTICATED"
    assert len(tokens) == 2


def test_the_deadline_holds_for_a_handshake(certificate):
    def serve(connection):
        with contextlib.suppress(OSError):
            connection.sendall(b"\x16\x03\x03\x40\x00")
            for _ in range(100):
                connection.sendall(b"\x02")
                time.sleep(0.1)

    with raw_server(serve) as listening:
        start = time.monotonic()
        with pytest.raises(ServingError) as refused:
            RestClient(f"https://127.0.0.1:{listening.getsockname()[1]}", timeout=0.5).status()
        assert time.monotonic() - start < 5
    assert refused.value.code == "DEADLINE_EXCEEDED"


def test_encrypted_grpc(certificate):
    seen = []

    class Model(model_service_pb2_grpc.ModelServiceServicer):
        def GetModelStatus(self, request, context):
            seen.append(dict(context.invocation_metadata()).get("authorization"))
            return GetModelStatusResponse(model_version_status=[{"version": 1, "state": 30}])

    key, file = (path.read_bytes() for path in certificate)
    server = grpc.server(ThreadPoolExecutor(2))
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(Model(), server)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, file)]))
    server.start()
    credentials = grpc.ssl_channel_credentials(file)
    with GrpcClient(f"127.0.0.1:{port}", credentials=credentials, metadata=[("authorization", "Bearer 7")]) as client:
        assert client.status() == {1: "AVAILABLE"}
    assert seen == ["Bearer 7"]
    # unknown to the system: waiting would not help
    with (
        GrpcClient(f"127.0.0.1:{port}", credentials=grpc.ssl_channel_credentials(), timeout=15) as client,
        pytest.raises(ServingError, match="CERTIFICATE_VERIFY_FAILED") as refused,
    ):
        client.status()
    assert refused.value.code == "UNAUTHENTICATED"
    with GrpcClient(f"127.0.0.1:{port}", retries=0) as client, pytest.raises(ServingError):
        client.status()
    assert len(seen) == 1
    server.stop(None).wait()
