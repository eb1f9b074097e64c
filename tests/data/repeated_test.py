import io
import math
import threading

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mg_keras.data import augmentations, repeated
from mg_keras.data import images as decoding
from mg_keras.data.formats import NO_PHOTO
from mg_keras.data.images import BadImages
from mg_keras.data.repeated import repeated_batches
from mg_keras.data.sources import Split
from mg_keras.errors import UserError

SIZE = 8

# photos of the first steps: 20 photos, 2 a step, seed 0
PINNED = [[1, 5], [0, 14], [16, 19], [9, 2]]


def encoded(value):
    buffer = io.BytesIO()
    Image.fromarray(np.full((12, 16, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def memory_split(count, broken=(), reads=None):
    """Photos whose grey value is their number and whose label is 1000 + their number; `reads` counts reading them."""
    assert count <= 256
    table = tf.constant([b"broken" if i in broken else encoded(i) for i in range(count)])
    lock = threading.Lock()

    def counted(index):
        with lock:
            reads[int(index)] += 1
        return table[index]

    def read(index):
        if reads is None:
            return table[index]
        return tf.ensure_shape(tf.py_function(counted, [index], tf.string), [])

    return Split([f"photo-{i}" for i in range(count)], read, lambda: 1000 + np.arange(count))


def noisy(image, size, seed):
    """A stand-in for a recipe: the photo's value, plus noise below a half that is drawn from the seed."""
    noise = tf.random.stateless_uniform([size, size, 3], tf.cast(seed, tf.int32), 0, 0.49)
    return tf.cast(image[0, 0, 0], tf.float32) + noise


def decode_png(contents):
    return tf.io.decode_png(contents, channels=3)


def take(split, decode=decode_png, **options):
    """All batches: images [S, B, size, size, 3], labels [S, B], instance ids [S, B].

    Where unusable photos are not noted, photos are PNGs that `decode` reads: what tells all kinds of photos apart takes
    a second to set up.
    """
    options = {"size": SIZE, "batch_size": 6, "versions": 3, "steps": 10, **options}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeated, "decode", decode)
        batches = repeated_batches(split, options.pop("augment", noisy), **options)
    batches = list(batches.as_numpy_iterator())
    return tuple(np.stack(values) for values in zip(*batches, strict=True))


# --- what a batch holds ---


@pytest.mark.parametrize(
    ("batch_size", "versions", "parts"), [(6, 3, 1), (7, 3, 1), (8, 3, 2), (5, 1, 1), (4, 5, 3), (1, 1, 1), (9, 2, 2)]
)
def test_layout(batch_size, versions, parts):
    images, labels, ids = take(memory_split(60), batch_size=batch_size, versions=versions, parts=parts, steps=5)
    assert images.shape == (5, parts * batch_size, SIZE, SIZE, 3)
    assert (images.dtype, labels.dtype, ids.dtype) == (np.float32, np.int32, np.int32)
    for step in ids.reshape(5, parts, batch_size):
        for part in step:
            # whole groups one after the other, the last one cut
            photos = [part[first] for first in range(0, batch_size, versions)]
            assert len(photos) == math.ceil(batch_size / versions)
            np.testing.assert_array_equal(part, np.repeat(photos, versions)[:batch_size])
        assert len(set(step.ravel())) == parts * math.ceil(batch_size / versions)
    # id, label and pixels are those of one photo
    np.testing.assert_array_equal(labels, 1000 + ids)
    np.testing.assert_array_equal(np.floor(images), np.broadcast_to(ids[..., None, None, None], images.shape))


def test_versions_of_a_photo_differ():
    images = take(memory_split(8), batch_size=12, steps=20, seed=3)[0]
    noise = (images - np.floor(images)).reshape(len(images) * 12, -1)
    assert len(np.unique(noise, axis=0)) == len(noise)
    # independent, too: versions of one photo, and of a photo in two passes, are as unlike as those of two photos
    correlation = np.corrcoef(noise) - np.eye(len(noise))
    assert np.abs(correlation).max() < 6 / math.sqrt(noise.shape[1])


def test_a_photo_is_read_once_for_all_its_versions():
    reads = np.zeros(12, int)
    take(memory_split(12, reads=reads), batch_size=12, versions=3, steps=3)
    np.testing.assert_array_equal(reads, 1)


def test_batches_have_static_shapes():
    spec = repeated_batches(memory_split(8), noisy, size=SIZE, batch_size=7, versions=3, parts=2).element_spec
    assert [value.shape.as_list() for value in spec] == [[14, SIZE, SIZE, 3], [14], [14]]


# --- the stream of photos ---


@pytest.mark.parametrize(("count", "seed"), [(2, 0), (7, 0), (16, 11), (33, 11)])
def test_a_pass_shows_every_photo_once_in_a_new_order(count, seed):
    passes = 6
    ids = take(memory_split(count), batch_size=1, versions=1, steps=passes * count, seed=seed)[2]
    passes = ids.reshape(passes, count)
    np.testing.assert_array_equal(np.sort(passes, 1), np.tile(np.arange(count), (6, 1)))
    if count > 3:
        assert len(np.unique(passes, axis=0)) == 6


@pytest.mark.slow
def test_a_pass_of_whole_steps_alone():
    # 11 photos, 4 a step: two steps a pass, and three photos wait for another pass
    ids = take(memory_split(11), batch_size=12, steps=40)[2][:, ::3]
    for first in range(0, 40, 2):
        assert len(set(ids[first : first + 2].ravel())) == 8


@pytest.mark.slow
def test_each_photo_is_seen_equally_often():
    steps = 900
    ids = take(memory_split(7), batch_size=9, steps=steps, augment=lambda image, size, seed: tf.zeros([size, size, 3]))[
        2
    ]
    counts = np.bincount(ids[:, ::3].ravel(), minlength=7)
    # two steps of three a pass, so a photo is in a pass with 6/7: four standard errors
    passes, share = steps / 2, 6 / 7
    assert np.abs(counts / passes - share).max() < 4 * math.sqrt(share * (1 - share) / passes)
    # each pair meets in a step with 2 * (3 choose 2) / (7 choose 2) a pass
    together = np.zeros((7, 7))
    for step in ids[:, ::3]:
        together[np.ix_(step, step)] += 1
    share = 3 / 21
    found = together[np.triu_indices(7, 1)] / steps
    assert np.abs(found - share).max() < 4 * math.sqrt(share * (1 - share) / steps)


@pytest.mark.slow
def test_stream_is_that_of_the_seed():
    split = memory_split(50)
    first, again, other = (take(split, seed=seed) for seed in (5, 5, 6))
    for mine, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(mine, same)
    assert (first[2] != other[2]).any()
    assert not np.isin(first[0] - np.floor(first[0]), other[0] - np.floor(other[0])).all()


def test_stream_of_seed_zero_stays_as_it_is():
    """Runs under way resume on it: a change here breaks them."""
    ids = take(memory_split(20), steps=4)[2]
    np.testing.assert_array_equal(ids[:, ::3], PINNED)


@pytest.mark.slow
def test_resumed_stream_is_the_tail_of_the_undisturbed_one():
    split = memory_split(11)
    options = {"augment": augmentations.get("full"), "decode": decoding.decode, "batch_size": 7, "parts": 2, "seed": 2}
    whole = take(split, steps=12, **options)
    for start in (1, 6):
        tail = take(split, start_step=start, steps=12 - start, **options)
        for mine, expected in zip(tail, whole, strict=True):
            np.testing.assert_array_equal(mine, expected[start:])


def test_the_order_is_arithmetic():
    """Which photos the replicas get, without a dataset: eleven photos, of which a step takes two on each of two."""
    whole, second = (repeated._Order(11, 2, 2, local, seed=3) for local in (range(2), range(1, 2)))

    def located(order, numbers):
        return np.array([[int(value) for value in order.located(tf.constant(n, tf.int64))] for n in numbers])

    everything = located(whole, range(16))
    np.testing.assert_array_equal(everything[:, 0], range(16))
    assert [len(set(numbers)) for numbers in everything[:, 1].reshape(2, 8)] == [8, 8]
    np.testing.assert_array_equal(located(second, range(8)), everything.reshape(4, 2, 2, 2)[:, 1].reshape(8, 2))
    # a stand-in comes of the position, not of the photo whose place it takes
    stand_ins = {int(whole.photo(tf.constant(5, tf.int64), tf.constant(n, tf.int64))) for n in range(16)}
    assert len(stand_ins) > 4
    assert stand_ins <= set(range(11))


def test_stream_without_end():
    batches = repeated_batches(memory_split(4), noisy, size=SIZE, batch_size=6, start_step=10**9)
    assert len(list(batches.take(30))) == 30


# --- several replicas ---


@pytest.mark.slow
def test_readers_of_some_replicas_share_the_stream_of_all():
    split = memory_split(40)
    options = {"replicas": 4, "parts": 2, "steps": 6, "seed": 1, "batch_size": 5}
    everything = take(split, **options)
    assert everything[2].shape == (24, 10)
    for workers in ([[0, 1], [2, 3]], [range(3), [3]]):
        parts = [take(split, local_replicas=local, **options) for local in workers]
        for whole, values in zip(everything, zip(*parts, strict=True), strict=True):
            steps = [
                value.reshape(6, len(local), *value.shape[1:]) for value, local in zip(values, workers, strict=True)
            ]
            np.testing.assert_array_equal(np.concatenate(steps, 1).reshape(whole.shape), whole)
    resumed = take(split, local_replicas=[2, 3], start_step=4, **{**options, "steps": 2})
    for mine, whole in zip(resumed, everything, strict=True):
        np.testing.assert_array_equal(mine, whole.reshape(6, 4, *whole.shape[1:])[4:, 2:].reshape(mine.shape))


@pytest.mark.parametrize(("replicas", "parts"), [(4, 1), (1, 4), (2, 2)])
@pytest.mark.slow
def test_a_step_takes_the_same_photos_however_it_is_divided(replicas, parts):
    split = memory_split(30)
    one = take(split, batch_size=24, steps=8)
    other = take(split, batch_size=24 // replicas // parts, replicas=replicas, parts=parts, steps=8)
    for mine, expected in zip(other, one, strict=True):
        np.testing.assert_array_equal(mine.reshape(expected.shape), expected)


# --- photos that can't be used ---


@pytest.mark.slow
def test_unusable_photos_are_replaced_and_noted_once(tmp_path):
    split = memory_split(12, broken=(3, 7))
    bad = BadImages(tmp_path / "bad_images.txt")
    images, labels, ids = take(split, batch_size=9, steps=40, bad_images=bad)
    assert set(ids.ravel()) == set(range(12)) - {3, 7}
    np.testing.assert_array_equal(labels, 1000 + ids)
    np.testing.assert_array_equal(np.floor(images)[..., 0, 0, 0], ids)
    lines = sorted((tmp_path / "bad_images.txt").read_text().splitlines())
    assert lines == [f"photo-{i}\t{NO_PHOTO}" for i in (3, 7)]
    # the others are seen in their places, with their versions, as if nothing had been wrong
    sound = take(memory_split(12), batch_size=9, steps=40)
    usable = ~np.isin(sound[2], (3, 7))
    for mine, expected in zip((images, labels, ids), sound, strict=True):
        np.testing.assert_array_equal(mine[usable], expected[usable])
    # the stand-ins are not always the same photo
    assert len(set(ids[~usable])) > 5


@pytest.mark.slow
def test_stand_ins_do_not_depend_on_the_past():
    split = memory_split(12, broken=range(6))
    whole = take(split, batch_size=9, steps=12, bad_images=BadImages())
    tail = take(split, batch_size=9, start_step=5, steps=7, bad_images=BadImages())
    for mine, expected in zip(tail, whole, strict=True):
        np.testing.assert_array_equal(mine, expected[5:])


@pytest.mark.slow
def test_policy_fail_names_the_photo():
    bad = BadImages(policy="fail")
    take(memory_split(6, broken=(2,)), steps=6, bad_images=bad)
    with pytest.raises(UserError, match="photo-2: not a JPEG"):
        bad.check()


@pytest.mark.slow
def test_an_unusable_photo_stops_where_nobody_notes_it():
    with pytest.raises(tf.errors.InvalidArgumentError):
        take(memory_split(6, broken=(2,)), decoding.decode, steps=6)


@pytest.mark.slow
def test_photos_that_are_all_unusable_stop_the_stream():
    bad = BadImages()
    with pytest.raises(tf.errors.InvalidArgumentError, match="16 photos drawn one after the other are unusable"):
        take(memory_split(5, broken=range(5)), batch_size=3, steps=1, bad_images=bad)
    assert bad.reasons


@pytest.mark.slow
def test_a_photo_that_cannot_be_read_is_unusable(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(encoded(i))
    files = [str(tmp_path / f"{i}.png") for i in range(4)]
    table = tf.constant(files)
    split = Split(files, lambda index: tf.io.read_file(table[index]), lambda: np.arange(4))
    (tmp_path / "2.png").unlink()
    bad = BadImages()
    ids = take(split, batch_size=3, steps=8, bad_images=bad)[2]
    assert set(ids.ravel()) == {0, 1, 3}
    assert list(bad.reasons) == [files[2]]


# --- mistakes ---


@pytest.mark.slow
def test_too_few_photos():
    assert take(memory_split(12), batch_size=6, parts=2, replicas=3, steps=1)[2].shape == (3, 12)
    with pytest.raises(UserError, match=r"12 different photos \(3 replicas x 2 parts x 2\).* only 11"):
        take(memory_split(11), batch_size=6, parts=2, replicas=3, steps=1)


@pytest.mark.parametrize(
    "option",
    [
        {"size": 0},
        {"batch_size": 0},
        {"versions": 0},
        {"parts": 0},
        {"replicas": 0},
        {"start_step": -1},
        {"steps": -1},
        {"local_replicas": [1]},
        {"local_replicas": []},
        {"local_replicas": [-1]},
    ],
)
def test_arguments_out_of_range(option):
    ((name, value),) = option.items()
    with pytest.raises(ValueError, match=f"{name}.* received") as raised:
        take(memory_split(9), **option)
    assert str(value) in str(raised.value)
