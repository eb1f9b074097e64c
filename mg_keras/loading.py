"""`mg_keras.load`: a run, a SavedModel or a file of weights as one object that embeds and classifies photos."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from mg_keras import MultiGrain, Whitening
from mg_keras.data.given import given_photos
from mg_keras.embedding.photos import embed, preparation_of
from mg_keras.embedding.settings import DECIDES, Settings
from mg_keras.errors import UserError
from mg_keras.export.opened import Exported
from mg_keras.export.optimize import PRECISIONS
from mg_keras.export.optimized import Optimized
from mg_keras.export.quantize import INT8, Observed, supported
from mg_keras.files import in_home
from mg_keras.models import trunks
from mg_keras.poolings import MOST_EXPONENT
from mg_keras.pretrained import PACKAGED, from_torch_checkpoint, keras_weights, lite0
from mg_keras.pretrained.layouts import RESNETS
from mg_keras.pretrained.packed import PACKAGE, Packed
from mg_keras.processor import computes_bfloat16, computes_int8
from mg_keras.progress import announce
from mg_keras.quiet import without_collection
from mg_keras.runs.descriptor import notes
from mg_keras.runs.run import load_run
from mg_keras.whitening_formulas import SMALLEST_DESCRIPTOR

# of training where a file of weights doesn't say it: ImageNet's
_RESOLUTION = 224

_TORCH = (".pth", ".pt", ".safetensors")
_KERAS = (".h5", ".keras")
_WANTED = (
    "give the folder of a run (with config.yaml), that of a SavedModel or one of its versions, one of mg-keras pack, "
    "or a file of weights (.pth, .safetensors, .keras, .weights.h5); or nothing, for the model in the package"
)


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes of photos.

    Attributes:
        names: list of N str, the likeliest class of each photo; None for one that could not be used.
        probabilities: float32 [N, C], the softmax of the logits; NaN for a photo that could not be used.
        class_names: list of C str, in the order of the columns.
    """

    names: list[str | None]
    probabilities: np.ndarray
    class_names: list[str]

    def __len__(self) -> int:
        return len(self.names)


