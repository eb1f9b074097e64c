"""Files of descriptors, by the engine of this process."""

import fcntl
import functools
import json
import os
import shutil
from hashlib import sha256

import keras
import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from pyarrow import parquet

import mg_keras
from mg_keras.data.formats import NO_PHOTO
from mg_keras.data.given import given_photos
from mg_keras.data.photo_lists import PhotoList
from mg_keras.embedding import shards
from mg_keras.embedding.photos import embed
from mg_keras.embedding.settings import Settings
from mg_keras.embedding.whitening import Whitening
from mg_keras.engines import running
from mg_keras.engines.local import Local
from mg_keras.engines.running import Written, embed_to_files
from mg_keras.errors import UserError
from mg_keras.poolings import RMAC
from tests.embedding.small import BROKEN, GOOD, SIZES, Counting, Rounding

PATHS = [f"{number:02}.png" for number in range(len(SIZES))]


@pytest.fixture
def whitening():
    return Whitening.fit(np.random.default_rng(0).uniform(size=(50, 6)))


def write(network, photos, path, resolution=32, train_resolution=32, pooling=None, whitening=None, names=None, **more):
    settings = Settings(resolution, train_resolution, pooling, whitening, names)
    return embed_to_files(Local(network, settings), PhotoList(photos), path, **more)


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("resolution", [32, 40], ids=["square", "whole"])
@pytest.mark.slow
def test_files_hold_the_descriptors_and_their_photos(folder, model, whitening, small_batches, tmp_path, resolution):
    expected = embed(model, given_photos(folder), resolution, 32, [4.5]).values[0]
    raw, whitened = tmp_path / "new" / "raw.npy", tmp_path / "new" / "whitened.npy"
    assert write(model, folder, raw, resolution, 32, 4.5) == Written(9, 2)
    np.testing.assert_array_equal(np.load(raw), expected)
    assert np.load(raw).dtype == np.float32
    write(model, folder, whitened, resolution, 32, 4.5, whitening)
    np.testing.assert_allclose(np.load(whitened), whitening.transform(expected), atol=1e-6)
    for name in ("raw", "whitened"):
        assert lines(tmp_path / "new" / f"{name}.txt") == [str(folder / PATHS[row]) for row in GOOD]
        unusable = [line.split("\t") for line in lines(tmp_path / "new" / f"{name}.unusable.txt")]
        assert unusable == [[str(folder / PATHS[row]), NO_PHOTO] for row in BROKEN]
    kinds = ("json", "npy", "txt", "unusable.txt")
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        f"{n}.{k}" for n in ("raw", "whitened") for k in kinds
    }


def test_no_list_of_unusable_photos_without_any(folder, model, tmp_path):
    again = functools.partial(write, model, [folder / PATHS[row] for row in GOOD], tmp_path / "x.npy")
    again()
    # as if the array of an earlier call had been removed, and its lists forgotten
    (tmp_path / "x.npy").unlink()
    (tmp_path / "x.unusable.txt").write_text("old")
    assert again() == Written(9, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "x.npy", "x.txt"]


@pytest.mark.parametrize("name", ["x.txt", "x.unusable.txt", "x.json"])
@pytest.mark.parametrize("about", [None, '{"made_from": {"photos": "others"}}', '{"made_from": 3}', "[]", "no JSON"])
def test_files_of_others_beside_an_array_are_refused(folder, model, tmp_path, name, about):
    (tmp_path / name).write_text("mine")
    if about is not None:
        (tmp_path / "x.json").write_text(about)
    before = {path: path.read_text() for path in tmp_path.iterdir()}
    network = Counting(model)
    with pytest.raises(UserError, match=rf"{name} is there already and .*: remove it or choose another name"):
        write(network, folder, tmp_path / "x.npy")
    assert network.count == 0
    assert {path: path.read_text() for path in tmp_path.iterdir()} == before


def test_a_list_that_is_read_is_not_replaced(folder, model, tmp_path, monkeypatch):
    photos = "".join(f"{folder / path}\n" for path in PATHS)
    (tmp_path / "mine.txt").write_text(photos)
    # as a file of the same says that was made of it
    (tmp_path / "other.txt").write_text(photos)
    write(model, tmp_path / "other.txt", tmp_path / "made.npy")
    (tmp_path / "made.json").rename(tmp_path / "mine.json")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    for name in ("mine.txt", "./mine.txt", tmp_path / "mine.txt"):
        with pytest.raises(UserError, match=r"mine\.txt is among --photos and would be replaced: choose another name"):
            write(model, [name], "mine.npy")
    assert (tmp_path / "mine.txt").read_text() == photos
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("place", ["running.atomic_write_json", "running.atomic_write_text", "shards.join"])
def test_a_call_that_was_stopped_among_its_lists_goes_on(folder, model, tmp_path, place):
    def stop(*_):
        raise InterruptedError

    where, name = place.split(".")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr({"running": running, "shards": shards}[where], name, stop)
        with pytest.raises(UserError):
            write(model, folder, tmp_path / "x.npy")
    network = Counting(model)
    assert write(network, folder, tmp_path / "x.npy") == Written(9, 2)
    assert network.count == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "x.npy", "x.txt", "x.unusable.txt"]


