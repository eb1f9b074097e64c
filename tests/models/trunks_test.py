import keras
import numpy as np
import pytest

from mg_keras.errors import UserError
from mg_keras.models import trunks
from mg_keras.models.levels import with_levels
from mg_keras.models.network import Network
from mg_keras.poolings import Level

EFFICIENTNET = {
    "stackwise_width_coefficients": [0.25] * 2,
    "stackwise_depth_coefficients": [1.0] * 2,
    "stackwise_kernel_sizes": [3, 5],
    "stackwise_num_repeats": [1, 1],
    "stackwise_input_filters": [32, 16],
    "stackwise_output_filters": [16, 24],
    "stackwise_expansion_ratios": [1, 6],
    "stackwise_squeeze_and_excite_ratios": [0.25] * 2,
    "stackwise_strides": [1, 2],
}
# one of each family, cut down to a few channels; MobileNetV3-Small is small as it is
TINY = {
    "resnet18": {
        "stackwise_num_filters": [64, 128],
        "stackwise_num_blocks": [1, 1],
        "stackwise_num_strides": [1, 2],
    },
    "resnet18_narrow": {"filters": 64, "blocks": [1, 1]},
    "resnet18_32px": {"filters": 64, "blocks": [1, 1]},
    "resnet50": {
        "stackwise_num_filters": [64, 128],
        "stackwise_num_blocks": [1, 1],
        "stackwise_num_strides": [1, 2],
    },
    "efficientnet_b0": {**EFFICIENTNET, "stackwise_block_types": ["v1"] * 2},
    "efficientnet_lite0": {
        **EFFICIENTNET,
        "stackwise_squeeze_and_excite_ratios": [0.0] * 2,
        "stackwise_block_types": ["v1", "unfused"],
    },
    "mobilenet_v3_small": {},
    "densenet121": {"stackwise_num_repeats": [1, 1, 1], "growth_rate": 8},
    "vgg16": {"stackwise_num_repeats": [1, 1], "stackwise_num_filters": [8, 16]},
}

# torchvision's published counts of trainable values without the classifier (and, for VGG, without its dense layers)
PARAMETERS = {
    "resnet18": 11_689_512 - 513 * 1000,
    # a first convolution of 3x3 in place of 7x7
    "resnet18_32px": 11_689_512 - 513 * 1000 - 40 * 3 * 64,
    # a sixteenth of what joins two convolutions; of what joins the image with the first, and of the rest, a quarter
    # a sixteenth of what joins two convolutions; of what joins the image with the first, and of the rest, a quarter
    "resnet18_narrow": (11_689_512 - 513 * 1000 - 49 * 3 * 64 - 9_600) // 16 + (49 * 3 * 64 + 9_600) // 4,
    "resnet18_32px_narrow": (11_689_512 - 513 * 1000 - 49 * 3 * 64 - 9_600) // 16 + (9 * 3 * 64 + 9_600) // 4,
    "resnet34": 21_797_672 - 513 * 1000,
    "resnet50": 25_557_032 - 2049 * 1000,
    "resnet101": 44_549_160 - 2049 * 1000,
    "resnet152": 60_192_808 - 2049 * 1000,
    "efficientnet_b0": 5_288_548 - 1281 * 1000,
    "efficientnet_b1": 7_794_184 - 1281 * 1000,
    "efficientnet_b2": 9_109_994 - 1409 * 1000,
    # without squeeze-and-excitation it has fewer than B0; timm counts the same
    "efficientnet_lite0": 4_652_008 - 1281 * 1000,
    "mobilenet_v3_small": 2_542_856 - 577 * 1024 - 1025 * 1000,
    "densenet121": 7_978_856 - 1025 * 1000,
    "densenet169": 14_149_480 - 1665 * 1000,
    "densenet201": 20_013_928 - 1921 * 1000,
    "vgg16": 138_357_544 - 25_089 * 4096 - 4097 * 4096 - 4097 * 1000,
    "vgg19": 143_667_240 - 25_089 * 4096 - 4097 * 4096 - 4097 * 1000,
}


