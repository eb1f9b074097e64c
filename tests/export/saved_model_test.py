import json
import os
import subprocess
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from export.saved_model import export_run, export_saved_model, usage
from mg_keras import MultiGrain, Whitening
from mg_keras.errors import UserError
from mg_keras.models import trunks

SIZES = {"square": (96, 96), "tall": (224, 160), "wide": (333, 500)}
EXPONENTS = [1.0, 3.0, 4.5]

# Run by a Python that finds TensorFlow but neither Keras, keras-hub nor this package, in an empty folder.
CLIENT = """
import sys
for blocked in ("keras", "keras_hub", "mg_keras", "export"):
    sys.modules[blocked] = None
import numpy as np
import tensorflow as tf
folder, inputs, outputs = sys.argv[1:]
served = tf.saved_model.load(folder)
answers = {}
for name, images in np.load(inputs).items():
    p_star = tf.constant([1.0, 3.0, 4.5])
    answer = served.signatures["serving_default"](images=tf.constant(images), p_star=p_star)
    again = served.signatures["classify_embedding"](embedding=answer["embedding"])
    answers |= {f"{name}/{key}": value for key, value in answer.items()}
    answers |= {f"{name}/again/{key}": value for key, value in again.items()}
loaded = [name for name in ("keras", "keras_hub", "mg_keras") if sys.modules[name] is not None]
assert not loaded, loaded
np.savez(outputs, **answers)
"""


def small_model(dtype=None):
    """A trunk of two small blocks whose statistics and classifier are made up, so that images differ in class."""
    rng = np.random.default_rng(0)
    tiny = {"stackwise_num_filters": [64, 16], "stackwise_num_blocks": [1, 1], "stackwise_num_strides": [1, 2]}
    keras.utils.set_random_seed(0)
    model = MultiGrain(trunks.build("resnet18", dtype=dtype, **tiny), num_classes=7, dtype=dtype)
    for variable in model.trunk.variables:
        if "moving_mean" in variable.path:
            variable.assign(rng.normal(0, 0.1, variable.shape))
    images = random_images((64, 64), seed=9, count=120)
    embeddings = model(images, p_star=np.float32(EXPONENTS * 40))["embedding"].numpy()
    kernel = rng.normal(size=(16, 7)) / np.std(embeddings, axis=0)[:, None]
    model.classifier.set_weights([kernel, -np.mean(embeddings, axis=0) @ kernel + rng.normal(0, 0.5, 7)])
    return model


