"""The SavedModel: one graph from pixels to descriptor and class, for TF Serving and any TensorFlow runtime."""

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from keras import ops

from mg_keras import MultiGrain, Whitening, layers
from mg_keras import whitening as formulas
from mg_keras.errors import UserError
from mg_keras.files import atomic_path, atomic_write_json

_OUTPUTS = ("logits", "class", "probability")


def export_saved_model(
    model: MultiGrain,
    whitening: Whitening | None,
    folder: str | os.PathLike,
    version: int | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model and its whitening as the SavedModel `<folder>/<version>/`, whole or not at all.

    The graph holds TensorFlow's own operations only, so it runs where neither Keras nor this package is installed:

    `serving_default`:
        images: float32 [B, H, W, 3], RGB in 0-255, any H and W.
        p_star: float32 [B], the pooling exponent of each image, > 0.
        -> embedding: float32 [B, D], unit norm, whitened.
        -> logits: float32 [B, C]; class: int64 [B]; probability: float32 [B], of that class.
    `classify_embedding`:
        embedding: float32 [B, D], as `serving_default` gives it (its norm is of no account).
        -> logits, class, probability, as above.

    `embedding` is Phi([e; 1] / ||[e; 1]||) divided by its norm, D = d + 1, and the logits are read from Phi by the
    classifier that the whitening is folded into (MultiGrain, section 3.4). `classify_embedding` undoes the whitening:
    thanks to the appended 1, a stored unit-norm descriptor gives the exact logits back, without the image.

    `assets/multigrain.json` in the SavedModel says what it is: `trunk`, `embedding_size` (D), `num_classes`,
    `pooling_exponent` (of training), `whitened`, `normalization` (input range, mean and standard deviation), and
    `metadata`.

    Args:
        model: a `MultiGrain`.
        whitening: fitted with the bias channel on the model's embeddings; None exports unit-norm [e; 1] as it is.
        folder: the model's folder, which TF Serving watches; made when needed.
        version: a positive number; None takes the one after the highest there is, or 1.
        metadata: what else `multigrain.json` shall hold, as JSON: `class_names` (one a class), `p_star` (resolution ->
            exponent), `trunk`, `training` (the configuration).

    Returns:
        The path of `<folder>/<version>`.

    Raises:
        ValueError: a whitening without bias channel or of another size, another number of `class_names` than classes,
            or `metadata` under a name that is filled in here.
        UserError: the version exists already or is below 1, or `folder` is a file.

    Example:
        >>> path = export_saved_model(model, whitening, "models/multigrain", metadata={"class_names": names})
        >>> served = tf.saved_model.load(path)
        >>> answer = served.signatures["serving_default"](images=images, p_star=tf.constant([3.0, 4.5]))
    """
    size = model.embedding_dimension + 1
    if whitening is None:
        fitted = Whitening(np.zeros(size), np.eye(size))
    elif not whitening.bias_channel or len(whitening.mean_) != size:
        raise ValueError(
            f"the whitening must have the bias channel and {size} values for this model, got "
            f"bias_channel={whitening.bias_channel} and {len(whitening.mean_)} values"
        )
    else:
        fitted = whitening
    description = _description(model, whitening is not None, dict(metadata or {}))
    target = _next_version(Path(folder), version)
    served = _Served(model, fitted)
    with atomic_path(target) as partial:
        with _no_log():
            tf.saved_model.save(served, partial, signatures=served.signatures())
        atomic_write_json(partial / "assets" / "multigrain.json", description)
    return target


def export_run(run, folder: str | os.PathLike, version: int | None = None) -> Path:
    """Export a trained run (`mg_keras.training.runs.Run`) with its whitening, classes, p* table and settings."""
    metadata = {
        "trunk": run.settings.trunk,
        "class_names": run.class_names,
        "p_star": run.p_star,
        "training": run.config,
    }
    return export_saved_model(run.model, run.whitening, folder, version, metadata)


def usage(path: str | os.PathLike) -> str:
    """What the SavedModel at `path` offers, and the lines that load it."""
    about = json.loads((Path(path) / "assets" / "multigrain.json").read_text(encoding="utf-8"))
    lines = [f"{path}{'' if about['whitened'] else ' (not whitened)'}"]
    for name, signature in tf.saved_model.load(path).signatures.items():
        # a loaded signature has its names in no order
        inputs = ", ".join(_shown(spec) for _, spec in sorted(signature.structured_input_signature[1].items()))
        outputs = [output for output in ("embedding", *_OUTPUTS) if output in signature.structured_outputs]
        lines.append(f"  {name}({inputs}) -> {', '.join(outputs)}")
    exponent = next(iter(about.get("p_star", {}).values()), about["pooling_exponent"])
    return "\n".join(
        [
            *lines,
            "Load it with TensorFlow alone:",
            "  import tensorflow as tf",
            f"  served = tf.saved_model.load({str(path)!r}).signatures['serving_default']",
            "  images = tf.cast(tf.io.decode_image(tf.io.read_file('photo.jpg'), 3)[None], tf.float32)",
            f"  print(served(images=images, p_star=tf.constant([{float(exponent)}])))",
        ]
    )


def _shown(spec: tf.TensorSpec) -> str:
    """A tensor's name, type and shape as documentation writes them."""
    sizes = ", ".join("?" if size is None else str(size) for size in spec.shape)
    return f"{spec.name}: {spec.dtype.name} [{sizes}]"


class _Served(tf.Module):
    """The variables of the graph and the functions that become signatures.

    It holds the model's variables, not the model: a Keras object in a SavedModel would bring along its layers' own
    functions and metadata, which nobody who loads it could use.
    """

    def __init__(self, model: MultiGrain, whitening: Whitening):
        super().__init__()
        layer = layers.Whitening.from_whitening(whitening)
        kernel, bias = (np.asarray(ops.convert_to_numpy(weight)) for weight in model.classifier.weights)
        folded_kernel, folded_bias = whitening.fold(kernel, bias)
        self.mean = layer.mean.value
        self.projection = layer.projection.value
        self.inverse = layer.inverse.value
        self.folded_kernel = tf.Variable(folded_kernel, dtype=tf.float32, trainable=False, name="folded_kernel")
        self.folded_bias = tf.Variable(folded_bias, dtype=tf.float32, trainable=False, name="folded_bias")
        self.classifier = tf.Variable(np.vstack([kernel, bias]), dtype=tf.float32, trainable=False, name="classifier")
        self.trunk_variables = [variable.value for variable in model.trunk.variables]
        self._embed = _embedder(model)

    def signatures(self) -> dict[str, Any]:
        """Name -> concrete function."""
        images = tf.TensorSpec([None, None, None, 3], tf.float32, "images")
        p_star = tf.TensorSpec([None], tf.float32, "p_star")
        embedding = tf.TensorSpec([None, self.mean.shape[0]], tf.float32, "embedding")
        return {
            "serving_default": tf.function(self.describe).get_concrete_function(images, p_star),
            "classify_embedding": tf.function(self.classify).get_concrete_function(embedding),
        }

    def describe(self, images: tf.Tensor, p_star: tf.Tensor) -> dict[str, tf.Tensor]:
        """Pixels and exponents to descriptor and class."""
        tf.debugging.assert_positive(p_star, "p_star must be greater than 0")
        embeddings = self._embed(images, p_star)
        whitened = formulas.whitened(ops, embeddings, self.mean, self.projection, bias_channel=True)
        norms = tf.sqrt(tf.reduce_sum(embeddings**2, axis=-1, keepdims=True) + 1.0)
        logits = norms * (tf.matmul(whitened, self.folded_kernel) + self.folded_bias)
        return {"embedding": formulas.unit_rows(ops, whitened), **_answers(logits)}

    def classify(self, embedding: tf.Tensor) -> dict[str, tf.Tensor]:
        """A stored descriptor to its class."""
        unit = formulas.unwhitened(ops, embedding, self.mean, self.inverse)
        return _answers(tf.matmul(unit, self.classifier) / unit[:, -1:])


def _embedder(model: MultiGrain) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Pixels and exponents to pooled embeddings, by the model's parts.

    Calling the model itself would first round pixels and exponents to half precision under a mixed dtype policy.
    """

    def embed(images, p_star):
        features = model.trunk(model.normalize(images), training=False)
        return model.pool(features, p_star=p_star)

    return embed


def _answers(logits: tf.Tensor) -> dict[str, tf.Tensor]:
    probabilities = tf.reduce_max(tf.nn.softmax(logits), axis=-1)
    return dict(zip(_OUTPUTS, (logits, tf.argmax(logits, axis=-1), probabilities), strict=True))


def _description(model: MultiGrain, whitened: bool, metadata: dict[str, Any]) -> dict[str, Any]:
    """What `multigrain.json` says."""
    names = metadata.get("class_names")
    if names is not None and len(names) != model.num_classes:
        raise ValueError(f"class_names must hold {model.num_classes} names, got {len(names)}")
    filled_in = {
        "embedding_size": model.embedding_dimension + 1,
        "num_classes": model.num_classes,
        "pooling_exponent": float(ops.convert_to_numpy(model.pool.pooling_exponent)),
        "whitened": whitened,
        "normalization": {"input": "RGB, 0 to 255", "mean": model.pixel_mean, "std": model.pixel_std},
    }
    if both := filled_in.keys() & metadata.keys():
        raise ValueError(f"metadata must not hold {sorted(both)}: the export fills them in")
    return {"trunk": model.trunk.name, **filled_in, **metadata}


def _next_version(folder: Path, version: int | None) -> Path:
    """The folder of the version to write, which does not exist."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give a folder for the model's versions")
    if version is None:
        taken = [int(path.name) for path in folder.glob("*") if path.name.isdecimal()]
        version = max(taken, default=0) + 1
    if version < 1:
        raise UserError(f"version must be at least 1, got {version}")
    if (folder / str(version)).exists():
        raise UserError(f"{folder / str(version)} exists already: give another version, or none for the next free one")
    return folder / str(version)


@contextlib.contextmanager
def _no_log() -> Iterator[None]:
    """Keep TensorFlow from telling where it wrote assets: a hidden folder that is renamed a moment later."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