class Loaded:
    """A trained network, opened to be used; `load` makes it.

    Its descriptors have unit norm. They are whitened where the run or the SavedModel is: a run's with the whitening of
    the resolution, or of the resolution of training where it has no other, a SavedModel's with the one that it was
    exported with. Where there is none, they are the embedding with a 1 appended, [e; 1], as in a SavedModel, so that
    the class can be read from them too.

    Attributes:
        path: Path of what was opened.
        network: of `mg_keras.embedding.photos`: with `settings`, what `mg_keras.engines.local.Local` takes.
        class_names: list of str, in the order of the logits, `class 0` and so on where they are not known; None where
            there is no classifier.
        resolution: pixels that photos are embedded at where no other is given: of training, if the model doesn't say
            otherwise.
        train_resolution: pixels of training.
        thresholds: {"copy" or "instance": {precision: cosine}}: from which cosine on a pair of photos is one, at the
            precisions 0.9 and 0.99; empty where nobody has measured it.
        p_star: {resolution in pixels: the exponent that was chosen for it}, perhaps empty.
        pooling_exponent: the exponent of training, taken at resolutions for which none was chosen.
        whitened: whether descriptors at the resolution of training are whitened.
        preparation: how photos are brought to a resolution, `"aspect"` or `"squash"` (`mg_keras.preparations`).
    """

    # the process in which models were opened, which one that is forked knows
    _opened_in = None

    def __init__(
        self,
        path: Path,
        network: Any,
        whitening_at: Callable[[int], Whitening] | None,
        class_names: list[str] | None,
        resolution: int,
        pooling_exponent: float,
        p_star: dict[int, float],
        whitened: bool,
        default_resolution: int | None = None,
        thresholds: dict[str, dict[str, float]] | None = None,
        whitened_resolutions: Sequence[int] = (),
    ):
        self.path, self.network, self.class_names, self.whitened = path, network, class_names, whitened
        self.train_resolution, self.resolution = resolution, default_resolution or resolution
        self.pooling_exponent, self.p_star = float(pooling_exponent), dict(p_star)
        self.thresholds = thresholds or {}
        self.preparation = preparation_of(network)
        Loaded._opened_in = os.getpid()
        # None: the network's values are its descriptors
        self._whitening_at = whitening_at
        self._whitened_resolutions = tuple(whitened_resolutions)
        self._classifier = None if whitening_at else _Classifier(network)

    def __repr__(self) -> str:
        classes = len(self.class_names) if self.class_names else "no"
        whitened = "whitened" if self.whitened else "not whitened"
        return f"<{self.path}: {classes} classes, trained at {self.train_resolution} px, {whitened}>"

    def embed(
        self, photos: Any, resolution: int | None = None, p_star: float | None = None, on_error: str = "raise"
    ) -> np.ndarray:
        """Descriptors of photos of any sizes and kinds.

        Args:
            photos: a folder, whose photos are taken at any depth in order of name; or one photo or several: paths,
                bytes of files, arrays [H, W, 3] of RGB in 0-255 (uint8 or float), PIL images. A list tells which row
                is whose; of a folder, what is no photo or can't be converted is passed over, with a line on stderr.
            resolution: s*, pixels, as every measure here takes it: where the model squashes photos, of both sides;
                else up to the resolution of training a square crop, beyond it the largest side. None: the object's
                `resolution`.
            p_star: pooling exponent > 0; None: the one that was chosen for the resolution.
            on_error: what a photo that can't be used does: `"raise"`, or `"skip"`, which leaves NaN in its row.

        Returns:
            NumPy float32 [N, D], a row a photo, in their order; unit norm.

        Raises:
            UserError: a photo can't be used (the message names it and says why), `photos` is nothing of the kind, or
                `resolution` or `p_star` is out of range.

        Example:
            >>> descriptors = mg_keras.load("runs/demo").embed(["a.jpg", "b.png"])  # doctest: +SKIP
            >>> similarity = descriptors @ descriptors.T  # doctest: +SKIP
        """
        settings = self.settings(resolution, p_star)
        rows, values, count = self._values(self.network, photos, settings, on_error)
        if settings.whitening and len(rows):
            values = settings.whitening.transform(values)
        elif settings.whitening:
            values = np.empty((0, settings.whitening.projection_.shape[1]), np.float32)
        return _filled(rows, values, count)

    def classify(
        self,
        photos_or_descriptors: Any,
        resolution: int | None = None,
        p_star: float | None = None,
        on_error: str = "raise",
    ) -> Classes:
        """The classes of photos, or of descriptors that were embedded before.

        From a descriptor of all dimensions the class is that of the photo; from one whose whitening left dimensions out
        it is nearly always.

        Args:
            photos_or_descriptors: photos, as `embed` takes them, or descriptors as it gives them, an array [N, D]; a
                row of NaN stands for a photo that could not be used.
            resolution, p_star, on_error: as `embed` takes them; of descriptors the resolution that they were embedded
                at.

        Returns:
            `Classes`.

        Raises:
            UserError: as `embed`; descriptors that are no array [N, D] of numbers, of another size, infinite or all 0;
                or there is no classifier.

        Example:
            >>> mg_keras.load("runs/demo").classify("photo.jpg").names  # doctest: +SKIP
            ['disks']
        """
        if self.class_names is None:
            raise UserError(f"{self.path} holds a trunk without a classifier: it embeds and can't classify")
        settings = self.settings(resolution, p_star)
        _refuse_single_descriptors(photos_or_descriptors)
        if getattr(photos_or_descriptors, "ndim", None) == 2:
            logits = self._classes_of_descriptors(np.asarray(photos_or_descriptors), settings.whitening)
        else:
            network = self._classifier or self.network
            rows, values, count = self._values(network, photos_or_descriptors, settings, on_error)
            logits = _filled(rows, values if self._classifier else self.network.classify(values), count)
        probabilities = _softmax(logits)
        likeliest = np.where(np.isnan(logits).any(axis=1), -1, np.argmax(logits, axis=1)) if len(logits) else []
        names = [self.class_names[number] if number >= 0 else None for number in likeliest]
        return Classes(names, probabilities, self.class_names)

    def why_unusable(self, photo: Any) -> str:
        """Why a photo that `embed` left NaN for can't be used, in a few words.

        Args:
            photo: a path, bytes, an array or a PIL image, as `embed` takes them.

        Returns:
            str; "" of a photo that can be used.
        """
        given = given_photos([photo])
        usable, _ = given.image(tf.constant(0))
        return "" if usable else given.reason(0)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Equal for networks whose descriptors can be compared, wherever they lie: a hash of weights, whitening and p*.

        It is read from the weights once, which takes about a second for each 500 MB.
        """
        digest = hashlib.sha256(self.network.fingerprint().encode())
        digest.update(repr((self.pooling_exponent, sorted(self.p_star.items()))).encode())
        if self._whitening_at:
            for resolution in sorted({self.resolution, *self.p_star, *self._whitened_resolutions}):
                whitening = self._whitening_at(resolution)
                digest.update(whitening.mean_.tobytes() + whitening.projection_.tobytes())
        return digest.hexdigest()

    def settings(self, resolution: int | None = None, p_star: float | None = None) -> Settings:
        """How `embed` describes photos with the `network`.

        Args:
            resolution, p_star: as `embed` takes them.

        Raises:
            UserError: one of them is out of range.
        """
        if resolution is None:
            resolution = self.resolution
        elif not (isinstance(resolution, int | np.integer) and resolution >= 1):
            raise UserError(f"resolution must be a whole number of pixels, at least 1, received {resolution!r}")
        if p_star is None:
            p_star = self.p_star.get(int(resolution), self.pooling_exponent)
        elif not (isinstance(p_star, int | float | np.number) and 0 < np.float32(p_star) <= MOST_EXPONENT):
            raise UserError(f"p_star must be a number > 0 and at most {MOST_EXPONENT:g}, received {p_star!r}")
        whitening = self._whitening_at(int(resolution)) if self._whitening_at else None
        return Settings(int(resolution), self.train_resolution, float(p_star), whitening, self.class_names)

    def made_from(self, resolution: int) -> dict[str, Any]:
        """What `mg-keras embed` says of descriptors that it makes like this object, at a resolution in pixels."""
        told = self.settings(resolution).made_from(self.network.fingerprint(), None)
        return {name: told[name] for name in DECIDES}

    def _values(self, network, photos, settings, on_error):
        """(rows of the photos that can be used, what the network makes of them [n, ...], how many there are in all)."""
        if on_error not in ("raise", "skip"):
            raise UserError(f'on_error must be "raise" or "skip", received {on_error!r}')
        _check_process(self.path)
        split = given_photos(photos)
        found = embed(network, split, settings.resolution, settings.train_resolution, [settings.pooling])
        if len(found.unusable) and on_error == "raise":
            first = int(found.unusable[0])
            more = f", and {len(found.unusable) - 1} more" if len(found.unusable) > 1 else ""
            raise UserError(
                f'{split.names[first]}: {split.reason(first)}{more} (on_error="skip" leaves NaN in the place of '
                "photos that can't be used)"
            )
        return found.rows, found.values[0], len(split)

    def _classes_of_descriptors(self, descriptors, whitening):
        """Logits [N, C] of descriptors [N, D]."""
        if not _are_numbers(descriptors):
            raise UserError(f"descriptors are numbers, received an array of {descriptors.dtype}")
        size = whitening.projection_.shape[1] if whitening else self.network.about["embedding_size"]
        if descriptors.shape[1] != size:
            raise UserError(f"descriptors of {self.path} have {size} values, received {descriptors.shape[1]}")
        largest = np.abs(descriptors).max(axis=1, initial=0)
        for wrong, why in ((np.isinf(largest), "infinite"), (largest < SMALLEST_DESCRIPTOR, "all 0, or nearly")):
            if wrong.any():
                raise UserError(f"row {np.argmax(wrong)} of the descriptors has values that are {why}")
        if whitening is None:
            return self.network.classify(descriptors)
        rows = np.flatnonzero(~np.isnan(descriptors).any(axis=1))
        unit = whitening.undo(descriptors[rows])
        return _filled(rows, self.network.classify(unit[:, :-1] / unit[:, -1:]), len(descriptors))


class _Classifier:
    """A SavedModel as a network whose values are the logits of the photos themselves, which lose no dimension."""

    def __init__(self, exported):
        self.exported, self.preparation = exported, exported.preparation

    def embed_batch(self, images, poolings):
        """float32 [P, B, C]."""
        count = tf.shape(images)[:1]
        return tf.stack(
            [self.exported.served(images=images, p_star=tf.fill(count, value))["logits"] for value in poolings]
        )


def _check_process(what):
    """Refuses a process forked from one with a model: it would wait for threads of TensorFlow's that are not there."""
    if Loaded._opened_in not in (None, os.getpid()):
        raise UserError(
            f'{what} was opened before this process was forked, and none can be used in it: start processes by "spawn" '
            'or "forkserver", or open models only after forking'
        )


