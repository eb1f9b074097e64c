import json
import re
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from mg_keras import MultiGrain, Whitening
from mg_keras.data.sources import photos as photos_below
from mg_keras.embedding.photos import embed
from mg_keras.errors import UserError
from mg_keras.export import check, saved_model
from mg_keras.export.saved_model import export_saved_model, usage
from mg_keras.programs import export
from mg_keras.programs.export import export_run, exported_version
from mg_keras.runs import photos as run_photos
from mg_keras.runs.config import TrainConfig
from mg_keras.runs.results import ChosenExponent, Results
from tests.export.small import (
    EXPONENTS,
    METADATA,
    answers_without_keras,
    eight_files,
    photos,
    random_images,
    small_model,
)

SIZES = {"square": (96, 96), "tall": (224, 160), "wide": (131, 300)}
RESOLUTION = 80


def exported_to(folder, model, whitening=None, **changes):
    """An export that takes little time: checked on one photo at a small resolution."""
    options = {"metadata": {"training": {"resolution": 32}}, "photos": photos(1), **changes}
    return export_saved_model(model, whitening, folder, **options)


@pytest.fixture(scope="module")
def images():
    return {name: random_images(size, seed) for seed, (name, size) in enumerate(SIZES.items(), start=20)}


def relative_difference(values, expected):
    return np.max(np.linalg.norm(values - expected, axis=-1) / np.linalg.norm(expected, axis=-1))


@pytest.fixture(scope="module")
def without_keras(exported, model, images, tmp_path_factory):
    """Answers of a process that has TensorFlow alone: (for pixels, a list for each model; for files)."""
    folder = tmp_path_factory.mktemp("without_keras")
    pixels = [{"images": batch, "p_star": np.float32(EXPONENTS)} for batch in images.values()]
    files = {
        "image_bytes": list(eight_files().values()),
        "resolution": np.full(8, RESOLUTION, np.int32),
        "p_star": np.full(8, 3.0, np.float32),
    }
    plain = exported_to(folder / "model", model)
    calls = [(path, "serving_default", inputs) for path in (exported, plain) for inputs in pixels]
    *answers, for_files = answers_without_keras([*calls, (exported, "encoded", files)], folder)
    return (answers[: len(pixels)], answers[len(pixels) :]), for_files


