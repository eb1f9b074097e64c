"""Malformed requests, to whichever server is asked: refused with TF Serving's codes, and the next good one answered."""

import base64
import http.client
import json
import tracemalloc

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_service_pb2_grpc

from mg_keras.serving import rest_format
from mg_keras.serving.client import GrpcClient, RestClient
from mg_keras.serving.codes import ServingError
from mg_keras.serving.servable import Signature, Tensor
from tests.serving import stand_in

PHOTO = stand_in.photo(0)
FILE = stand_in.png(PHOTO)
JPEG_LIKE = b"\xff\xd8\xff\xe0" + bytes(60)


def b64(data):
    return {"b64": base64.b64encode(data).decode()}


def encoded(image, resolution=0, p_star=0, **more):
    return {
        "signature_name": "encoded",
        "inputs": {"image_bytes": [image], "resolution": [resolution], "p_star": [p_star], **more},
    }


def default(images, p_star, form="inputs"):
    return {form: {"images": images, "p_star": p_star}}


PIXELS = PHOTO.tolist()
BAD_BODIES = {
    "not an image": encoded(b64(b"hello")),
    "empty file": encoded(b64(b"")),
    "truncated file": encoded(b64(FILE[: len(FILE) // 2])),
    "no JPEG after its first bytes": encoded(b64(JPEG_LIKE)),
    "bad base64": encoded({"b64": "*"}),
    "base64 of the alphabet for URLs": encoded({"b64": base64.urlsafe_b64encode(b"\xff" * 60).decode()}),
    "base64 as a data: URL": encoded({"b64": "data:image/png;base64," + b64(FILE)["b64"]}),
    "base64 with a digit too many": encoded({"b64": "AAAAA"}),
    "base64 with too much padding": encoded({"b64": "AAA=="}),
    "base64 padded in its middle": encoded({"b64": "AA==AAAA"}),
    "base64 with letters of other scripts": encoded({"b64": "AAAé"}),
    "base64 that is no text": encoded({"b64": "\ud800"}),
    "file that is no text": encoded("\ud800"),
    "file as a number": encoded(7),
    "file as a list": encoded(["a", "b"]),
    "resolution as a string": encoded(b64(FILE), "224"),
    "resolution as a fraction": encoded(b64(FILE), 1.5),
    "resolution too large for its type": encoded(b64(FILE), 2**40),
    "p_star as null": encoded(b64(FILE), 0, None),
    "extra input": {"instances": [{"images": PIXELS, "p_star": 3, "more": 1}]},
    "missing input": {"signature_name": "encoded", "inputs": {"image_bytes": [b64(FILE)]}},
    "different batch sizes": default([PIXELS], [3, 3]),
    "p_star not positive": default([PIXELS], [-1]),
    "four channels": default(np.zeros((1, 4, 4, 4)).tolist(), [3]),
    "no batch": default(PIXELS, 3),
    "ragged lists": default([[[[1, 2, 3]], [[1, 2]]]], [3]),
    "strings for numbers": default([[[["1", "2", "3"]]]], [3]),
    "descriptor of another size": {"signature_name": "classify_embedding", "inputs": [[1, 2]]},
    "unknown signature": {"signature_name": "nothing", "inputs": [1]},
    "signature that is no string": {"signature_name": 3, "inputs": [1]},
    "both formats": {"instances": [1], "inputs": [1]},
    "neither format": {"signature_name": "encoded"},
    "several inputs, none named": {"inputs": [1]},
    "no instances": {"instances": []},
    "instances no list": {"instances": 3},
    "instances of different kinds": {"instances": [{"images": PIXELS, "p_star": 1}, 4]},
    "no object": [1, 2],
}
RAW_BODIES = {
    "truncated JSON": json.dumps(encoded(b64(FILE))).encode()[:-9],
    "no JSON": b"photo",
    "no UTF-8": b'{"inputs": "\xff"}',
    "nothing": b"",
}


def send(server, method, path, body=None, headers=None):
    """Status and error message of one HTTP request."""
    connection = http.client.HTTPConnection(server.rest.removeprefix("http://"), timeout=60)
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    text = response.read()
    connection.close()
    answer = json.loads(text) if text.startswith(b"{") else {}
    return response.status, answer.get("error")


def assert_it_goes_on(server):
    for client in (RestClient(server.rest, retries=0), GrpcClient(server.grpc, retries=0)):
        with client:
            got = client.embed([FILE], 0, p_star=2.0)
            np.testing.assert_allclose(got.embedding, stand_in.expected([PHOTO], [2.0])["embedding"], atol=1e-5)


@pytest.mark.parametrize("name", [*BAD_BODIES, *RAW_BODIES])
def test_bad_rest_bodies(server, name):
    body = RAW_BODIES[name] if name in RAW_BODIES else json.dumps(BAD_BODIES[name])
    status, error = send(server, "POST", "/v1/models/multigrain:predict", body)
    assert status == 400
    assert error
    assert_it_goes_on(server)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("_-AA", "'_' is none of A-Z, a-z, 0-9, + and /"),
        ("AA é", "'é' is none of"),
        ("AA\u00a0A", "none of"),
        ("AAAAA", "cut off, or wrongly padded"),
        ("AA=", "cut off, or wrongly padded"),
    ],
)
def test_base64_that_is_none_gets_one_line_that_says_why(text, reason):
    signature = Signature({"image_bytes": Tensor("image_bytes:0", np.dtype(object), (None,))}, {})
    with pytest.raises(ServingError) as refused:
        rest_format.tensors({"inputs": {"image_bytes": [{"b64": text}]}}, signature)
    assert (refused.value.code, refused.value.http_status) == ("INVALID_ARGUMENT", 400)
    assert refused.value.args[0].startswith("input image_bytes: unable to base64 decode: ")
    assert reason in refused.value.args[0]
    assert "\n" not in refused.value.args[0]


def test_a_fraction_for_a_whole_number_is_named():
    signature = Signature({"resolution": Tensor("resolution:0", np.dtype(np.int32), (None,))}, {})
    with pytest.raises(ServingError, match=r"input resolution: expected int32, received 48\.0: give whole numbers"):
        rest_format.tensors({"inputs": {"resolution": [48.0, 2]}}, signature)


NUMBERS = Signature({"p_star": Tensor("p_star:0", np.dtype(np.float32), (None,))}, {})


@pytest.mark.parametrize(
    ("value", "received"),
    [
        (["a" * 2000, *["b"] * 20_000], "'aaaaa"),
        ([1.5, *[2] * 20_000, "b" * 2000], "'bbbbb"),
        ([[1, 2], [3, "1.5"]], "'1.5'"),
        ([1, [2]], "a list"),
        ([1, None], "None"),
        ({"b64": "AAAA"}, "a dict"),
    ],
)
def test_what_is_no_number_is_refused_before_memory_is_spent_on_it(value, received):
    tracemalloc.start()
    try:
        with pytest.raises(ServingError, match=f"input p_star: expected float32 .*received {received}") as refused:
            rest_format.tensors({"inputs": {"p_star": value}}, NUMBERS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert refused.value.code == "INVALID_ARGUMENT"
    assert peak < 2**20


@pytest.mark.parametrize(
    "value", [3, 1.5, [1, 2.5], [[1, 2], [3, 4]], [[], []], [], [True, 2], np.ones((1,) * 32).tolist()]
)
def test_lists_of_numbers_are_as_numpy_takes_them(value):
    got = rest_format.tensors({"inputs": {"p_star": value}}, NUMBERS)["p_star"]
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, np.asarray(value, np.float32))


@pytest.mark.parametrize("value", [[[1], []], [[1, 2], [3]], [[], [[]]], [True], np.ones((1,) * 33).tolist()])
def test_lists_that_are_no_tensor_of_numbers_are_refused(value):
    with pytest.raises(ServingError, match="input p_star: "):
        rest_format.tensors({"inputs": {"p_star": value}}, NUMBERS)


def test_too_little_memory_is_the_requests_fault(monkeypatch):
    def too_large(value):
        raise MemoryError

    monkeypatch.setattr(rest_format.np, "asarray", too_large)
    with pytest.raises(ServingError, match="input p_star: too large for the memory") as refused:
        rest_format.tensors({"inputs": {"p_star": [1, 2]}}, NUMBERS)
    assert refused.value.code == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/models/nothing:predict", 404),
        ("POST", "/v1/models/multigrain/versions/9:predict", 404),
        ("POST", "/v1/models/multigrain/labels/imaginary:predict", 400),
        ("GET", "/v1/models/nothing", 404),
        ("GET", "/v1/models/nothing/metadata", 404),
        ("GET", "/v1/models/multigrain/versions/9", 404),
        ("GET", "/v1/models/multigrain/versions/9/metadata", 404),
        ("GET", "/v1/models/multigrain/labels/imaginary", 400),
    ],
)
def test_what_is_not_there(server, method, path, status):
    body = json.dumps(encoded(b64(FILE))) if method == "POST" else None
    got, error = send(server, method, path, body)
    assert got == status
    assert error


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/models/multigrain:forget"),
        ("GET", "/v1/models/multigrain/versions/one"),
        ("GET", "/"),
        ("PUT", "/v1"),
    ],
)
def test_what_is_no_request(server, method, path):
    status, _ = send(server, method, path)
    assert 400 <= status <= 501
    assert_it_goes_on(server)


