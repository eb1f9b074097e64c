"""A stand-in for a network that counts the photos it sees, and photos of one colour each."""

import io

import numpy as np
import tensorflow as tf
from PIL import Image

from mg_keras.data.sources import Split
from mg_keras.poolings import RMAC


class Colours:
    """A network whose embedding by the pooling p is the mean colour to the power p; R-MAC's is its reverse."""

    def __init__(self):
        self.runs, self.photos = 0, 0

    def embed_batch(self, images, poolings):
        tf.py_function(self._count, [tf.shape(images)[0]], [])
        colours = tf.reduce_mean(images, (1, 2)) / 255 + 0.01
        by_pooling = {None: colours, RMAC: colours[:, ::-1]}
        # an exponent may be a tensor, which is no key
        return tf.stack([by_pooling[p] if p is None or isinstance(p, str) else colours**p for p in poolings])

    def _count(self, photos):
        self.runs, self.photos = self.runs + 1, self.photos + int(photos)

    def classify(self, embeddings):
        return np.asarray(embeddings)


def colour_split(colours, name="photo"):
    files = []
    for colour in colours:
        buffer = io.BytesIO()
        Image.new("RGB", (40, 30), tuple(int(value) for value in colour)).save(buffer, "PNG")
        files.append(buffer.getvalue())
    table = tf.constant(files)
    labels = np.argmax(colours, axis=1)
    return Split([f"{name} {i}" for i in range(len(files))], lambda index: table[index], lambda: labels)
