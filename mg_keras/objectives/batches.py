"""What Keras hands to a step, told apart and checked: images, labels, instance ids and weights."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

# the error of the check within the graph, as TensorFlow words it: texts and values in brackets
_FAILED_IN_GRAPH = re.compile(r"\[(labels must be [^\]]*)\] \[([^\]]*)\] \[to\] \[([^\]]*)\]")


class Batch(NamedTuple):
    """The parts of a batch; None for what it has not.

    Attributes:
        images: [B, H, W, 3].
        labels: class numbers [B], or shares of the classes [B, C] (mixed labels).
        instance_ids: integers or strings [B], equal for versions of one photo.
        weights: floats [B], of the images' cross-entropies.
    """

    images: Any
    labels: Any
    instance_ids: Any = None
    weights: Any = None


def unpack(data: Any) -> Batch:
    """Tells the parts of `(images, labels[, instance_ids][, weights])` apart.

    Keras puts `sample_weight` and `class_weight` where instance ids stand: a third part of floats is weights, one of
    integers or strings is ids.

    Raises:
        ValueError: there are other parts, or they are of other types, shapes or lengths.
        InvalidArgumentError: in a graph in which lengths are not known, they are others.
    """
    parts = list(data) if isinstance(data, (tuple, list)) else [data]
    while parts and parts[-1] is None:
        parts.pop()
    if not 2 <= len(parts) <= 4:
        raise ValueError(f"a batch is (images, labels, instance_ids, weights) or less, received {_count(parts)}")
    if len(parts) == 3 and _is_float(parts[2]):
        parts.insert(2, None)
    batch = Batch(*parts)
    _check_column("instance_ids", "integers or strings", batch.instance_ids, lambda kind: not kind.is_floating)
    _check_column("weights", "floats", batch.weights, lambda kind: kind.is_floating)
    for name in ("labels", "instance_ids", "weights"):
        _check_length(name, getattr(batch, name), batch.images)
    return batch


def need_instances(batch: Batch, what: str, with_xla: bool, instead: str = "") -> None:
    """Checks that the batch has instance ids.

    Args:
        batch: `Batch`.
        what: needs them.
        with_xla: whether it is compiled with XLA.
        instead: what else could be done without them.

    Raises:
        ValueError: it has not, or has strings, which XLA knows nothing of.
    """
    if batch.instance_ids is None:
        parts = [part for part in batch if part is not None]
        weighted = "" if batch.weights is None else " (the last, floats, is weights)"
        raise ValueError(
            f"{what} needs instance_ids, received {_count(parts)}{weighted}: give batches (images, labels, "
            f"instance_ids) or (images, labels, instance_ids, weights){instead}"
        )
    if with_xla and batch.instance_ids.dtype == tf.string:
        raise ValueError("with jit_compile, instance_ids must be integers, received strings")


def with_class_numbers(batch: Batch, num_classes: int) -> Batch:
    """The batch with labels as int32 [B], checked within the graph: a step that meets another label changes nothing.

    Raises:
        ValueError: they are no column of numbers, such as one-hot rows or strings.
        InvalidArgumentError: one is not a whole number from 0 to `num_classes` - 1 (see `plain_errors`).
    """
    labels = tf.convert_to_tensor(batch.labels)
    _check_kind(labels.shape, labels.dtype, num_classes)
    if labels.dtype == tf.bool:
        labels = tf.cast(labels, tf.int32)
    # labels come from the host; checked there, a step on a GPU does not wait for the check
    with tf.device("CPU:0"):
        known = tf.logical_and(labels >= 0, labels < num_classes)
        if labels.dtype.is_floating:
            known = tf.logical_and(known, tf.equal(labels, tf.floor(labels)))
        found = [_expected(num_classes), tf.reduce_min(labels), "to", tf.reduce_max(labels)]
        check = tf.debugging.Assert(tf.reduce_all(known), found)
    # not only the labels: beta's update knows nothing of them
    with tf.control_dependencies([check]):
        return batch._replace(images=tf.identity(batch.images), labels=tf.identity(tf.cast(labels, tf.int32)))


def are_mixed(labels: Any) -> bool:
    """Whether labels are shares of the classes [B, C] in place of class numbers [B]."""
    labels = tf.convert_to_tensor(labels)
    return labels.dtype.is_floating and labels.shape.rank == 2


def with_mixed_labels(batch: Batch, num_classes: int) -> Batch:
    """The batch with its shares of the classes as float32 [B, C].

    Raises:
        ValueError: they are of another number of classes.
    """
    labels = tf.cast(batch.labels, tf.float32)
    if labels.shape[-1] != num_classes:
        raise ValueError(f"mixed labels must be [B, {num_classes}], received shape {tuple(labels.shape)}")
    return batch._replace(labels=labels)


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Turns the error of `with_class_numbers` from within a graph into a ValueError of one line."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        failed = _FAILED_IN_GRAPH.search(str(error))
        if failed is None:
            raise
        raise ValueError(" ".join([*failed.groups()[:2], "to", failed[3]])) from None


def check_given_labels(labels: Any, num_classes: int) -> None:
    """Checks labels that are at hand as a whole, before anything is trained on them.

    Raises:
        ValueError: they are not whole numbers [N] from 0 to `num_classes` - 1.
    """
    labels = np.asarray(labels)
    kind = tf.string if labels.dtype.kind in "OSU" else tf.as_dtype(labels.dtype)
    _check_kind(tf.TensorShape(labels.shape), kind, num_classes)
    if not np.all((labels >= 0) & (labels < num_classes) & (labels == np.floor(labels))):
        raise ValueError(f"{_expected(num_classes)} {labels.min()} to {labels.max()}")


def as_weights(weights: Any) -> np.ndarray | None:
    """Weights of images as float32 [N], of whatever type: given as integers, they would pass for instance ids.

    Raises:
        ValueError: they are no numbers [N], or one is negative, infinite or no number.
    """
    if weights is None:
        return None
    return _checked_weights("sample_weight", weights)


def class_weights_from(class_weight: Mapping[int, float], num_classes: int) -> np.ndarray:
    """Keras's `class_weight` as float32 [C]: 1 for the classes that it does not name.

    Raises:
        ValueError: a key is no class number, or a weight is negative, infinite or no number.
    """
    if not isinstance(class_weight, Mapping):
        raise ValueError(f"class_weight must map class numbers to weights, received {type(class_weight).__name__}")
    unknown = [key for key in class_weight if key not in range(num_classes)]
    if unknown:
        raise ValueError(f"class_weight must name classes from 0 to {num_classes - 1}, received {unknown[0]!r}")
    return _checked_weights("class_weight", [class_weight.get(number, 1.0) for number in range(num_classes)])


def check_class_weights(class_weights: Any, num_classes: int) -> np.ndarray:
    """One weight a class as float32 [C].

    Raises:
        ValueError: they are not `num_classes`, or one is negative, infinite or no number.
    """
    weights = _checked_weights("class_weights", class_weights)
    if len(weights) != num_classes:
        raise ValueError(
            f"class_weights must hold one weight for each of {num_classes} classes, received {len(weights)}"
        )
    return weights


def _checked_weights(name, weights):
    try:
        weights = np.asarray(weights, np.float32)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must hold numbers, received {type(weights).__name__}") from None
    if weights.ndim != 1:
        raise ValueError(f"{name} must be a list of weights, received shape {weights.shape}")
    wrong = weights[~(np.isfinite(weights) & (weights >= 0))]
    if len(wrong):
        raise ValueError(f"{name} must hold numbers of at least 0, received {wrong[0]}")
    return weights


def _check_column(name, what, values, fits):
    if values is None:
        return
    kind = tf.as_dtype(values.dtype)
    if kind == tf.bool or not fits(kind):
        raise ValueError(f"{name} must be {what}, received {kind.name}")
    if values.shape.rank not in (1, None):
        raise ValueError(f"{name} must be one an image, [B], received shape {tuple(values.shape)}")


def _check_length(name, values, images):
    """That there is one value an image: broadcasting would take one for all."""
    if values is None:
        return
    found, expected = (tf.TensorShape(getattr(part, "shape", None)) for part in (values, images))
    if not found.rank or not expected.rank:
        return
    message = f"{name} must be one an image"
    if None in (found[0], expected[0]):
        # shapes are on the host, whatever computes
        tf.debugging.assert_equal(tf.shape(values)[0], tf.shape(images)[0], message=message)
    elif found[0] != expected[0]:
        raise ValueError(f"{message}, {expected[0]}, received {found[0]}")


def _check_kind(shape, kind, num_classes):
    if kind == tf.string:
        raise ValueError("labels must be class numbers, received strings: number the classes from 0")
    if shape.rank not in (1, None):
        one_hot = "; of one-hot labels take the argmax" if shape[-1] == num_classes > 1 else ""
        raise ValueError(f"labels must be class numbers, one an image, received shape {tuple(shape)}{one_hot}")


def _expected(num_classes):
    return f"labels must be whole class numbers from 0 to {num_classes - 1}, received values from"


def _is_float(values):
    return tf.as_dtype(values.dtype).is_floating


def _count(parts):
    return f"{len(parts)} part{'s' * (len(parts) != 1)}"
