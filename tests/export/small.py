"""A small model with made-up statistics, its export, pictures for it, and the ways to load what was exported."""

import contextlib
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from mg_keras import MultiGrain, Whitening
from mg_keras.export.saved_model import export_saved_model
from mg_keras.models import trunks

EXPONENTS = [1.0, 3.0, 4.5]
P_STAR = {64: 2.5, 128: 5.0}
TINY_RESNET = {"stackwise_num_filters": [64, 16], "stackwise_num_blocks": [1, 1], "stackwise_num_strides": [1, 2]}
METADATA = {"class_names": list("abcdefg"), "p_star": P_STAR, "trunk": "tiny", "training": {"resolution": 48}}

SERVABLE = {
    line
    for line in Path(__file__).with_name("servable_operations.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
}


def operations(definition):
    """Of a graph and the functions that it calls, one for each node."""
    functions = [node for function in definition.library.function for node in function.node_def]
    return [node.op for node in [*functions, *definition.node]]


def made_up_statistics(trunk, seed=0):
    """Gives every batch norm and bias values that folding must get right."""
    rng = np.random.default_rng(seed)
    for variable in trunk.variables:
        name = variable.path.rsplit("/", 1)[-1]
        if name in ("moving_mean", "beta", "bias"):
            variable.assign(rng.normal(0, 0.1, variable.shape))
        elif name in ("moving_variance", "gamma"):
            variable.assign(rng.uniform(0.6, 1.4, variable.shape))
    return trunk


def small_model(dtype=None):
    """A trunk of two small blocks whose statistics and classifier are made up, so that images differ in class."""
    rng = np.random.default_rng(0)
    keras.utils.set_random_seed(0)
    trunk = made_up_statistics(trunks.build("resnet18", dtype=dtype, **TINY_RESNET))
    model = MultiGrain(trunk, num_classes=7, dtype=dtype)
    images = random_images((64, 64), seed=9, count=120)
    embeddings = model(images, p_star=np.float32(EXPONENTS * 40))["embedding"].numpy()
    kernel = rng.normal(size=(16, 7)) / np.std(embeddings, axis=0)[:, None]
    model.classifier.set_weights([kernel, -np.mean(embeddings, axis=0) @ kernel + rng.normal(0, 0.5, 7)])
    return model


def fitted_whitening(model):
    """Of the small model, on made-up photos."""
    embeddings = [model(random_images((64, 64), seed, count=40))["embedding"].numpy() for seed in range(2)]
    return Whitening.fit(np.concatenate(embeddings))


def export(model, whitening, folder):
    """A whitened model with class names and a p* table; returns the version's path."""
    return export_saved_model(model, whitening, folder, metadata=METADATA, photos=photos())


@contextlib.contextmanager
def session_of(path):
    """A SavedModel as TF Serving takes it, through TensorFlow's C++ loader: a function of signature and inputs."""
    with contextlib.closing(tf.compat.v1.Session(graph=tf.Graph())) as session:
        with session.graph.as_default():
            loaded = tf.compat.v1.saved_model.load(session, ["serve"], str(path))

        def call(signature, **inputs):
            found = loaded.signature_def[signature]
            assert set(found.inputs) == set(inputs)
            fed = {found.inputs[name].name: value for name, value in inputs.items()}
            return session.run({name: tensor.name for name, tensor in found.outputs.items()}, fed)

        yield call


# Run by a Python that finds TensorFlow but neither Keras, keras-hub nor this package, in an empty folder.
_CLIENT = """
import sys
for blocked in ("keras", "keras_hub", "mg_keras", "export"):
    sys.modules[blocked] = None
import pickle
import numpy as np
import tensorflow as tf
answers, loaded = [], {}
for path, signature, inputs in pickle.load(open("calls", "rb")):
    if path not in loaded:
        loaded[path] = tf.saved_model.load(path)
    signatures = loaded[path].signatures
    answer = signatures[signature](**{name: tf.constant(value) for name, value in inputs.items()})
    again = signatures["classify_embedding"](embedding=answer["embedding"])
    answers.append([{name: value.numpy() for name, value in part.items()} for part in (answer, again)])
assert all(sys.modules[name] is None for name in ("keras", "keras_hub", "mg_keras", "export"))
pickle.dump(answers, open("answers", "wb"))
"""


def answers_without_keras(calls, folder):
    """Answers of SavedModels in a process that has TensorFlow alone.

    Args:
        calls: [(path of the SavedModel, signature, its inputs)].
        folder: an empty one, to work in.

    Returns:
        For each call its answer, and what `classify_embedding` says of the descriptors in it.
    """
    with open(folder / "calls", "wb") as file:
        pickle.dump([(str(path), *rest) for path, *rest in calls], file)
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-I", "-c", _CLIENT]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    with open(folder / "answers", "rb") as file:
        return pickle.load(file)


def random_images(size, seed, count=3):
    """Noise of patches of several widths in pixels, each image with its own contrasts and colour."""
    rng = np.random.default_rng(seed)
    images = np.zeros((count, *size, 3), np.float32)
    for width in (32, 12, 4):
        noise = rng.normal(0, 60, (count, size[0] // width, size[1] // width, 3)).astype(np.float32)
        images += tf.image.resize(noise, size, "bicubic").numpy() * rng.uniform(0, 2, (count, 1, 1, 1))
    return np.clip(images + rng.uniform(60, 200, (count, 1, 1, 3)), 0, 255).astype(np.float32)


def photos(count=2, size=(64, 80), seed=77):
    """Pictures to check an export on: uint8."""
    return list(random_images(size, seed, count).astype(np.uint8))


def picture(height, width, seed=0):
    """For PIL to write."""
    return Image.fromarray(random_images((height, width), seed, 1)[0].astype(np.uint8))


def encoded_as(image, kind="PNG", **options):
    """The bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def eight_files():
    """Eight kinds of photos of eight sizes."""
    upright = Image.Exif()
    upright[0x0112] = 6
    sixteen_bits = random_images((96, 72), 5, 1)[0, ..., 0].astype(np.uint16) * 257
    alpha = picture(70, 101, 6)
    alpha.putalpha(100)
    return {
        "0_progressive.jpg": encoded_as(picture(90, 120, 0), "JPEG", quality=90, progressive=True),
        "1_grey.jpg": encoded_as(picture(110, 75, 1).convert("L"), "JPEG", quality=90),
        "2_cmyk.jpg": encoded_as(picture(64, 64, 2).convert("CMYK"), "JPEG", quality=90),
        "3_rotated.jpg": encoded_as(picture(66, 133, 3), "JPEG", quality=90, exif=upright.tobytes()),
        "4_sixteen_bits.png": encoded_as(Image.fromarray(sixteen_bits)),
        "5_alpha.png": encoded_as(alpha),
        "6_still.gif": encoded_as(picture(50, 90, 7).quantize(32), "GIF"),
        "7_plain.bmp": encoded_as(picture(128, 100, 8), "BMP"),
    }


def cosines(found, expected):
    """Of the rows."""
    found, expected = (np.reshape(value, (len(value), -1)).astype(np.float64) for value in (found, expected))
    return np.sum(found * expected, 1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