@without_collection()
def load(
    what: str | os.PathLike | None = None,
    trunk: str | None = None,
    class_names: list[str] | None = None,
    checkpoint: str = "last",
    precision: str | None = None,
) -> Loaded:
    """Opens a trained network to embed and classify photos with it.

    Args:
        what: None or `"package"` for the model in the package: MultiGrain on EfficientNet-Lite0 with ImageNet's
            classes; or one of

            * the folder of a run, `runs/demo`;
            * a SavedModel, `models/multigrain` (its newest version) or `models/multigrain/3`;
            * the folder that `mg-keras pack` wrote;
            * a file of weights: MultiGrain's or torchvision's ResNets in `.pth` or `.safetensors`; with `trunk`,
              `.keras` and `.weights.h5` of a `MultiGrain` or of a trunk, and EfficientNet-Lite0's `.pth`. Nothing of it
              is run.
        trunk: the name of a weights file's trunk, such as `"resnet50"`, where the file doesn't tell it.
        class_names: of a weights file, which has none; in the order of the logits.
        checkpoint: of a run: `"last"`, or `"best"`, with what was made of it.
        precision: what the trunk of the model in the package, or of another that `mg-keras pack` wrote, computes in:
            `"float32"`, `"mixed"` or `"bfloat16"` (`mg_keras.export.optimize`), or `"int8"`, 8 bits
            (`mg_keras.export.quantize`), the fastest where the processor has no bfloat16 but `avx512_vnni` or
            `avx_vnni`. None: `"mixed"` where the processor multiplies bfloat16 numbers itself, else `"float32"`:
            descriptors of the two have a cosine of 0.9997 on average, and 0.999 at least of nearly every photo.

    Returns:
        `Loaded`.

    Raises:
        UserError: there is no such thing, or it can't be read, or this process was forked after another model was
            opened; the message says what would be right.

    Example:
        >>> network = mg_keras.load()  # doctest: +SKIP
        >>> network.embed(["a.jpg", "b.jpg"]).shape  # doctest: +SKIP
        (2, 512)
        >>> network = mg_keras.load("runs/demo")  # doctest: +SKIP
        >>> network.embed("photos").shape, network.classify("photos").names[:2]  # doctest: +SKIP
        ((120, 513), ['disks', 'crosses'])
    """
    _check_process("a model")
    if precision not in (None, *PRECISIONS, INT8):
        raise UserError(f"precision must be one of {', '.join((*PRECISIONS, INT8))}, received {precision!r}")
    if what is None or what == PACKAGED:
        if trunk is not None or class_names is not None:
            raise UserError("trunk and class_names are for a file of weights; the model in the package has its own")
        if checkpoint != "last":
            raise UserError(f"checkpoint is of a run: the model in the package has one, received {checkpoint!r}")
        return _of_packed(PACKAGE, precision)
    path = in_home(what)
    if not path.exists():
        raise UserError(f"there is nothing at {path}: {_WANTED}")
    is_packed = (path / "model.safetensors").is_file() and (path / "model.json").is_file()
    if precision is not None and not is_packed:
        raise UserError(f"precision is for packed networks; {path} computes in what it was made for")
    if checkpoint != "last" and not (path / "config.yaml").is_file():
        raise UserError(f"checkpoint is of a run: {path} is none, received {checkpoint!r}")
    if path.is_file():
        return _of_weights(path, trunk, class_names)
    if trunk is not None or class_names is not None:
        raise UserError(f"trunk and class_names are for a file of weights; {path} is a folder, which has its own")
    if (path / "config.yaml").is_file():
        return _of_run(path, checkpoint)
    if is_packed:
        return _of_packed(path, precision)
    if (path / "saved_model.pb").is_file() or any(path.glob("*/saved_model.pb")):
        return _of_saved_model(path)
    raise UserError(f"{path} is no run and no SavedModel: {_WANTED}")


