import gc
import weakref

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mg_keras.data import augmentations, resolutions
from mg_keras.data.given import given_photos
from mg_keras.data.images import load
from mg_keras.data.repeated import repeated_batches
from mg_keras.data.sources import photos
from mg_keras.data.stores.graph import in_graph
from mg_keras.embedding import photos as embedding
from mg_keras.embedding.photos import embed, embed_versions, forward_function, prepared_batches
from mg_keras.export.optimized import Optimized
from mg_keras.layers import RMAC as RegionalPooling
from mg_keras.poolings import RMAC
from tests.embedding import small
from tests.embedding.small import BROKEN, SIZES


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


@pytest.mark.parametrize("bad", [None, 0, 9, 15], ids=["none bad", "in the first", "in a later", "in the last"])
@pytest.mark.slow
def test_files_are_decoded_a_block_at_a_time_as_by_a_pipeline(tmp_path, monkeypatch, bad):
    monkeypatch.setattr(embedding, "_PIXELS_A_BATCH", 4 * 32 * 32)
    rng = np.random.default_rng(0)
    for number in range(16):
        pixels = rng.uniform(0, 255, (40 + number, 70, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number:02}.jpg")
    if bad is not None:
        (tmp_path / f"{bad:02}.jpg").write_bytes(b"no photo")
    blocks, squares = [], embedding._squares

    def counted(*how):
        return lambda paths: blocks.append(len(paths)) or squares(*how)(paths)

    monkeypatch.setattr(embedding, "_squares", counted)
    split = photos(tmp_path)
    for given in (split, given_photos(split.files)):
        blocks.clear()
        found = list(prepared_batches(given, 32, 64))
        # none after that which failed, where the pipeline takes over
        assert blocks == [4] * min(4, (16 if bad is None else bad) // 4 + 1)
        with monkeypatch.context() as patched:
            patched.setattr(embedding, "_plain_files", lambda split: None)
            expected = list(prepared_batches(given, 32, 64))
        assert sum(blocks) <= 16, "that was no pipeline"
        for mine, theirs in zip(found, expected, strict=True):
            for part, other in zip(mine, theirs, strict=True):
                np.testing.assert_array_equal(part, other)


@pytest.mark.parametrize("resolution", [32, 40], ids=["square", "whole"])
@pytest.mark.slow
def test_few_photos_are_loaded_without_a_pipeline_as_by_one(folder, monkeypatch, resolution):
    few = photos(folder).subset([0, 1, 2, 3, 9])

    def read(row):
        if row == 3:
            raise OSError("the store is away")
        return tf.io.read_file(few.names[int(row)])

    split = type(few)(few.names, in_graph(lambda row: read(row).numpy()), lambda: np.zeros(5, "int32"))
    found = {}
    for most in (0, 8):
        monkeypatch.setattr(embedding, "_FEW", most)
        found[most] = list(prepared_batches(split, resolution, 32))
    assert [row for batch in found[8] for row in batch.unusable] == [2, 3]
    for mine, theirs in zip(found[8], found[0], strict=True):
        for part, expected in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(part, expected)


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


@pytest.mark.parametrize("kind", [lambda network: network, Optimized], ids=["as it is", "optimised"])
def test_what_was_compiled_is_kept_and_goes_with_its_network(kind):
    network = kind(small.network())
    photo = given_photos([np.zeros((40, 40, 3), np.uint8)])
    assert len(embed(network, photo, 32, 32, [2.0, RMAC]).values) == 2
    assert forward_function(network, [2.0, RMAC]).func is forward_function(network, [2, RMAC]).func
    there = weakref.ref(network)
    del network
    gc.collect()
    assert there() is None


@pytest.mark.parametrize("kind", [lambda network: network, Optimized], ids=["as it is", "optimised"])
def test_exponents_and_resolutions_without_end_take_no_more_memory_and_no_warning(kind, monkeypatch, caplog):
    network, photo = kind(small.network()), given_photos([np.full((40, 40, 3), 90, np.uint8)])
    traced, batch = [], type(network).embed_batch
    monkeypatch.setattr(
        type(network), "embed_batch", lambda *arguments: traced.append(arguments[2]) or batch(*arguments)
    )
    image = np.full((1, 32, 32, 3), 90, np.float32)
    for exponent in (1, 1.3, 2, 3.0, 3.7, 5.5, 120):
        found = embed(network, photo, 32, 32, [exponent, RMAC, 1.5]).values
        np.testing.assert_allclose(found, batch(network, tf.constant(image), (exponent, RMAC, 1.5)), rtol=1e-6)
    assert len(traced) == 1
    with caplog.at_level("WARNING", "tensorflow"):
        for resolution in range(32, 46):
            embed(network, photo, resolution, 64, [2.0])
        for _ in range(7):
            embed(kind(small.network()), photo, 32, 32)
    assert "retracing" not in caplog.text


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
