from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchmarks import kept
from mg_keras.embedding.photos import Embeddings
from mg_keras.errors import UserError


def test_embeddings_are_made_once_for_what_they_are_made_from(tmp_path):
    calls = []

    def embed():
        calls.append(1)
        return Embeddings(np.arange(2), np.full((1, 2, 3), len(calls) / 3, np.float32), np.arange(0))

    values, numbers = kept.kept(tmp_path / "new", "run-160", ("run", 1), embed, np.float16)
    # the first call works on what a later one will read
    assert values[0, 0, 0] == np.float16(1 / 3)
    again, _ = kept.kept(tmp_path / "new", "run-160", ("run", 1), embed, np.float16)
    assert (len(calls), again.dtype, again[0, 0, 0]) == (1, np.float32, np.float16(1 / 3))
    assert numbers.tolist() == [0, 1]
    # of something else they are made anew
    assert kept.kept(tmp_path / "new", "run-160", ("run", 2), embed)[0][0, 0, 0] == np.float32(2 / 3)
    assert kept.kept(None, "run-160", ("run", 1), embed)[0][0, 0, 0] == 1


def test_what_was_stopped_while_it_was_kept_is_made_again(tmp_path, monkeypatch):
    def embed():
        return Embeddings(np.arange(2), np.ones((1, 2, 3), np.float32), np.arange(0))

    def stopped(path, **arrays):
        path.write_bytes(b"PK")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", stopped)
        with pytest.raises(KeyboardInterrupt):
            kept.kept(tmp_path, "run-160", "run", embed)
    assert kept.kept(tmp_path, "run-160", "run", embed)[0].shape == (1, 2, 3)


def test_a_photo_that_cant_be_used_shifts_no_others(tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no photo")

    class Corner:
        def embed_batch(self, images, poolings):
            return images[None, :, 0, 0]

    run = SimpleNamespace(model=Corner(), settings=SimpleNamespace(resolution=16))
    with pytest.raises(UserError, match=r"b\.png can't be used"):
        kept.embed_all(run, [tmp_path / "a.png", tmp_path / "b.png"], 16, [1.0], "photos")
