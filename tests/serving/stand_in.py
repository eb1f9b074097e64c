"""A SavedModel with the signatures of an exported model whose answers NumPy gives in a few lines."""

import io
import os
import shutil

import numpy as np
import tensorflow as tf
from PIL import Image
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from mg_keras.export import warm_up
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
        tf.debugging.assert_equal(tf.size(p_star), tf.shape(images)[0], "p_star must hold one value for each image")
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
        lengths = tf.stack([tf.size(resolution), tf.size(p_star)])
        message = "resolution and p_star must hold one value for each photo"
        tf.debugging.assert_equal(lengths, tf.size(image_bytes), message)

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


# what `spoil` does to a version -> what the reason why it cannot be loaded speaks of
SPOILT = {
    "half a file": "saved_model.pb",
    "no weights": "variables",
    "half of the weights": "Read less bytes than requested",
    "an output that is not in the graph": "nothing:0",
    "an unknown dtype": "999",
    "a warm-up request without p_star": "p_star",
    "a warm-up request that fails": "p_star must be greater than 0",
    "a warm-up file that is none": "corrupted record",
}


def spoil(version, how):
    """Damage the files of a version, in one of the ways of `SPOILT`."""
    file = version / "saved_model.pb"
    saved = SavedModel.FromString(file.read_bytes())
    output = saved.meta_graphs[0].signature_def["serving_default"].outputs["class"]
    images = tf.make_tensor_proto(1.0, shape=[1, 4, 4, 3])
    if how == "half a file":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif how == "no weights":
        shutil.rmtree(version / "variables")
    elif how == "half of the weights":
        (weights,) = (version / "variables").glob("*.data-*")
        os.truncate(weights, weights.stat().st_size // 2)
    elif how == "an output that is not in the graph":
        output.name = "nothing:0"
        file.write_bytes(saved.SerializeToString())
    elif how == "an unknown dtype":
        output.dtype = 999
        file.write_bytes(saved.SerializeToString())
    elif how == "a warm-up request without p_star":
        request = warm_up.prediction_log("serving_default", {"images": images})
        warm_up.write_requests(version / warm_up.PLACE, [request])
    elif how == "a warm-up request that fails":
        request = warm_up.prediction_log("serving_default", {"images": images, "p_star": tf.make_tensor_proto([0.0])})
        warm_up.write_requests(version / warm_up.PLACE, [request])
    else:
        (version / warm_up.PLACE).parent.mkdir()
        (version / warm_up.PLACE).write_bytes(b"no record, and too long for a record's head")
