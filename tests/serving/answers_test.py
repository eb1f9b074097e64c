"""The same answers by REST, by gRPC and from the SavedModel itself, whichever server is asked."""

import base64
import http.client
import json

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from mg_keras.export.encoded import embed_encoded
from mg_keras.serving.client import GrpcClient, RestClient
from mg_keras.serving.codes import ServingError
from tests.serving import stand_in
from tests.serving.conftest import KINDS, SERVERS

EXPONENTS = [1.0, 3.0, 4.5, 2.0]
SIZES = [(12, 16), (9, 30), (31, 8), (12, 16)]


@pytest.fixture(scope="module")
def photos():
    return [stand_in.photo(seed, *size) for seed, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def loaded(model):
    return tf.saved_model.load(model / "1").signatures


class _Colours(tf.Module):
    """What `encoded` is in an export, with a network that gives a photo's mean colour."""

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.string, "image_bytes"),
            tf.TensorSpec([None], tf.int32, "resolution"),
            tf.TensorSpec([None], tf.float32, "p_star"),
        ]
    )
    def encoded(self, image_bytes, resolution, p_star):
        def embed(images, exponents):
            return tf.reduce_mean(images, [1, 2])

        embedding = embed_encoded(embed, 3, image_bytes, resolution, p_star, {224: 3.0})
        return {
            "embedding": embedding,
            "logits": embedding[:, :2],
            "class": tf.argmax(embedding, axis=1),
            "probability": embedding[:, 0],
        }


@pytest.fixture(scope="module", params=KINDS)
def colours(request, tmp_path_factory):
    """A server of `_Colours`."""
    folder = tmp_path_factory.mktemp("colours") / "multigrain"
    module = _Colours()
    tf.saved_model.save(module, str(folder / "1"), signatures={"encoded": module.encoded})
    with SERVERS[request.param](folder) as running:
        yield running


def rest(server, method, path, body=None):
    """Status and JSON of one HTTP request."""
    connection = http.client.HTTPConnection(server.rest.removeprefix("http://"), timeout=30)
    connection.request(method, f"/v1/models/multigrain{path}", None if body is None else json.dumps(body))
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response.status, answer


def same(prediction, expected):
    np.testing.assert_allclose(prediction.embedding, expected["embedding"], atol=1e-5)
    np.testing.assert_allclose(prediction.logits, expected["logits"], atol=1e-5)
    np.testing.assert_array_equal(prediction.classes, expected["class"])
    np.testing.assert_allclose(prediction.probability, expected["probability"], atol=1e-5)


def test_files_of_mixed_sizes(client, photos, loaded):
    files = [stand_in.png(photo) for photo in photos]
    prediction = client.embed(files, 0, p_star=EXPONENTS)
    same(prediction, stand_in.expected(photos, EXPONENTS))
    direct = loaded["encoded"](
        image_bytes=tf.constant(files), resolution=tf.zeros(4, tf.int32), p_star=tf.constant(EXPONENTS)
    )
    same(prediction, {name: value.numpy() for name, value in direct.items()})
    assert prediction.embedding.dtype == prediction.logits.dtype == prediction.probability.dtype == np.float32
    assert prediction.classes.dtype == np.int64


def test_the_resolution_reaches_the_graph(client, photos, loaded):
    files = [stand_in.png(photos[2])]
    prediction = client.embed(files, resolution=7)
    direct = loaded["encoded"](image_bytes=tf.constant(files), resolution=tf.constant([7]), p_star=tf.constant([0.0]))
    same(prediction, {name: value.numpy() for name, value in direct.items()})
    assert np.abs(prediction.embedding - client.embed(files, 0).embedding).max() > 1e-3


def test_arrays(client, photos, loaded):
    same(client.embed(photos, p_star=EXPONENTS), stand_in.expected(photos, EXPONENTS))
    direct = loaded["serving_default"](
        images=tf.constant(photos[1][None], tf.float32), p_star=tf.constant(EXPONENTS[1:2])
    )
    same(client.embed(photos[1:2], p_star=3.0), {name: value.numpy() for name, value in direct.items()})


def test_stored_descriptors(client, photos):
    expected = stand_in.expected(photos, EXPONENTS)
    embeddings = np.float32(expected["embedding"])
    answer = client.classify(embeddings)
    same(answer, expected)
    assert np.array_equal(answer.embedding, embeddings)


