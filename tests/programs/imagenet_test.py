"""The run of a network that ImageNet trained."""

import pytest

from mg_keras.pretrained import lite0
from mg_keras.programs import imagenet
from tests.train.tiny import draw_folder

pytest.importorskip(lite0.PACKAGE, reason="the extra offline is not installed")


def test_the_classifier_tells_all_classes_apart_unless_the_photos_are_of_some(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(lite0, "imagenet_network", asked.append)
    monkeypatch.setattr(imagenet, "save_run", lambda network, folder, data: (None, None))
    folder = draw_folder(tmp_path / "photos", per_class=3)
    imagenet.save_imagenet_run(tmp_path / "run", f"photos:{folder}")
    imagenet.save_imagenet_run(tmp_path / "run", f"folder:{folder}")
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    for drawn, wnid in zip(classes, ("n02110341", "n03041632", "n01440764"), strict=False):
        drawn.rename(folder / wnid)
    imagenet.save_imagenet_run(tmp_path / "run", f"folder:{folder}")
    assert asked[:2] == [None, None]
    assert asked[2] == sorted(("n02110341", "n03041632", "n01440764")[: len(classes)])
