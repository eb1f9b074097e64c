import numpy as np
from PIL import Image

from benchmarks.duplicates import plant, scores
from mg_keras.evaluation.copies import STRONG_EDITS


def test_planted_copies_are_scored(tmp_path):
    (tmp_path / "from").mkdir()
    (tmp_path / "photos").mkdir()
    photos = [tmp_path / "from" / f"{number}.png" for number in range(12)]
    for number, path in enumerate(photos):
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (40, 50, 3), np.uint8)).save(path)
    plant(tmp_path / "photos", photos, 10, seed=0)
    assert len(list((tmp_path / "photos").iterdir())) == 22
    kinds = list(STRONG_EDITS)
    # of the first and the ninth, which have the first kind, one is found; and one pair is wrong
    edits = [f"00000-{kinds[0]}.jpg", f"00001-{kinds[1]}.jpg"]
    found = {edits[0]: ["00000.png"], "00000.png": edits[:1], edits[1]: ["00001.png", "00002.png"]}
    recall, precision, by_kind = scores(found, tmp_path / "photos")
    assert (recall, precision) == (0.2, 2 / 3)
    assert (by_kind[kinds[0]], by_kind[kinds[1]], by_kind[kinds[2]]) == (0.5, 0.5, 0)


def test_edits_are_of_photos_as_they_are_seen(tmp_path):
    (tmp_path / "photos").mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (60, 40), (200, 30, 30)).save(tmp_path / "turned.jpg", exif=turned)
    plant(tmp_path / "photos", [tmp_path / "turned.jpg"] * len(STRONG_EDITS), len(STRONG_EDITS), seed=0)
    (grey,) = (tmp_path / "photos").glob("*-grey.jpg")
    with Image.open(grey) as image:
        assert image.size == (40, 60)
