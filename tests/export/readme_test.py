"""The code that the documents show for an exported model, run as it is."""

import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.export.small import encoded_as, picture

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(exported, tmp_path, monkeypatch):
    """A working folder as the documents assume it: an exported model and photos."""
    (tmp_path / "models" / "multigrain").mkdir(parents=True)
    (tmp_path / "models" / "multigrain" / "1").symlink_to(exported)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def code_of(document, heading):
    """The first block of Python below a heading."""
    section = (ROOT / document).read_text(encoding="utf-8").split(f"\n## {heading}\n")[1]
    return re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]


@pytest.mark.slow
def test_readme_gives_a_phone_photo_the_descriptor_of_the_upright_one(folder, capsys):
    code = code_of("README.md", "Use the SavedModel")
    upright = picture(96, 128, 4)
    exif = Image.Exif()
    exif[0x0112] = 6
    embeddings = []
    for contents in (
        encoded_as(upright, "JPEG", quality=98),
        encoded_as(upright.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=98, exif=exif.tobytes()),
    ):
        (folder / "photo.jpg").write_bytes(contents)
        names = {}
        exec(code, names)
        answer = names["answer"]
        assert str(answer) in capsys.readouterr().out
        assert {"embedding", "logits", "class", "probability"} <= set(answer)
        embeddings.append(answer["embedding"].numpy()[0])
    assert np.dot(*embeddings) > 0.999


@pytest.mark.slow
def test_export_document(folder):
    photos = [encoded_as(picture(96, 128, 5), "JPEG"), encoded_as(picture(80, 64, 6))]
    for name, contents in zip(("a.jpg", "b.png"), photos, strict=True):
        (folder / name).write_bytes(contents)
    names = {}
    exec(code_of("docs/export.md", "What is in it"), names)
    assert names["answer"]["embedding"].shape == (2, 17)
    np.testing.assert_allclose(names["again"]["logits"], names["answer"]["logits"], rtol=1e-3, atol=1e-3)
    assert tf.is_tensor(names["answer"]["class"])
