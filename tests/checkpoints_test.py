"""The folder of checkpoints; what is in one is tested by the runs that resume from it."""

import functools
import shutil
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from mg_keras import MultiGrain
from mg_keras.checkpoints import Checkpoints, Retention, assign, read_arrays, snapshot
from mg_keras.errors import UserError
from mg_keras.models import trunks


def groups_of_a_new_model(seed):
    """The variables of a small network and its optimiser, as training saves them, all with values of their own."""
    small = {"stackwise_num_filters": [64, 32], "stackwise_num_blocks": [1, 1], "stackwise_num_strides": [1, 2]}
    model = MultiGrain(trunks.build("resnet18", **small), num_classes=3)
    model.compile(keras.optimizers.SGD(momentum=0.9), keras.optimizers.SGD(momentum=0.9))
    groups = {
        "model": model.state_variables,
        "optimizer": model.optimizer.variables,
        "metrics": [variable for metric in model.metrics for variable in metric.variables],
    }
    rng = np.random.default_rng(seed)
    for variables in groups.values():
        for variable in variables:
            variable.assign(rng.integers(0, 1000, variable.shape))
    return groups


def values(groups):
    return {name: [np.asarray(variable) for variable in variables] for name, variables in groups.items()}


def renamed(arrays, change):
    """The arrays of a snapshot with other names: `change` makes (place, name) of (group, place, name)."""
    found = {}
    for key, array in arrays.items():
        group, place, name = key.split("/", 2)
        place, name = change(group, int(place), name)
        found[f"{group}/{place:04d}/{name}"] = array
    return found


def by_name(groups):
    """What was written before variables were known by their paths."""
    return {
        f"{group}/{place:04d}/{variable.name}": np.asarray(variable)
        for group, variables in groups.items()
        for place, variable in enumerate(variables)
    }


@pytest.fixture(scope="module")
def saved():
    """(what a model held, its snapshot, the same as older versions wrote it)."""
    groups = groups_of_a_new_model(0)
    return values(groups), snapshot(groups), by_name(groups)


@pytest.fixture(scope="module")
def fresh(saved):
    """The same network built again in the same session, after others: Keras counts on."""
    del saved
    keras.layers.Dropout(0.5)
    keras.optimizers.SGD()
    return groups_of_a_new_model(1)


@pytest.fixture
def other(fresh):
    for variable in (variable for variables in fresh.values() for variable in variables):
        variable.assign(np.zeros(variable.shape))
    return fresh


def assert_equal(groups, expected):
    for name, arrays in values(groups).items():
        for place, (array, right) in enumerate(zip(arrays, expected[name], strict=True)):
            np.testing.assert_array_equal(array, right, err_msg=f"{name} {place}")


def test_variables_come_back_whatever_was_built_before(saved, other):
    held, arrays, older = saved
    assert {"model/0001/conv1_bn/gamma", "metrics/0000/loss/total"} <= set(arrays)
    # Keras has counted on, so that names by which the two could be told are not all the same
    assert set(snapshot(other)) != set(arrays)
    assign(other, arrays, "a.npz")
    assert_equal(other, held)
    for variable in other["model"]:
        variable.assign(np.zeros(variable.shape))
    assign(other, older, "a.npz")
    assert_equal(other, held)
    assign({"model": other["model"]}, arrays, "a.npz")


def test_an_order_that_has_changed_is_seen_through(saved, other):
    held, arrays, _ = saved
    counts = {group: len(variables) for group, variables in held.items()}
    assign(other, renamed(arrays, lambda group, place, name: (counts[group] - 1 - place, name)), "a.npz")
    assert_equal(other, held)


def swapped(group, place, name):
    """gamma and beta of the first normalisation, of one shape, in each other's place: none is at home there."""
    return ({1: 2, 2: 1}.get(place, place) if group == "model" else place), name


def without_layer(group, place, name):
    return place, name.replace("conv1_bn/beta", "stem_bn/beta")