def _of_run(path, checkpoint):
    if checkpoint not in ("last", "best"):
        raise UserError(f'checkpoint must be "last" or "best", received {checkpoint!r}')
    run = load_run(path, checkpoint=checkpoint)
    exported = run.results.whitening
    for note in notes(run, run.results.p_star, run.results.whitened_resolutions):
        announce(note)

    @functools.cache
    def whitening_at(resolution):
        # where none was fitted it is the exported one, which the SavedModel has for all resolutions
        return run.results.whitening_at(resolution) or exported or _identity(run.model)

    return Loaded(
        path,
        Optimized(run.model),
        whitening_at,
        run.class_names,
        run.settings.resolution,
        run.settings.pooling_exponent,
        run.results.p_star,
        exported is not None,
        whitened_resolutions=run.results.whitened_resolutions,
    )


def _of_saved_model(path):
    exported = Exported.load(path)
    if exported.train_resolution is None:
        raise UserError(f"{exported.path} does not say its training resolution: export it with mg-keras export")
    names = exported.class_names or _numbered(exported.about["num_classes"])
    return Loaded(
        exported.path,
        exported,
        None,
        names,
        exported.train_resolution,
        exported.pooling_exponent,
        exported.p_star,
        exported.whitened,
        exported.about.get("default_resolution"),
        exported.about.get("thresholds"),
    )


