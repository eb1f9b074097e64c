"""What the engines' tests share: the stand-in of a SavedModel, as an export has it, and photos for it."""

import json

import pytest

from tests.embedding.small import folder, model, small_batches  # noqa: F401
from tests.serving import stand_in

SIDE = 16
CLASSES = ["a", "b", "c", "d", "e"]


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """A folder with the stand-in as version 1, and what an export says of its model."""
    place = tmp_path_factory.mktemp("stand_in") / "multigrain"
    about = {"pooling_exponent": 3.0, "whitened": True, "embedding_size": stand_in.SIZE, "class_names": CLASSES}
    about |= {"num_classes": stand_in.CLASSES, "preparation": "squash", "training": {"resolution": SIDE}}
    notes = stand_in.save(place) / "assets" / "multigrain.json"
    notes.parent.mkdir(exist_ok=True)
    notes.write_text(json.dumps(about))
    return place


@pytest.fixture(scope="session")
def squares(tmp_path_factory):
    """A folder of 200 photos, two of which are empty files."""
    place = tmp_path_factory.mktemp("squares")
    for number in range(200):
        contents = b"" if number in (7, 31) else stand_in.png(stand_in.photo(number, SIDE, SIDE))
        (place / f"{number:03}.png").write_bytes(contents)
    return place
