"""Whitening a run: all that train/whiten.py and the stage behind it leave in the run's folder."""

import dataclasses
import errno
import functools
import json
import os
import re

import numpy as np
import pytest
import tensorflow as tf

from mg_keras.checkpoints import snapshot
from mg_keras.data import augmentations
from mg_keras.embedding import embedder
from mg_keras.embedding.photos import Embeddings, embed, embed_versions
from mg_keras.embedding.whitening import Whitening
from mg_keras.errors import UserError
from mg_keras.finishing.contrast import contrasted
from mg_keras.finishing.whitening import Fitted
from mg_keras.models import trunks
from mg_keras.poolings import RMAC
from mg_keras.programs import stages, whiten
from mg_keras.programs.export import export_run
from mg_keras.runs import descriptor
from mg_keras.runs import photos as run_photos
from mg_keras.runs.config import TrainConfig
from mg_keras.runs.networks import build_model
from mg_keras.runs.results import ChosenExponent, Results
from mg_keras.runs.run import Run, load_run
from tests.train.tiny import CLASSES, SETTINGS, draw_folder, finish, make_trunk_small, run_in_process, start


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return draw_folder(tmp_path_factory.mktemp("photos"))


def checkpoint(run, step, best):
    """Saves a model with random weights of its own; what is measured here needs no training."""
    model = build_model(dataclasses.replace(run.settings, seed=step), len(CLASSES))
    rng = np.random.default_rng(step)
    for weight in model.classifier.weights:
        weight.assign(rng.standard_normal(weight.shape))
    run.checkpoints.save(step, snapshot({"model": model.state_variables}), {"best": {"step": best}})


def start_run(data, path):
    """A run with two checkpoints, the first of which is the best."""
    config = TrainConfig(
        data=f"folder:{data}",
        trunk=SETTINGS["trunk"],
        resolution=32,
        evaluation_resolutions=[48],
        batch_size=8,
        whitening_dimensions=6,
    )
    run = Run.start(path, config)
    run.save_class_names(CLASSES)
    for step in (1, 2):
        checkpoint(run, step, best=1)
    return run


@pytest.fixture
def run(data, tmp_path, monkeypatch):
    """A run whose trunk is cut down to two small blocks and 40 channels, which builds and embeds in no time."""
    tiny = {"stackwise_num_filters": [64, 40], "stackwise_num_blocks": [1, 1], "stackwise_num_strides": [1, 2]}
    monkeypatch.setattr(trunks, "build", functools.partial(trunks.build, **tiny))
    return start_run(data, tmp_path / "run")


def embeddings(run, split, size, pooling):
    return embed(run.model, split, size, run.settings.resolution, [pooling]).values[0]


@pytest.mark.slow
def test_the_program_reports_what_was_lost(data, tmp_path, monkeypatch):
    make_trunk_small(monkeypatch)
    run = start_run(data, tmp_path / "run")
    run.results.save_choices({48: ChosenExponent(2.0)})
    options = [f"--run={run.path}", "--dimensions=8", "--unlabelled=training", "--comparison=true"]
    status, output, errors = finish(start("train/whiten.py", *options, small_trunk=True))
    assert status == 0, errors
    assert "whitening fitted on 30 training photos\n" in output
    source = run_photos.open_source(run.settings)
    assert (len(source.train), len(source.val)) == (30, 6)
    report = json.loads((run.path / "whitening.json").read_text())
    assert set(report) == {"32", "48"}
    kernel, bias = (np.asarray(weight, np.float64) for weight in run.model.classifier.weights)
    for size, p_star in ((32, 3.0), (48, 2.0)):
        whitening, entry = run.results.whitening_at(size), report[str(size)]
        assert whitening.projection_.shape == (17, 8)
        expected = Whitening.fit(embeddings(run, source.train, size, p_star), dimensions=8)
        np.testing.assert_allclose(whitening.mean_, expected.mean_, atol=1e-6)
        np.testing.assert_allclose(whitening.discarded_variance_, expected.discarded_variance_, rtol=1e-3)

        same = full = reduced = 0
        for e, label in zip(embeddings(run, source.val, size, p_star), source.val.labels, strict=True):
            hat = whitening.undo(whitening.transform(e[None]))[0]
            expected, answer = (int(np.argmax(row @ kernel + bias)) for row in (e, hat[:-1] / hat[-1]))
            same, full, reduced = same + (expected == answer), full + (expected == label), reduced + (answer == label)
        assert entry == {
            "settings": entry["settings"],
            "network": run.fingerprint,
            "p_star": p_star,
            "dimensions": 8,
            "embedding_dimensions": 17,
            "variance_kept": pytest.approx(whitening.variance_kept_),
            "shrinkage": None,
            "photos": 30,
            "fitted_on": "training photos",
            "class_agreement": pytest.approx(same / 6),
            "top1_embedding": pytest.approx(full / 6),
            "top1_descriptor": pytest.approx(reduced / 6),
            "validation_photos": 6,
        }
        assert f"{size} px, p* {p_star:g}: 8 of 17 dimensions, {entry['variance_kept']:.2%} of the variance" in output
        assert f"{same / 6:.2%} of 6 validation photos" in output
        assert run.results.whitening_at(size, RMAC).projection_.shape == (17, 8)


