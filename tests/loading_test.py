"""A run, its SavedModel and files of weights through `mg_keras.load`: the same descriptors and classes by each way."""

import functools
import io
import json
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import mg_keras
from mg_keras import MultiGrain, Whitening, loading
from mg_keras.checkpoints import snapshot
from mg_keras.data.formats import NO_PHOTO
from mg_keras.data.images import load as load_photo
from mg_keras.data.resolutions import square
from mg_keras.data.sources import photos
from mg_keras.embedding.photos import embed
from mg_keras.errors import UserError
from mg_keras.models import trunks
from mg_keras.pretrained.packed import PACKAGE
from mg_keras.programs.embed import main as embed_program
from mg_keras.programs.export import export_run
from mg_keras.runs.config import TrainConfig
from mg_keras.runs.networks import build_model
from mg_keras.runs.results import ChosenExponent
from mg_keras.runs.run import Run
from tests.export.small import TINY_RESNET
from tests.train.tiny import CLASSES, draw_folder

SIZE = 32


@pytest.fixture(scope="module")
def small():
    """The trunk of all networks here is small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trunks, "build", functools.partial(trunks.build, **TINY_RESNET))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return draw_folder(tmp_path_factory.mktemp("photos") / "photos", per_class=4)


@pytest.fixture(scope="module")
def files(folder):
    return sorted(folder.glob("*/*.jpg"))


def make_run(path, folder, whitened, **settings):
    values = {"trunk": "resnet18", "resolution": SIZE, "evaluation_resolutions": [48], "pooling_exponent": 2.0}
    run = Run.start(path, TrainConfig(**{**values, "data": f"folder:{folder}", **settings}))
    run.save_class_names(CLASSES)
    run.checkpoints.save(0, snapshot({"model": build_model(run.settings, len(CLASSES)).state_variables}), {})
    run.results.save_choices({SIZE: ChosenExponent(4.0)})
    if whitened:
        values = embed(run.model, photos(folder), SIZE, SIZE, [4.0]).values[0]
        Whitening.fit(values, shrinkage=0.5).save(run.results.whitening_path(SIZE))
    return run


@pytest.fixture(scope="module")
def run(small, folder, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "whitened", folder, whitened=True)


@pytest.fixture(scope="module")
def opened(run):
    return mg_keras.load(run.path)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    export_run(run, folder, photos=2)
    return mg_keras.load(folder)


@pytest.mark.slow
def test_it_says_what_it_is(opened, exported):
    for network in (opened, exported):
        assert (network.class_names, network.resolution, network.p_star) == (list(CLASSES), SIZE, {SIZE: 4.0})
        assert network.whitened
        assert f"3 classes, trained at {SIZE} px, whitened" in repr(network)
    assert exported.path.name == "1"
    assert {"MultiGrain", "Whitening", "layers", "load"} <= set(dir(mg_keras))


@pytest.mark.slow
def test_descriptors_are_those_of_the_program_and_of_the_signature(run, opened, exported, folder, files, tmp_path):
    expected = run.results.whitening.transform(embed(run.model, photos(folder), SIZE, SIZE, [4.0]).values[0])
    found = opened.embed(folder)
    assert (found.dtype, found.shape) == (np.float32, (12, expected.shape[1]))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(opened.embed(files), found, atol=1e-6)
    embed_program([f"--run={run.path}", f"--photos={folder}", f"--out={tmp_path / 'a.npy'}"])
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), found, atol=1e-5)
    embed_program([f"--model={exported.path}", f"--photos={folder}", f"--out={tmp_path / 'b.npy'}"])
    np.testing.assert_allclose(exported.embed(files), np.load(tmp_path / "b.npy"), atol=1e-5)
    # what the files say of themselves is what the object says
    for network, name in ((opened, "a"), (exported, "b")):
        told = json.loads((tmp_path / f"{name}.json").read_text())["made_from"]
        assert network.made_from(SIZE).items() <= told.items()
    served = tf.saved_model.load(str(exported.path)).signatures["serving_default"]
    images = tf.stack([square(load_photo(file), SIZE) for file in files])
    answer = served(images=images, p_star=tf.fill([12], 4.0))
    np.testing.assert_allclose(exported.embed(files), answer["embedding"], atol=1e-5)
    np.testing.assert_allclose(found, answer["embedding"], atol=1e-4)
    probabilities = tf.nn.softmax(answer["logits"])
    for network in (opened, exported):
        classes = network.classify(files)
        np.testing.assert_allclose(classes.probabilities, probabilities, atol=1e-5)
        assert classes.names == [CLASSES[number] for number in answer["class"].numpy()]
        # and from the descriptors, which hold all dimensions
        np.testing.assert_allclose(network.classify(network.embed(files)).probabilities, probabilities, atol=1e-3)


@pytest.mark.slow
def test_other_exponents_and_resolutions(run, opened, folder):
    for resolution, exponent in ((48, None), (48, 1.5), (24, 3)):
        chosen = exponent or 2.0
        values = embed(run.model, photos(folder), resolution, SIZE, [chosen]).values[0]
        found = opened.embed(folder, resolution, exponent)
        np.testing.assert_allclose(found, run.results.whitening.transform(values), atol=1e-5)


@pytest.mark.slow
def test_photos_of_every_kind_at_hand(opened, files, tmp_path):
    expected = opened.embed(files[:1])
    pixels = load_photo(files[0])
    turned = Image.fromarray(np.rot90(pixels))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    at_hand = [
        str(files[0]),
        files[0].read_bytes(),
        pixels,
        pixels.astype(np.float64),
        tf.constant(pixels),
        Image.fromarray(pixels),
        Image.open(tmp_path / "turned.png"),
        tmp_path / "turned.png",
        memoryview(files[0].read_bytes()),
        tmp_path / "a.tif",
        (tmp_path / "a.tif").read_bytes(),
    ]
    for one in at_hand:
        np.testing.assert_allclose(opened.embed(one), expected, atol=1e-5, err_msg=str(type(one)))
    # of mixed sizes and kinds, in their order
    other = pixels[:30, :20]
    mixed = opened.embed([*at_hand, other])
    np.testing.assert_allclose(mixed[:-1], np.repeat(expected, len(at_hand), 0), atol=1e-5)
    np.testing.assert_allclose(mixed[-1:], opened.embed(other), atol=1e-5)
    np.testing.assert_allclose(opened.embed(np.stack([pixels] * 2)), np.repeat(expected, 2, 0), atol=1e-5)


def test_greys_of_16_bits_are_those_of_their_file(opened, tmp_path):
    greys = Image.fromarray(np.random.default_rng(0).integers(0, 65_536, (40, 40)).astype(np.uint16))
    greys.save(tmp_path / "a.png")
    np.testing.assert_allclose(opened.embed(greys), opened.embed(tmp_path / "a.png"), atol=1e-5)


def test_a_forked_process_is_told_to_be_spawned(opened, files, monkeypatch):
    monkeypatch.setattr(loading.os, "getpid", lambda: 1)
    # there one that it opened itself would wait for ever, too
    advice = 'before this process was forked.*: start processes by "spawn" or "forkserver", or open .* only after'
    with pytest.raises(UserError, match=f"^{opened.path} was opened {advice}"):
        opened.embed(files[:1])
    for what in (opened.path, None):
        with pytest.raises(UserError, match=f"^a model was opened {advice}"):
            mg_keras.load(what)


@pytest.mark.slow
def test_a_thread_goes_on_when_the_main_one_has_ended(run, files, tmp_path):
    (tmp_path / "late.py").write_text(
        f"""
