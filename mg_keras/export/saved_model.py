"""The SavedModel: one graph from pixels to descriptor and class, for TF Serving and any TensorFlow runtime."""

import contextlib
import errno
import functools
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from keras import ops

from mg_keras import MultiGrain, Whitening
from mg_keras import whitening_formulas as formulas
from mg_keras.errors import UserError
from mg_keras.export import warm_up
from mg_keras.export.check import check, float32_trunk, generated_photos
from mg_keras.export.encoded import LIMITS, embed_encoded, refuse_unusable
from mg_keras.export.optimize import normalized, optimized_trunk
from mg_keras.files import atomic_path, atomic_write_json, remove_leftovers
from mg_keras.models.levels import as_list, with_levels
from mg_keras.poolings import MOST_EXPONENT
from mg_keras.quiet import tensorflow_says

_OUTPUTS = ("logits", "class", "probability")
_DEFAULT_RESOLUTION = 224
# of a pixel, either way: room for those of 16 bits and for what sharpening overshoots, and none for what the network
# could turn into no number
_MAX_PIXEL = 65_535.0
_DAY = 24 * 60 * 60.0
# how far unit-norm embeddings in float32 may lie apart by rounding alone, with room to spare
_ROUNDING = 1e-6
CHECK_PHOTOS = 16