@pytest.mark.slow
def test_versions_teach_it_what_edits_change(run):
    run = run.changed(whitening_versions=2, whitening_shrinkage=0.3, whitening_power=0.25, augmentation="standard")
    source = run_photos.open_source(run.settings)
    stages.fit_whitening(run, source, resolutions=[32])
    rows = embeddings(run, source.train, 32, 3.0)
    found = embed_versions(run.model, source.train, augmentations.get("standard"), 32, 2, [3.0], run.settings.seed)
    # of photo after photo, in the order of their rows
    np.testing.assert_array_equal(found.rows, np.repeat(np.arange(30), 2))
    versions = found.values[0].reshape(30, 2, -1)
    expected = Whitening.fit_on_versions(rows, versions, shrinkage=0.3, dimensions=6, power=0.25)
    whitening = run.results.whitening_at(32)
    np.testing.assert_allclose(
        whitening.transform(rows) @ whitening.transform(rows).T,
        expected.transform(rows) @ expected.transform(rows).T,
        atol=1e-4,
    )
    entry = run.results.whitening_report[32]
    assert (entry["versions"], entry["power"]) == (2, 0.25)


@pytest.mark.slow
def test_versions_by_several_recipes_train_it_further(run):
    run = run.changed(whitening_versions=2, whitening_augmentations=["standard", "recaptured"], whitening_steps=3)
    source = run_photos.open_source(run.settings)
    stages.fit_whitening(run, source, resolutions=[32])
    rows = embeddings(run, source.train, 32, 3.0)
    versions = np.concatenate(
        [
            embed_versions(run.model, source.train, augmentations.get(name), 32, 2, [3.0], run.settings.seed)
            .values[0]
            .reshape(30, 2, -1)
            for name in ("standard", "recaptured")
        ],
        axis=1,
    )
    learned = Whitening.fit_on_versions(rows, versions, dimensions=6)
    expected = contrasted(learned, rows, versions, 3, run.settings.seed, run.model.classify(rows))
    whitening = run.results.whitening_at(32)
    similarities = [one.transform(rows) @ one.transform(rows).T for one in (whitening, expected, learned)]
    np.testing.assert_allclose(similarities[0], similarities[1], atol=1e-3)
    assert np.abs(similarities[0] - similarities[2]).max() > 1e-2
    entry = run.results.whitening_report[32]
    assert (entry["augmentations"], entry["steps"]) == (["standard", "recaptured"], 3)


@pytest.mark.slow
def test_a_run_that_learns_from_versions_can_be_whitened_by_pca(run):
    learned = {"whitening_versions": 2, "whitening_augmentations": ["standard"], "whitening_steps": 3}
    run.changed(**learned).settings.save(run.path / "config.yaml")
    whiten.main([f"--run={run.path}", "--versions=0", "--resolutions=32", "--comparison=false"])
    entry = load_run(run.path).results.whitening_report[32]
    assert (entry["photos"], "versions" in entry) == (30, False)