def interrupt(model, photos, path, stop_after):
    """A call that fails on the way; returns how many photos its shards have."""
    with pytest.raises(tf.errors.OpError, match="pulled the plug"):
        write(Counting(model, stop_after), photos, path, 40, 32, 3.0, photos_a_shard=2)
    assert not path.exists()
    return int(shards.done(path.with_name(f"{path.name}.shards"), len(SIZES)).sum())


@pytest.mark.slow
def test_a_call_that_was_stopped_goes_on_and_makes_what_is_broken_anew(folder, model, small_batches, tmp_path, capsys):
    write(model, folder, tmp_path / "whole.npy", 40, 32, 3.0)
    done = interrupt(model, folder, tmp_path / "x.npy", 5) - 2
    assert 2 <= done < 7
    # and one of its shards is cut off
    broken = sorted((tmp_path / "x.npy.shards").iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:-10])
    # of a process that was killed while it wrote what the shards become
    leftovers = [tmp_path / f".x.{'0' * 32}.npy", tmp_path / f".x.unusable.{'0' * 32}.txt"]
    for leftover in leftovers:
        leftover.write_bytes(b"half")
    network = Counting(model)
    # in other pieces: what is left is what no shard has
    assert write(network, folder, tmp_path / "x.npy", 40, 32, 3.0, label="photos", photos_a_shard=3) == Written(9, 2)
    said = capsys.readouterr().err
    assert f"going on after {done} of 11 photos" in said
    assert f"{broken} was broken: its photos are embedded anew" in said
    assert not any(leftover.exists() for leftover in leftovers)
    assert 9 - done <= network.count <= 11 - done, "what was embedded is embedded again"
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), np.load(tmp_path / "whole.npy"), rtol=1e-5)
    for kind in ("txt", "unusable.txt"):
        assert (tmp_path / f"x.{kind}").read_bytes() == (tmp_path / f"whole.{kind}").read_bytes()
    # and once it is there, nothing is done but to remove what a kill left
    shards.write(tmp_path / "x.npy.shards", shards.unusable_rows(shards.schema(6, "float32", {}), [0], ["a"], ["b"]))
    network = Counting(model)
    assert write(network, folder, tmp_path / "x.npy", 40, 32, 3.0) == Written(9, 2)
    assert network.count == 0
    assert not (tmp_path / "x.npy.shards").exists()


@pytest.mark.parametrize("name", ["x.parquet", "x/"])
@pytest.mark.slow
def test_parquet_has_a_row_for_every_photo(folder, model, whitening, small_batches, tmp_path, name):
    path, names = f"{tmp_path}/{name}", ["a", "b", "c", "d"]

    def again(network=model, resolution=40):
        return write(network, folder, path, resolution, 32, 4.5, whitening, names, photos_a_shard=4)

    assert again() == Written(9, 2)
    assert [found.name for found in tmp_path.iterdir()] == [name.rstrip("/")]
    # a folder of shards is read as one table
    found = parquet.read_table(path).sort_by("id")
    assert found["id"].to_pylist() == list(range(len(SIZES)))
    assert found["uri"].to_pylist() == [str(folder / file) for file in PATHS]
    assert found["sha256"].to_pylist() == [sha256((folder / file).read_bytes()).hexdigest() for file in PATHS]
    assert found["error"].to_pylist() == [NO_PHOTO if row in BROKEN else None for row in range(len(SIZES))]
    sizes = zip(found["width"].to_pylist(), found["height"].to_pylist(), strict=True)
    assert list(sizes) == [(None, None) if row in BROKEN else size for row, size in enumerate(SIZES)]
    pooled = embed(model, given_photos(folder), 40, 32, [4.5]).values[0]
    values = found["embedding"].combine_chunks()
    assert values.type.value_type == pa.float16()
    values = np.asarray(values.flatten()).reshape(len(SIZES), -1)
    np.testing.assert_allclose(values[GOOD], whitening.transform(pooled), rtol=1e-3, atol=1e-4)
    assert np.isnan(values[list(BROKEN)]).all()
    probabilities = keras.ops.softmax(model.classify(pooled)).numpy()
    usable = found.filter(found["error"].is_null())
    assert usable["class"].to_pylist() == [names[number] for number in probabilities.argmax(axis=1)]
    np.testing.assert_allclose(usable["probability"], probabilities.max(axis=1), rtol=1e-5)
    made_from = json.loads(found.schema.metadata[b"mg_keras"])
    assert (made_from["network"], made_from["resolution"], made_from["pooling"]) == (model.fingerprint(), 40, 4.5)
    # and once it is there, nothing is done
    network = Counting(model)
    assert again(network) == Written(9, 2)
    assert network.count == 0
    with pytest.raises(UserError, match="made from other resolution: remove it or choose another name"):
        again(resolution=48)