def export_saved_model(
    model: MultiGrain,
    whitening: Whitening | None,
    folder: str | os.PathLike,
    version: int | None = None,
    metadata: Mapping[str, Any] | None = None,
    precision: str = "float32",
    photos: Sequence[np.ndarray] | None = None,
) -> Path:
    """Write a model and its whitening as the SavedModel `<folder>/<version>/`, whole or not at all.

    The graph holds TensorFlow's own operations only, so it runs where neither Keras nor this package is installed:

    `serving_default`:
        images: float32 [B, H, W, 3], RGB in 0-255, any H and W; refused where NaN, infinite or beyond ±65535.
        p_star: float32 [B], the pooling exponent of each image, > 0.
        -> embedding: float32 [B, D], unit norm, whitened.
        -> logits: float32 [B, C]; class: int64 [B]; probability: float32 [B], of that class.
    `encoded`:
        image_bytes: string [B], photos as JPEG, PNG, WebP, GIF or BMP files, of any sizes.
        resolution: int32 [B], pixels of the largest side, or of both where the model's `preparation` is `squash`; 0
            takes the photo as it is.
        p_star: float32 [B]; where it is 0 or less, that of the p* table for the nearest resolution.
        -> as above. See `export.encoded` for limits and refusals.
    `classify_embedding`:
        embedding: float32 [B, D], as the others give it (its norm is of no account); refused where NaN, infinite or 0.
        -> logits, class, probability, as above.

    `embedding` is Phi([e; 1] / ||[e; 1]||) divided by its norm (MultiGrain, section 3.4), D = d + 1 or the dimensions
    that the whitening keeps. The classifier is the one with the whitening folded in (`Whitening.fold_completely`), in
    the variables `classifier/kernel` and `classifier/bias`: it reads Phi, in all three signatures, and where the
    whitening drops dimensions, what it left out beside it; of the descriptor alone, `classify_embedding` then has the
    first D rows to go by. Thanks to the appended 1, a stored unit-norm descriptor gives the logits back without the
    image, exactly unless the whitening drops dimensions.

    The trunk is rewritten for speed (`export.optimize`). What is written is loaded and checked against the Keras model,
    computed in float32 whatever its dtype policy, before it takes its name (`export.check`).

    `assets/multigrain.json` in the SavedModel says what it is: `trunk`, `embedding_size` (D), `num_classes`,
    `pooling_exponent` (of training), `whitened`, `normalization` (input range, mean and standard deviation),
    `precision`, `preparation` (of `mg_keras.preparations`), `limits` (of `encoded`), `check` (figures by shape and
    signature), and `metadata`.
    `assets.extra/tf_serving_warmup_requests` warms it up in TF Serving.

    Args:
        model: a `MultiGrain`.
        whitening: fitted with the bias channel on the model's embeddings; None exports unit-norm [e; 1] as it is.
        folder: the model's folder, which TF Serving watches; made when needed.
        version: a positive number; None takes the one after the highest there is, or 1.
        metadata: what else `multigrain.json` shall hold, as JSON: `class_names` (one a class), `p_star` (resolution ->
            exponent), `trunk`, `training` (the configuration; its `resolution` is that of check and warm-up, 224 px
            where it names none).
        precision: what the trunk computes in: "float32", or "bfloat16", which is about twice as fast where the
            processor has avx512_bf16 or AMX, and slower where it has not; or "mixed", which is about 1.4 times as fast
            as float32 there, with 0.3 of bfloat16's rounding (`mg_keras.export.optimize`). Inputs, pooling, whitening,
            classifier and outputs are float32 either way.
        photos: to check on, RGB uint8 [H, W, 3] each; None: generated ones.

    Returns:
        The path of `<folder>/<version>`. What an export killed over a day ago left half-written in `folder` is removed.

    Raises:
        ValueError: a whitening without bias channel or of another size, another number of `class_names` than classes,
            a `p_star` table that is none, no photos, an unknown precision, or `metadata` under a name that is filled in
            here.
        UserError: the version exists already or is below 1, `folder` is a file or cannot be written to, the disk is
            full, the check fails, or the network gives photos the same embedding, of which whitening would leave
            rounding errors.

    Example:
        >>> path = export_saved_model(model, whitening, "models/multigrain")  # doctest: +SKIP
        >>> served = tf.saved_model.load(path)  # doctest: +SKIP
        >>> served.signatures["serving_default"](images=images, p_star=tf.constant([3.0, 4.5]))  # doctest: +SKIP
    """
    size = model.embedding_dimension + 1
    if whitening is None:
        fitted = Whitening(np.zeros(size), np.eye(size))
    elif not whitening.bias_channel or len(whitening.mean_) != size:
        raise ValueError(
            f"the whitening must have the bias channel and {size} values for this model, received "
            f"bias_channel={whitening.bias_channel} and {len(whitening.mean_)} values"
        )
    else:
        fitted = whitening
    if photos is not None and not len(photos):
        raise ValueError("photos must hold at least one photo to check on, received none")
    metadata = dict(metadata or {})
    description = _description(model, fitted, whitening is not None, precision, metadata)
    training = metadata.get("training")
    resolution = training.get("resolution", _DEFAULT_RESOLUTION) if training else _DEFAULT_RESOLUTION
    exponents = _exponents(description)
    target = _next_version(Path(folder), version)
    # of exports that were killed: one that is under way takes minutes
    remove_leftovers(folder, "[0-9]*", _DAY)
    exponent = exponents.get(resolution, description["pooling_exponent"])
    description["check"] = {"photos": "generated" if photos is None else "given", "figures": []}
    with _published(target) as partial:
        served = _Served(model, fitted, precision, exponents or {resolution: description["pooling_exponent"]})
        _save(served, partial)
        checked = generated_photos(CHECK_PHOTOS) if photos is None else photos
        expected = _keras_answers(model, fitted)
        description["check"]["figures"] = check(partial, expected, checked, resolution, exponent, precision)
        atomic_write_json(partial / "assets" / "multigrain.json", description)
        # a request that the graph refuses would keep the version from being served
        sizes = sorted(size for size in {resolution, *exponents} if size**2 <= LIMITS["network_pixels"])
        requests = warm_up.model_requests(sizes, description["embedding_size"])
        warm_up.write_requests(partial / warm_up.PLACE, requests)
    return target