@pytest.mark.slow
def test_other_poolings_are_whitened_from_the_same_pass(run, monkeypatch):
    source = run_photos.open_source(run.settings)
    passes = []

    def counted(network, split, *arguments):
        passes.append(split)
        return embed(network, split, *arguments)

    monkeypatch.setattr(embedder, "embed", counted)
    stages.fit_whitening(run, source, poolings=(1.0, RMAC, 3.0), resolutions=[32])
    # the training photos once, the validation photos once for class agreement
    assert passes == [source.train, source.val]
    assert sorted(path.name for path in run.path.glob("whitening*")) == [
        "whitening-32-p1.npz",
        "whitening-32-p3.npz",
        "whitening-32-rmac.npz",
        "whitening.json",
        "whitening.npz",
    ]
    for pooling in (1.0, RMAC, 3.0):
        expected = Whitening.fit(embeddings(run, source.train, 32, pooling), dimensions=6)
        np.testing.assert_allclose(run.results.whitening_at(32, pooling).mean_, expected.mean_, atol=1e-6)
    # 3 is p* here
    np.testing.assert_array_equal(run.results.whitening_at(32, 3.0).projection_, run.results.whitening.projection_)
    assert run.results.whitening_at(32, 1.5) is None

    stages.fit_whitening(run, source, resolutions=[48])
    assert run.results.whitening_at(32, RMAC) is not None
    stages.fit_whitening(run, source)
    assert run.results.whitening_at(32, RMAC) is None
    assert set(run.results.whitening_report) == {32, 48}


def test_a_size_that_comes_later_is_whitened_as_the_others_were(run, capsys):
    """And not by the settings of the run, which `mg-keras whiten` was given others than."""
    given = ["--dimensions", "3", "--versions", "1", "--augmentations", "standard,copies", "--comparison", "false"]
    whiten.main(["--run", str(run.path), "--resolutions", "32", *given])
    run.results.save_choices({32: ChosenExponent(3.0), 48: ChosenExponent(3.0)})
    (said,) = stages.complete(run, run_photos.open_source(run.settings))
    assert said.startswith("whitening at 48 px fitted on 30 training photos")
    entry = run.results.whitening_report[48]
    assert (entry["dimensions"], entry["versions"], entry["augmentations"]) == (3, 1, ["standard", "copies"])
    assert run.results.whitening_at(48).projection_.shape[1] == 3


@pytest.mark.slow
def test_classes_are_measured_only_where_they_can_differ_or_when_asked(run):
    source = run_photos.open_source(run.settings)
    run.settings.whitening_dimensions, run.settings.whitening_shrinkage = None, 0.1
    stages.fit_whitening(run, source, resolutions=[32])
    entry = run.results.whitening_report[32]
    assert (entry["dimensions"], entry["variance_kept"], entry["shrinkage"]) == (41, 1, 0.1)
    assert "class_agreement" not in entry
    stages.fit_whitening(run, source, resolutions=[32], measure_classes=True)
    entry = run.results.whitening_report[32]
    assert entry["class_agreement"] == 1
    assert entry["top1_descriptor"] == entry["top1_embedding"]


def test_the_photos_to_fit_on(run, data, monkeypatch):
    def invented(network, split, size, train_resolution, poolings, label):
        values = np.random.default_rng(len(split)).uniform(size=(len(poolings), len(split), 40))
        return Embeddings(np.arange(len(split)), values, np.arange(0))

    monkeypatch.setattr(embedder, "embed", invented)
    source = run_photos.open_source(run.settings)
    assert stages.fit_whitening(run, source, resolutions=[32]).startswith("30 training photos, as there are no")
    run.settings.unlabelled = str(data / "disks")
    assert stages.fit_whitening(run, source, resolutions=[32]) == f"12 unlabelled photos of {data / 'disks'}"
    source = dataclasses.replace(source, unlabelled=source.val.subset(np.arange(5)))
    run.settings.unlabelled, run.settings.whitening_dimensions = None, 4
    assert stages.fit_whitening(run, source, resolutions=[32]).startswith("5 unlabelled photos of folder ")
    run.settings.unlabelled = "training"
    assert stages.fit_whitening(run, source, resolutions=[32]) == "30 training photos"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"whitening_dimensions": None}, "30 training photos, .*whitening 41 dimensions needs at least 42"),
        ({"whitening_dimensions": 30}, "whitening 30 dimensions needs at least 31 embeddings, received 30"),
        ({"whitening_dimensions": 42}, "from 1 to 41, received 42"),
    ],
    ids=str,
)
def test_what_can_not_be_fitted_is_refused_before_the_photos_are_embedded(run, settings, message, monkeypatch):
    run.settings = dataclasses.replace(run.settings, **settings)
    monkeypatch.delattr(embedder, "embed")
    with pytest.raises(UserError, match=message):
        stages.fit_whitening(run, run_photos.open_source(run.settings))
    assert not list(run.path.glob("whitening*"))


