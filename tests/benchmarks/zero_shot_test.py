import numpy as np
import pytest

from benchmarks import zero_shot
from mg_keras.errors import UserError
from mg_keras.pretrained import lite0
from tests.shared import shared_path
from tests.train.tiny import draw_folder

pytest.importorskip(lite0.PACKAGE, reason="the extra offline is not installed")


def test_every_class_is_one_of_imagenets():
    assert len(zero_shot.SHARED) >= 15
    assert len(set(zero_shot.SHARED.values())) == len(zero_shot.SHARED)
    assert set(zero_shot.SHARED.values()) <= set(lite0.class_ids())


@pytest.mark.slow
def test_photos_are_recognised():
    folder = shared_path("data", "caltech101")
    names = zero_shot.shared_classes(folder)
    assert len(names) >= 15
    # every other one: quick
    names = names[::2]
    among, of_all = zero_shot.recognised(folder, names, 224, per_class=2)
    among, of_all = (np.concatenate([found[name] for name in names]) for found in (among, of_all))
    assert len(among) == 2 * len(names)
    assert among.mean() >= 0.75
    assert of_all.mean() >= 0.5
    # who is likeliest of all is so of a part
    assert not np.any(of_all & ~among)


@pytest.mark.slow
def test_a_photo_that_cant_be_used_is_not_recognised(tmp_path):
    folder = draw_folder(tmp_path / "photos", per_class=2)
    for name, drawn in (("pizza", "disks"), ("umbrella", "squares")):
        (folder / drawn).rename(folder / name)
        (folder / name / "broken.jpg").write_text("no photo")
    assert zero_shot.shared_classes(folder) == ["pizza", "umbrella"]
    among, _ = zero_shot.recognised(folder, ["pizza", "umbrella"], 64)
    assert set(among) == {"pizza", "umbrella"}
    for found in among.values():
        assert len(found) == 3
        assert not found[2]
    with pytest.raises(UserError, match="no subfolder named as one of Leopards"):
        zero_shot.shared_classes(tmp_path)


def test_links(tmp_path):
    folder = draw_folder(tmp_path / "photos", per_class=1)
    (folder / "disks").rename(folder / "pizza")
    links = zero_shot.link_by_id(folder, ["pizza"], tmp_path / "links")
    assert [path.name for path in links.glob("*/*")] == ["00.jpg"]
    assert (links / "n07873807").is_dir()
    with pytest.raises(UserError, match="exists already"):
        zero_shot.link_by_id(folder, ["pizza"], tmp_path / "links")
