import keras
import numpy as np
import pytest

from mg_keras import MultiGrain
from mg_keras.errors import UserError
from mg_keras.pretrained import from_torch_checkpoint, initialize, lite0
from mg_keras.programs.import_weights import save_run
from tests.pretrained import torch_writer as by_hand
from tests.pretrained.multigrain_test import CLASSES, SIZE, random_state
from tests.pretrained.safetensors_file_test import write as write_safetensors
from tests.train.tiny import draw_folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A ResNet-18 of five classes whose names are not known."""
    return by_hand.write_state(tmp_path_factory.mktemp("published") / "a.pth", random_state())


@pytest.fixture(scope="module")
def run(checkpoint, tmp_path_factory):
    """A run of it, whose classes are called `class 0` to `class 4`."""
    folder = tmp_path_factory.mktemp("run")
    photos = draw_folder(folder / "photos", per_class=5)
    return save_run(from_torch_checkpoint(checkpoint), folder / "run", f"folder:{photos}")[0]


@pytest.fixture
def model():
    keras.utils.set_random_seed(3)
    return MultiGrain("resnet18", CLASSES)


NAMES = [f"class {number}" for number in range(CLASSES)]


def assert_taken(model, head):
    """The trunk's weights are the checkpoint's, and the classifier's if `head` says so."""
    state = random_state()
    kernel = model.trunk.get_layer("conv1_conv").kernel
    np.testing.assert_array_equal(kernel, state["features.conv1.weight"].transpose(2, 3, 1, 0))
    variance = model.trunk.get_layer("stack3_block1_2_bn").moving_variance
    np.testing.assert_array_equal(variance, state["features.layer4.1.bn2.running_var"])
    if head:
        np.testing.assert_array_equal(model.classifier.kernel, state["classifier.weight"].T)
        np.testing.assert_array_equal(model.classifier.bias, state["classifier.bias"])
    else:
        # as a new one starts
        assert not np.any(model.classifier.bias)
        assert np.abs(model.classifier.kernel).max() <= np.sqrt(6 / (SIZE + CLASSES))


@pytest.mark.parametrize(
    ("names", "head", "note"),
    [
        (NAMES, True, "the whole model, the classifier of its 5 classes included"),
        (None, True, "the whole model, the classifier of its 5 classes included"),
        ([*NAMES[1:], "class 7"], False, "the trunk; new classifier, as its 5 classes have other names"),
    ],
)
@pytest.mark.slow
def test_a_run_gives_its_classifier_to_the_same_classes(model, run, names, head, note):
    assert initialize(model, run.path, "resnet18", names) == f"weights of {run.path}: {note}"
    assert_taken(model, head)


def test_the_same_classes_in_another_order_keep_what_was_learnt_of_them(model, run):
    order = [3, 0, 4, 1, 2]
    assert "the whole model" in initialize(model, run.path, "resnet18", [NAMES[number] for number in order])
    state = random_state()
    np.testing.assert_array_equal(model.classifier.kernel, state["classifier.weight"][order].T)
    np.testing.assert_array_equal(model.classifier.bias, state["classifier.bias"][order])


def test_a_checkpoint_knows_no_names(model, checkpoint):
    note = initialize(model, str(checkpoint), "resnet18", ["a", "b", "c", "d", "e"])
    assert note.endswith("the whole model, the classifier of its 5 classes included")
    assert_taken(model, True)


def test_other_numbers_of_classes_get_a_new_classifier(checkpoint):
    model = MultiGrain("resnet18", 3)
    note = initialize(model, checkpoint, "resnet18")
    assert note.endswith("the trunk; new classifier, as its 5 classes are not the 3 here")
    np.testing.assert_array_equal(model.classifier.bias, np.zeros(3))


def test_safetensors_with_the_names_of_torchvision(model, tmp_path):
    state = {
        name.removeprefix("features.").replace("classifier.", "fc."): np.asarray(value)
        for name, value in random_state().items()
        if name != "pool.p"
    }
    path = write_safetensors(tmp_path / "a.safetensors", state)
    assert "the whole model" in initialize(model, path, "resnet18")
    assert_taken(model, True)
    del state["bn1.bias"]
    with pytest.raises(UserError, match=r"missing: bn1\.bias"):
        initialize(model, write_safetensors(path, state), "resnet18")


@pytest.mark.slow
def test_a_trunks_file_has_no_classifier(model, checkpoint, tmp_path):
    from_torch_checkpoint(checkpoint).model.trunk.save_weights(tmp_path / "a.weights.h5")
    note = initialize(model, tmp_path / "a.weights.h5", "resnet18")
    assert note.endswith("the trunk; new classifier, as there is none to take over")
    assert_taken(model, False)


def test_in_one_line(checkpoint):
    assert_taken(MultiGrain("resnet18", CLASSES, weights=checkpoint), True)


@pytest.mark.slow
def test_imagenet_from_the_package():
    pytest.importorskip(lite0.PACKAGE, reason="the extra offline is not installed")
    model = MultiGrain(lite0.TRUNK, 1000)
    # tfds:imagenet2012 and folders of ImageNet name the classes by WordNet id
    assert "the whole model" in initialize(model, "imagenet", lite0.TRUNK, lite0.class_ids())
    expected = lite0.imagenet_network().model
    np.testing.assert_array_equal(model.classifier.kernel, expected.classifier.kernel)
    for variable, value in zip(model.trunk.weights, expected.trunk.weights, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_what_holds_no_weights_of_this_trunk(model, run, checkpoint, tmp_path):
    (tmp_path / "saved" / "1").mkdir(parents=True)
    (tmp_path / "saved" / "1" / "saved_model.pb").touch()
    (tmp_path / "notes.txt").touch()
    for weights, trunk_name, message in (
        (tmp_path / "no", "resnet18", "no weights at .*no: give package, imagenet, the folder of a run, or a file"),
        (tmp_path / "notes.txt", "resnet18", r"weights are read from .*notes\.txt"),
        (tmp_path, "resnet18", "neither the folder of a run nor that of a keras-hub preset"),
        (tmp_path / "saved", "resnet18", "a SavedModel, .* give the folder of the run that it was exported from"),
        (tmp_path / "saved" / "1", "resnet18", "a SavedModel"),
        (checkpoint, "resnet34", "holds a resnet18, where the trunk is resnet34"),
        (run.path, "resnet34", "a run with the trunk resnet18, where the trunk is resnet34"),
        ("imagenet", "resnet34", "no ImageNet weights for the trunk resnet34"),
    ):
        with pytest.raises(UserError, match=message):
            initialize(model, weights, trunk_name)
