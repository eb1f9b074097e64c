"""What the clients do by themselves: retries, deadlines, batches, and refusing what no server needs to see."""

import json
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
from tensorflow_serving.apis import prediction_service_pb2_grpc

import serving.client
from serving.client import Client, GrpcClient, RestClient
from serving.codes import ServingError
from tests.serving import stand_in

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
    monkeypatch.setattr(serving.client.time, "sleep", waited.append)
    return waited


EMBEDDING = np.ones((1, 3), np.float32)


def test_rest_retries_what_may_pass(scripted_rest, waits):
    address, script, requests = scripted_rest
    script += [503, 429, "hang up", 503]
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
        (504, "DEADLINE_EXCEEDED"), ("no JSON", "OK"),
    ],
)  # fmt: skip
def test_rest_does_not_retry_the_rest(scripted_rest, waits, status, code):
    address, script, requests = scripted_rest
    script.append(status)
    with pytest.raises(ServingError) as refused:
        RestClient(address).classify(EMBEDDING)
    assert refused.value.code == code if code != "OK" else refused.value.http_status == 200
    assert len(requests) == 1
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

    def _predict(self, signature, inputs, timeout):
        raise ServingError("UNAVAILABLE", "not now")

    def _status(self, timeout):
        raise ServingError("RESOURCE_EXHAUSTED", "not now")


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
        with make(address, seed=seed) as client, pytest.raises(ServingError) as refused:
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
    predict = client.predict
    client.predict = lambda signature, inputs: (
        asked.append((signature, len(inputs["p_star"]))) or predict(signature, inputs)
    )
    by_array = client.describe(photos, p_star=exponents)
    # 7, 7 and 6 photos of three shapes
    assert asked == [("serving_default", size) for size in (7, 7, 6)]
    asked.clear()
    by_file = client.describe([stand_in.png(photo) for photo in photos], p_star=exponents)
    assert asked == [("encoded", size) for size in (8, 8, 4)]
    for prediction in (by_array, by_file):
        np.testing.assert_allclose(prediction.embedding, expected["embedding"], atol=1e-5)
        np.testing.assert_array_equal(prediction.classes, expected["class"])


def test_one_client_serves_many_threads(client):
    photos = [stand_in.photo(seed) for seed in range(6)]
    expected = stand_in.expected(photos, [2.0] * 6)["embedding"]

    def ask(number):
        return client.describe([stand_in.png(photos[number % 6])], p_star=2.0).embedding[0]

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
        ([b"", b""], {"p_star": [1, 2, 3]}, r"2 photos or one a photo, received shape \(3,\)"),
    ],
)
def test_photos_that_no_server_needs_to_see(photos, keywords, message):
    with pytest.raises(ValueError, match=message):
        RestClient("http://127.0.0.1:9").describe(photos, **keywords)


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
        (RestClient, "http://x", {"retries": -1}, "retries must be at least 0, received -1"),
        (RestClient, "http://x", {"batch_size": 0}, "batch_size must be at least 1, received 0"),
    ],
)
def test_wrong_arguments(make, address, keywords, message):
    with pytest.raises(ValueError, match=message):
        make(address, **keywords)


REST_ALONE = """
import sys
for blocked in ("tensorflow", "keras", "grpc", "google.protobuf", "mg_keras"):
    sys.modules[blocked] = None
from pathlib import Path
import numpy as np
from serving.client import RestClient
with RestClient(sys.argv[1]) as client:
    np.save(sys.argv[3], client.describe([Path(sys.argv[2]).read_bytes()], p_star=2).embedding)
"""


def test_rest_needs_numpy_alone(server, tmp_path):
    photo = stand_in.photo(1)
    (tmp_path / "photo.png").write_bytes(stand_in.png(photo))
    command = [sys.executable, "-c", REST_ALONE, server.rest, str(tmp_path / "photo.png"), str(tmp_path / "answer.npy")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    got = np.load(tmp_path / "answer.npy")
    np.testing.assert_allclose(got, stand_in.expected([photo], [2.0])["embedding"], atol=1e-5)
