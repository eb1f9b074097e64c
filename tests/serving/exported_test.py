"""A MultiGrain as export/ writes it, served: the same answers by REST and gRPC as from the SavedModel itself."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from export.saved_model import export_saved_model
from serving.client import GrpcClient, RestClient
from serving.codes import ServingError
from tests.export import small
from tests.serving.conftest import local_server


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "multigrain"
    return export_saved_model(small.small_model(), None, folder, metadata=small.METADATA, photos=small.photos())


@pytest.fixture(scope="module")
def server(exported):
    with local_server(exported.parent) as running:
        yield running


@pytest.fixture(params=[RestClient, GrpcClient], ids=["rest", "grpc"])
def client(request, server):
    chosen = server.rest if request.param is RestClient else server.grpc
    with request.param(chosen, retries=0) as opened:
        yield opened


def same(prediction, answer):
    np.testing.assert_allclose(prediction.embedding, answer["embedding"], atol=1e-5)
    np.testing.assert_allclose(prediction.logits, answer["logits"], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(prediction.classes, answer["class"])
    np.testing.assert_allclose(prediction.probability, answer["probability"], atol=1e-5)


def jpeg(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def test_files(client, exported):
    photos = [small.photos(1, size, seed=5)[0] for size in ((64, 96), (96, 64), (80, 80))]
    files = [jpeg(photo) for photo in photos]
    answer = tf.saved_model.load(exported).signatures["encoded"](
        image_bytes=tf.constant(files), resolution=tf.constant([64] * 3), p_star=tf.zeros(3)
    )
    prediction = client.describe(files, resolution=64)
    same(prediction, answer)
    np.testing.assert_allclose(np.linalg.norm(prediction.embedding, axis=1), 1, atol=1e-5)


def test_arrays_and_the_classes_of_what_was_stored(client, exported):
    photos = small.photos(3)
    answer = tf.saved_model.load(exported).signatures["serving_default"](
        images=tf.constant(np.float32(photos)), p_star=tf.constant(small.EXPONENTS)
    )
    prediction = client.describe(photos, p_star=small.EXPONENTS)
    same(prediction, answer)
    stored = client.classify(prediction.embedding)
    np.testing.assert_array_equal(stored.classes, prediction.classes)
    np.testing.assert_allclose(stored.probability, prediction.probability, atol=1e-3)


@pytest.mark.parametrize("file", [b"", b"hello", b"\xff\xd8\xff\xe0" + bytes(100)], ids=["empty", "text", "no JPEG"])
def test_a_file_that_is_no_photo_fails_its_request_alone(client, file):
    with pytest.raises(ServingError) as refused:
        client.describe([jpeg(small.photos(1)[0]), file], resolution=64)
    assert refused.value.code == "INVALID_ARGUMENT"
    assert len(refused.value.args[0]) > 20
    assert client.describe([jpeg(small.photos(1)[0])], resolution=64).classes.shape == (1,)
