"""The model that comes with mg_keras, as it is shipped."""

import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageDraw

import mg_keras
from mg_keras import processor
from mg_keras.evaluation.copies import STRONG_EDITS
from mg_keras.export.quantize import supported
from mg_keras.pretrained.packed import PACKAGE, Packed
from mg_keras.programs.common import PRESETS
from mg_keras.runs.config import TrainConfig


def scene(seed):
    """A picture of coloured shapes, RGB, 240 x 320."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (320, 240), tuple(rng.integers(60, 200, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(14):
        left, top = rng.integers(0, 260), rng.integers(0, 190)
        box = (left, top, left + rng.integers(20, 90), top + rng.integers(20, 70))
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)(
            tuple(map(int, box)), fill=tuple(rng.integers(0, 256, 3).tolist())
        )
    return image


def test_it_is_small_and_says_what_made_it():
    assert sum(path.stat().st_size for path in PACKAGE.iterdir()) < 12e6
    about = Packed(PACKAGE).about
    assert len(about["class_names"]) == len(about["class_ids"]) == about["num_classes"] == 1000
    for kind in ("copy", "instance"):
        assert 0 < about["thresholds"][kind]["0.9"] < about["thresholds"][kind]["0.99"] < 1
    # what the preset makes, but for where its photos lie and the whitening that a program of its own fits
    preset = dataclasses.asdict(TrainConfig.load(PRESETS / "package.yaml"))
    apart = {"data", "data_dir", "unlabelled", "max_whitening_photos"}
    for name in ("dimensions", "versions", "augmentations", "power", "steps"):
        assert about["whitening"][name] == preset[f"whitening_{name}"]
        apart.add(f"whitening_{name}")
    assert {name: about["training"][name] for name in preset.keys() - apart} == {
        name: value for name, value in preset.items() if name not in apart
    }
    assert about["levels"] == preset["levels"]
    assert TrainConfig.load(PRESETS / "demo.yaml").levels == about["levels"]


@pytest.mark.slow
def test_it_finds_edited_copies():
    model = mg_keras.load()
    scenes = [scene(seed) for seed in range(16)]
    kinds = list(STRONG_EDITS)
    edits = [STRONG_EDITS[kinds[n % len(kinds)]](image, np.random.default_rng(n)) for n, image in enumerate(scenes)]
    descriptors = model.embed([np.asarray(image) for image in scenes])
    assert descriptors.shape == (16, 512)
    np.testing.assert_allclose(np.linalg.norm(descriptors, axis=1), 1, atol=1e-3)
    nearest = np.argmax(model.embed([np.asarray(image) for image in edits]) @ descriptors.T, axis=1)
    # flat shapes are none of what it was trained on: docs/package.md has figures on photos
    assert np.mean(nearest == np.arange(16)) >= 0.8


@pytest.mark.slow
def test_it_describes_alike_in_8_bits():
    if processor.computes_int8() is not True or not supported():
        pytest.skip("no 8-bit convolutions on this machine")
    scenes = [np.asarray(scene(seed)) for seed in range(8)]
    found, expected = (mg_keras.load(precision=name).embed(scenes, 224) for name in ("int8", "float32"))
    similar = np.sum(found * expected, axis=1)
    # of flat shapes less than of photos, whose cosines are 0.997 on average: docs/package.md
    assert similar.mean() > 0.98
    assert similar.min() > 0.97
