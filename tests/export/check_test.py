import keras
import numpy as np
import pytest
import tensorflow as tf

from mg_keras.errors import UserError
from mg_keras.export import check
from mg_keras.models import trunks
from tests.export.small import TINY_RESNET, photos


def answers(turned=0.0, other_classes=(), lead=1.0):
    """A pair that agree: (served module's answer, expected), the one turned away from the other by an angle.

    `other_classes` are the photos that are served another class than the expected, whose logit leads by `lead`.
    """

    def expected(images, p_star):
        count = len(images)
        descriptors = np.tile([1.0, 0.0], (count, 1))
        return descriptors, np.tile([0.0, lead], (count, 1))

    def served(count):
        embedding = tf.tile(tf.constant([[np.cos(turned), np.sin(turned)]], tf.float32), [count, 1])
        classes = tf.where(is_one_of(tf.range(count), other_classes), 0, 1)
        return {"embedding": embedding, "class": classes, "logits": tf.one_hot(classes, 2)}

    return served, expected


def is_one_of(rows, chosen):
    return tf.reduce_any(rows[:, None] == tf.constant(chosen, tf.int32, [len(chosen)]), axis=1)


def saved(folder, served):
    module = tf.Module()

    @tf.function
    def pixels(images, p_star):
        return served(tf.shape(images)[0])

    @tf.function
    def encoded(image_bytes, resolution, p_star):
        return served(tf.shape(image_bytes)[0])

    p_star = tf.TensorSpec([None], tf.float32, "p_star")
    images = tf.TensorSpec([None, None, None, 3], tf.float32, "images")
    image_bytes, resolution = tf.TensorSpec([None], tf.string), tf.TensorSpec([None], tf.int32)
    signatures = {
        "serving_default": pixels.get_concrete_function(images, p_star),
        "encoded": encoded.get_concrete_function(image_bytes, resolution, p_star),
    }
    tf.saved_model.save(module, str(folder), signatures=signatures)
    return folder


def checked(folder, precision="float32", **options):
    served, expected = answers(**options)
    return check.check(saved(folder, served), expected, photos(8), 32, 3.0, precision)


def test_equal_answers_pass(tmp_path):
    figures = checked(tmp_path)
    assert len(figures) == 6
    assert all(entry["min_cosine"] == entry["mean_cosine"] == entry["class_agreement"] == 1 for entry in figures)
    assert all(entry["max_logits_difference"] == 0 for entry in figures)


@pytest.mark.parametrize(("precision", "cosine"), [("float32", 0.99999), ("bfloat16", 0.999)])
def test_the_least_cosine_depends_on_the_precision(precision, cosine, tmp_path):
    near, far = (np.arccos(1 - (1 - cosine) * factor) for factor in (0.9, 1.1))
    assert checked(tmp_path / "near", precision, turned=near)
    with pytest.raises(UserError, match=f"serving_default at 32x32 px, 8 photos.*cosine .*{cosine}"):
        checked(tmp_path / "far", precision, turned=far)


def test_what_is_no_number_fails(tmp_path):
    with pytest.raises(UserError, match="cosine is nan"):
        checked(tmp_path, turned=np.nan)


def test_one_photo_of_few_may_get_another_class_but_not_two(tmp_path):
    figures = checked(tmp_path / "one", other_classes=[3])
    assert figures[0]["class_agreement"] == 7 / 8
    # [1, 0] in place of [0, 1]
    assert figures[0]["max_logits_difference"] == pytest.approx(np.sqrt(2))
    with pytest.raises(UserError, match="2 photos get another class"):
        checked(tmp_path / "two", other_classes=[3, 5])


@pytest.mark.parametrize(("precision", "share"), [("float32", 0.99), ("mixed", 0.8)])
def test_a_class_that_is_nearly_tied_is_no_other_class(precision, share, tmp_path):
    figures = checked(tmp_path / "tied", precision, other_classes=list(range(8)), lead=-np.log(share + 0.001))
    assert figures[0]["class_agreement"] == 0
    with pytest.raises(UserError, match="8 photos get another class"):
        checked(tmp_path / "behind", precision, other_classes=list(range(8)), lead=-np.log(share - 0.001))


def test_a_trunk_of_mixed_precision_gets_a_float32_copy():
    keras.utils.set_random_seed(0)
    mixed = trunks.build("resnet18", dtype="mixed_bfloat16", **TINY_RESNET)
    plain = trunks.build("resnet18", **TINY_RESNET)
    plain.set_weights(mixed.get_weights())
    image = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    found, expected = check.float32_trunk(mixed)(image), plain(image)
    assert found.dtype == tf.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert check.float32_trunk(plain) is plain
    assert mixed.compute_dtype == "bfloat16"


def test_generated_photos_differ():
    found = check.generated_photos(3)
    assert [photo.shape for photo in found] == [(256, 256, 3)] * 3
    assert np.abs(found[0].astype(float) - found[1]).mean() > 5