@pytest.mark.parametrize("name", TINY)
@pytest.mark.slow
def test_every_family_takes_any_size_and_keeps_space(name):
    trunk = trunks.build(name, **TINY[name])
    assert trunk.input_shape == (None, None, None, 3)
    rng = np.random.default_rng(0)
    for height, width in ((32, 32), (64, 45)):
        features = trunk(rng.standard_normal((1, height, width, 3)).astype("float32")).numpy()
        assert features.ndim == 4
        assert features.shape[-1] == trunk.output_shape[-1]
        assert abs(features.shape[1] / features.shape[2] - height / width) < 0.7
        assert np.isfinite(features).all()
        assert features.std() > 0


def test_a_resnet_of_small_images_keeps_their_pixels():
    trunk = trunks.build("resnet18_32px", **TINY["resnet18_32px"])
    assert trunk.compute_output_shape((1, 32, 48, 3)) == (1, 16, 24, 128)
    first = trunk.get_layer("conv1_conv")
    assert (first.kernel_size, first.strides) == ((3, 3), (1, 1))
    (kernel,) = (value.numpy() for value in trunk.weights if value.shape == (3, 3, 64, 128))
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 128)), rel=0.05)
    # and its layers are known by their names, as those of other trunks
    joined = with_levels(trunk, [Level.of("stack0_block0_out")])
    assert joined.compute_output_shape((1, 32, 48, 3)) == [(1, 16, 24, 128), (1, 32, 48, 64)]


def test_a_resnet_of_any_width_is_the_usual_one():
    usual = trunks.build("resnet18", **TINY["resnet18"])
    built_here = trunks.build("resnet18_narrow", **TINY["resnet18_narrow"])
    assert {layer.name for layer in built_here.layers[1:]} == {layer.name for layer in usual.layers[1:]}
    for layer in usual.layers[1:]:
        built_here.get_layer(layer.name).set_weights(layer.get_weights())
    # an even side and an odd one: there paddings differ
    images = np.random.default_rng(0).standard_normal((1, 64, 45, 3)).astype("float32")
    np.testing.assert_allclose(built_here(images), usual(images), rtol=1e-5, atol=1e-5)
    narrow = trunks.build("resnet18_narrow")
    assert (narrow.get_layer("conv1_conv").filters, narrow.output_shape[-1]) == (16, 128)


@pytest.mark.parametrize("name", trunks.TRUNKS)
@pytest.mark.slow
def test_every_name_has_the_published_size(name):
    # within the scope no weight is made: the largest trunk costs what its layers do
    with keras.StatelessScope():
        trunk = trunks.build(name)
        assert sum(int(np.prod(weight.shape)) for weight in trunk.trainable_variables) == PARAMETERS[name]
        small = 4 if "_32px" in name else 1
        assert trunk.compute_output_shape((2, 224, 160, 3)) == (2, 7 * small, 5 * small, trunk.output_shape[-1])


def test_resnet_strides_in_the_3x3_convolution():
    trunk = trunks.build("resnet50", **TINY["resnet50"])
    strided = [layer for layer in trunk.layers if isinstance(layer, keras.layers.Conv2D) and layer.strides == (2, 2)]
    assert sorted(layer.kernel_size for layer in strided) == [(1, 1), (3, 3), (7, 7)]
    (shortcut,) = (layer for layer in strided if layer.kernel_size == (1, 1))
    assert shortcut.filters == trunk.output_shape[-1]


def test_unknown_name():
    with pytest.raises(UserError, match=r"'resnet19'.*resnet18"):
        trunks.build("resnet19")


def test_resnet_starts_normal_with_variance_2_over_fan_out():
    keras.utils.set_random_seed(0)
    trunk = trunks.build("resnet18", **{**TINY["resnet18"], "stackwise_num_blocks": [2, 1]})
    kernels = [layer.kernel.numpy() for layer in trunk.layers if isinstance(layer, keras.layers.Conv2D)]
    assert len(kernels) == 8
    for kernel in kernels:
        expected = np.sqrt(2 / (kernel.shape[0] * kernel.shape[1] * kernel.shape[3]))
        # within 5 standard errors: sigma / sqrt(n) of a mean, sigma / sqrt(2 n) of a standard deviation
        assert abs(kernel.mean()) < 5 * expected / np.sqrt(kernel.size)
        assert abs(kernel.std() / expected - 1) < 5 / np.sqrt(2 * kernel.size)
        # 4.6 % of a normal lie beyond two standard deviations, none of the truncated one
        assert 0.03 < np.mean(np.abs(kernel) > 2 * expected) < 0.06
    for i, kernel in enumerate(kernels):
        for other in kernels[:i]:
            if kernel.shape == other.shape:
                # independent: the correlation has standard error 1 / sqrt(n)
                assert abs(np.corrcoef(kernel.ravel(), other.ravel())[0, 1]) < 5 / np.sqrt(kernel.size)


