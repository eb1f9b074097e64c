"""Photos of several shapes and a network of a moment, for what embeds them; its fixtures are those of two folders."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import mg_keras
from mg_keras.embedding import photos

SIZES = [(40, 30), (30, 40), (40, 30), (64, 32), (30, 40), (33, 40), (40, 30), (20, 50), (40, 30), (60, 45), (30, 40)]
BROKEN = (2, 7)
GOOD = [row for row in range(len(SIZES)) if row not in BROKEN]


def draw(folder):
    """Writes the photos, two of them broken."""
    for number, (width, height) in enumerate(SIZES):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    for number in BROKEN:
        (folder / f"{number:02}.png").write_bytes(b"no photo")
    return folder


def network():
    keras.utils.set_random_seed(1)
    trunk = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(6, 5, strides=4, activation="relu")])
    return mg_keras.MultiGrain(trunk, num_classes=4, pooling_exponent=2.0)


class Counting:
    """A network that counts the photos it describes, and may fail after some."""

    def __init__(self, model, stop_after=None):
        self.model, self.count, self.stop_after = model, 0, stop_after

    def embed_batch(self, images, poolings):
        def note(count):
            if self.stop_after is not None and self.count >= self.stop_after:
                raise RuntimeError("pulled the plug")
            self.count += int(count)
            return np.int64(self.count)

        with tf.control_dependencies([tf.numpy_function(note, [tf.shape(images)[0]], tf.int64)]):
            return self.model.embed_batch(tf.identity(images), poolings)

    def classify(self, embeddings):
        return self.model.classify(embeddings)

    def fingerprint(self):
        return self.model.fingerprint()


class Rounding(Counting):
    """A network that says what it computes in."""

    precision = "mixed"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The photos, two of them broken."""
    return draw(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture
def small_batches(monkeypatch):
    """Batches of at most three photos of 40x30, and no more than seven of them waiting."""
    monkeypatch.setattr(photos, "_PIXELS_A_BATCH", 3 * 40 * 30)
    monkeypatch.setattr(photos, "_PIXELS_WAITING", 7 * 40 * 30)