def _of_packed(path, precision):
    packed = Packed(path)
    precision = precision or ("mixed" if computes_bfloat16() else "float32")
    about, model = packed.about, packed.network()
    network = _in_8_bits(packed, model) if precision == INT8 else Optimized(model, precision)
    fitted = packed.whitening or _identity(model)
    return Loaded(
        packed.folder,
        network,
        lambda _: fitted,
        about.get("class_names") or _numbered(model.num_classes),
        about["resolution"],
        about["pooling_exponent"],
        {int(size): float(value) for size, value in about.get("p_star", {}).items()},
        packed.whitening is not None,
        about.get("default_resolution"),
        about.get("thresholds"),
    )


def _in_8_bits(packed, model):
    if computes_int8() is False or not supported():
        raise UserError(
            "precision int8 needs a processor with avx512_vnni or avx_vnni and a TensorFlow with oneDNN, which this "
            "machine has not"
        )
    again = "pack it again with mg-keras pack --copies PHOTOS"
    observed = packed.observed
    if observed is None:
        raise UserError(
            f"{packed.folder} doesn't say what its convolutions read, which precision int8 needs to know: {again}"
        )
    try:
        return Optimized(model, INT8, Observed(*observed))
    except ValueError as error:
        raise UserError(f"{packed.folder}: {error}: {again}") from error


