"""A MultiGrain as export/ writes it: the same answers by REST, gRPC, the C++ loader and `tf.saved_model.load`."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mg_keras.serving.codes import ServingError
from tests.export import small
from tests.serving.conftest import KINDS, SERVERS


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    model = small.small_model()
    return small.export(model, small.fitted_whitening(model), tmp_path_factory.mktemp("exported") / "multigrain")


@pytest.fixture(scope="module", params=KINDS)
def server(request, exported):
    with SERVERS[request.param](exported.parent) as running:
        yield running


@pytest.fixture(scope="module")
def loaded(exported):
    return tf.saved_model.load(exported)


@pytest.fixture(scope="module")
def session(exported):
    with small.session_of(exported) as call:
        yield call


def same(prediction, answer):
    np.testing.assert_allclose(prediction.embedding, answer["embedding"], atol=1e-5)
    np.testing.assert_allclose(prediction.logits, answer["logits"], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(prediction.classes, answer["class"])
    np.testing.assert_allclose(prediction.probability, answer["probability"], atol=1e-5)


def jpeg(pixels):
    return small.encoded_as(Image.fromarray(pixels), "JPEG")


@pytest.mark.slow
def test_files(client, loaded, session):
    photos = [small.photos(1, size, seed=5)[0] for size in ((64, 96), (96, 64), (80, 80))]
    files = [jpeg(photo) for photo in photos]
    inputs = {"image_bytes": files, "resolution": np.int32([64] * 3), "p_star": np.zeros(3, np.float32)}
    answer = loaded.signatures["encoded"](**{name: tf.constant(value) for name, value in inputs.items()})
    prediction = client.embed(files, resolution=64)
    same(prediction, answer)
    same(prediction, session("encoded", **inputs))
    np.testing.assert_allclose(np.linalg.norm(prediction.embedding, axis=1), 1, atol=1e-5)


def test_arrays_and_the_classes_of_what_was_stored(client, loaded, session):
    photos = small.photos(3)
    inputs = {"images": np.float32(photos), "p_star": np.float32(small.EXPONENTS)}
    answer = loaded.signatures["serving_default"](**{name: tf.constant(value) for name, value in inputs.items()})
    prediction = client.embed(photos, p_star=small.EXPONENTS)
    same(prediction, answer)
    same(prediction, session("serving_default", **inputs))
    stored = client.classify(prediction.embedding)
    np.testing.assert_array_equal(stored.classes, prediction.classes)
    np.testing.assert_allclose(stored.probability, prediction.probability, atol=1e-3)
    found = session("classify_embedding", embedding=prediction.embedding)
    np.testing.assert_allclose(stored.logits, found["logits"], rtol=1e-5, atol=1e-5)


def test_what_is_no_photo_and_no_descriptor_gets_no_class(client):
    files = [jpeg(small.photos(1, seed=seed)[0]) for seed in range(3)]
    prediction = client.embed([files[0], b"no photo", *files[1:]], 64, on_error="skip")
    stored = client.classify(prediction.embedding)
    np.testing.assert_array_equal(stored.classes, prediction.classes)
    assert stored.classes[1] == prediction.classes[1] == -1
    assert np.isnan(stored.probability).tolist() == np.isnan(stored.logits).all(axis=1).tolist() == [0, 1, 0, 0]
    assert list(stored.errors) == list(prediction.errors) == [1]
    pixels = np.float32(small.photos(3))
    pixels[2, 5, 7, 1] = np.nan
    reason = "pixels that are NaN, infinite or far beyond 0 to 255"
    with pytest.raises(ServingError) as refused:
        client.embed(pixels, p_star=3.0)
    assert (refused.value.code, refused.value.photos) == ("INVALID_ARGUMENT", {2: reason})
    skipped = client.embed(pixels, p_star=3.0, on_error="skip")
    assert skipped.errors == {2: reason}
    assert (skipped.classes == -1).tolist() == [False, False, True]
    for value, what in ((np.nan, "NaN or infinite"), (0.0, "all 0, or nearly")):
        embeddings = prediction.embedding[[0, 2]]
        embeddings[1] = value
        with pytest.raises(ServingError, match=f"descriptor 1: values that are {what}") as refused:
            client.predict("classify_embedding", {"embedding": embeddings})
        assert refused.value.code == "INVALID_ARGUMENT"


@pytest.mark.parametrize("file", [b"", b"hello", b"\xff\xd8\xff\xe0" + bytes(100)], ids=["empty", "text", "no JPEG"])
def test_a_file_that_is_no_photo_fails_its_request_alone(client, file):
    with pytest.raises(ServingError) as refused:
        client.embed([jpeg(small.photos(1)[0]), file], resolution=64)
    assert refused.value.code == "INVALID_ARGUMENT"
    assert len(refused.value.args[0]) > 20
    assert client.embed([jpeg(small.photos(1)[0])], resolution=64).classes.shape == (1,)