@pytest.mark.slow
def test_what_the_classifier_cannot_read_has_no_class(folder, model, tmp_path):
    photos = [folder / PATHS[row] for row in (0, 1)]
    write(model, photos, tmp_path / "x.parquet", pooling=RMAC, names=["a", "b", "c", "d"])
    found = parquet.read_table(tmp_path / "x.parquet")
    assert found["class"].to_pylist() == found["probability"].to_pylist() == [None, None]
    write(model, photos, tmp_path / "x.npy", dtype="float16")
    expected = embed(model, given_photos(photos), 32, 32).values[0].astype("float16")
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), expected)


def changes(folder, model, whitening):
    """What each argument may change to, by the word that names it."""
    other = keras.models.clone_model(model.trunk)
    return {
        "photos": {"photos": [folder / path for path in PATHS[:-1]]},
        "network": {"network": mg_keras.MultiGrain(other, num_classes=4, pooling_exponent=2.0)},
        "precision": {"network": Rounding(model)},
        "resolution": {"resolution": 48},
        "train_resolution": {"train_resolution": 24},
        "pooling": {"pooling": RMAC},
        "whitening": {"whitening": whitening},
        "class_names": {"names": ["a", "b", "c", "d"]},
        "dtype": {"dtype": "float16"},
    }


def embedded(folder):
    """(rows by id, names of shards -> their time) of a folder of shards."""
    return pa.concat_tables(shards.read(folder)).to_pylist(), {
        path.name: path.stat().st_mtime_ns for path in folder.iterdir()
    }


@pytest.mark.parametrize("name", ["x/", "x.parquet", "x.npy"])
def test_photos_that_were_away_are_tried_again(folder, model, tmp_path, small_batches, capsys, name):
    share, listed = tmp_path / "share", tmp_path / "list.txt"
    listed.write_text("".join(f"share/{path}\n" for path in PATHS))
    with pytest.raises(UserError, match=r"none of the 11 photos can be used; .*: could not be read: No such"):
        write(model, listed, f"{tmp_path}/{name}", photos_a_shard=4)
    share.symlink_to(folder)
    network = Counting(model)
    found = write(network, listed, f"{tmp_path}/{name}", label="photos", photos_a_shard=3)
    assert (found, network.count) == (Written(9, 2), 9)
    assert "11 photos could not be read before: they are tried again" in capsys.readouterr().err
    write(model, listed, tmp_path / "whole.parquet")
    whole = parquet.read_table(tmp_path / "whole.parquet").to_pydict()
    if name == "x.npy":
        assert lines(tmp_path / "x.txt") == [str(share / PATHS[row]) for row in GOOD]
    else:
        table = parquet.read_table(tmp_path / name)
        assert sorted(table["id"].to_pylist()) == list(range(len(SIZES)))
        table = table.sort_by("id").to_pydict()
        assert all(table[column] == whole[column] for column in ("uri", "sha256", "error", "width"))


