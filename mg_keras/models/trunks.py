"""Trunks by name: keras-hub backbones with a spatial output, built from scratch.

A trunk takes the normalised image [B, H, W, 3] (any H and W) and gives the feature map [B, h, w, C]. To add one, add a
line to `TRUNKS`: the keras-hub backbone class, or a function that takes `image_shape`, and its arguments. Anything else
with that contract, a functional `keras.Model` or another keras-hub backbone, can be given to `MultiGrain` itself
instead of a name.
"""

from collections.abc import Sequence

import keras
import keras_hub

from mg_keras.errors import UserError


def _resnet(blocks, block_type):
    # stride in the 3x3 convolution and torch's padding: the variant of the paper (torchvision's)
    return keras_hub.models.ResNetBackbone, {
        "input_conv_filters": [64],
        "input_conv_kernel_sizes": [7],
        "stackwise_num_filters": [64, 128, 256, 512],
        "stackwise_num_blocks": blocks,
        "stackwise_num_strides": [1, 2, 2, 2],
        "block_type": block_type,
    }


def _resnet_of_any_width(image_shape, filters=64, blocks=(2, 2, 2, 2), of_32px=False, dtype=None):
    """ResNet-18 with any number of filters, where keras-hub's begins with 64: the same layers by the same names.

    `of_32px`: as CIFAR's photos are trained with, a 3x3 convolution of stride 1 first, and no pooling.
    """

    def convolved(maps, filters, name, size=3, strides=1):
        # torch's padding
        padding = "same"
        if size > 1 and strides > 1:
            maps = keras.layers.ZeroPadding2D(size // 2, dtype=dtype, name=f"{name}_pad")(maps)
            padding = "valid"
        convolution = keras.layers.Conv2D(
            filters, size, strides, padding=padding, use_bias=False, dtype=dtype, name=f"{name}_conv"
        )
        normalized = keras.layers.BatchNormalization(epsilon=1e-5, momentum=0.9, dtype=dtype, name=f"{name}_bn")
        return normalized(convolution(maps))

    def relu(maps, name):
        return keras.layers.Activation("relu", dtype=dtype, name=name)(maps)

    images = keras.Input(image_shape)
    stem = {} if of_32px else {"size": 7, "strides": 2}
    maps = relu(convolved(images, filters, "conv1", **stem), "conv1_relu")
    if not of_32px:
        # no map is below 0, so zeros are no maximum
        maps = keras.layers.ZeroPadding2D(1, dtype=dtype, name="pool1_pad")(maps)
        maps = keras.layers.MaxPooling2D(3, 2, dtype=dtype, name="pool1_pool")(maps)
    for stack, count in enumerate(blocks):
        for number in range(count):
            name = f"stack{stack}_block{number}"
            width, strides = filters * 2**stack, 2 if stack and not number else 1
            shortcut = maps
            if maps.shape[-1] != width:
                shortcut = convolved(maps, width, f"{name}_0", size=1, strides=strides)
            inner = relu(convolved(maps, width, f"{name}_1", strides=strides), f"{name}_1_relu")
            inner = convolved(inner, width, f"{name}_2")
            maps = relu(keras.layers.Add(dtype=dtype, name=f"{name}_add")([shortcut, inner]), f"{name}_out")
    return keras.Model(images, maps)


def _efficientnet(width, depth):
    return keras_hub.models.EfficientNetBackbone, {
        "stackwise_width_coefficients": [width] * 7,
        "stackwise_depth_coefficients": [depth] * 7,
        "stackwise_kernel_sizes": [3, 3, 5, 3, 5, 5, 3],
        "stackwise_num_repeats": [1, 2, 2, 3, 3, 4, 1],
        "stackwise_input_filters": [32, 16, 24, 40, 80, 112, 192],
        "stackwise_output_filters": [16, 24, 40, 80, 112, 192, 320],
        "stackwise_expansion_ratios": [1, 6, 6, 6, 6, 6, 6],
        "stackwise_squeeze_and_excite_ratios": [0.25] * 7,
        "stackwise_strides": [1, 2, 2, 2, 1, 2, 1],
        "stackwise_block_types": ["v1"] * 7,
        "min_depth": None,
        "use_depth_divisor_as_min_depth": True,
        "cap_round_filter_decrease": True,
    }


def _efficientnet_lite0():
    # TensorFlow's padding throughout, as its weights were trained with: keras-hub's "v1" blocks have that at stride 1
    # only, and its other blocks can't do the first stage, which expands nothing
    backbone, arguments = _efficientnet(1.0, 1.0)
    return backbone, {
        **arguments,
        "stackwise_squeeze_and_excite_ratios": [0.0] * 7,
        "stackwise_block_types": ["v1"] + ["unfused"] * 6,
        "activation": "relu6",
        "include_stem_padding": False,
        "stem_conv_padding": "same",
        "batch_norm_momentum": 0.99,
        "batch_norm_epsilon": 1e-3,
    }


def _mobilenet_v3_small():
    blocks = [2, 3, 2, 3]
    return keras_hub.models.MobileNetBackbone, {
        "stackwise_num_blocks": blocks,
        "stackwise_expansion": [[72, 88], [96, 240, 240], [120, 144], [288, 576, 576]],
        "stackwise_num_filters": [[24, 24], [40, 40, 40], [48, 48], [96, 96, 96]],
        "stackwise_kernel_size": [[3, 3], [5, 5, 5], [5, 5], [5, 5, 5]],
        "stackwise_num_strides": [[2, 1], [2, 1, 1], [1, 1], [2, 1, 1]],
        "stackwise_se_ratio": [[None, None], [0.25] * 3, [0.25] * 2, [0.25] * 3],
        "stackwise_activation": [["relu"] * 2, ["hard_swish"] * 3, ["hard_swish"] * 2, ["hard_swish"] * 3],
        "stackwise_padding": [[1, 1], [2, 2, 2], [2, 2], [2, 2, 2]],
        "output_num_filters": 1024,
        "input_num_filters": 16,
        "depthwise_filters": 16,
        "depthwise_stride": 2,
        "depthwise_residual": False,
        "squeeze_and_excite": 0.5,
        "last_layer_filter": 576,
    }


def _densenet(repeats, growth_rate=32):
    return keras_hub.models.DenseNetBackbone, {"stackwise_num_repeats": repeats, "growth_rate": growth_rate}


def _vgg(repeats):
    return keras_hub.models.VGGBackbone, {
        "stackwise_num_repeats": repeats,
        "stackwise_num_filters": [64, 128, 256, 512, 512],
    }


TRUNKS = {
    "resnet18": _resnet([2, 2, 2, 2], "basic_block"),
    "resnet18_narrow": (_resnet_of_any_width, {"filters": 16}),
    "resnet18_32px": (_resnet_of_any_width, {"of_32px": True}),
    "resnet18_32px_narrow": (_resnet_of_any_width, {"of_32px": True, "filters": 16}),
    "resnet34": _resnet([3, 4, 6, 3], "basic_block"),
    "resnet50": _resnet([3, 4, 6, 3], "bottleneck_block"),
    "resnet101": _resnet([3, 4, 23, 3], "bottleneck_block"),
    "resnet152": _resnet([3, 8, 36, 3], "bottleneck_block"),
    "efficientnet_b0": _efficientnet(1.0, 1.0),
    "efficientnet_b1": _efficientnet(1.0, 1.1),
    "efficientnet_b2": _efficientnet(1.1, 1.2),
    "efficientnet_lite0": _efficientnet_lite0(),
    "mobilenet_v3_small": _mobilenet_v3_small(),
    "densenet121": _densenet([6, 12, 24, 16]),
    "densenet169": _densenet([6, 12, 32, 32]),
    "densenet201": _densenet([6, 12, 48, 32]),
    "vgg16": _vgg([2, 2, 3, 3, 3]),
    "vgg19": _vgg([2, 2, 4, 4, 4]),
}

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# of trunks whose pretrained weights expect another than ImageNet's mean and standard deviation
_NORMALIZATIONS = {"efficientnet_lite0": ((127 / 255,) * 3, (128 / 255,) * 3)}


def normalization(name: str) -> tuple[Sequence[float], Sequence[float]]:
    """(mean, standard deviation) of RGB in 0-1, 3 floats each, that the trunk `name` takes images with."""
    return _NORMALIZATIONS.get(name, (IMAGENET_MEAN, IMAGENET_STD))


def check_known(name: str) -> None:
    """Refuses what is no trunk's name.

    Raises:
        UserError: the name is no key of `TRUNKS`.
    """
    if name not in TRUNKS:
        raise UserError(f"unknown trunk {name!r}; known: {', '.join(sorted(TRUNKS))}")


def freeze_stages(trunk: keras.Model, count: int) -> keras.KerasTensor | None:
    """Keeps the first stages of a trunk as they are in training: weights and batch normalisation's statistics.

    Stage k ends with the last layer whose feature map has 1 / 2^k of the image's side, so stages have the numbers of
    keras-hub's pyramid levels. In a ResNet the stem and the first stage of blocks are stages 1 and 2 together.

    Args:
        trunk: a keras-hub backbone with a feature pyramid.
        count: int, how many stages; 0 freezes nothing.

    Returns:
        The feature map that the frozen stages end with, a tensor of the functional trunk; None without any.

    Raises:
        UserError: the trunk has no stage of that number, or none would be left to train.

    Example:

    >>> trunk = build("resnet18")
    >>> freeze_stages(trunk, 2).shape
    (None, None, None, 64)
    >>> trunk.get_layer("conv1_conv").trainable, trunk.get_layer("stack1_block0_1_conv").trainable
    (False, True)
    """
    if not count:
        return None
    levels = {int(level[1:]): output for level, output in getattr(trunk, "pyramid_outputs", {}).items()}
    known = sorted(levels)[:-1]
    if count not in known:
        numbers = ", ".join(map(str, [0, *known]))
        raise UserError(f"frozen_stages must be one of {numbers} for this trunk, received {count}")
    for layer in keras.Model(trunk.inputs, levels[count]).layers:
        layer.trainable = False
    return levels[count]


def freeze_statistics(trunk: keras.Model) -> None:
    """Keeps batch normalisation in training as it is in a test: its statistics, scales and offsets.

    For short trainings from weights that are good: what is trained is what will be used, whatever augmentation does to
    the statistics of a batch.
    """
    for layer in trunk.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False


def build(name: str, **overrides) -> keras.Model:
    """Builds the trunk `name` with fresh weights, for images of any size.

    The convolutions of ResNets start as the paper's do: normal with variance 2 / fan-out (He et al. 2015), which
    Keras's default (Glorot) is not; the other families start as keras-hub has them. Seed with
    `keras.utils.set_random_seed`. `resnet18_32px` is ResNet-18 for photos of 32 px, such as CIFAR's: its first
    convolution is 3x3 and takes no second pixel away, nor does a pooling follow. `resnet18_narrow` and
    `resnet18_32px_narrow` have a quarter of the filters.

    Args:
        name: str, a key of `TRUNKS`.
        **overrides: arguments of the keras-hub backbone to add or change, such as `dtype="mixed_bfloat16"` or
            `stackwise_num_blocks=[1, 1, 1, 1]`.

    Returns:
        A keras-hub backbone: normalised images [B, H, W, 3] -> feature map [B, h, w, C].

    Raises:
        UserError: the name is unknown.

    Example:

    >>> trunk = build("resnet18", stackwise_num_blocks=[1, 1, 1, 1])
    >>> trunk(np.zeros((1, 96, 160, 3), "float32")).shape
    TensorShape([1, 3, 5, 512])
    """
    check_known(name)
    backbone, arguments = TRUNKS[name]
    # images of any size, whatever the class's default; EfficientNet has its own word for it
    shape_argument = "input_shape" if backbone is keras_hub.models.EfficientNetBackbone else "image_shape"
    trunk = backbone(**{shape_argument: (None, None, 3), **arguments, **overrides})
    if backbone in (keras_hub.models.ResNetBackbone, _resnet_of_any_width):
        for layer in trunk.layers:
            if isinstance(layer, keras.layers.Conv2D):
                # a new one each time: an initializer gives the same values whenever it is asked for the same shape
                initializer = keras.initializers.VarianceScaling(2.0, mode="fan_out", distribution="untruncated_normal")
                layer.kernel.assign(initializer(layer.kernel.shape))
    return trunk