def test_what_does_not_fit_is_refused_and_named_before_anything_changes(saved, other):
    _, arrays, older = saved
    expected = values(other)
    for wrong, message in [
        (renamed(older, swapped), "of the model it lacks gamma and has beta in its place"),
        (renamed(arrays, without_layer), "it lacks conv1_bn/beta and has stem_bn/beta in its place"),
        ({key: array for key, array in arrays.items() if "total" not in key}, "holds 7 variables of the metrics"),
        (arrays | {"model/0001/conv1_bn/gamma": np.zeros(65)}, r"conv1_bn/gamma has shape \(65,\), expected \(64,\)"),
        (older | {"model/0001/gamma": np.zeros(65)}, r"gamma has shape \(65,\), expected \(64,\)"),
    ]:
        with pytest.raises(UserError, match=f"^a.npz: .*{message}") as refused:
            assign(other, wrong, "a.npz")
        assert "\n" not in str(refused.value)
        assert_equal(other, expected)


@pytest.mark.parametrize(
    ("stored", "paths", "places"),
    [
        # Keras's counts go on through a session, and start without a number
        (["sgd/rate", "sgd_1/rate"], ["sgd_7/rate", "sgd_12/rate"], [0, 1]),
        (["conv2d_9/kernel", "conv2d_10/kernel"], ["conv2d_1/kernel", "conv2d/kernel"], [1, 0]),
        # numbers in names of their own tell layers apart
        (["block_5_0/kernel", "block_5_1/kernel"], ["block_5_1/kernel", "block_5_0/kernel"], [1, 0]),
        (["block_5_0/kernel", "block_5_1/kernel"], ["block_5_0/kernel", "block_6_1/kernel"], "block_6_1/kernel"),
        # the same path twice: place and path must both be right
        (["conv/kernel", "conv/kernel", "conv/bias"], ["conv/kernel", "conv/kernel", "conv/bias"], [0, 1, 2]),
        (["conv/kernel", "conv/kernel", "conv/bias"], ["conv/kernel", "conv/bias", "conv/kernel"], "conv/bias"),
        (["conv_1/kernel", "conv_2/kernel"], ["conv/kernel", "conv/kernel"], "conv/kernel"),
    ],
)
def test_paths_are_compared_without_what_a_session_counts(stored, paths, places):
    given = {}
    variables = [
        SimpleNamespace(
            path=path, name=path.split("/")[-1], shape=(), assign=functools.partial(given.__setitem__, place)
        )
        for place, path in enumerate(paths)
    ]
    arrays = {f"model/{place:04d}/{path}": np.array(place) for place, path in enumerate(stored)}
    if isinstance(places, str):
        with pytest.raises(UserError, match=f"lacks {places} "):
            assign({"model": variables}, arrays, "a.npz")
        assert not given
    else:
        assign({"model": variables}, arrays, "a.npz")
        assert [int(given[place]) for place in range(len(paths))] == places


@pytest.mark.parametrize(
    "paths",
    [
        # an optimiser names its slots after the variables, the counts of their layers included
        ["sgd_2/net_3_conv2d_10_kernel_momentum", "sgd_2/net_3_conv2d_9_kernel_momentum"],
        ["sgd/net_conv2d_1_kernel_momentum", "sgd/net_conv2d_kernel_momentum"],
    ],
)
def test_slots_of_an_optimiser_carry_the_counts_of_layers(paths):
    stored = ["sgd/net_conv2d_4_kernel_momentum", "sgd/net_conv2d_5_kernel_momentum"]
    given = {}
    variables = [
        SimpleNamespace(path=path, name=path, shape=(), assign=functools.partial(given.__setitem__, path))
        for path in paths
    ]
    arrays = {f"optimizer/{place:04d}/{path}": np.array(place) for place, path in enumerate(stored)}
    assign({"optimizer": variables}, arrays, "a.npz")
    assert [int(given[path]) for path in paths] == [1, 0]


