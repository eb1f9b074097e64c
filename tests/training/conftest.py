"""What keeps whole trainings fast, whose photos are sound JPEGs."""

import pytest
import tensorflow as tf

from mg_keras.data import repeated


@pytest.fixture(autouse=True)
def jpegs_alone(monkeypatch):
    """What tells all kinds of photos apart takes nearly a second to set up: tests/data and tests/train have it."""

    def decode(read, key):
        return tf.constant(True), tf.io.decode_jpeg(read(key), channels=3)

    monkeypatch.setattr(repeated, "try_decode", decode)
