"""The check that every exported model passes before it is published: its answers beside the Keras model's."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mg_keras.data import demo, resolutions
from mg_keras.errors import UserError

# the least cosine of any photo's descriptor with the Keras model's, by what the trunk computes in
MIN_COSINE = {"float32": 0.99999, "mixed": 0.999, "bfloat16": 0.999}
# a class is as good as the Keras model's if that gives it this share of the best one's probability: rounding decides
# between classes that are nearly tied, as most are on photos that show none of them
NEAR_TIE = {"float32": 0.99, "mixed": 0.8, "bfloat16": 0.8}
# share of photos that must get such a class; one photo may always differ, as a few decide nothing
MIN_AGREEMENT = 0.99

_PHOTOS_A_CALL = 8


def check(
    folder: Path,
    expected: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
    photos: Sequence[np.ndarray],
    resolution: int,
    exponent: float,
    precision: str,
) -> list[dict[str, Any]]:
    """Compare the SavedModel in `folder` with what the Keras model says of the same photos, at three shapes.

    The shapes are a square of `resolution`, a landscape 4/3 as wide and a portrait 3/2 as high. Each photo goes through
    `serving_default` as pixels and, as a PNG file of these pixels, through `encoded`.

    Args:
        folder: of the SavedModel.
        expected: the Keras model, in float32: images float32 [B, H, W, 3] in 0-255, exponents [B] -> descriptors [B, D]
            of unit norm, logits [B, C].
        photos: RGB, uint8 [H, W, 3] each, of any sizes.
        resolution: pixels.
        exponent: p*.
        precision: a key of `MIN_COSINE`, what the exported trunk computes in.

    Returns:
        For each shape and signature: `signature`, `height`, `width`, `photos`, `min_cosine`, `mean_cosine`,
        `class_agreement`, and `max_logits_difference`, the largest of any photo, relative to the norm of its logits.

    Raises:
        UserError: a figure is too low.
    """
    signatures = tf.saved_model.load(str(folder)).signatures
    figures = []
    for height, width in (
        (resolution, resolution),
        (resolution, resolution * 4 // 3),
        (resolution * 3 // 2, resolution),
    ):
        found = {"serving_default": [], "encoded": []}
        wanted = []
        for start in range(0, len(photos), _PHOTOS_A_CALL):
            part = photos[start : start + _PHOTOS_A_CALL]
            # whole grey levels, as a file holds them
            images = np.stack([np.rint(resolutions.resize(tf.constant(photo), height, width)) for photo in part])
            batch = np.clip(images, 0, 255).astype(np.float32)
            p_star = np.full(len(batch), exponent, np.float32)
            wanted.append(expected(batch, p_star))
            files = [tf.io.encode_png(image.astype(np.uint8)) for image in batch]
            answers = {
                "serving_default": signatures["serving_default"](images=tf.constant(batch), p_star=tf.constant(p_star)),
                "encoded": signatures["encoded"](
                    image_bytes=tf.stack(files),
                    resolution=tf.zeros([len(batch)], tf.int32),
                    p_star=tf.constant(p_star),
                ),
            }
            for name, answer in answers.items():
                found[name].append([answer[output].numpy() for output in ("embedding", "logits", "class")])
        descriptors, logits = (np.concatenate(part) for part in zip(*wanted, strict=True))
        norms = np.maximum(np.linalg.norm(logits, axis=1), 1e-12)
        rows, best = np.arange(len(logits)), logits.max(axis=1)
        for name, parts in found.items():
            embeddings, answered, classes = (np.concatenate(part) for part in zip(*parts, strict=True))
            cosines = np.sum(embeddings.astype(np.float64) * descriptors, axis=1)
            others = np.count_nonzero(np.exp(logits[rows, classes] - best) < NEAR_TIE[precision])
            entry = {
                "signature": name,
                "height": height,
                "width": width,
                "photos": len(photos),
                "min_cosine": float(cosines.min()),
                "mean_cosine": float(cosines.mean()),
                "class_agreement": float(np.mean(classes == logits.argmax(axis=1))),
                "max_logits_difference": float(np.max(np.linalg.norm(answered - logits, axis=1) / norms)),
            }
            _judge(entry, int(others), precision)
            figures.append(entry)
    return figures


def _judge(entry: dict[str, Any], others: int, precision: str) -> None:
    """Raises UserError if the figures are too low, or no numbers; `others` photos get a class that is no near tie."""
    place = f"{entry['signature']} at {entry['height']}x{entry['width']} px, {entry['photos']} photos"
    problem = None
    if not entry["min_cosine"] >= MIN_COSINE[precision]:
        problem = f"a descriptor's cosine is {entry['min_cosine']:.6f}, at least {MIN_COSINE[precision]} is asked for"
    elif others > max(1, (1 - MIN_AGREEMENT) * entry["photos"]):
        problem = f"{others} photos get another class"
    if problem:
        advice = "; try --precision float32" if precision != "float32" else ""
        raise UserError(
            f"the exported model differs from the Keras model, so nothing was written ({place}): {problem}{advice}"
        )


def float32_trunk(trunk: keras.Model) -> keras.Model:
    """`trunk`, or where its dtype policy is another than float32, a copy that computes in float32."""
    if trunk.compute_dtype == "float32":
        return trunk
    copy = type(trunk).from_config(_with_float32_policies(trunk.get_config()))
    copy.set_weights(trunk.get_weights())
    return copy


def _with_float32_policies(config: Any) -> Any:
    """A Keras configuration with every dtype policy in it replaced."""
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            return "float32"
        return {name: _with_float32_policies(value) for name, value in config.items()}
    if isinstance(config, list | tuple):
        return type(config)(_with_float32_policies(value) for value in config)
    return config


def generated_photos(count: int) -> list[np.ndarray]:
    """Made-up photos to check a model on that comes without any: uint8 [256, 256, 3]."""
    classes = len(demo.CLASS_NAMES)
    return [demo.draw_view(number % classes, number // classes, 0, resolution=256) for number in range(count)]