@pytest.mark.parametrize("whitened", [True, False])
@pytest.mark.slow
def test_a_process_with_tensorflow_alone_gets_the_keras_models_answers(
    whitened, model, whitening, images, without_keras
):
    found = without_keras[0][0 if whitened else 1]
    p_star = np.float32(EXPONENTS)
    classes = []
    for batch, (answer, again) in zip(images.values(), found, strict=True):
        expected = model(batch, p_star=p_star)
        embeddings, logits = (expected[key].numpy() for key in ("embedding", "logits"))
        if whitened:
            descriptors = whitening.transform(embeddings)
        else:
            descriptors = np.column_stack([embeddings, np.ones(3)])
            descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
        probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        assert answer["logits"].dtype == answer["probability"].dtype == np.float32
        assert answer["class"].dtype == np.int64
        np.testing.assert_allclose(np.linalg.norm(answer["embedding"], axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(answer["embedding"], descriptors, atol=1e-4)
        assert relative_difference(answer["logits"], logits) < 1e-4
        assert relative_difference(again["logits"], logits) < 1e-3
        for given in (answer, again):
            np.testing.assert_array_equal(given["class"], logits.argmax(axis=1))
            np.testing.assert_allclose(given["probability"], probabilities.max(axis=1), atol=2e-3)
        classes += list(logits.argmax(axis=1))
    # A model that says the same class for every image would prove little.
    assert len(set(classes)) >= 3


@pytest.mark.slow
def test_eight_kinds_of_photos_are_what_embedding_makes_of_them(without_keras, model, whitening, tmp_path):
    for name, contents in eight_files().items():
        (tmp_path / name).write_bytes(contents)
    # largest side, as beyond the training resolution
    expected = embed(model, photos_below(tmp_path), RESOLUTION, RESOLUTION // 2, [3.0])
    assert len(expected.rows) == 8
    found, _ = without_keras[1]
    np.testing.assert_allclose(found["embedding"], whitening.transform(expected.values[0]), atol=1e-4)
    np.testing.assert_array_equal(found["class"], expected.logits(model).argmax(axis=1))
    np.testing.assert_allclose(found["logits"], expected.logits(model), rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_a_half_precision_trunk_is_exported_with_float32_around_it(tmp_path):
    model = small_model("mixed_bfloat16")
    served = tf.saved_model.load(exported_to(tmp_path, model)).signatures["serving_default"]
    images, p_star = random_images((64, 64), 1), np.float32([1, 3, 4.5])
    embedding = served(images=tf.constant(images), p_star=tf.constant(p_star))["embedding"].numpy()
    assert embedding.dtype == np.float32
    pooled = model.pool(model.trunk(model.normalize(images), training=False), p_star=p_star).numpy()
    # bfloat16 keeps 8 bits, and the graph may add in another order than the eager trunk.
    assert relative_difference(embedding[:, :-1] / embedding[:, -1:], pooled) < 2e-2


def variables(path):
    """{name: array} of a SavedModel, from its file."""
    file = tf.train.load_checkpoint(str(path / "variables" / "variables"))
    ending = "/.ATTRIBUTES/VARIABLE_VALUE"
    return {
        name.removesuffix(ending): file.get_tensor(name)
        for name in file.get_variable_to_shape_map()
        if name.endswith(ending)
    }


def constants(path):
    """The arrays of numbers in a SavedModel's graph and the functions that it calls."""
    (graph,) = SavedModel.FromString((path / "saved_model.pb").read_bytes()).meta_graphs
    functions = [node for function in graph.graph_def.library.function for node in function.node_def]
    nodes = [node for node in [*functions, *graph.graph_def.node] if node.op == "Const"]
    arrays = [tf.make_ndarray(node.attr["value"].tensor) for node in nodes]
    return [array for array in arrays if array.dtype != object]


def share_in_the_file(path, values):
    """How many of the values stand in the file, in whatever array and order: the largest share in one array."""
    arrays = [*variables(path).values(), *constants(path)]
    return max(np.mean(np.isin(values, array)) for array in arrays)


def test_the_classifier_in_the_file_is_the_folded_one(exported, model, whitening):
    kernel, bias = (np.asarray(weight, np.float64) for weight in model.classifier.weights)
    weights = np.vstack([kernel, bias])
    found = variables(exported)
    # S is the transposed projection: w' = S^-T w, b' = <w, mu>
    expected_kernel = np.array([np.linalg.solve(whitening.projection_, w) for w in weights.T]).T
    expected_bias = np.array([sum(w * whitening.mean_) for w in weights.T])
    for made in (whitening.fold(kernel, bias), (expected_kernel, expected_bias)):
        for name, expected in zip(("classifier/kernel", "classifier/bias"), made, strict=True):
            np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert found["classifier/kernel"].shape == (17, 7)
    assert set(found) == {
        "classifier/kernel", "classifier/bias",
        "whitening/mean", "whitening/projection", "whitening/inverse", "whitening/discarded_variance",
    }  # fmt: skip


@pytest.mark.slow
def test_the_unfolded_classifier_is_not_in_the_file(exported, model, tmp_path):
    kernel = np.asarray(model.classifier.weights[0])
    assert share_in_the_file(exported, kernel) < 0.02
    # without whitening it is what folding gives, and is found
    assert share_in_the_file(exported_to(tmp_path, model), kernel) == 1
    # as is a value of the trunk, which lies in the graph
    assert share_in_the_file(exported, model.pixel_scaling[0]) == 1


@pytest.mark.slow
def test_exponents_out_of_range_are_refused(exported):
    loaded = tf.saved_model.load(exported)
    served, images = loaded.signatures["serving_default"], tf.zeros([2, 64, 64, 3])
    for exponent in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(tf.errors.InvalidArgumentError, match="p_star must be greater than 0 and at most 1000"):
            served(images=images, p_star=tf.constant([3.0, exponent]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="one value for each image"):
        served(images=images, p_star=tf.constant([3.0]))


def refusal(signature, **inputs):
    with pytest.raises(tf.errors.InvalidArgumentError) as refused:
        signature(**{name: tf.constant(value, tf.float32) for name, value in inputs.items()})
    return re.search(r"assertion failed: \[(.*)\]", refused.value.message)[1]


def assert_refuses_pixels_that_are_none(loaded):
    served = loaded.signatures["serving_default"]
    for value in (np.nan, np.inf, -np.inf, 1e30, -7e4):
        images = random_images((64, 80), 3)
        images[1, 13, 57, 2] = value
        reason = "pixels that are NaN, infinite or far beyond 0 to 255"
        assert refusal(served, images=images, p_star=[3.0] * 3) == f"photo 1: {reason}"
    assert refusal(served, images=np.zeros((1, 0, 64, 3)), p_star=[3.0]) == "photo 0: an image without pixels"
    # sharpened, or of 16 bits
    for value in (-40.0, 65_535.0):
        images[1, 13, 57, 2] = value
        answer = served(images=tf.constant(images), p_star=tf.constant([3.0] * 3))
        assert all(np.isfinite(answer[name]).all() for name in ("embedding", "logits", "probability"))


@pytest.mark.slow
def test_pixels_and_descriptors_that_are_none_are_refused(exported):
    loaded = tf.saved_model.load(exported)
    assert_refuses_pixels_that_are_none(loaded)
    classify = loaded.signatures["classify_embedding"]
    good = np.ones((3, 17), np.float32)
    for value in (np.nan, np.inf, -np.inf):
        bad = good.copy()
        bad[2, 5] = value
        assert refusal(classify, embedding=bad) == "descriptor 2: values that are NaN or infinite"
    for value in (0.0, -0.0, 1e-33):
        bad = good.copy()
        bad[:2] = value
        reason = "values that are all 0, or nearly"
        assert refusal(classify, embedding=bad) == f"descriptor 0: {reason}; descriptor 1: {reason}"
    expected = classify(embedding=tf.constant(good))["logits"]
    for norm in np.float32([1e-25, 1e30]):
        np.testing.assert_allclose(classify(embedding=tf.constant(norm * good))["logits"], expected, rtol=1e-4)


@pytest.mark.slow
def test_a_whitening_that_keeps_few_dimensions(model, whitening, tmp_path):
    size, kept = len(whitening.mean_), 9
    mean, projection = whitening.mean_, whitening.projection_[:, :kept]
    few = Whitening(mean, projection, discarded_variance=0.3 * (1 - mean @ mean))
    path = exported_to(tmp_path, model, few)
    assert json.loads((path / "assets" / "multigrain.json").read_text())["embedding_size"] == kept < size
    loaded = tf.saved_model.load(path)
    images = random_images((64, 64), 3)
    answer = loaded.signatures["serving_default"](images=tf.constant(images), p_star=tf.constant([3.0] * 3))
    expected = model(images, p_star=3.0)
    np.testing.assert_allclose(answer["embedding"], few.transform(expected["embedding"].numpy()), atol=1e-4)
    # from the photo, the logits are exact however few dimensions are kept
    assert relative_difference(answer["logits"], expected["logits"]) < 1e-4
    stored = loaded.signatures["classify_embedding"](embedding=answer["embedding"])["logits"].numpy()
    unit = few.undo(answer["embedding"].numpy())
    kernel, bias = (np.asarray(weight) for weight in model.classifier.weights)
    np.testing.assert_allclose(stored, unit @ np.vstack([kernel, bias]) / unit[:, -1:], rtol=1e-3, atol=1e-3)
    found, (folded, offset) = variables(path), few.fold(kernel, bias)
    np.testing.assert_allclose(found["classifier/kernel"][:kept], folded, atol=1e-5 * np.abs(folded).max())
    np.testing.assert_allclose(found["classifier/bias"], offset, atol=1e-5 * np.abs(offset).max())
    assert len(found["classifier/kernel"]) == kept + min(size - kept, model.num_classes)
    assert share_in_the_file(path, kernel) < 0.02


@pytest.mark.slow
def test_versions_count_up_and_are_never_overwritten(model, tmp_path, capfd):
    folder = tmp_path / "models" / "multigrain"
    assert exported_to(folder, model, version=5) == folder / "5"
    for name in ("7", "notes"):
        (folder / name).mkdir()
        (folder / name / "file").write_text("theirs")
    for version, message in ((0, "at least 1, received 0"), (5, "5 exists already"), (7, "7 exists already")):
        with pytest.raises(UserError, match=message):
            exported_to(folder, model, version=version)
    assert exported_to(folder, model) == folder / "8"
    assert (folder / "7" / "file").read_text() == "theirs"
    assert sorted(path.name for path in folder.iterdir()) == ["5", "7", "8", "notes"]
    assert capfd.readouterr() == ("", "")


def test_the_description_says_what_the_model_is(exported):
    found = json.loads((exported / "assets" / "multigrain.json").read_text())
    figures = found["check"].pop("figures")
    limits = found.pop("limits")
    assert found == {
        "trunk": "tiny",
        "embedding_size": 17,
        "num_classes": 7,
        "pooling_exponent": 3.0,
        "whitened": True,
        "normalization": {"input": "RGB, 0 to 255", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        "precision": "float32",
        "preparation": "aspect",
        "class_names": METADATA["class_names"],
        "p_star": {"64": 2.5, "128": 5.0},
        "training": {"resolution": 48},
        "check": {"photos": "given"},
    }
    assert limits["bytes"] == 32 << 20
    assert limits["network_pixels"] == 2048**2
    shapes = [(48, 48), (48, 64), (72, 48)]
    assert [(entry["height"], entry["width"]) for entry in figures] == [shape for shape in shapes for _ in range(2)]
    assert {entry["signature"] for entry in figures} == {"serving_default", "encoded"}
    assert all(entry["min_cosine"] >= 0.99999 and entry["class_agreement"] == 1 for entry in figures)
    assert all(entry["max_logits_difference"] < 1e-4 for entry in figures)


@pytest.mark.slow
def test_bfloat16_keeps_its_interface_in_float32(model, whitening, images, tmp_path):
    path = exported_to(tmp_path, model, whitening, precision="bfloat16")
    assert json.loads((path / "assets" / "multigrain.json").read_text())["precision"] == "bfloat16"
    served = tf.saved_model.load(path)
    answer = served.signatures["serving_default"](images=images["square"], p_star=tf.constant(EXPONENTS))
    assert {value.dtype for value in answer.values()} == {tf.float32, tf.int64}
    expected = whitening.transform(model(images["square"], p_star=np.float32(EXPONENTS))["embedding"].numpy())
    cosines = np.sum(answer["embedding"].numpy() * expected, axis=1)
    assert 0.999 < cosines.min() < 1 - 1e-7, "rounded, but little"
    assert_refuses_pixels_that_are_none(served)


@pytest.mark.slow
def test_a_failed_check_publishes_nothing(model, tmp_path, monkeypatch):
    monkeypatch.setitem(check.MIN_COSINE, "bfloat16", 1.1)
    with pytest.raises(UserError, match=r"nothing was written.*cosine is .*, at least 1.1 is asked.*--precision"):
        exported_to(tmp_path / "model", model, precision="bfloat16")
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_a_network_that_tells_no_photos_apart_is_named_as_the_cause(tmp_path):
    """A MobileNet that is not trained: features far below GeM's epsilon, and a whitening fitted on rounding errors."""
    with_zeros = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3, kernel_initializer="zeros")])
    model = MultiGrain(with_zeros, num_classes=3)
    mean = np.append(model(random_images((32, 32), 0))["embedding"][0], 1.0)
    noise = Whitening(mean / np.linalg.norm(mean) * (1 - 1e-9), 1e12 * np.eye(5))
    with pytest.raises(UserError, match=r"no more than rounding does \(1e-09 .*Nothing was written"):
        exported_to(tmp_path, model, noise)
    assert list(tmp_path.iterdir()) == []
    # without whitening, descriptors that are all alike are no noise
    assert exported_to(tmp_path, model) == tmp_path / "1"


@pytest.mark.slow
def test_another_export_of_the_same_version_meanwhile(model, tmp_path, monkeypatch):
    def overtaken(*arguments):
        (tmp_path / "1").mkdir()
        (tmp_path / "1" / "saved_model.pb").write_bytes(b"theirs")

    monkeypatch.setattr(saved_model.warm_up, "write_requests", overtaken)
    with pytest.raises(UserError, match="was written by another export meanwhile"):
        exported_to(tmp_path, model)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert (tmp_path / "1" / "saved_model.pb").read_bytes() == b"theirs"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"whitening": Whitening(np.zeros(17), np.eye(17), bias_channel=False)}, "bias_channel=False"),
        ({"whitening": Whitening(np.zeros(9), np.eye(9))}, "17 values for this model, received .* 9 values"),
        ({"metadata": {"class_names": ["cup"]}}, "7 names, received 1"),
        ({"metadata": {"num_classes": 3}}, r"must not hold \['num_classes'\]"),
        ({"metadata": {"check": {}}}, r"must not hold \['check'\]"),
        ({"metadata": {"p_star": {96: 0.0}}}, "exponents > 0 and at most 1000, received {96: 0.0}"),
        ({"metadata": {"p_star": {96: 2000}}}, "exponents > 0 and at most 1000, received {96: 2000.0}"),
        ({"photos": []}, "at least one photo to check on, received none"),
        ({"precision": "int8"}, "received 'int8'"),
    ],
)
def test_bad_arguments_are_named_and_leave_nothing(change, message, model, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_saved_model(**{"model": model, "whitening": None, "folder": tmp_path, **change})
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_folder_is_the_users_to_mend(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        export_saved_model(model, None, tmp_path / "file")


@pytest.mark.slow
def test_a_failure_while_writing_leaves_nothing(model, tmp_path):
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        exported_to(tmp_path, model, metadata={"training": {"resolution": 32, "data": object()}})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_photos_to_check_on_are_shrunk(tmp_path, monkeypatch, capsys):
    for number, size in enumerate([(300, 400), (50, 60)]):
        keras.utils.save_img(tmp_path / f"{number}.png", random_images(size, number)[0])
    monkeypatch.setattr(run_photos, "open_source", lambda settings: SimpleNamespace(val=photos_below(tmp_path)))
    found, trouble = export._validation_photos(SimpleNamespace(settings=SimpleNamespace(resolution=64)), 2)
    assert sorted(photo.shape for photo in found) == [(50, 60, 3), (96, 128, 3)]
    assert {photo.dtype for photo in found} == {np.dtype(np.uint8)}
    assert not trouble


@pytest.mark.slow
def test_a_place_that_cannot_be_written_gets_one_line(model, tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("a file")
    with pytest.raises(UserError, match="1 could not be written: Not a directory"):
        exported_to(tmp_path / "notes.txt" / "model", model)

    def full(*arguments, **options):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(tf.saved_model, "save", full)
    with pytest.raises(UserError, match="1 could not be written: No space left on device"):
        exported_to(tmp_path / "model", model)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("data", ["there", "gone"])
@pytest.mark.slow
def test_a_run_is_exported_and_the_printed_lines_load_it(data, model, whitening, tmp_path, monkeypatch, capsys):
    def open_source(settings):
        if data == "gone":
            raise UserError("no such folder")
        return SimpleNamespace(val=photos_below(tmp_path / "photos"))

    (tmp_path / "photos").mkdir()
    keras.utils.save_img(tmp_path / "photos" / "1.jpg", random_images((70, 90), 0)[0])
    (tmp_path / "photos" / "2.jpg").write_text("no photo")
    monkeypatch.setattr(run_photos, "open_source", open_source)
    monkeypatch.setattr(saved_model, "CHECK_PHOTOS", 3)
    results = Results(tmp_path / "run", 64, 3.0)
    results.folder.mkdir()
    results.save_choices({64: ChosenExponent(2.5)})
    whitening.save(results.whitening_path(64))
    settings = TrainConfig(trunk="resnet18", resolution=64)
    run = SimpleNamespace(
        model=model, class_names=list("abcdefg"), settings=settings, results=results, fingerprint="now"
    )
    assert exported_version(run, tmp_path / "model") is None
    text = usage(export_run(run, tmp_path / "model"))
    said = {
        "there": "is checked on 1 of 16 validation photos: there are no more that can be used",
        "gone": "is checked on 3 generated photos: no such folder",
    }
    assert said[data] in capsys.readouterr().err
    about = json.loads((tmp_path / "model" / "1" / "assets" / "multigrain.json").read_text())
    checked = {"there": ("given", 1), "gone": ("generated", 3)}
    assert (about["check"]["photos"], about["check"]["figures"][0]["photos"]) == checked[data]
    assert str(tmp_path / "model" / "1") in text
    kind = {"there": "1 photos", "gone": "3 generated photos"}[data]
    figures = r"least cosine of a descriptor (0\.9|1\.0)\d{6}, class agreement 100\.0%"
    assert re.search(f"like the Keras model on {kind}: {figures}", text)
    assert "serving_default(images: float32 [?, ?, ?, 3], p_star: float32 [?])" in text
    assert "encoded(image_bytes: string [?], p_star: float32 [?], resolution: int32 [?]) -> embedding, " in text
    assert "classify_embedding(embedding: float32 [?, 17]) -> " in text
    assert "tf.constant([2.5])" in text
    if data == "there":
        lines = [line.strip() for line in text.splitlines()][-4:]
        (tmp_path / "photos" / "1.jpg").rename(tmp_path / "photo.jpg")
        monkeypatch.chdir(tmp_path)
        exec("\n".join(lines), {})
        assert "'embedding': <tf.Tensor: shape=(1, 17)" in capsys.readouterr().out

    def is_exported():
        found = exported_version(run, tmp_path / "model")
        assert found in (None, tmp_path / "model" / "1")
        return found is not None

    # versions beside it that are of another run, or broken
    (tmp_path / "model" / "2" / "assets").mkdir(parents=True)
    (tmp_path / "model" / "2" / "saved_model.pb").touch()
    assert is_exported()
    (tmp_path / "model" / "2" / "assets" / "multigrain.json").write_text('{"made_of": "others"}')
    assert is_exported()
    run.fingerprint = "trained for longer"
    assert not is_exported()
    run.fingerprint = "now"
    results.save_choices({64: ChosenExponent(3.0)})
    assert not is_exported()
    results.save_choices({64: ChosenExponent(2.5)})
    results.whitening_path(64).unlink()
    assert not is_exported()