def test_versions_that_are_like_their_photos_are_refused_before_the_training(run):
    settings = dataclasses.replace(run.settings, augmentation="none", whitening_versions=2)
    message = r"whitening_versions 2 learns from what edits change, .* take whitening_augmentations such as \[copies\]"
    with pytest.raises(UserError, match=message):
        stages.check_later_stages(Run(run.path, settings), run_photos.open_source(settings), 40)
    settings.whitening_augmentations = ["copies"]
    stages.check_later_stages(Run(run.path, settings), run_photos.open_source(settings), 40)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "--dimensions=600",
            r"whitening on 30 training photos.*: dimensions must be a whole number from 1 to 41, received 600",
        ),
        ("--dimensions=0", "--dimensions must be a whole number, at least 1; received '0'"),
        ("--shrinkage=2", "--shrinkage must be a number, above 0 and at most 1; received '2'"),
        (
            "--augmentations=copies,mosaic",
            r"whitening_augmentations must be a list such as \[full,standard\] of some of full, .*, none; "
            r"received \['copies', 'mosaic'\]",
        ),
        ("--steps=3", r"whitening_versions 0 fits by PCA, without whitening_steps \(3\) and .*"),
        ("--power=0.5", "--power is of a whitening learned from versions of photos: give --versions, too"),
    ],
)
def test_a_mistake_is_one_line(run, option, message, monkeypatch, capsys):
    status, line = run_in_process("train/whiten.py", [f"--run={run.path}", option], monkeypatch, capsys)
    assert status == 2
    assert re.fullmatch(f"error: {message}", line), line


@pytest.mark.slow
def test_results_of_the_best_checkpoint_are_kept_apart(run):
    source = run_photos.open_source(run.settings)
    run.results.save_choices({32: ChosenExponent(2.0, {2.0: 4.0})})
    of_last = {"of": "last", "resolutions": {}, "benchmarks": {}}
    run.results.save_metrics(of_last)
    stages.fit_whitening(run, source, poolings=(1.0,), resolutions=[32])
    before = {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    last, whitening = np.asarray(run.model.classifier.kernel), run.results.whitening

    best = run.changed("best")
    results = best.results
    assert results.folder == run.path / "best"
    assert (results.choices, results.metrics, results.whitening_report) == ({}, {}, {})
    assert results.whitening is None
    assert results.whitening_at(32, 1.0) is None
    assert not np.array_equal(np.asarray(best.model.classifier.kernel), last)
    results.save_choices({32: ChosenExponent(4.0)})
    results.save_metrics({"of": "best"})
    stages.fit_whitening(best, source, poolings=(1.0,), resolutions=[32])
    assert results.whitening_report[32]["p_star"] == 4
    assert not np.array_equal(results.whitening.mean_, whitening.mean_)
    assert {path.name for path in (run.path / "best").iterdir()} == {
        "metrics.json",
        "p_star.json",
        "whitening-32-p1.npz",
        "whitening.json",
        "whitening.npz",
    }

    assert {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()} == before
    run = best.changed("last")
    np.testing.assert_array_equal(np.asarray(run.model.classifier.kernel), last)
    assert run.results.p_star == {32: 2.0}
    assert run.results.metrics == of_last
    np.testing.assert_array_equal(run.results.whitening.mean_, whitening.mean_)
    with pytest.raises(ValueError, match="received 'first'"):
        run.changed("first")


@pytest.mark.slow
def test_a_reduced_whitening_is_exported(run, tmp_path):
    """The graph's descriptors have the kept dimensions, and give the classes that the library gives."""
    source = run_photos.open_source(run.settings)
    stages.fit_whitening(run, source, resolutions=[32])
    path = export_run(load_run(run.path), tmp_path / "model")
    assert json.loads((path / "assets" / "multigrain.json").read_text())["embedding_size"] == 6
    served = tf.saved_model.load(path).signatures
    images = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).astype("float32")
    answer = served["serving_default"](images=tf.constant(images), p_star=tf.fill([4], 3.0))
    plain = run.model.embed_batch(images, (3.0,))[0].numpy()
    np.testing.assert_allclose(answer["embedding"], run.results.whitening.transform(plain), atol=1e-3)
    descriptors = answer["embedding"].numpy()
    hat = run.results.whitening.undo(descriptors)
    expected = run.model.classify(hat[:, :-1] / hat[:, -1:])
    again = served["classify_embedding"](embedding=tf.constant(descriptors))
    np.testing.assert_allclose(again["logits"], expected, atol=1e-4 * np.abs(expected).max())


def without_network(path):
    """A run that is said to be trained."""
    run = Run(path, TrainConfig(resolution=32))
    run.fingerprint = "trained"
    return run