def test_status(client):
    assert client.status() == {1: "AVAILABLE"}


def test_rows_and_columns_give_the_same(server, photos):
    expected = stand_in.expected(photos[:1], [3.0])
    row = {"images": photos[0].tolist(), "p_star": 3}
    status, rows = rest(server, "POST", ":predict", {"instances": [row, row]})
    assert status == 200
    assert len(rows["predictions"]) == 2
    for answer in rows["predictions"]:
        assert set(answer) == set(expected)
        np.testing.assert_allclose(answer["embedding"], expected["embedding"][0], atol=1e-5)
        assert answer["class"] == expected["class"][0]
    columns = {"images": [row["images"]], "p_star": [3]}
    status, answer = rest(
        server, "POST", "/versions/1:predict", {"signature_name": "serving_default", "inputs": columns}
    )
    assert status == 200
    np.testing.assert_allclose(answer["outputs"]["embedding"], expected["embedding"], atol=1e-5)
    np.testing.assert_allclose(answer["outputs"]["probability"], expected["probability"], atol=1e-5)


def test_rows_of_encoded_files(server, photos):
    rows = [
        {"image_bytes": {"b64": base64.b64encode(stand_in.png(photo)).decode()}, "resolution": 0, "p_star": 2}
        for photo in photos
    ]
    status, answer = rest(server, "POST", ":predict", {"signature_name": "encoded", "instances": rows})
    assert status == 200
    got = [row["embedding"] for row in answer["predictions"]]
    np.testing.assert_allclose(got, stand_in.expected(photos, [2] * 4)["embedding"], atol=1e-5)


def in_lines(text, end):
    return "".join(text[start : start + 76] + end for start in range(0, len(text), 76))


WRITTEN = {
    "in lines": lambda text: in_lines(text, "\n"),
    "in lines of Windows": lambda text: in_lines(text, "\r\n"),
    "without padding": lambda text: text.rstrip("="),
    "in lines without padding": lambda text: in_lines(text.rstrip("="), "\n"),
    "between spaces": lambda text: f" \t{text[:5]} \v{text[5:-1]}\f{text[-1:]} ",
    "with dots as padding": lambda text: text.replace("=", "."),
}


@pytest.mark.parametrize("how", WRITTEN)
def test_base64_however_it_is_written(server, photos, how):
    # of each remainder by three, so that all paddings come
    files = [stand_in.png(photos[0]) + bytes(more) for more in range(3)]
    texts = [base64.b64encode(file).decode() for file in files]
    assert sorted(text.count("=") for text in texts) == [0, 1, 2]
    inputs = {
        "image_bytes": [{"b64": WRITTEN[how](text)} for text in texts],
        "resolution": [0] * 3,
        "p_star": [2] * 3,
    }
    status, answer = rest(server, "POST", ":predict", {"signature_name": "encoded", "inputs": inputs})
    assert status == 200, answer
    expected = stand_in.expected(photos[:1] * 3, [2] * 3)["embedding"]
    np.testing.assert_allclose(answer["outputs"]["embedding"], expected, atol=1e-5)


def test_the_only_input_needs_no_name(server, photos):
    expected = stand_in.expected(photos, EXPONENTS)
    for form in ("instances", "inputs"):
        body = {"signature_name": "classify_embedding", form: expected["embedding"].tolist()}
        status, answer = rest(server, "POST", ":predict", body)
        assert status == 200
        if form == "instances":
            logits = [row["logits"] for row in answer["predictions"]]
        else:
            logits = answer["outputs"]["logits"]
        np.testing.assert_allclose(logits, expected["logits"], atol=1e-5)


