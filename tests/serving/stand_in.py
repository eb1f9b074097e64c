"""A SavedModel with the signatures of an exported model whose answers NumPy gives in a few lines."""

import io

import numpy as np
import tensorflow as tf
from PIL import Image

from mg_keras.files import atomic_path

SIZE, CLASSES = 4, 5
KERNEL = np.random.default_rng(0).normal(size=(SIZE, CLASSES)).astype(np.float32)


def expected(photos, p_star, shift=0.0):
    """What the stand-in answers: GeM of the colours, 1 appended, unit norm, and a linear classifier's logits.

    Args:
        photos: list of uint8 [H, W, 3].
        p_star: one float a photo; 0 counts as 3.
        shift: float, what the version adds to its logits.
    """
    exponents = [p or 3.0 for p in p_star]
    pooled = [
        np.mean((photo.astype(np.float64) + 1) ** p, axis=(0, 1)) ** (1 / p) / 256
        for photo, p in zip(photos, exponents, strict=True)
    ]
    embedding = np.column_stack([np.array(pooled), np.ones(len(photos))])
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    logits = embedding @ KERNEL + shift
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return {
        "embedding": embedding,
        "logits": logits,
        "class": logits.argmax(axis=1),
        "probability": (exponentials / exponentials.sum(axis=1, keepdims=True)).max(axis=1),
    }


def photo(seed, height=12, width=16):
    """A small picture, uint8 [height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def png(pixels):
    """The picture as the bytes of a PNG, which keeps every pixel."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class _StandIn(tf.Module):
    def __init__(self, shift):
        super().__init__()
        self.kernel = tf.Variable(KERNEL)
        self.shift = tf.Variable(np.float32(shift))

    @tf.function(input_signature=[tf.TensorSpec([None, SIZE], tf.float32, "embedding")])
    def classify(self, embedding):
        logits = embedding @ self.kernel + self.shift
        return {
            "logits": logits,
            "class": tf.argmax(logits, axis=-1),
            "probability": tf.reduce_max(tf.nn.softmax(logits), axis=-1),
        }

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, None, 3], tf.float32, "images"),
            tf.TensorSpec([None], tf.float32, "p_star"),
        ]
    )
    def describe(self, images, p_star):
        tf.debugging.assert_positive(p_star, "p_star must be greater than 0")
        p_star = p_star[:, None]
        means = tf.reduce_mean(((images + 1) / 256) ** p_star[:, None, None], axis=(1, 2)) ** (1 / p_star)
        embedding = tf.linalg.normalize(tf.pad(means, [[0, 0], [0, 1]], constant_values=1.0), axis=-1)[0]
        return {"embedding": embedding, **self.classify(embedding)}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.string, "image_bytes"),
            tf.TensorSpec([None], tf.int32, "resolution"),
            tf.TensorSpec([None], tf.float32, "p_star"),
        ]
    )
    def encoded(self, image_bytes, resolution, p_star):
        def one(each):
            image_bytes, resolution, p_star = each
            image = tf.cast(tf.io.decode_image(image_bytes, 3, expand_animations=False), tf.float32)
            image.set_shape([None, None, 3])
            if resolution > 0:
                image = tf.image.resize(image, [resolution, resolution])
            p_star = tf.where(p_star > 0, p_star, 3.0)
            return {name: value[0] for name, value in self.describe(image[None], p_star[None]).items()}

        types = {"embedding": tf.float32, "logits": tf.float32, "class": tf.int64, "probability": tf.float32}
        signature = {
            name: tf.TensorSpec({"embedding": [SIZE], "logits": [CLASSES]}.get(name, []), dtype)
            for name, dtype in types.items()
        }
        return tf.map_fn(one, (image_bytes, resolution, p_star), fn_output_signature=signature)


def save(folder, version=1, shift=0.0):
    """Write `<folder>/<version>/`, whole or not at all, as an export does."""
    module = _StandIn(shift)
    with atomic_path(folder / str(version)) as partial:
        tf.saved_model.save(
            module,
            str(partial),
            signatures={
                "serving_default": module.describe,
                "encoded": module.encoded,
                "classify_embedding": module.classify,
            },
        )
    return folder / str(version)