def test_a_whitening_of_before_training_went_on_is_none_of_the_network(tmp_path):
    run = without_network(tmp_path)
    fitted = Fitted({3.0: Whitening(np.zeros(4), np.eye(4))}, {"p_star": 3.0})
    stages._keep_whitening(run, 32, fitted, [])
    assert stages.is_whitened(run, 32)
    assert descriptor.notes(run, [32], [32]) == []
    run.fingerprint = "trained for longer"
    assert not stages.is_whitened(run, 32)
    (note,) = descriptor.notes(run, [32], [32])
    assert note.startswith("the whitening at 32 px was fitted before training went on: mg-keras whiten --run ")
    # one of an older release, which doesn't say of which network it is, counts
    run.results.save_whitening_report({32: {"p_star": 3.0}})
    assert stages.is_whitened(run, 32)


def test_scores_of_the_whitening_before_are_not_kept(tmp_path):
    run = without_network(tmp_path)
    rows = {"gem": {"pooling": 3.0, "mAP": 0.6}, "gem_whitened": {"pooling": 3.0, "mAP": 0.7}}
    rows |= {"rmac_whitened": {"pooling": RMAC, "mAP": 0.5}}
    in_short = {"p_star": 3.0, "copies": 0.7, "copies_unwhitened": 0.6, "instance_whitened": 4.0}
    run.results.save_metrics(
        {
            "network": "trained",
            "resolutions": {"32": in_short, "48": in_short},
            "benchmarks": {"copies": {"description": "6 photos", "results": {"32": rows, "48": rows}}},
        }
    )
    stages._keep_whitening(run, 32, Fitted({3.0: Whitening(np.zeros(4), np.eye(4))}, {"p_star": 3.0}), [])
    found = run.results.metrics
    assert found["benchmarks"]["copies"]["results"] == {"32": {"gem": rows["gem"]}, "48": rows}
    assert found["resolutions"] == {"32": {"p_star": 3.0, "copies_unwhitened": 0.6}, "48": in_short}
    assert found["network"] == "trained"


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_fit_that_was_killed_between_its_files_is_none(written, again, tmp_path, monkeypatch):
    """`mg-keras evaluate` fits what is missing; with a part of it the tables would lack rows from then on."""
    run, save, left = without_network(tmp_path), Whitening.save, iter(range(written))

    def killed(whitening, path):
        if next(left, None) is None:
            raise KeyboardInterrupt
        save(whitening, path)

    if again:
        stages._keep_whitening(run, 48, fitted_with(0.1), stages.COMPARISON)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(Whitening, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        stages._keep_whitening(run, 48, fitted_with(0.3), stages.COMPARISON)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert stages.is_whitened(run, 48) == again


def fitted_with(shrinkage):
    """A whitening and those for comparison, which tell how they were fitted."""
    whitening = Whitening(np.full(4, shrinkage), np.eye(4))
    return Fitted(dict.fromkeys((3.0, *stages.COMPARISON), whitening), {"p_star": 3.0, "shrinkage": shrinkage})


@pytest.mark.parametrize("failing", ["metrics", "report", "rename"])
def test_no_whitening_has_the_report_of_another(failing, tmp_path, monkeypatch):
    """A disk that is full, or a kill, anywhere on the way."""
    run = without_network(tmp_path)
    stages._keep_whitening(run, 32, fitted_with(0.1), stages.COMPARISON)
    run.results.save_metrics({"benchmarks": {}})

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    replace = os.replace

    def full_at_the_last(source, target):
        (full if target == run.results.whitening_path(32) else replace)(source, target)

    if failing == "rename":
        monkeypatch.setattr(os, "replace", full_at_the_last)
    else:
        monkeypatch.setattr(Results, "save_metrics" if failing == "metrics" else "save_whitening_report", full)
    with pytest.raises(OSError, match="No space left"):
        stages._keep_whitening(run, 32, fitted_with(0.3), stages.COMPARISON)
    monkeypatch.undo()
    # nothing was lost before the new one was whole
    assert stages.is_whitened(run, 32) == (failing == "metrics")
    if whitening := run.results.whitening:
        assert whitening.mean_[0] == run.results.whitening_report[32]["shrinkage"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    stages._keep_whitening(run, 32, fitted_with(0.3), stages.COMPARISON)
    assert stages.is_whitened(run, 32)
    assert run.results.whitening.mean_[0] == run.results.whitening_report[32]["shrinkage"] == 0.3
    assert run.results.whitening_at(32, RMAC) is not None