def test_some_photos_that_were_away(folder, model, tmp_path, small_batches):
    share, listed, out = tmp_path / "share", tmp_path / "list.txt", tmp_path / "x"
    shutil.copytree(folder, share)
    listed.write_text("".join(f"share/{path}\n" for path in PATHS))
    away = [1, 4, 5, 6, 7]
    for row in away:
        (share / PATHS[row]).unlink()
    again = functools.partial(write, photos=listed, path=out, photos_a_shard=2)
    assert again(model) == Written(5, 6)
    before = embedded(out)
    # where nothing has come back, nothing is written
    network = Counting(model)
    assert again(network) == Written(5, 6)
    assert network.count == 0
    assert embedded(out)[1] == before[1]
    for row in away[:-2]:
        shutil.copy(folder / PATHS[row], share)
    # it is killed when the first of them is described
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shards, "write", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            again(model)
    rows, _ = embedded(out)
    assert len(rows) < len(before[0])
    network = Counting(model)
    assert again(network) == Written(8, 3)
    assert network.count == 3
    rows, _ = embedded(out)
    assert [row["id"] for row in rows] == list(range(len(SIZES)))
    assert sum(len(parquet.read_table(path)) for path in out.iterdir()) == len(SIZES)
    for path in out.iterdir():
        assert shards.ids(path).tolist() == sorted(shards.ids(path))
    shards.check(out, json.loads(parquet.read_schema(next(out.iterdir())).metadata[b"mg_keras"]))
    errors = [row["error"] and row["error"].partition(":")[0] for row in rows]
    gone = "could not be read"
    assert errors == [None, None, NO_PHOTO, None, None, None, gone, gone, None, None, None]


@pytest.mark.slow
def test_what_was_made_from_something_else_is_refused(folder, model, whitening, small_batches, tmp_path):
    path = tmp_path / "x.npy"
    interrupt(model, folder, path, 5)
    arguments = {"network": model, "photos": folder, "resolution": 40, "train_resolution": 32, "pooling": 3.0}
    changed = changes(folder, model, whitening)
    # while it is not done, and when it is
    for _ in range(2):
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        for name, change in changed.items():
            with pytest.raises(UserError, match=f"made from other {name}: remove it or choose another name"):
                write(path=path, **{**arguments, **change})
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        write(path=path, **arguments)


def test_a_photo_replaced_under_its_name_is_another_photo(folder, model, tmp_path):
    # a line break is an escape in the photo's name, which is no path then
    file = tmp_path / "one\n.png"
    file.write_bytes((folder / "00.png").read_bytes())
    write(model, tmp_path, tmp_path / "x.npy")
    file.write_bytes((folder / "01.png").read_bytes())
    os.utime(file, ns=(0, 0))
    with pytest.raises(UserError, match="other photos"):
        write(model, tmp_path, tmp_path / "x.npy")


def test_a_name_with_a_line_break_is_one_line(folder, model, tmp_path):
    file = tmp_path / "two\nlines\u2028é.png"
    file.write_bytes((folder / "00.png").read_bytes())
    (tmp_path / "é.png").write_bytes((folder / "00.png").read_bytes())
    write(model, tmp_path, tmp_path / "x.npy")
    found = lines(tmp_path / "x.txt")
    assert len(found) == 2
    assert found[0].endswith(r"two\nlines\u2028" + "é.png")
    assert found[1].endswith("é.png")


@pytest.mark.slow
def test_what_a_user_can_mend_is_said(folder, model, tmp_path):
    again = functools.partial(write, model, folder)
    with pytest.raises(UserError, match=r"a name in \.npy or \.parquet or to a folder, received .*features\.txt"):
        again(path=tmp_path / "features.txt")
    np.save(tmp_path / "mine.npy", np.arange(3))
    with pytest.raises(UserError, match=r"mine\.npy exists already"):
        again(path=tmp_path / "mine.npy")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file can't be written to: .*file is no folder"):
        again(path=tmp_path / "file" / "x.npy")
    with pytest.raises(UserError, match="no such folder, photo or list"):
        write(model, tmp_path / "no", tmp_path / "new" / "x.npy")
    assert not (tmp_path / "new").exists(), "what is refused makes nothing"
    again(path=tmp_path / "x.npy")
    (tmp_path / "x.txt").unlink()
    with pytest.raises(UserError, match=r"its list .*x\.txt is gone"):
        again(path=tmp_path / "x.npy")
    with pytest.raises(UserError, match=r"none of the 2 photos can be used; the first, .*02.png: not a JPEG"):
        write(model, [folder / PATHS[row] for row in BROKEN], tmp_path / "none.npy", 40)
    with pytest.raises(UserError, match=r"holds 00\.png, which is no shard"):
        again(path=folder)
    (tmp_path / "busy").mkdir()
    other = os.open(tmp_path / "busy", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another process is writing"):
        again(path=tmp_path / "busy")
    os.close(other)


def test_pieces_are_cut_by_the_number_of_photos(folder, model, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "_FEWEST", 4)
    write(model, folder, tmp_path / "x")
    found = [parquet.read_metadata(path).num_rows for path in sorted((tmp_path / "x").glob("*.parquet"))]
    assert found == [4, 4, 3]