def usage(path: str | os.PathLike) -> str:
    """What the SavedModel at `path` offers, how near it is to the Keras model, and the lines that load it."""
    about = json.loads((Path(path) / "assets" / "multigrain.json").read_text(encoding="utf-8"))
    figures = about["check"]["figures"]
    kind = {"given": "", "generated": "generated "}[about["check"]["photos"]]
    lines = [
        f"{path}{'' if about['whitened'] else ' (not whitened)'}",
        f"  like the Keras model on {figures[0]['photos']} {kind}photos: least cosine of a descriptor "
        f"{min(entry['min_cosine'] for entry in figures):.7f}, class agreement "
        f"{min(entry['class_agreement'] for entry in figures):.1%}",
    ]
    for name, signature in tf.saved_model.load(path).signatures.items():
        # a loaded signature has its names in no order
        inputs = ", ".join(_shown(spec) for _, spec in sorted(signature.structured_input_signature[1].items()))
        outputs = [output for output in ("embedding", *_OUTPUTS) if output in signature.structured_outputs]
        lines.append(f"  {name}({inputs}) -> {', '.join(outputs)}")
    resolution, exponent = next(iter(about.get("p_star", {}).items()), (0, about["pooling_exponent"]))
    values = f"resolution=tf.constant([{int(resolution)}]), p_star=tf.constant([{float(exponent)}])"
    return "\n".join(
        [
            *lines,
            "Load it with TensorFlow alone:",
            "  import tensorflow as tf",
            f"  model = tf.saved_model.load({str(path)!r})",
            "  files = tf.stack([tf.io.read_file('photo.jpg')])",
            f"  print(model.signatures['encoded'](image_bytes=files, {values}))",
        ]
    )


def _shown(spec: tf.TensorSpec) -> str:
    """A tensor's name, type and shape as documentation writes them."""
    sizes = ", ".join("?" if size is None else str(size) for size in spec.shape)
    return f"{spec.name}: {spec.dtype.name} [{sizes}]"


_function = functools.partial(tf.function, autograph=False)