def random_images(size, seed, count=3):
    """Noise of patches of several widths in pixels, each image with its own contrasts and colour."""
    rng = np.random.default_rng(seed)
    images = np.zeros((count, *size, 3), np.float32)
    for width in (32, 12, 4):
        noise = rng.normal(0, 60, (count, size[0] // width, size[1] // width, 3)).astype(np.float32)
        images += tf.image.resize(noise, size, "bicubic").numpy() * rng.uniform(0, 2, (count, 1, 1, 1))
    return np.clip(images + rng.uniform(60, 200, (count, 1, 1, 3)), 0, 255).astype(np.float32)


def embed(model, batches):
    return np.concatenate([model(images)["embedding"].numpy() for images in batches])


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def whitening(model):
    return Whitening.fit(embed(model, [random_images((64, 64), seed, count=40) for seed in range(4)]))


@pytest.fixture(scope="module")
def images():
    return {name: random_images(size, seed) for seed, (name, size) in enumerate(SIZES.items(), start=20)}


def answers_without_keras(folder, images, tmp_path):
    np.savez(tmp_path / "inputs.npz", **images)
    command = [sys.executable, "-I", "-c", CLIENT, str(folder), "inputs.npz", "outputs.npz"]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(tmp_path / "outputs.npz") as outputs:
        return dict(outputs)


def relative_difference(values, expected):
    return np.max(np.linalg.norm(values - expected, axis=-1) / np.linalg.norm(expected, axis=-1))


@pytest.mark.parametrize("whitened", [True, False])
def test_a_process_with_tensorflow_alone_gets_the_keras_models_answers(whitened, model, whitening, images, tmp_path):
    path = export_saved_model(model, whitening if whitened else None, tmp_path / "model")
    answers = answers_without_keras(path, images, tmp_path)
    classes = []
    for name, batch in images.items():
        expected = model(batch, p_star=np.float32(EXPONENTS))
        embeddings, logits = (expected[key].numpy() for key in ("embedding", "logits"))
        if whitened:
            descriptors = whitening.transform(embeddings)
        else:
            descriptors = np.column_stack([embeddings, np.ones(3)])
            descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
        probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        assert answers[f"{name}/logits"].dtype == answers[f"{name}/probability"].dtype == np.float32
        assert answers[f"{name}/class"].dtype == np.int64
        np.testing.assert_allclose(np.linalg.norm(answers[f"{name}/embedding"], axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(answers[f"{name}/embedding"], descriptors, atol=1e-4)
        assert relative_difference(answers[f"{name}/logits"], logits) < 1e-4
        assert relative_difference(answers[f"{name}/again/logits"], logits) < 1e-3
        for given in (name, f"{name}/again"):
            np.testing.assert_array_equal(answers[f"{given}/class"], logits.argmax(axis=1))
            np.testing.assert_allclose(answers[f"{given}/probability"], probabilities.max(axis=1), atol=2e-3)
        classes += list(logits.argmax(axis=1))
    # A model that says the same class for every image would prove little.
    assert len(set(classes)) >= 3


def test_a_half_precision_trunk_is_exported_with_float32_around_it(tmp_path):
    model = small_model("mixed_bfloat16")
    served = tf.saved_model.load(export_saved_model(model, None, tmp_path)).signatures["serving_default"]
    images, p_star = random_images((64, 64), 1), np.float32([1, 3, 4.5])
    embedding = served(images=tf.constant(images), p_star=tf.constant(p_star))["embedding"].numpy()
    assert embedding.dtype == np.float32
    pooled = model.pool(model.trunk(model.normalize(images), training=False), p_star=p_star).numpy()
    # bfloat16 keeps 8 bits, and the graph may add in another order than the eager trunk.
    assert relative_difference(embedding[:, :-1] / embedding[:, -1:], pooled) < 2e-2


def test_the_graph_has_only_tensorflows_own_operations_and_no_python(model, whitening, tmp_path):
    path = export_saved_model(model, whitening, tmp_path)
    proto = SavedModel.FromString((path / "saved_model.pb").read_bytes())
    functions = [node for function in proto.meta_graphs[0].graph_def.library.function for node in function.node_def]
    operations = {node.op for node in [*functions, *proto.meta_graphs[0].graph_def.node]}
    assert {"Conv2D", "MatMul"} <= operations
    assert not {operation for operation in operations if "PyFunc" in operation or ">" in operation}
    assert set(proto.meta_graphs[0].signature_def) == {
        "serving_default", "classify_embedding", "__saved_model_init_op",
    }  # fmt: skip
    assert not any(path.rglob("keras_metadata*"))


def test_an_exponent_of_zero_is_refused(model, tmp_path):
    served = tf.saved_model.load(export_saved_model(model, None, tmp_path)).signatures["serving_default"]
    with pytest.raises(tf.errors.InvalidArgumentError, match="p_star must be greater than 0"):
        served(images=tf.zeros([2, 64, 64, 3]), p_star=tf.constant([3.0, 0.0]))


def test_versions_count_up_and_are_never_overwritten(model, tmp_path, capfd):
    folder = tmp_path / "models" / "multigrain"
    assert export_saved_model(model, None, folder) == folder / "1"
    assert export_saved_model(model, None, folder, version=7) == folder / "7"
    (folder / "notes").mkdir()
    assert export_saved_model(model, None, folder) == folder / "8"
    before = (folder / "7" / "saved_model.pb").stat().st_mtime_ns
    with pytest.raises(UserError, match="at least 1, got 0"):
        export_saved_model(model, None, folder, version=0)
    with pytest.raises(UserError, match="7 exists already"):
        export_saved_model(model, None, folder, version=7)
    assert (folder / "7" / "saved_model.pb").stat().st_mtime_ns == before
    assert sorted(path.name for path in folder.iterdir()) == ["1", "7", "8", "notes"]
    assert capfd.readouterr() == ("", "")


def test_the_description_says_what_the_model_is(model, whitening, tmp_path):
    metadata = {"class_names": list("abcdefg"), "p_star": {96: 4.0}, "trunk": "resnet18", "training": {"seed": 0}}
    path = export_saved_model(model, whitening, tmp_path, metadata=metadata)
    assert json.loads((path / "assets" / "multigrain.json").read_text()) == {
        "trunk": "resnet18",
        "embedding_size": 17,
        "num_classes": 7,
        "pooling_exponent": 3.0,
        "whitened": True,
        "normalization": {"input": "RGB, 0 to 255", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        "class_names": list("abcdefg"),
        "p_star": {"96": 4.0},
        "training": {"seed": 0},
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"whitening": Whitening(np.zeros(17), np.eye(17), bias_channel=False)}, "bias_channel=False"),
        ({"whitening": Whitening(np.zeros(9), np.eye(9))}, "17 values for this model, got .* 9 values"),
        ({"metadata": {"class_names": ["cup"]}}, "7 names, got 1"),
        ({"metadata": {"num_classes": 3}}, r"must not hold \['num_classes'\]"),
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


def test_a_failure_while_writing_leaves_nothing(model, tmp_path):
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        export_saved_model(model, None, tmp_path, metadata={"training": object()})
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_exported_and_the_printed_lines_load_it(model, whitening, tmp_path, monkeypatch, capsys):
    run = SimpleNamespace(
        model=model,
        whitening=whitening,
        class_names=list("abcdefg"),
        p_star={64: 2.5},
        settings=SimpleNamespace(trunk="resnet18"),
        config={"trunk": "resnet18", "resolution": 64},
    )
    text = usage(export_run(run, tmp_path / "model"))
    assert str(tmp_path / "model" / "1") in text
    assert "serving_default(images: float32 [?, ?, ?, 3], p_star: float32 [?])" in text
    assert "classify_embedding(embedding: float32 [?, 17]) -> " in text
    assert "tf.constant([2.5])" in text
    lines = [line.strip() for line in text.splitlines()][-4:]
    keras.utils.save_img(tmp_path / "photo.jpg", random_images((70, 90), 0)[0])
    monkeypatch.chdir(tmp_path)
    exec("\n".join(lines), {})
    assert "'embedding': <tf.Tensor: shape=(1, 17)" in capsys.readouterr().out
