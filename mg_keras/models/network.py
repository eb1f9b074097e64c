"""The network: normalisation, trunk, GeM pooling and classifier. How it is trained, it does not know."""

import hashlib
import os
from collections.abc import Sequence
from typing import Any, NoReturn, Self

import keras
import numpy as np
import tensorflow as tf

from mg_keras import layers
from mg_keras.layers import GeM
from mg_keras.layers.gem import check_exponents
from mg_keras.models import trunks
from mg_keras.models.levels import as_list, in_two, with_levels
from mg_keras.models.trunks import IMAGENET_MEAN, IMAGENET_STD
from mg_keras.poolings import RMAC, Level
from mg_keras.preparations import ASPECT, checked


@keras.saving.register_keras_serializable("mg_keras")
class Network(keras.Model):
    """A trunk topped with GeM pooling and a classifier: `embedding = GeM_p(trunk(image))`, `logits = W embedding + b`.

    With `levels`, pooled maps of the trunk at other depths are joined to the embedding, the last map's values first.

    Args:
        trunk: a name of `mg_keras.models.trunks.TRUNKS`, or a Keras model from the normalised image
            [B, H, W, 3] to a feature map [B, h, w, d] (any keras-hub backbone with a spatial output).
        num_classes: int, the number of classes C.
        pooling_exponent: float > 0, the training exponent p of GeM; 1 is average pooling.
        pixel_mean, pixel_std: 3 floats each, of RGB in 0-1; None: those of the named trunk
            (`mg_keras.models.trunks.normalization`), ImageNet's for any other.
        trainable_exponent: bool, whether p is learnt.
        levels: sequence of `mg_keras.poolings.Level`, or what `Level.of` takes, such as `"block4c_:3:0.5"`: further
            depths of the trunk whose pooled maps join the embedding. The classifier starts with weights 0 on them.
        preparation: of `mg_keras.preparations`, how photos are brought to the resolution that they are embedded at;
            images that are given as pixels stay as they are.

    Call arguments:
        images: RGB in 0-255, float or uint8, [B, H, W, 3], any H and W. Normalisation is the network's own.
        p_star: None (the training exponent), a scalar, or one value an image [B].
        training: bool.

    Returns:
        A dict of float32 tensors, whatever the dtype policy: `embedding` [B, d], as pooled (not normalised), and
        `logits` [B, C].

    Raises:
        ValueError: an argument is out of range, or the trunk is no network from images to one feature map.
        UserError: the trunk's name is unknown.

    Example:

    >>> network = Network("resnet18", num_classes=10)
    >>> network(np.zeros((2, 96, 128, 3), "uint8"), p_star=4.0)["embedding"].shape
    TensorShape([2, 512])
    """

    def __init__(
        self,
        trunk: str | keras.Model,
        num_classes: int,
        pooling_exponent: float = 3.0,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        trainable_exponent: bool = False,
        levels: Sequence[Level | str | Sequence] = (),
        preparation: str = ASPECT,
        **kwargs,
    ):
        # under a mixed policy Keras would round pixels and p* to half precision on their way in
        super().__init__(autocast=False, **kwargs)
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, received {num_classes}")
        mean, std = trunks.normalization(trunk) if isinstance(trunk, str) else (IMAGENET_MEAN, IMAGENET_STD)
        pixel_mean = mean if pixel_mean is None else pixel_mean
        pixel_std = std if pixel_std is None else pixel_std
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            if len(values) != 3:
                raise ValueError(f"{name} must hold one value for each of R, G and B, received {values}")
        if not all(value > 0 for value in pixel_std):
            raise ValueError(f"pixel_std must be > 0, received {pixel_std}")
        self.trunk = trunks.build(trunk, dtype=self.dtype_policy) if isinstance(trunk, str) else trunk
        shape = _output_shape(self.trunk)
        self.num_classes = num_classes
        self.preparation = checked(preparation)
        self.pixel_mean = tuple(float(value) for value in pixel_mean)
        self.pixel_std = tuple(float(value) for value in pixel_std)
        self.pool = GeM(pooling_exponent, trainable_exponent=trainable_exponent, name="pool")
        # logits must not be computed in half precision
        self.classifier = keras.layers.Dense(num_classes, dtype="float32", name="classifier")
        self.levels = tuple(Level.of(level) for level in levels)
        mapper = with_levels(self.trunk, self.levels)
        # in a function, where Keras does not find a second model with the trunk's weights
        self._mapper = lambda: mapper
        self.frozen_stages, self._halves = 0, None
        shapes = mapper.output_shape if self.levels else [shape]
        self.map_channels = tuple(shape[-1] for shape in shapes)
        self.embedding_dimension = sum(self.map_channels)
        self.classifier.build((None, self.embedding_dimension))
        if self.levels:
            self.set_classifier(np.asarray(self.classifier.kernel)[: shape[-1]])
        self.pool.build(shape)
        self.built = True

    @property
    def pixel_scaling(self) -> tuple[np.ndarray, np.ndarray]:
        """(scale, offset), NumPy float32 [3] each: normalised is `images * scale + offset`, of RGB in 0-255."""
        mean, std = np.float32(self.pixel_mean), np.float32(self.pixel_std)
        return 1 / (255 * std), -mean / std

    def normalize(self, images: tf.Tensor | np.ndarray) -> tf.Tensor:
        """RGB in 0-255, float or uint8, [B, H, W, 3] -> the float32 values that the trunk takes, the same shape.

        Raises:
            ValueError: the last dimension is not 3.
        """
        if images.shape[-1] != 3:
            # broadcasting would take a grey channel for three
            raise ValueError(f"images must be RGB, [B, H, W, 3], received shape {tuple(images.shape)}")
        scale, offset = self.pixel_scaling
        return keras.ops.cast(images, "float32") * scale + offset

    def __call__(self, images: tf.Tensor | np.ndarray, *args, **kwargs) -> dict[str, tf.Tensor]:
        """`call`, in which Keras would bury an error of the arguments among a dozen lines.

        Raises:
            ValueError: images of another shape than the trunk takes, or a `p_star` that is at hand and not > 0, or not
                one an image.
        """
        self.check_images(images)
        shape = getattr(images, "shape", None)
        batch = None if shape is None or getattr(shape, "rank", 4) is None else shape[0]
        check_exponents(args[0] if args else kwargs.get("p_star"), batch)
        return super().__call__(images, *args, **kwargs)

    def check_images(self, images: tf.Tensor | np.ndarray) -> None:
        """Refuses what is known not to be images for this trunk; of tensors of unknown shape nothing is.

        Raises:
            ValueError: images of another shape than the trunk takes.
        """
        shape = getattr(images, "shape", None)
        if shape is None or getattr(shape, "rank", 0) is None:
            return
        if len(shape) != 4 or shape[-1] not in (3, None):
            raise ValueError(f"images must be RGB, [B, H, W, 3], received shape {tuple(shape)}")
        wanted = self.trunk.input_shape[1:3]
        if any(None not in pair and pair[0] != pair[1] for pair in zip(shape[1:3], wanted, strict=True)):
            raise ValueError(
                f"this trunk takes images of {_by(wanted)} pixels alone, received {_by(shape[1:3])}: build it for "
                "inputs (None, None, 3) to take any"
            )

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> dict[str, tuple[int | None, int]]:
        """Of `embedding` and `logits`."""
        return {
            "embedding": (input_shape[0], self.embedding_dimension),
            "logits": (input_shape[0], self.num_classes),
        }

    def compute_output_spec(self, *args, **kwargs) -> dict[str, keras.KerasTensor]:
        """Traced: from the shapes alone Keras would take both for the policy's half precision."""
        return super(keras.layers.Layer, self).compute_output_spec(*args, **kwargs)

    def call(
        self,
        images: tf.Tensor | np.ndarray,
        p_star: tf.Tensor | np.ndarray | Sequence[float] | float | None = None,
        training: bool = False,
    ) -> dict[str, tf.Tensor]:
        """See the class."""
        embedding = self.pooled(self.feature_maps(images, training=training), p_star)
        return {"embedding": embedding, "logits": self.classifier(embedding)}

    def freeze_stages(self, count: int) -> None:
        """Keeps the trunk's first stages in training as they are in a test: weights, statistics, no drop paths.

        See `mg_keras.models.trunks.freeze_stages`; it is said once, before training, and not kept in what is saved.

        Raises:
            UserError: the trunk has no stage of that number, or none would be left to train.
        """
        end = trunks.freeze_stages(self.trunk, count)
        if end is not None:
            halves = in_two(self.trunk, self.levels, end)
            self.frozen_stages, self._halves = count, lambda: halves

    def feature_maps(self, images: tf.Tensor | np.ndarray, training: bool = False) -> list[tf.Tensor]:
        """Images as `call` takes them -> list of maps [B, h, w, c]: the trunk's last, then that of each level."""
        return self.trained_maps(self.frozen_maps(images), training=training)

    def frozen_maps(self, images: tf.Tensor | np.ndarray) -> list[tf.Tensor]:
        """What the frozen stages make of images, a list of [B, ...]; without any, the normalised images."""
        images = self.normalize(images)
        return as_list(self._halves()[0](images, training=False)) if self._halves else [images]

    def trained_maps(self, frozen: Sequence[tf.Tensor], training: bool = False) -> list[tf.Tensor]:
        """`feature_maps` of what `frozen_maps` gives, of this network or of one with the same frozen stages."""
        if not self._halves:
            return as_list(self.mapper(frozen[0], training=training))
        _, trained, places = self._halves()
        maps = [*as_list(trained(frozen[0], training=training)), *frozen[1:]]
        return [maps[place] for place in places]

    @property
    def mapper(self) -> keras.Model:
        """The Keras model from the normalised image to the maps (`mg_keras.models.levels.with_levels`)."""
        return self._mapper()

    def pooled(
        self, maps: Sequence[tf.Tensor], pooling: tf.Tensor | np.ndarray | Sequence[float] | float | str | None = None
    ) -> tf.Tensor:
        """The embedding, float32 [B, d], of `feature_maps`.

        Args:
            maps: list of maps [B, h, w, c].
            pooling: p* of the last map, a scalar or one value an image; None: the training exponent; `RMAC`: regional
                maxima of every map.
        """
        regional = isinstance(pooling, str) and pooling == RMAC
        parts = [layers.RMAC()(maps[0]) if regional else self.pool(maps[0], p_star=pooling)]
        for level, features in zip(self.levels, maps[1:], strict=True):
            part = layers.RMAC()(features) if regional else self.pool(features, p_star=level.exponent)
            parts.append(level.scale * part)
        return keras.ops.concatenate(parts, axis=-1) if self.levels else parts[0]

    def set_classifier(self, kernel: np.ndarray, bias: np.ndarray | None = None) -> None:
        """Sets the classifier's weights.

        Args:
            kernel: [d, C], or [c, C] of the last map alone: then the levels' weights are 0.
            bias: [C]; None leaves it.
        """
        rows = self.embedding_dimension - len(kernel)
        self.classifier.kernel.assign(np.pad(kernel, ((0, rows), (0, 0))) if rows else kernel)
        if bias is not None:
            self.classifier.bias.assign(bias)

    def embed_batch(self, images: tf.Tensor | np.ndarray, poolings: Sequence[float | str | None]) -> tf.Tensor:
        """The embeddings of images by several poolings, the trunk run once for all; a network of `mg_keras.embedding`.

        Args:
            images: RGB in 0-255, float or uint8, [B, H, W, 3], any H and W.
            poolings: tuple of exponents p* > 0 of GeM (numbers or scalar tensors), `RMAC`, or None for the training
                exponent.

        Returns:
            float32 [P, B, d], as pooled (not normalised).
        """
        maps = self.feature_maps(images)
        return tf.stack([self.pooled(maps, pooling) for pooling in poolings])

    def classify(self, embeddings: np.ndarray) -> np.ndarray:
        """Class logits, NumPy float32 [N, C], of embeddings [N, d] of `embed_batch`. Rows of NaN stay NaN."""
        kernel, bias = (np.asarray(weight) for weight in self.classifier.weights)
        return embeddings @ kernel + bias

    def fingerprint(self) -> str:
        """A str that is equal for networks that embed and classify alike: a hash of its weights and normalisation."""
        # those of a network alone, without what a subclass trains beside it
        variables = Network.state_variables.fget(self)
        # where a dropout's random numbers have come to decides no answer, and is another in each process
        variables = [variable for variable in variables if not keras.backend.is_int_dtype(variable.dtype)]
        settings = (self.pixel_mean, self.pixel_std, self.pool.epsilon, self.trunk.compute_dtype)
        if self.levels:
            settings = (*settings, *map(str, self.levels))
        if self.preparation != ASPECT:
            settings = (*settings, self.preparation)
        digest = hashlib.sha256(repr((settings, [variable.shape for variable in variables])).encode())
        for variable in variables:
            digest.update(np.ascontiguousarray(variable))
        return digest.hexdigest()

    @property
    def network_variables(self) -> list[keras.Variable]:
        """The trainable weights of the trunk, the pooling and the classifier."""
        return self.trunk.trainable_variables + self.pool.trainable_variables + self.classifier.trainable_variables

    @property
    def state_variables(self) -> list[keras.Variable]:
        """All that decides the network's answers: weights and moving statistics."""
        return [variable for part in (self.trunk, self.pool, self.classifier) for variable in part.variables]

    def take_weights(self, network: "Network") -> None:
        """Takes over the trunk and the classifier of a network with the same ones; the exponent stays its own."""
        for part in ("trunk", "classifier"):
            for variable, value in zip(getattr(self, part).variables, getattr(network, part).variables, strict=True):
                variable.assign(value.numpy())

    def twin(self, pooling_exponent: float | None = None) -> "Network":
        """A `Network` with the same trunk and classes, and weights of its own: `take_weights` gives it these.

        Args:
            pooling_exponent: its training exponent; None: the same.
        """
        # a learnt one, too
        learnt = float(keras.ops.convert_to_numpy(self.pool.pooling_exponent))
        exponent = learnt if pooling_exponent is None else pooling_exponent
        return Network.from_config({**Network.get_config(self), "pooling_exponent": exponent})

    def export(
        self,
        filepath: str | os.PathLike,
        format: str = "tf_saved_model",
        verbose: bool | None = None,
        input_signature: Any = None,
        **kwargs,
    ) -> Any:
        """Keras's `export`: a SavedModel from `images`, float32 [B, H, W, 3] in 0-255, to what `call` gives for them.

        What `export/run.py` writes has p* an image, the whitening, classes of stored descriptors and photos as bytes
        besides.
        """
        if input_signature is None:
            shape = (None, *self.trunk.input_shape[1:3], 3)
            input_signature = [keras.InputSpec("float32", shape, name="images")]
        return super().export(filepath, format, verbose, input_signature, **kwargs)

    def quantize(self, mode: Any = None, config: Any = None, **kwargs) -> NoReturn:
        """Refused: Keras would quantise the classifier alone.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"a {type(self).__name__} is not quantised: export it with `export/run.py --precision bfloat16` instead"
        )

    def get_config(self) -> dict[str, Any]:
        """Everything the constructor was given."""
        return {
            **super().get_config(),
            "trunk": keras.saving.serialize_keras_object(self.trunk),
            "num_classes": self.num_classes,
            "pooling_exponent": self.pool.initial_pooling_exponent,
            "pixel_mean": self.pixel_mean,
            "pixel_std": self.pixel_std,
            "trainable_exponent": self.pool.trainable_exponent,
            # left out without any, so that older versions open what is saved
            **({"levels": [str(level) for level in self.levels]} if self.levels else {}),
            **({"preparation": self.preparation} if self.preparation != ASPECT else {}),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Rebuilds the model, the trunk from its own configuration."""
        return cls(**{**config, "trunk": keras.saving.deserialize_keras_object(config["trunk"])})


def _output_shape(trunk):
    """(batch, h, w, d) of a trunk, once it is seen to be one."""
    shape = getattr(trunk, "output_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 4 or shape[-1] is None:
        raise ValueError(
            "a trunk is a name or a built Keras model with one output [B, h, w, d] of known d, "
            f"received {trunk!r} with output shape {shape}"
        )
    images = trunk.input_shape
    if not isinstance(images, tuple) or len(images) != 4 or images[-1] != 3:
        raise ValueError(f"a trunk takes normalised images [B, H, W, 3], received one whose input shape is {images}")
    return shape


def _by(sides):
    """As people write sizes: 64x64, ? where it is not known."""
    return "x".join("?" if side is None else str(side) for side in sides)