def _of_weights(path, trunk, class_names):
    suffix = path.suffix.lower()
    if suffix in _TORCH and trunk in (None, *RESNETS):
        pretrained = from_torch_checkpoint(path, class_names)
        found = pretrained.checkpoint
        if trunk not in (None, found.trunk):
            raise UserError(f"{path} holds a {found.trunk}, where the trunk is {trunk}")
        names = class_names or _numbered(pretrained.model.num_classes)
        return _of_network(path, pretrained.model, pretrained.whitening, names, found.pooling_exponent)
    if suffix not in (*_TORCH, *_KERAS):
        raise UserError(f"{path} is no file of weights: {_WANTED}")
    if trunk is None:
        raise UserError(f'{path} does not tell its trunk: name it, as in load({path.name!r}, trunk="resnet50")')
    if suffix in _TORCH and trunk != lite0.TRUNK:
        raise UserError(f"{suffix} files are read for {', '.join((*RESNETS, lite0.TRUNK))}, received {trunk}")
    # the trunk first: how many classes there are is found with its weights
    layers = trunks.build(trunk)
    head = lite0.fill(layers, path) if suffix in _TORCH else keras_weights.fill_from_file(layers, path, trunk)
    if head and not head.reads(layers.output_shape[-1], ()):
        raise UserError(
            f"{path} holds a classifier that reads further levels of the {trunk}, which the file does not name: give "
            "the folder of its run, or what mg-keras pack made of it"
        )
    # a network that was trained to classify alone pools by the average
    exponent = (keras_weights.pooling_exponent(path) if suffix in _KERAS else None) or 1.0
    mean, std = trunks.normalization(trunk)
    model = MultiGrain(layers, len(head.bias) if head else 1, exponent, pixel_mean=mean, pixel_std=std)
    if head is None and class_names is not None:
        raise UserError(f"{path} holds a trunk without a classifier: it takes no class_names")
    if head is None:
        return _of_network(path, model, None, None, exponent)
    if class_names is not None and len(class_names) != len(head.bias):
        raise UserError(f"{path} has {len(head.bias)} classes, received {len(class_names)} class names")
    model.classifier.kernel.assign(head.kernel)
    model.classifier.bias.assign(head.bias)
    return _of_network(path, model, None, class_names or head.class_names or _numbered(len(head.bias)), exponent)


def _of_network(path, model, whitening, class_names, exponent):
    fitted = whitening or _identity(model)
    return Loaded(path, model, lambda _: fitted, class_names, _RESOLUTION, exponent, {}, whitening is not None)


def _identity(model):
    """The whitening that changes nothing: unit-norm [e; 1], as the export has it of a run without one."""
    size = model.embedding_dimension + 1
    return Whitening(np.zeros(size), np.eye(size))


def _numbered(count):
    return [f"class {number}" for number in range(count)]


def _are_numbers(array):
    """Whether an array holds numbers as descriptors are, bfloat16 as well, which NumPy doesn't know of itself."""
    return np.can_cast(array.dtype, np.float32, "same_kind")


def _refuse_single_descriptors(given):
    """Raises a UserError of one descriptor by itself, or of a list of them, either of which is no photo."""
    is_list = isinstance(given, list | tuple) and len(given) > 0
    first = given[0] if is_list else given
    if getattr(first, "ndim", None) == 1 and len(first) and _are_numbers(np.asarray(first)):
        what = "a list of arrays" if is_list else "one"
        raise UserError(f"descriptors are an array [N, D], received {what} of shape {list(first.shape)}")


def _filled(rows, values, count):
    """float32 [count, ...]: `values` in their rows, NaN in the others."""
    filled = np.full((count, values.shape[-1]), np.nan, np.float32)
    filled[rows] = values
    return filled


def _softmax(logits):
    if not len(logits):
        return logits
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
