import numpy as np
import pytest

from mg_keras.layers import (
    RMAC,
    DistanceWeightedSampling,
    GeM,
    InfoNCE,
    InstanceLoss,
    KoLeo,
    MarginLoss,
    NearestNeighborLoss,
    SupervisedContrast,
    Whitening,
)
from tests.layers import standard

IDS = np.repeat(np.arange(3, dtype="int32"), 2)


def features(*shape):
    return np.random.default_rng(0).uniform(0.1, 2, shape).astype("float32")


def unit(*shape):
    rows = np.random.default_rng(1).standard_normal(shape).astype("float32")
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.mark.parametrize(
    ("kind", "arguments", "inputs"),
    [
        (GeM, {"pooling_exponent": 2.5, "epsilon": 1e-5}, [features(2, 4, 5, 3)]),
        (GeM, {"trainable_exponent": True}, [features(2, 4, 5, 3)]),
        (RMAC, {"levels": 2}, [features(2, 4, 6, 3)]),
        (MarginLoss, {"margin": 0.3, "initial_beta": 0.9, "normalization": "active"}, list(unit(3, 8, 4))),
        (InfoNCE, {"temperature": 0.2}, [unit(6, 4), IDS]),
        (SupervisedContrast, {"temperature": 0.2}, [unit(6, 4), IDS]),
        (KoLeo, {}, [unit(6, 4), IDS]),
        (Whitening, {"embedding_size": 5, "dimensions": 3}, [features(4, 5)]),
        (Whitening, {"embedding_size": 5, "bias_channel": False}, [features(4, 5)]),
    ],
)
def test_layers(kind, arguments, inputs, tmp_path):
    standard.check(kind, arguments, inputs, tmp_path)


@pytest.mark.parametrize(
    ("kind", "arguments", "inputs", "given"),
    [
        (InstanceLoss, {}, [unit(6, 4), unit(6, 4)[::-1].copy(), IDS], [1]),
        (NearestNeighborLoss, {"temperature": 0.2, "part_size": 4}, [unit(6, 4), IDS, IDS, unit(5, 4), IDS[:5]], [3]),
    ],
)
def test_layers_with_targets(kind, arguments, inputs, given, tmp_path):
    standard.check(kind, arguments, inputs, tmp_path, given=given)


@pytest.mark.slow
def test_sampling(tmp_path):
    inputs = [unit(6, 4), IDS]
    standard.check(DistanceWeightedSampling, {"max_positives": 1, "seed": 3}, inputs, tmp_path, draws=True)
    # as many triplets as there are pairs
    assert DistanceWeightedSampling().compute_output_shape((6, 4)) == ((None,),) * 3


@pytest.mark.parametrize(("layer", "message"), [(GeM(), "features"), (RMAC(), "features")])
def test_feature_maps_are_looked_at_in_every_call(layer, message):
    with pytest.raises(ValueError, match=rf"{message} must be .*received shape \(2, 6\)"):
        layer.compute_output_shape(input_shape=(2, 6))
