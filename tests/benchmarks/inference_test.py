import functools
import importlib.util
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import inference
from mg_keras.models import trunks
from tests.benchmarks.programs_test import rows, run_here
from tests.export.small import TINY_RESNET, small_model

OURS = ["Keras", "export float32", "export bfloat16"]
OTHERS = {
    "OpenVINO float32": ("openvino",),
    "OpenVINO bfloat16": ("openvino",),
    "ONNX Runtime": ("onnxruntime", "tf2onnx"),
}


@pytest.mark.slow
def test_a_table_of_every_contestant_that_is_installed(monkeypatch, capsys):
    monkeypatch.setattr(trunks, "build", functools.partial(trunks.build, **TINY_RESNET))
    monkeypatch.setattr(inference, "MATRIX_SIDE", 64)
    flags = ("--trunk", "resnet18", "--resolutions", "32", "--batch-sizes", "2", "--repeats", "1")
    monkeypatch.setattr(sys, "argv", ["inference", *flags])
    inference.main()
    output = capsys.readouterr().out
    table = rows(SimpleNamespace(returncode=0, stdout=output))
    installed = [name for name, needs in OTHERS.items() if all(map(importlib.util.find_spec, needs))]
    assert list(table) == [*OURS, *installed]
    assert table["Keras"][1] == "1.00"
    for name in [*set(OTHERS) - set(installed), "PyTorch"]:
        assert f"{name} is missing: " in output
    assert "peak of a matrix product: " in output


@pytest.mark.slow
def test_contestants_describe_the_same_photos_alike(tmp_path, monkeypatch):
    from mg_keras.export.optimize import optimized_trunk

    model = small_model()
    for name in ("openvino", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    found, missing = inference.contestants(model, optimized_trunk(model.trunk), "resnet18", tmp_path)
    assert list(found) == OURS
    assert [line.split(" is missing")[0] for line in missing] == ["PyTorch", *OTHERS]
    images = np.random.default_rng(0).uniform(0, 255, (2, 40, 48, 3)).astype(np.float32)
    expected, *others = (prepare(images)() for prepare in found.values())
    # the exports append 1 and normalise
    expected = np.column_stack([expected, np.ones(2)])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    for other, tolerance in zip(others, (1e-5, 1e-2), strict=True):
        np.testing.assert_allclose(other, expected, atol=tolerance)


def test_operations_are_those_of_the_convolutions():
    import keras
    from keras import layers

    from mg_keras.export.optimize import optimized_trunk

    inputs = keras.Input((None, None, 3))
    trunk = keras.Model(inputs, layers.Conv2D(5, 3, padding="same", use_bias=False)(inputs))
    assert inference.operations_a_photo(optimized_trunk(trunk), 10) == 2 * 10 * 10 * 3 * 3 * 3 * 5


@pytest.mark.parametrize("flag", ["--resolutions", "--batch-sizes", "--repeats"])
def test_mistakes_get_one_line(flag):
    done = run_here("inference", flag, "0")
    assert done.returncode == 2
    assert done.stderr == f"error: {flag} must be at least 1, received 0\n"