def test_rest_status(server):
    expected = {
        "model_version_status": [
            {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        ]
    }
    assert rest(server, "GET", "") == rest(server, "GET", "/versions/1") == (200, expected)


def test_metadata_is_the_same_by_rest_and_grpc(server):
    status, answer = rest(server, "GET", "/metadata")
    assert status == 200
    assert answer["model_spec"] == {"name": "multigrain", "signature_name": "", "version": "1"}
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    assert {"serving_default", "encoded", "classify_embedding"} <= set(signatures)
    images = signatures["serving_default"]["inputs"]["images"]
    assert images["dtype"] == "DT_FLOAT"
    assert [dim["size"] for dim in images["tensor_shape"]["dim"]] == ["-1", "-1", "-1", "3"]
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "multigrain"
    with grpc.insecure_channel(server.grpc) as channel:
        response = prediction_service_pb2_grpc.PredictionServiceStub(channel).GetModelMetadata(request, timeout=30)
    unpacked = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(unpacked)
    assert response.model_spec.version.value == 1
    assert set(unpacked.signature_def) == set(signatures)
    assert unpacked.signature_def["serving_default"].inputs["images"].name == images["name"]


def test_grpc_answers_with_the_version_and_the_outputs_asked_for(server, photos):
    request = predict_pb2.PredictRequest(output_filter=["class"])
    request.model_spec.name = "multigrain"
    request.model_spec.signature_name = "classify_embedding"
    expected = stand_in.expected(photos, EXPONENTS)
    request.inputs["embedding"].CopyFrom(tf.make_tensor_proto(np.float32(expected["embedding"])))
    with grpc.insecure_channel(server.grpc) as channel:
        response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=30)
        status = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(
            get_model_status_pb2.GetModelStatusRequest(model_spec=request.model_spec), timeout=30
        )
    assert set(response.outputs) == {"class"}
    np.testing.assert_array_equal(tf.make_ndarray(response.outputs["class"]), expected["class"])
    assert response.model_spec.version.value == 1
    assert response.model_spec.signature_name == "classify_embedding"
    assert [(entry.version, entry.state, entry.status.error_code) for entry in status.model_version_status] == [
        (1, 30, 0)
    ]


BROKEN = {
    0: b"",
    3: b"hello",
    4: stand_in.png(stand_in.photo(1))[:99],
    13: b"\xff\xd8\xff\xe0" + bytes(60),
    19: b"GIF89a",
}


@pytest.mark.parametrize("kind", ["rest", "grpc"])
@pytest.mark.slow
def test_photos_that_cannot_be_used_are_told_or_skipped(colours, kind):
    photos = [stand_in.photo(seed, 12 + seed % 3, 16) for seed in range(20)]
    files = [stand_in.png(photo) for photo in photos]
    means = np.float32([photo.mean((0, 1)) for photo in photos])
    with {"rest": RestClient, "grpc": GrpcClient}[kind](getattr(colours, kind), seed=0) as client:
        one_broken = [*files[:13], BROKEN[13], *files[14:]]
        with pytest.raises(ServingError) as refused:
            client.embed(one_broken, 0)
        assert str(refused.value) == "INVALID_ARGUMENT: photo 13: JPEG data is broken or cut off"
        assert refused.value.photos == {13: "JPEG data is broken or cut off"}
        for number, file in BROKEN.items():
            files[number] = file
            means[number] = np.nan
        prediction = client.embed(files, 0, on_error="skip")
        np.testing.assert_allclose(prediction.embedding, means, rtol=1e-5)
        np.testing.assert_array_equal(prediction.classes == -1, np.isnan(means[:, 0]))
        assert list(prediction.errors) == list(BROKEN)
        assert prediction.errors[0] == "the file is empty"
        assert "not a JPEG" in prediction.errors[3]
        # none is left, and the shapes are the same
        prediction = client.embed(list(BROKEN.values()), 0, on_error="skip")
        assert prediction.embedding.shape == (5, 3)
        assert prediction.logits.shape == (5, 2)
        assert prediction.classes.tolist() == [-1] * 5
        assert np.isnan(prediction.probability).all()
        # a photo that is larger than the network takes, as it is
        large = np.zeros((2100, 2100, 3), np.uint8)
        prediction = client.embed([stand_in.png(large), files[1]], [0, 0], on_error="skip")
        assert list(prediction.errors) == [0]
        assert client.embed([stand_in.png(large)], 64).classes.shape == (1,)
    # no photo's fault
    with (
        {"rest": RestClient, "grpc": GrpcClient}[kind](getattr(colours, kind), label="imaginary") as client,
        pytest.raises(ServingError, match="imaginary") as refused,
    ):
        client.embed(files, 0, on_error="skip")
    assert refused.value.photos == {}