class _Served(tf.Module):
    """The variables of the graph and the functions that become signatures.

    It holds values of the model, not the model: a Keras object in a SavedModel would bring along its layers' own
    functions and metadata, which nobody who loads it could use. The trunk's weights are constants of one function that
    the signatures share; what follows is small, gains nothing from that, and stays variables.
    """

    def __init__(self, model: MultiGrain, whitening: Whitening, precision: str, table: Mapping[int, float]):
        super().__init__()
        kernel, bias = (ops.convert_to_numpy(weight) for weight in model.classifier.weights)
        projection, kernel, bias = whitening.fold_completely(kernel, bias)
        self.whitening = _variables(
            "whitening",
            mean=whitening.mean_,
            projection=projection,
            inverse=whitening.inverse_,
            discarded_variance=whitening.discarded_variance_,
        )
        self.classifier = _variables("classifier", kernel=kernel, bias=bias)
        self._sizes = whitening.projection_.shape
        trunk = optimized_trunk(model.mapper, precision)
        self._embed = _embedder(model, lambda images: trunk(normalized(images, *model.pixel_scaling)))
        self._table, self._preparation = dict(table), model.preparation

    def signatures(self) -> dict[str, Any]:
        """Name -> concrete function."""
        images = tf.TensorSpec([None, None, None, 3], tf.float32, "images")
        p_star = tf.TensorSpec([None], tf.float32, "p_star")
        image_bytes = tf.TensorSpec([None], tf.string, "image_bytes")
        resolution = tf.TensorSpec([None], tf.int32, "resolution")
        embedding = tf.TensorSpec([None, self._sizes[1]], tf.float32, "embedding")
        return {
            "serving_default": _function(self.describe).get_concrete_function(images, p_star),
            "encoded": _function(self.describe_encoded).get_concrete_function(image_bytes, resolution, p_star),
            "classify_embedding": _function(self.classify).get_concrete_function(embedding),
        }

    def describe(self, images: tf.Tensor, p_star: tf.Tensor) -> dict[str, tf.Tensor]:
        """Pixels and exponents to descriptor and class."""
        count = tf.shape(images)[0]
        with _after(tf.debugging.assert_equal(tf.size(p_star), count, "p_star must hold one value for each image")):
            images = tf.identity(images)
        return self._described(self._embed(_checked_pixels(images), _checked_exponents(p_star)))

    def describe_encoded(
        self, image_bytes: tf.Tensor, resolution: tf.Tensor, p_star: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Files, resolutions and exponents to descriptor and class."""

        def embed(images, exponents):
            return self._embed(images, _checked_exponents(exponents))

        size = self._sizes[0] - 1
        return self._described(
            embed_encoded(embed, size, image_bytes, resolution, p_star, self._table, self._preparation)
        )

    def classify(self, embedding: tf.Tensor) -> dict[str, tf.Tensor]:
        """A stored descriptor to its class."""
        fitted = self.whitening
        phi, unit = formulas.unwhitened(
            ops, _checked_descriptors(embedding), fitted.mean, fitted.inverse, fitted.discarded_variance
        )
        kernel = self.classifier.kernel[: self._sizes[1]]
        return _answers(formulas.folded_logits(ops, phi, unit, kernel, self.classifier.bias))

    def _described(self, embeddings: tf.Tensor) -> dict[str, tf.Tensor]:
        unit = formulas.unit_embeddings(ops, embeddings, bias_channel=True)
        phi = formulas.whitened(ops, unit, self.whitening.mean, self.whitening.projection)
        logits = formulas.folded_logits(ops, phi, unit, self.classifier.kernel, self.classifier.bias)
        return {"embedding": formulas.unit_rows(ops, phi[:, : self._sizes[1]]), **_answers(logits)}


def _variables(name: str, **values: Any) -> tf.Module:
    """A module of float32 variables, which the SavedModel names `name/key`."""
    module = tf.Module(name)
    for key, value in values.items():
        setattr(module, key, tf.Variable(np.float32(value), trainable=False, name=f"{name}/{key}"))
    return module


def _checked_pixels(images: tf.Tensor) -> tf.Tensor:
    """`images`, or a refusal: of what is no number, activations and pooling would make some class or other."""
    in_range = tf.reduce_all(tf.abs(images) <= _MAX_PIXEL, axis=[1, 2, 3])  # a NaN is not
    reasons = tf.where(in_range, "", "pixels that are NaN, infinite or far beyond 0 to 255")
    empty = tf.reduce_any(tf.shape(images)[1:3] == 0)
    reasons = tf.where(empty, "an image without pixels", reasons)
    with _after(refuse_unusable(reasons)):
        return tf.identity(images)


def _checked_descriptors(embedding: tf.Tensor) -> tf.Tensor:
    """`embedding`, or a refusal of what is none: a photo that was skipped, or a row that was never filled."""
    size = tf.reduce_max(tf.abs(embedding), axis=1)
    reasons = tf.where(size < formulas.SMALLEST_DESCRIPTOR, "values that are all 0, or nearly", "")
    finite = tf.reduce_all(tf.math.is_finite(embedding), axis=1)
    reasons = tf.where(finite, reasons, "values that are NaN or infinite")
    with _after(refuse_unusable(reasons, "descriptor")):
        return tf.identity(embedding)


def _checked_exponents(p_star: tf.Tensor) -> tf.Tensor:
    in_range = (p_star > 0) & (p_star <= MOST_EXPONENT)  # a NaN is not
    message = f"p_star must be greater than 0 and at most {MOST_EXPONENT:g}"
    with _after(tf.debugging.Assert(tf.reduce_all(in_range), [message, p_star])):
        return tf.identity(p_star)


def _after(operation) -> Any:
    """A context whose tensors wait for an assertion; there is none to wait for where it was settled while tracing."""
    return tf.control_dependencies([] if operation is None else [operation])


def _embedder(model: MultiGrain, features: Callable) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Pixels and exponents to pooled embeddings, by `features`, pixels to feature map, and the model's pooling.

    Calling the model itself would first round pixels and exponents to half precision under a mixed dtype policy.
    """

    def embed(images, p_star):
        return model.pooled(as_list(features(images)), p_star)

    return embed


def _keras_answers(model: MultiGrain, whitening: Whitening) -> Callable[[np.ndarray, np.ndarray], tuple]:
    """Images and exponents to descriptors and logits, as Keras and NumPy compute them in float32.

    Raises UserError (when called) where the network tells no photo from the whitening's mean.
    """
    trunk = with_levels(float32_trunk(model.trunk), model.levels)
    spec = tf.TensorSpec([None, None, None, 3], tf.float32), tf.TensorSpec([None], tf.float32)
    embed = _embedder(model, lambda images: trunk(model.normalize(images), training=False))
    embed = tf.function(embed, input_signature=spec, autograph=False)

    def answers(images, p_star):
        embeddings = embed(images, p_star).numpy()
        unit = formulas.unit_embeddings(np, embeddings.astype(np.float64), bias_channel=True)
        if (distance := np.linalg.norm(unit - whitening.mean_, axis=1).min()) < _ROUNDING:
            raise UserError(
                f"the network tells photos apart no more than rounding does ({distance:.1g} from the mean), as when it "
                "was not trained, so whitened descriptors would be noise. Nothing was written: train further, or "
                "export without whitening"
            )
        return whitening.transform(embeddings), model.classify(embeddings)

    return answers


def _answers(logits: tf.Tensor) -> dict[str, tf.Tensor]:
    probabilities = tf.reduce_max(tf.nn.softmax(logits), axis=-1)
    return dict(zip(_OUTPUTS, (logits, tf.argmax(logits, axis=-1), probabilities), strict=True))


def _description(
    model: MultiGrain, whitening: Whitening, whitened: bool, precision: str, metadata: dict[str, Any]
) -> dict[str, Any]:
    """What `multigrain.json` says, but for the check's figures."""
    names = metadata.get("class_names")
    if names is not None and len(names) != model.num_classes:
        raise ValueError(f"class_names must hold {model.num_classes} names, received {len(names)}")
    filled_in = {
        "embedding_size": whitening.projection_.shape[1],
        "num_classes": model.num_classes,
        "pooling_exponent": float(ops.convert_to_numpy(model.pool.pooling_exponent)),
        "whitened": whitened,
        "normalization": {"input": "RGB, 0 to 255", "mean": model.pixel_mean, "std": model.pixel_std},
        "precision": precision,
        "preparation": model.preparation,
        "limits": LIMITS,
    }
    if both := (filled_in.keys() | {"check"}) & metadata.keys():
        raise ValueError(f"metadata must not hold {sorted(both)}: the export fills them in")
    return {"trunk": model.trunk.name, **filled_in, **metadata}


def _exponents(description: Mapping[str, Any]) -> dict[int, float]:
    """The p* table, resolution -> exponent; empty where none was chosen."""
    table = {int(size): float(value) for size, value in (description.get("p_star") or {}).items()}
    if any(size < 1 or not 0 < value <= MOST_EXPONENT for size, value in table.items()):
        bounds = f"exponents > 0 and at most {MOST_EXPONENT:g}"
        raise ValueError(f"p_star must map resolutions in pixels to {bounds}, received {table}")
    return table


def _save(served: _Served, partial: Path) -> None:
    try:
        # where it wrote assets is a hidden folder, which is renamed a moment later
        with tensorflow_says(logging.WARNING):
            tf.saved_model.save(served, str(partial), signatures=served.signatures())
    except tf.errors.OpError as error:
        # what Python calls by that name, such as a full disk
        raise OSError(error.message) from error


@contextlib.contextmanager
def _published(target: Path) -> Iterator[Path]:
    """`atomic_path(target)`: an empty folder, and one line for what is wrong with the place or the disk.

    If the block raises, folders that were made for it are gone, too.
    """
    made = [folder for folder in target.parents if not folder.exists()]
    try:
        with atomic_path(target) as partial:
            # at once, so that nobody waits for a folder that cannot be written to
            partial.mkdir()
            yield partial
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise UserError(f"{target} was written by another export meanwhile: export again") from error
        raise UserError(f"{target} could not be written: {error.strerror or error}") from error
    finally:
        if not target.exists():
            with contextlib.suppress(OSError):
                # what another export writes to is not empty
                for folder in made:
                    folder.rmdir()


def _next_version(folder: Path, version: int | None) -> Path:
    """The folder of the version to write, which does not exist."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give a folder for the model's versions")
    if version is None:
        taken = [int(path.name) for path in folder.glob("*") if path.name.isdecimal()]
        version = max(taken, default=0) + 1
    if version < 1:
        raise UserError(f"version must be at least 1, received {version}")
    if (folder / str(version)).exists():
        raise UserError(f"{folder / str(version)} exists already: give another version, or none for the next free one")
    return folder / str(version)