@pytest.mark.parametrize("written", [snapshot, by_name])
def test_a_run_begun_with_a_constant_rate_goes_on_with_a_schedule(written):
    weights = [keras.Variable(np.zeros(3, "float32"))]
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([5], [0.1, 0.1])
    before, after = (keras.optimizers.SGD(rate, momentum=0.9) for rate in (0.1, schedule))
    for optimizer in (before, after):
        optimizer.build(weights)
    before.apply([np.ones(3, "float32")])
    assign({"optimizer": after.variables}, written({"optimizer": before.variables}), "a.npz")
    assert int(after.iterations.numpy()) == 1
    np.testing.assert_array_equal(after.variables[-1], before.variables[-1])
    assert np.any(np.asarray(after.variables[-1]))


def test_the_last_ones_and_the_best_stay_and_nothing_half_written(tmp_path):
    checkpoints = Checkpoints(tmp_path, Retention(keep_checkpoints=2))
    (tmp_path / f".step-000000003.{'0' * 32}.npz").write_text("a run killed while it wrote")
    for step in range(1, 7):
        meta = {"step": step, "best": {"step": min(step, 2)}}
        checkpoints.save(step, {"model/0000/kernel": np.float32([step])}, meta)
        if step == 1:
            # in order of name it comes after all others
            shutil.copy(checkpoints.paths()[0], tmp_path / "step-kept.npz")
    names = [f"step-{step:09d}.npz" for step in (2, 5, 6)]
    assert [path.name for path in checkpoints.paths()] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "step-kept.npz"]
    for which, step in {"last": 6, "best": 2}.items():
        path, arrays, meta = checkpoints.load(which)
        assert (path.stem, arrays["model/0000/kernel"], meta["step"]) == (f"step-{step:09d}", [step], step)
    # of files that a disk has lost, the one before counts
    for contents in (b"", checkpoints.paths()[-1].read_bytes()[:100]):
        checkpoints.paths()[-1].write_bytes(contents)
        assert checkpoints.load()[2]["step"] == 5
    for path in checkpoints.paths():
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read"):
        checkpoints.load()
    with pytest.raises(UserError, match="can't be read, and the run can't go on without"):
        read_arrays(path)


def test_a_best_checkpoint_that_is_lost_is_told_and_the_last_one_is_none_the_worse(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(step, {"model/0000/kernel": np.float32([step])}, {"step": step, "best": {"step": 1}})
    for lose in (lambda path: path.write_bytes(b""), lambda path: path.unlink()):
        lose(tmp_path / "step-000000001.npz")
        with pytest.raises(UserError, match=r"the best checkpoint of .*, step-000000001.npz, is gone or can't be read"):
            checkpoints.load("best")
        assert checkpoints.load()[2]["step"] == 3


@pytest.mark.parametrize("before", [None, {"step": 1}])
def test_what_was_the_best_in_its_time_stands_for_no_better_one(tmp_path, before):
    checkpoints = Checkpoints(tmp_path, Retention(keep_checkpoints=3))
    for step, best in ((1, before), (2, {"step": 2}), (3, {"step": 2})):
        checkpoints.save(step, {"model/0000/kernel": np.float32([step])}, {"step": step, "best": best})
    assert checkpoints.load("best")[2]["step"] == 2
    (tmp_path / "step-000000002.npz").write_bytes(b"")
    with pytest.raises(UserError, match=r"step-000000002.npz, is gone or can't be read"):
        checkpoints.load("best")


def test_a_broken_checkpoint_of_a_later_step_takes_no_place(tmp_path):
    """A run that goes on before it, and is killed again, has what it saved meanwhile."""
    checkpoints = Checkpoints(tmp_path, Retention(keep_checkpoints=1))
    checkpoints.save(1, {"model/0000/kernel": np.float32([1])}, {"step": 1, "best": {"step": 1}})
    (tmp_path / "step-000000003.npz").write_bytes(b"")
    assert checkpoints.load()[2]["step"] == 1
    checkpoints.save(2, {"model/0000/kernel": np.float32([2])}, {"step": 2, "best": {"step": 1}})
    assert checkpoints.load()[2]["step"] == 2
    checkpoints.save(3, {"model/0000/kernel": np.float32([3])}, {"step": 3, "best": {"step": 1}})
    assert [path.stem for path in checkpoints.paths()] == ["step-000000001", "step-000000003"]
    assert checkpoints.load()[2]["step"] == 3
