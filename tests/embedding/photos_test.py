import fcntl
import functools
import json
import os

import keras
import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from PIL import Image
from pyarrow import parquet

import mg_keras
from mg_keras.data import augmentations, resolutions
from mg_keras.data.formats import NO_PHOTO
from mg_keras.data.given import given_photos
from mg_keras.data.images import load
from mg_keras.data.repeated import repeated_batches
from mg_keras.data.sources import photos
from mg_keras.embedding import photos as embedding
from mg_keras.embedding import shards
from mg_keras.embedding.photos import embed, embed_to_files, embed_versions, prepared_batches
from mg_keras.embedding.whitening import Whitening
from mg_keras.errors import UserError
from mg_keras.layers import RMAC as RegionalPooling
from mg_keras.poolings import RMAC

SIZES = [(40, 30), (30, 40), (40, 30), (64, 32), (30, 40), (33, 40), (40, 30), (20, 50), (40, 30), (60, 45), (30, 40)]
BROKEN = (2, 7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photos of several shapes, two of them broken."""
    folder = tmp_path_factory.mktemp("photos")
    for number, (width, height) in enumerate(SIZES):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    for number in BROKEN:
        (folder / f"{number:02}.png").write_bytes(b"no photo")
    return folder


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(1)
    trunk = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(6, 5, strides=4, activation="relu")])
    return mg_keras.MultiGrain(trunk, num_classes=4, pooling_exponent=2.0)


@pytest.fixture
def small_batches(monkeypatch):
    """Batches of at most three photos of 40x30, and no more than seven of them waiting."""
    monkeypatch.setattr(embedding, "_PIXELS_A_BATCH", 3 * 40 * 30)
    monkeypatch.setattr(embedding, "_PIXELS_WAITING", 7 * 40 * 30)


def slowly(model, path, resolution, train_resolution):
    """One photo after the other, one pooling after the other: p = 2, p = 4.5 and R-MAC."""
    prepare = resolutions.square if resolution <= train_resolution else resolutions.largest_side
    images = prepare(load(path), resolution)[None]
    features = model.trunk(model.normalize(images))
    found = [model(images, p_star=p)["embedding"] for p in (2.0, 4.5)]
    return np.stack([*found, RegionalPooling()(features)])[:, 0]


# --- photos to embeddings ---


@pytest.mark.parametrize(("resolution", "train_resolution"), [(32, 32), (40, 32)], ids=["square", "whole"])
@pytest.mark.slow
def test_mixed_photos_are_embedded_in_their_order(folder, model, small_batches, resolution, train_resolution, capsys):
    split = photos(folder)
    found = embed(model, split, resolution, train_resolution, [2, 4.5, RMAC], label="mixed")
    good = [row for row in range(len(SIZES)) if row not in BROKEN]
    np.testing.assert_array_equal(found.rows, good)
    np.testing.assert_array_equal(found.unusable, BROKEN)
    expected = np.stack([slowly(model, split.names[row], resolution, train_resolution) for row in good], 1)
    assert np.ptp(expected, axis=1).min() > 0.01, "photos all alike would prove nothing"
    np.testing.assert_allclose(found.values, expected, rtol=1e-4, atol=1e-4)
    assert found.values.dtype == np.float32
    assert "mixed  11/11 photos" in capsys.readouterr().err


@pytest.mark.parametrize("preparation", ["aspect", "squash"])
@pytest.mark.slow
def test_photos_of_odd_kinds_come_after_the_others_and_in_their_places(folder, model, tmp_path, preparation):
    for number, kind in ((0, "png"), (1, "bmp"), (3, "gif"), (4, "png")):
        Image.open(folder / f"{number:02}.png").save(tmp_path / f"{number:02}.{kind}")
    (tmp_path / "02.jpg").write_bytes(b"no photo")
    split = photos(tmp_path)
    batches = list(prepared_batches(split, 40, 32, preparation=preparation))
    assert [row for batch in batches for row in batch.rows][-2:] == [1, 3]
    assert [row for batch in batches for row in batch.unusable] == [2]
    network = model.twin()
    network.preparation = preparation
    found = embed(network, split, 40, 32)
    np.testing.assert_array_equal(found.rows, [0, 1, 3, 4])
    prepare = resolutions.whole(preparation)
    expected = [network(prepare(load(split.files[row]), 40)[None])["embedding"][0] for row in found.rows]
    np.testing.assert_allclose(found.values[0], expected, rtol=1e-4, atol=1e-4)


def test_a_large_jpeg_is_reduced_while_it_is_decoded_and_keeps_its_size(model, tmp_path):
    small = np.random.default_rng(0).uniform(0, 255, (6, 8, 3)).astype(np.uint8)
    Image.fromarray(small).resize((400, 300), Image.BICUBIC).save(tmp_path / "a.jpg", quality=95)
    (batch,) = prepared_batches(photos(tmp_path), 32, 16, preparation="squash")
    np.testing.assert_array_equal(batch.sizes, [[300, 400]])
    expected = resolutions.squashed(load(tmp_path / "a.jpg"), 32)
    assert 0 < np.abs(batch.images[0] - expected).max() < 3
    # alone or in company, beside whole grey levels or others
    for other in (small.repeat(8, 0), small.repeat(8, 0) / 2):
        (both,) = prepared_batches(given_photos([other, tmp_path / "a.jpg"]), 32, 16, preparation="squash")
        np.testing.assert_array_equal(both.images[1], batch.images[0])
        np.testing.assert_array_equal(both.sizes, [[48, 8], [300, 400]])


@pytest.mark.slow
def test_the_training_exponent_is_the_default(folder, model):
    found = embed(model, photos(folder), 32, 32)
    np.testing.assert_allclose(found.values, embed(model, photos(folder), 32, 32, [2.0]).values, rtol=1e-5)
    kernel, bias = model.classifier.get_weights()
    np.testing.assert_allclose(found.logits(model), found.values[0] @ kernel + bias, rtol=1e-5)


@pytest.mark.parametrize("resolution", [32, 40])
@pytest.mark.slow
def test_no_usable_photo_gives_no_embedding(tmp_path, model, resolution):
    for name in "ab":
        (tmp_path / f"{name}.jpg").write_bytes(b"")
    found = embed(model, photos(tmp_path), resolution, 32, [1, 2, 3])
    assert found.values.shape == (3, 0, 6)
    np.testing.assert_array_equal(found.unusable, [0, 1])


@pytest.mark.parametrize("resolution", [32, 40])
def test_a_split_adjusts_its_photos(folder, model, resolution):
    def turned(index, image):
        return tf.image.rot90(image, tf.cast(index % 4, tf.int32))

    plain = photos(folder)
    split = type(plain)(plain.names, plain.read, plain.load_labels, adjust=turned).subset([9, 3, 4])
    found = embed(model, split, resolution, 32)
    for value, row in zip(found.values[0], [9, 3, 4], strict=True):
        image = np.rot90(load(plain.names[row]), row % 4)
        expected = model(resolutions.for_resolution(resolution, 32)(image, resolution)[None])["embedding"][0]
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pooling", [0, -1.5, "max", None])
def test_a_pooling_is_a_positive_number_or_rmac(folder, model, pooling):
    with pytest.raises(ValueError, match=f"received {pooling!r}"):
        embed(model, photos(folder), 32, 32, [3, pooling])


@pytest.mark.slow
def test_versions_are_those_of_their_photos(folder, model):
    split = photos(folder).subset([row for row in range(len(SIZES)) if row not in BROKEN])
    augment = augmentations.get("full")
    found = embed_versions(model, split, augment, 32, 3, [1, 4.5], seed=5)
    np.testing.assert_array_equal(found.rows, np.repeat(np.arange(len(split)), 3))
    expected = {}
    for images, _, ids in repeated_batches(split, augment, size=32, batch_size=3, versions=3, seed=5, steps=len(split)):
        expected[int(ids[0])] = [model(images, p_star=p)["embedding"] for p in (1.0, 4.5)]
    expected = np.concatenate([expected[row] for row in range(len(split))], axis=1)
    np.testing.assert_allclose(found.values, expected, rtol=1e-4, atol=1e-4)


# --- batches ---


def made_up(rows, shapes, log):
    """Photos as the pipeline gives them; a shape of None is an unusable one."""
    for row in rows:
        log.append(row)
        height, width = shapes[row] or (8, 8)
        yield (
            tf.constant(row),
            tf.constant(shapes[row] is not None),
            tf.constant([height, width]),
            tf.fill((height, width, 3), float(row)),
        )


def test_photos_of_one_shape_run_together_and_few_wait(small_batches):
    rng = np.random.default_rng(0)
    shapes = [(40, int(width)) if rng.random() < 0.9 else None for width in rng.choice([20, 30, 31, 35, 60, 100], 300)]
    read, seen, waiting, fullness = [], [], [], []
    for rows, unusable, images, sizes in embedding._batches_by_shape(made_up(range(300), shapes, read)):
        assert {shapes[row] for row in rows} == ({tuple(images.shape[1:3])} if len(rows) else set())
        np.testing.assert_array_equal(images[:, 0, 0, 0], rows)
        assert sizes is None or [tuple(size) for size in sizes] == [shapes[row] for row in rows]
        area = images.shape[1] * images.shape[2]
        room = max(1, 3 * 40 * 30 // area)
        assert len(rows) <= room
        seen += [*rows, *unusable]
        assert all(shapes[row] is None for row in unusable)
        waiting.append(sum(np.prod(shapes[row] or 0) for row in set(read) - set(seen)))
        fullness.append(len(rows) / room)
    assert sorted(seen) == list(range(300)), "each photo once"
    assert max(waiting) <= 7 * 40 * 30
    assert np.mean(fullness) > 0.8, "photos run one by one"


@pytest.mark.parametrize("resolution", [32, 40], ids=["square", "whole"])
@pytest.mark.slow
def test_batches_of_what_is_left_are_those_that_would_have_come(folder, small_batches, resolution):
    split = photos(folder)
    whole = list(prepared_batches(split, resolution, 32))
    assert len(whole) > 3
    for done in range(1, len(whole) + 1):
        gone = np.concatenate([np.concatenate(batch[:2]) for batch in whole[:done]])
        left = np.setdiff1d(np.arange(len(split)), gone)
        # an unusable photo that was met but not told yet is met again, perhaps a batch earlier
        again = [batch for batch in prepared_batches(split, resolution, 32, left) if len(batch[0])]
        expected = [batch for batch in whole[done:] if len(batch[0])]
        assert len(again) == len(expected)
        for mine, theirs in zip(again, expected, strict=True):
            np.testing.assert_array_equal(mine[0], theirs[0])
            np.testing.assert_array_equal(mine[2], theirs[2])


# --- files ---


class Counting:
    """A network that counts the photos it describes, and may fail after some."""

    def __init__(self, model, stop_after=None):
        self.model, self.count, self.stop_after = model, 0, stop_after

    def embed_batch(self, images, poolings):
        def note(count):
            if self.stop_after is not None and self.count >= self.stop_after:
                raise RuntimeError("pulled the plug")
            self.count += int(count)
            return np.int64(self.count)

        with tf.control_dependencies([tf.numpy_function(note, [tf.shape(images)[0]], tf.int64)]):
            return self.model.embed_batch(tf.identity(images), poolings)

    def classify(self, embeddings):
        return self.model.classify(embeddings)

    def fingerprint(self):
        return self.model.fingerprint()


class Rounding(Counting):
    """A network that says what it computes in."""

    precision = "mixed"


GOOD = [row for row in range(len(SIZES)) if row not in BROKEN]


@pytest.fixture
def whitening():
    return Whitening.fit(np.random.default_rng(0).uniform(size=(50, 6)))


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("resolution", [32, 40], ids=["square", "whole"])
@pytest.mark.slow
def test_files_hold_the_descriptors_and_their_photos(folder, model, whitening, small_batches, tmp_path, resolution):
    split = photos(folder)
    expected = embed(model, split, resolution, 32, [4.5]).values[0]
    raw, whitened = tmp_path / "new" / "raw.npy", tmp_path / "new" / "whitened.npy"
    assert embed_to_files(model, split, raw, resolution, 32, 4.5) == (9, 2)
    np.testing.assert_array_equal(np.load(raw), expected)
    assert np.load(raw).dtype == np.float32
    embed_to_files(model, split, whitened, resolution, 32, 4.5, whitening)
    np.testing.assert_allclose(np.load(whitened), whitening.transform(expected), atol=1e-6)
    for name in ("raw", "whitened"):
        assert lines(tmp_path / "new" / f"{name}.txt") == [split.names[row] for row in GOOD]
        unusable = [line.split("\t") for line in lines(tmp_path / "new" / f"{name}.unusable.txt")]
        assert unusable == [[split.names[row], NO_PHOTO] for row in BROKEN]
    kinds = ("json", "npy", "txt", "unusable.txt")
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        f"{n}.{k}" for n in ("raw", "whitened") for k in kinds
    }


def test_no_list_of_unusable_photos_without_any(folder, model, tmp_path):
    # as if the array of an earlier call had been removed, and its lists forgotten
    (tmp_path / "x.unusable.txt").write_text("old")
    assert embed_to_files(model, photos(folder).subset(GOOD), tmp_path / "x.npy", 32, 32) == (9, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "x.npy", "x.txt"]


def interrupt(model, split, path, resolution, stop_after):
    """A call that fails on the way; returns how many photos it described."""
    network = Counting(model, stop_after)
    with pytest.raises(tf.errors.OpError, match="pulled the plug"):
        embed_to_files(network, split, path, resolution, 32, 3.0, photos_a_shard=2)
    assert not path.exists()
    return network.count


@pytest.mark.parametrize("resolution", [32, 40], ids=["square", "whole"])
@pytest.mark.slow
def test_a_call_that_was_stopped_goes_on(folder, model, small_batches, tmp_path, resolution):
    split = photos(folder)
    embed_to_files(model, split, tmp_path / "whole.npy", resolution, 32, 3.0)
    done = interrupt(model, split, tmp_path / "x.npy", resolution, 5)
    assert 5 <= done < 9
    network = Counting(model)
    assert embed_to_files(network, split, tmp_path / "x.npy", resolution, 32, 3.0) == (9, 2)
    assert network.count == 9 - done, "what was embedded is embedded again"
    for kind in ("npy", "txt", "unusable.txt"):
        assert (tmp_path / f"x.{kind}").read_bytes() == (tmp_path / f"whole.{kind}").read_bytes()
    # and once it is there, nothing is done but to remove what a kill left
    shards.write(tmp_path / "x.npy.shards", shards.unusable_rows(shards.schema(6, "float32", {}), [0], ["a"], ["b"]))
    network = Counting(model)
    assert embed_to_files(network, split, tmp_path / "x.npy", resolution, 32, 3.0) == (9, 2)
    assert network.count == 0
    assert not (tmp_path / "x.npy.shards").exists()


@pytest.mark.slow
def test_a_broken_shard_is_made_anew(folder, model, small_batches, tmp_path, capsys):
    split = photos(folder)
    embed_to_files(model, split, tmp_path / "whole.npy", 40, 32, 3.0)
    path = tmp_path / "x.npy"
    done = interrupt(model, split, path, 40, 5)
    broken = sorted((tmp_path / "x.npy.shards").iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:-10])
    network = Counting(model)
    embed_to_files(network, split, path, 40, 32, 3.0, label="photos")
    assert f"{broken} was broken: its photos are embedded anew" in capsys.readouterr().err
    assert 9 - done < network.count < 9
    np.testing.assert_allclose(np.load(path), np.load(tmp_path / "whole.npy"), rtol=1e-5)


@pytest.mark.parametrize("name", ["x.parquet", "x/"])
@pytest.mark.slow
def test_parquet_has_a_row_for_every_photo(folder, model, whitening, small_batches, tmp_path, name):
    split = photos(folder)
    path = f"{tmp_path}/{name}"
    names = ["a", "b", "c", "d"]

    def write(network=model):
        return embed_to_files(network, split, path, 40, 32, 4.5, whitening, class_names=names, photos_a_shard=4)

    assert write() == (9, 2)
    assert [found.name for found in tmp_path.iterdir()] == [name.rstrip("/")]
    # a folder of shards is read as one table
    found = parquet.read_table(path).sort_by("id")
    assert found["id"].to_pylist() == list(range(len(split)))
    assert found["uri"].to_pylist() == split.files
    reason = NO_PHOTO
    assert found["error"].to_pylist() == [reason if row in BROKEN else None for row in range(len(split))]
    sizes = zip(found["width"].to_pylist(), found["height"].to_pylist(), strict=True)
    assert list(sizes) == [(None, None) if row in BROKEN else size for row, size in enumerate(SIZES)]
    pooled = embed(model, split, 40, 32, [4.5]).values[0]
    values = found["embedding"].combine_chunks()
    assert values.type.value_type == pa.float16()
    values = np.asarray(values.flatten()).reshape(len(split), -1)
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
    assert write(network) == (9, 2)
    assert network.count == 0
    with pytest.raises(UserError, match="made from other resolution: remove it or choose another name"):
        embed_to_files(model, split, path, 48, 32, 4.5, whitening, class_names=names)


@pytest.mark.slow
def test_what_the_classifier_cannot_read_has_no_class(folder, model, tmp_path):
    split = photos(folder).subset([0, 1])
    embed_to_files(model, split, tmp_path / "x.parquet", 32, 32, RMAC, class_names=["a", "b", "c", "d"])
    found = parquet.read_table(tmp_path / "x.parquet")
    assert found["class"].to_pylist() == found["probability"].to_pylist() == [None, None]
    embed_to_files(model, split, tmp_path / "x.npy", 32, 32, dtype="float16")
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), embed(model, split, 32, 32).values[0].astype("float16"))


def changes(split, model, whitening):
    """What each argument may change to, by the word that names it."""
    other = keras.models.clone_model(model.trunk)
    return {
        "photos": {"split": split.subset(range(len(split) - 1))},
        "network": {"network": mg_keras.MultiGrain(other, num_classes=4, pooling_exponent=2.0)},
        "precision": {"network": Rounding(model)},
        "resolution": {"resolution": 48},
        "train_resolution": {"train_resolution": 24},
        "pooling": {"pooling": RMAC},
        "whitening": {"whitening": whitening},
        "class_names": {"class_names": ["a", "b", "c", "d"]},
        "dtype": {"dtype": "float16"},
    }


@pytest.mark.slow
def test_what_was_made_from_something_else_is_refused(folder, model, whitening, small_batches, tmp_path):
    split, path = photos(folder), tmp_path / "x.npy"
    interrupt(model, split, path, 40, 5)
    arguments = {"network": model, "split": split, "resolution": 40, "train_resolution": 32, "pooling": 3.0}
    changed = changes(split, model, whitening)
    # while it is not done, and when it is
    for _ in range(2):
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        for name, change in changed.items():
            with pytest.raises(UserError, match=f"made from other {name}: remove it or choose another name"):
                embed_to_files(path=path, **{**arguments, **change})
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        embed_to_files(path=path, **arguments)


def test_a_photo_replaced_under_its_name_is_another_photo(folder, model, tmp_path):
    # a line break is an escape in the photo's name, which is no path then
    file = tmp_path / "one\n.png"
    file.write_bytes((folder / "00.png").read_bytes())
    embed_to_files(model, photos(tmp_path), tmp_path / "x.npy", 32, 32)
    file.write_bytes((folder / "01.png").read_bytes())
    os.utime(file, ns=(0, 0))
    with pytest.raises(UserError, match="other photos"):
        embed_to_files(model, photos(tmp_path), tmp_path / "x.npy", 32, 32)


def test_a_name_with_a_line_break_is_one_line(folder, model, tmp_path):
    file = tmp_path / "two\nlines\u2028é.png"
    file.write_bytes((folder / "00.png").read_bytes())
    (tmp_path / "é.png").write_bytes((folder / "00.png").read_bytes())
    embed_to_files(model, photos(tmp_path), tmp_path / "x.npy", 32, 32)
    found = lines(tmp_path / "x.txt")
    assert len(found) == 2
    assert found[0].endswith(r"two\nlines\u2028" + "é.png")
    assert found[1].endswith("é.png")


@pytest.mark.slow
def test_what_a_user_can_mend_is_said(folder, model, tmp_path):
    write = functools.partial(embed_to_files, model, photos(folder), resolution=32, train_resolution=32)
    with pytest.raises(UserError, match=r"a name in \.npy or \.parquet or to a folder, received .*features\.txt"):
        write(path=tmp_path / "features.txt")
    np.save(tmp_path / "mine.npy", np.arange(3))
    with pytest.raises(UserError, match=r"mine\.npy exists already"):
        write(path=tmp_path / "mine.npy")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"can't be written: (Not a directory|File exists)"):
        write(path=tmp_path / "file" / "x.npy")
    write(path=tmp_path / "x.npy")
    (tmp_path / "x.txt").unlink()
    with pytest.raises(UserError, match=r"its list .*x\.txt is gone"):
        write(path=tmp_path / "x.npy")
    with pytest.raises(UserError, match=r"none of the 2 photos can be used; the first, .*02.png: not a JPEG"):
        embed_to_files(model, photos(folder).subset(BROKEN), tmp_path / "none.npy", 40, 32)
    with pytest.raises(UserError, match=r"holds 00\.png, which is no shard"):
        write(path=folder)
    (tmp_path / "busy").mkdir()
    other = os.open(tmp_path / "busy", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another process is writing"):
        write(path=tmp_path / "busy")
    os.close(other)