def request_of(signature="encoded", name="multigrain", **inputs):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.model_spec.signature_name = signature
    for key, value in inputs.items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    return request


def file_request(file=FILE, **changes):
    inputs = {"image_bytes": [file], "resolution": np.int32([0]), "p_star": np.float32([0]), **changes}
    return request_of(**{key: value for key, value in inputs.items() if value is not None})


def images_request(shape=(1, 4, 4, 3), p_star=(3.0,)):
    return request_of("serving_default", images=np.ones(shape, np.float32), p_star=np.float32(p_star))


def version_request(version=None, label=None):
    request = file_request()
    if version is not None:
        request.model_spec.version.value = version
    else:
        request.model_spec.version_label = label
    return request


def spoilt_request(**changes):
    """A tensor that contradicts itself."""
    request = request_of("classify_embedding", embedding=np.ones((1, 4), np.float32))
    tensor = request.inputs["embedding"]
    for name, value in changes.items():
        if name == "sizes":
            for dim, size in zip(tensor.tensor_shape.dim, value, strict=True):
                dim.size = size
        else:
            setattr(tensor, name, value)
    return request


def filtered_request(*names):
    request = file_request()
    request.output_filter.extend(names)
    return request


BAD_REQUESTS = {
    "not an image": (file_request(b"hello"), "INVALID_ARGUMENT"),
    "empty file": (file_request(b""), "INVALID_ARGUMENT"),
    "truncated file": (file_request(FILE[: len(FILE) // 2]), "INVALID_ARGUMENT"),
    "wrong type": (file_request(p_star=np.int64([3])), "INVALID_ARGUMENT"),
    "string for a number": (file_request(resolution=["224"]), "INVALID_ARGUMENT"),
    "missing input": (file_request(p_star=None), "INVALID_ARGUMENT"),
    "extra input": (file_request(more=[1]), "INVALID_ARGUMENT"),
    "four channels": (images_request((1, 4, 4, 4)), "INVALID_ARGUMENT"),
    "different batch sizes": (images_request(p_star=(3.0, 3.0)), "INVALID_ARGUMENT"),
    "p_star not positive": (images_request(p_star=(0.0,)), "INVALID_ARGUMENT"),
    "unknown signature": (request_of("nothing", x=np.ones(1)), "FAILED_PRECONDITION"),
    "unknown model": (request_of(name="nothing"), "NOT_FOUND"),
    "no model": (request_of(name=""), "INVALID_ARGUMENT"),
    "unknown version": (version_request(version=9), "NOT_FOUND"),
    "unknown label": (version_request(label="imaginary"), "INVALID_ARGUMENT"),
    "unknown output": (filtered_request("class", "colour"), "INVALID_ARGUMENT"),
    "fewer values than the shape": (spoilt_request(sizes=(2, 4)), "INVALID_ARGUMENT"),
    "negative size": (spoilt_request(sizes=(-1, 4)), "INVALID_ARGUMENT"),
    "unknown dtype": (spoilt_request(dtype=99), "INVALID_ARGUMENT"),
    "no dtype": (spoilt_request(dtype=0), "INVALID_ARGUMENT"),
    "dtype without arrays": (spoilt_request(dtype=types_pb2.DT_RESOURCE), "INVALID_ARGUMENT"),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_bad_grpc_requests(server, name):
    request, code = BAD_REQUESTS[name]
    with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError) as refused:
        prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=60)
    assert refused.value.code().name == code
    assert refused.value.details()
    assert_it_goes_on(server)


@pytest.mark.parametrize(
    ("signature", "inputs"),
    [
        ("serving_default", {"images": np.ones((1, 4, 4, 3), np.float32), "p_star": np.float32([3, 3])}),
        ("encoded", {"image_bytes": [FILE], "resolution": np.int32([0]), "p_star": np.float32([0, 0])}),
        ("encoded", {"image_bytes": [FILE], "resolution": np.int32([0, 0]), "p_star": np.float32([0])}),
    ],
)
def test_the_model_itself_refuses_different_batch_sizes(model, signature, inputs):
    # TF Serving leaves it to the model
    run = tf.saved_model.load(model / "1").signatures[signature]
    with pytest.raises(tf.errors.InvalidArgumentError, match="one value for each"):
        run(**{name: tf.constant(value) for name, value in inputs.items()})


@pytest.mark.parametrize("fields", [[], ["signature_def", "more"], ["graph"]])
def test_metadata_that_is_not_there(server, fields):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
    request.model_spec.name = "multigrain"
    with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError) as refused:
        prediction_service_pb2_grpc.PredictionServiceStub(channel).GetModelMetadata(request, timeout=60)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_the_client_says_what_the_server_said(client):
    with pytest.raises(ServingError, match="image") as refused:
        client.embed([FILE, b"hello"], 0)
    assert refused.value.code == "INVALID_ARGUMENT"
    with pytest.raises(ServingError) as refused:
        client.predict("nothing", {"embedding": np.ones((1, 4))})
    # REST has one status for both codes
    assert refused.value.code in ("INVALID_ARGUMENT", "FAILED_PRECONDITION")