import threading, time
import mg_keras

model = mg_keras.load({str(PACKAGE)!r})

def work():
    threading.main_thread().join()
    print(model.embed({[str(file) for file in files] * 3!r}, 32).shape)

threading.Thread(target=work).start()
"""
    )
    done = subprocess.run([sys.executable, tmp_path / "late.py"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"({3 * len(files)}, 512)"], done.stderr


def test_pixels_between_grey_levels_are_not_rounded(run, opened):
    photo = np.random.default_rng(0).uniform(0, 255, (SIZE * 256 // 224, SIZE * 256 // 224, 3)).astype(np.float32)
    expected = run.model(square(photo, SIZE)[None], p_star=4.0)["embedding"]
    np.testing.assert_allclose(opened.embed(photo), run.results.whitening.transform(expected), atol=1e-5)


BROKEN = [
    ("nowhere.jpg", "nowhere.jpg: No such file or directory"),
    (b"no photo", f"photo 1: {NO_PHOTO}"),
    ([np.zeros((30, 30))], r"photo 1: an array of shape \[30, 30\], where \[H, W, 3\], RGB, was expected"),
    (np.zeros((7, 30, 3), np.uint8), "photo 1: smaller than 8 pixels"),
    (np.full((9, 9, 3), 300.0), "photo 1: an array with values that are not in 0-255"),
    (np.full((9, 9, 3), np.nan), "photo 1: an array with values that are not in 0-255"),
    ([None], "photo 1: a NoneType, where a path, bytes, an array or a PIL image was expected"),
    (Image.new("F", (20, 20)), "photo 1: a PIL image of mode F: bring its values to 0-255"),
    (b"II*\0" + bytes(80), "photo 1: TIFF that can't be converted: "),
    (7, "photos must be a folder, or one or more paths"),
    ("", 'photos must be paths, received ""'),
    (io.BytesIO(b"photo"), "photos must be a folder, or one or more paths.*, received BytesIO"),
]


@pytest.mark.parametrize(("photo", "message"), BROKEN, ids=[message[:30] for _, message in BROKEN])
@pytest.mark.slow
def test_a_photo_that_can_not_be_used_is_named(opened, photo, message):
    with pytest.raises(UserError, match=f"^{message}[^\n]*$"):
        opened.embed(photo)


@pytest.mark.slow
def test_photos_that_can_not_be_used_leave_nan_where_that_is_asked_for(opened, exported, files):
    assert opened.why_unusable(b"text") == NO_PHOTO
    assert opened.why_unusable("nowhere.jpg") == "No such file or directory"
    assert opened.why_unusable(np.zeros((7, 9, 3))) == "smaller than 8 pixels in one direction"
    for photo in (files[0], files[0].read_bytes(), np.zeros((9, 9, 3))):
        assert opened.why_unusable(photo) == ""
    given = [files[0], b"no photo", np.zeros((30, 30)), files[1]]
    with pytest.raises(UserError, match=r"photo 2: .*, and 1 more"):
        opened.embed(given)
    for network in (opened, exported):
        found = network.embed(given, on_error="skip")
        np.testing.assert_array_equal(np.isnan(found).all(axis=1), [False, True, True, False])
        np.testing.assert_allclose(found[[0, 3]], network.embed(files[:2]), atol=1e-5)
        for classes in (network.classify(given, on_error="skip"), network.classify(found)):
            assert [name is None for name in classes.names] == [False, True, True, False]
            assert np.isnan(classes.probabilities[1:3]).all()
            np.testing.assert_allclose(classes.probabilities[[0, 3]].sum(axis=1), 1, atol=1e-5)
    assert opened.embed([b"no photo"], on_error="skip").shape == found[:1].shape
    assert opened.embed([]).shape == (0, found.shape[1])
    assert len(opened.classify([])) == 0


@pytest.mark.slow
def test_its_fingerprint_is_of_what_makes_descriptors(run, opened, exported, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(run.path, moved)
    assert mg_keras.load(moved).fingerprint == opened.fingerprint
    assert len({opened.fingerprint, exported.fingerprint}) == 2
    shutil.copytree(exported.path, tmp_path / "moved" / "1")
    assert mg_keras.load(tmp_path / "moved").fingerprint == exported.fingerprint
    # another exponent, or another whitening, makes other descriptors
    other = mg_keras.load(moved)
    other.p_star[SIZE] = 3.0
    assert other.fingerprint != opened.fingerprint
    path = moved / run.results.whitening_path(SIZE).relative_to(run.path)
    before = Whitening.load(path)
    Whitening(0.5 * before.mean_, before.projection_).save(path)
    assert mg_keras.load(moved).fingerprint != opened.fingerprint
    # at a resolution for which no exponent was chosen, too
    shutil.rmtree(moved)
    shutil.copytree(run.path, moved)
    before = Whitening.load(path)
    Whitening(0.5 * before.mean_, before.projection_).save(path.with_name("whitening-48.npz"))
    assert mg_keras.load(moved).fingerprint != opened.fingerprint


@pytest.mark.slow
def test_a_run_without_a_whitening_is_as_its_saved_model(small, folder, files, tmp_path):
    run = make_run(tmp_path / "run", folder, whitened=False)
    opened, exported = mg_keras.load(run.path), mg_keras.load(export_run(run, tmp_path / "model", photos=2))
    assert not opened.whitened
    assert not exported.whitened
    np.testing.assert_allclose(opened.embed(files), exported.embed(files), atol=1e-5)
    probabilities = opened.classify(files).probabilities
    np.testing.assert_allclose(opened.classify(opened.embed(files)).probabilities, probabilities, atol=1e-5)


@pytest.mark.parametrize("name", ["a.weights.h5", "a.keras"])
@pytest.mark.slow
def test_a_file_of_keras_weights(small, files, tmp_path, name):
    keras.utils.set_random_seed(1)
    model = MultiGrain("resnet18", len(CLASSES), pooling_exponent=2.5)
    (model.save_weights if name.endswith("h5") else model.save)(tmp_path / name)
    with pytest.raises(UserError, match="does not tell its trunk: name it"):
        mg_keras.load(tmp_path / name)
    opened = mg_keras.load(tmp_path / name, trunk="resnet18", class_names=list(CLASSES))
    assert (opened.pooling_exponent, opened.resolution, opened.class_names) == (2.5, 224, list(CLASSES))
    values = model(tf.stack([square(load_photo(file), 64) for file in files]))
    expected = np.concatenate([values["embedding"], np.ones((len(files), 1))], axis=1)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(opened.embed(files, 64), expected, atol=1e-5)
    np.testing.assert_allclose(opened.classify(files, 64).probabilities, tf.nn.softmax(values["logits"]), atol=1e-5)


def test_a_trunk_alone_embeds_and_can_not_classify(small, files, tmp_path):
    trunks.build("resnet18").save_weights(tmp_path / "trunk.weights.h5")
    opened = mg_keras.load(tmp_path / "trunk.weights.h5", trunk="resnet18")
    assert opened.class_names is None
    with pytest.raises(UserError, match="a trunk without a classifier: it takes no class_names"):
        mg_keras.load(tmp_path / "trunk.weights.h5", trunk="resnet18", class_names=["a"])
    assert opened.embed(files[:1], 64).shape[0] == 1
    with pytest.raises(UserError, match="a trunk without a classifier"):
        opened.classify(files[:1])


def test_a_file_does_not_name_the_levels_that_its_classifier_reads(small, tmp_path):
    MultiGrain("resnet18", 3, levels=["stack0_block0_out:3:2"]).save_weights(tmp_path / "a.weights.h5")
    with pytest.raises(UserError, match=r"a\.weights\.h5 holds a classifier that reads further levels of the resnet18"):
        mg_keras.load(tmp_path / "a.weights.h5", trunk="resnet18")


@pytest.mark.parametrize(
    ("what", "options", "message"),
    [
        ("nowhere", {}, "there is nothing at .*nowhere: give the folder of a run"),
        (".", {}, "is no run and no SavedModel: give the folder"),
        ("notes.txt", {}, "notes.txt is no file of weights: give"),
        (".", {"trunk": "resnet18"}, "trunk and class_names are for a file of weights"),
        (".", {"checkpoint": "best"}, "checkpoint is of a run: .* is none, received 'best'"),
        ("a.pth", {"checkpoint": "best"}, r"checkpoint is of a run: .*a\.pth is none, received 'best'"),
        ("a.pth", {}, r"a\.pth"),
        ("a.keras", {"trunk": "resnet19"}, "unknown trunk 'resnet19'"),
        ("a.safetensors", {"trunk": "vgg16"}, r"\.safetensors files are read for resnet18, .*, received vgg16"),
    ],
)
def test_what_can_not_be_opened(tmp_path, what, options, message):
    for name in ("notes.txt", "a.pth", "a.keras", "a.safetensors"):
        (tmp_path / name).write_text("x")
    with pytest.raises(UserError, match=f"^[^\n]*{message}[^\n]*$"):
        mg_keras.load(tmp_path / what, **options)


@pytest.mark.slow
def test_arguments_out_of_range(opened, exported, files):
    for options, message in (
        ({"resolution": 0}, "resolution must be a whole number of pixels, at least 1, received 0"),
        ({"p_star": -1.0}, "p_star must be a number > 0 and at most 1000, received -1.0"),
        ({"p_star": 2000}, "p_star must be a number > 0 and at most 1000, received 2000"),
        ({"p_star": 1e-50}, "p_star must be a number > 0 and at most 1000, received 1e-50"),
        ({"on_error": "ignore"}, 'on_error must be "raise" or "skip"'),
    ):
        with pytest.raises(UserError, match=message):
            opened.embed(files[:1], **options)
    with pytest.raises(UserError, match=r"descriptors of .* values, received 5"):
        opened.classify(np.zeros((2, 5), np.float32))
    for network in (opened, exported):
        values = network.embed(files[:3])
        for wrong in (values[0], list(values), tuple(values), tf.constant(values[0])):
            with pytest.raises(UserError, match=r"^descriptors are an array \[N, D\], received .*\[\d+\]"):
                network.classify(wrong)
        for wrong in (values.astype(str), values.astype(object), np.full(values.shape, b"a"), values + 1j):
            with pytest.raises(UserError, match=r"^descriptors are numbers, received an array of "):
                network.classify(wrong)
        for kind in (np.float64, np.float16, tf.bfloat16.as_numpy_dtype):
            assert network.classify(values.astype(kind)).names == network.classify(values).names
        assert network.classify(np.array(list(map(str, files[:1])))).names == network.classify(files[:1]).names
        # as clients are told by the signature; one with a NaN stands for a photo that could not be used
        for wrong, message in ((np.inf, "row 1 of the descriptors .* infinite"), (0, "row 1 .* all 0")):
            values[0, 0], values[1] = np.nan, wrong
            with pytest.raises(UserError, match=message):
                network.classify(values)
    with pytest.raises(UserError, match='checkpoint must be "last" or "best"'):
        mg_keras.load(opened.path, checkpoint="first")


def test_the_model_in_the_package_has_a_name(monkeypatch):
    monkeypatch.setattr(loading, "_of_packed", lambda *arguments: arguments)
    assert mg_keras.load("package") == mg_keras.load() == (PACKAGE, None)
    with pytest.raises(UserError, match="the model in the package has its own"):
        mg_keras.load("package", class_names=["a"])
    with pytest.raises(UserError, match="checkpoint is of a run: the model in the package has one, received 'best'"):
        mg_keras.load(checkpoint="best")