def test_the_seed_decides_the_start():
    def weights(seed):
        keras.utils.set_random_seed(seed)
        return np.concatenate([w.numpy().ravel() for w in trunks.build("resnet18", **TINY["resnet18"]).weights])

    first = weights(1)
    np.testing.assert_array_equal(first, weights(1))
    assert not np.array_equal(first, weights(2))


def test_frozen_stages_keep_weights_and_statistics():
    trunk = trunks.build("resnet18", **{**TINY["resnet18"], "stackwise_num_blocks": [1, 1]})
    trunks.freeze_stages(trunk, 2)
    trained = {variable.path.split("/")[0] for variable in trunk.trainable_variables}
    assert trained == {f"stack1_block0_{layer}" for layer in ("0_conv", "0_bn", "1_conv", "1_bn", "2_conv", "2_bn")}
    before = {variable.path: variable.numpy() for variable in trunk.weights}
    trunk(np.random.default_rng(0).standard_normal((4, 32, 32, 3)).astype("float32"), training=True)
    moved = {path for path, value in before.items() if not np.array_equal(value, _weight(trunk, path))}
    # in training, the batch norms of stages that are trained follow the images, the frozen ones don't
    assert {path.split("/")[0] for path in moved} == {f"stack1_block0_{number}_bn" for number in range(3)}


def test_frozen_statistics_train_what_is_used_in_a_test():
    keras.utils.set_random_seed(0)
    trunk = trunks.build("resnet18", **TINY["resnet18"])
    images = np.random.default_rng(0).standard_normal((4, 32, 32, 3)).astype("float32")
    assert not np.allclose(trunk(images, training=True), trunk(images, training=False))
    trunks.freeze_statistics(trunk)
    np.testing.assert_array_equal(trunk(images, training=True), trunk(images, training=False))
    assert {variable.path.split("/")[-1] for variable in trunk.trainable_variables} == {"kernel"}


def _weight(trunk, path):
    return next(variable.numpy() for variable in trunk.weights if variable.path == path)


@pytest.mark.slow
def test_the_stages_of_efficientnet_lite0():
    with keras.StatelessScope():
        trunk = trunks.build("efficientnet_lite0")
        trunks.freeze_stages(trunk, 4)
    layers = {variable.path.split("/")[0].split("_")[0] for variable in trunk.trainable_variables}
    assert layers == {"block6a", "block6b", "block6c", "block6d", "block7a", "top"}


def test_no_such_stage():
    trunk = trunks.build("resnet18", **TINY["resnet18"])
    trunks.freeze_stages(trunk, 0)
    assert all(layer.trainable for layer in trunk.layers)
    for count in (-1, 1, 3):
        with pytest.raises(UserError, match=rf"frozen_stages must be one of 0, 2 for this trunk, received {count}"):
            trunks.freeze_stages(trunk, count)
    with pytest.raises(UserError, match="frozen_stages must be one of 0 for"):
        trunks.freeze_stages(keras.Sequential([keras.layers.Conv2D(2, 3)]), 1)


def test_normalization():
    assert trunks.normalization("resnet50") == (trunks.IMAGENET_MEAN, trunks.IMAGENET_STD)
    mean, std = (255 * np.array(values) for values in trunks.normalization("efficientnet_lite0"))
    np.testing.assert_allclose([mean, std], [[127] * 3, [128] * 3])


def test_where_random_numbers_have_come_to_is_no_part_of_a_fingerprint():
    # with repeats, so that there is a dropout
    repeats = {"stackwise_num_repeats": [1, 2], "dropout": 0.2}
    network = Network(trunks.build("efficientnet_lite0", **TINY["efficientnet_lite0"] | repeats), 3)
    before = network.fingerprint()
    states = [variable for variable in network.trunk.variables if "seed" in variable.path]
    assert states
    for state in states:
        state.assign(state + 1)
    assert network.fingerprint() == before
    network.trunk.trainable_variables[0].assign_add(keras.ops.ones_like(network.trunk.trainable_variables[0]))
    assert network.fingerprint() != before
