"""A run from its settings to its scores, as the programs that train do it."""

import contextlib
import os
import sys

from mg_keras.errors import UserError
from mg_keras.programs.common import print_table
from mg_keras.quiet import import_tensorflow
from mg_keras.runs.config import TrainConfig
from mg_keras.runs.run import Run


def train_and_measure(config: TrainConfig, folder: str | os.PathLike, strategy_name: str) -> Run | None:
    """Trains, chooses p*, fits the whitening and measures, saying on the way what it does.

    A run that was stopped or killed goes on where it was. Of one that was trained to its end, what is missing is done,
    and what is not of its network, p* or photos as they are now.

    Args:
        config: `TrainConfig`.
        folder: the run's folder; a new one is made.
        strategy_name: `mirrored`, `multiworker` or `single`.

    Returns:
        The `Run`, with metrics.json and all else but the SavedModel in its folder; None on the workers that only help.

    Raises:
        UserError: what a user can mend.
        SystemExit: a signal came while it trained, and it was saved; the exit status is the signal's.
    """
    import_tensorflow()
    from mg_keras.programs import stages
    from mg_keras.runs.photos import check_same_photos, known_classes, matched, open_source
    from mg_keras.runs.run import Run
    from mg_keras.training.loop import Trainer, enable_determinism, is_first_worker, make_strategy

    # what is refused is refused before anything is written: a finished run stays as it is
    run = Run.at(folder, config)
    is_trained = run.trained_share >= 1 and Run.open(folder).settings.unlabelled == config.unlabelled
    if strategy_name == "multiworker" and run.trained_share >= 1:
        # what is left needs no others, who may have ended
        if not is_first_worker():
            return None
        strategy_name = "single"
    strategy = make_strategy(strategy_name)
    enable_determinism(config)
    source = matched(run, open_source(config))
    note = check_same_photos(run, source)
    class_names, source = known_classes(run, source)
    trainer = Trainer(run, source, strategy, class_names)
    projection = trainer.objective.projection
    stages.check_later_stages(
        run, source, trainer.model.embedding_dimension, projection[0].shape[1] if projection else 0
    )
    going_on = trainer.restore()
    begun = f"going on from step {trainer.state.step}" if going_on else config.init and trainer.initialize()
    data = trainer.batches()
    with run.claimed() if trainer.is_chief else contextlib.nullcontext():
        # a command that is refused has said nothing of a run
        print(f"run {run.path}: {config.trunk} on {config.data}, strategy {strategy_name}", flush=True)
        print(
            f"{len(class_names)} classes, {len(source.train)} training and {len(source.val)} validation photos",
            flush=True,
        )
        if note:
            print(f"note: {note}", file=sys.stderr)
        if source.passed_over:
            print(f"files and folders that are passed over are listed in {run.path / 'bad_images.txt'}", flush=True)
        if begun:
            print(begun, flush=True)
        if not going_on:
            _warn_of_emulation(config)
        run.begin(source, trainer.is_chief, class_names)
        trainer.note_passed_over()
        if trainer.is_chief and not going_on:
            _warn_of_leaks(run, source)
        _train(trainer, data)
        if not trainer.is_chief:
            return None
        _measure(run, source, trainer, is_trained and not note)
    return run


def _train(trainer, data):
    """To the end, or until a signal comes."""
    from mg_keras.training.loop import Stopped

    try:
        trainer.train(data)
    except Stopped as stopped:
        step = trainer.state.step
        print(
            f"stopped at step {step}; the same command goes on from the last checkpoint"
            if trainer.several_workers
            else f"saved at step {step}; the same command goes on from there",
            file=sys.stderr,
        )
        sys.exit(128 + stopped.number)


def _warn_of_emulation(config):
    """Presets compute in bfloat16, which not every processor multiplies."""
    import tensorflow as tf

    from mg_keras.processor import computes_bfloat16

    if config.dtype == "mixed_bfloat16" and computes_bfloat16() is False and not tf.config.list_logical_devices("GPU"):
        print(
            "note: this processor emulates bfloat16: with --dtype float32 a step takes about half the time", flush=True
        )


def _warn_of_leaks(run, source):
    """Scores on photos that were trained on mean little: they are named before hours are spent."""
    from mg_keras.data.leaks import find_leaks
    from mg_keras.files import atomic_write_text

    listed = run.path / "leaks.txt"
    listed.unlink(missing_ok=True)
    leaks = find_leaks(source)
    if leaks:
        atomic_write_text(listed, leaks.text())
    for line in leaks.lines(listed):
        print(line, flush=True)


def _measure(run, source, trainer, was_trained=False):
    """The stages after training; where that had ended before, on the same photos, those that are still to be done."""
    from mg_keras.evaluation.tables import scores_table
    from mg_keras.programs import scores, stages

    embedder = stages.embedder_of(run)
    if trainer.validated and trainer.copy.fingerprint() == run.fingerprint:
        embedder.put(source.val, run.settings.resolution, *trainer.validated)
    if was_trained:
        for line in stages.complete(run, source, embedder):
            print(line, flush=True)
        if scores.is_measured(run, source):
            print(
                f"{run.path} is trained and measured; mg-keras evaluate --run {run.path} measures it anew", flush=True
            )
            print_table(scores_table(run.results.metrics))
            return
    else:
        _choose_and_fit(run, source, embedder)
    metrics = scores.evaluate(run, source, embedder=embedder)
    print_table(scores_table(metrics))
    bad_images = run.path / "bad_images.txt"
    if bad_images.exists():
        count = len(bad_images.read_text(encoding="utf-8").splitlines())
        print(f"{count} photos could not be used or were passed over: see {bad_images}", flush=True)


def _choose_and_fit(run, source, embedder):
    """p* and the whitening."""
    from mg_keras.programs import stages

    p_star = stages.choose_p_star(run, source, embedder=embedder)
    print("p* " + ", ".join(f"{size} px: {value}" for size, value in p_star.items()), flush=True)
    try:
        print(
            f"whitening fitted on {stages.fit_whitening(run, source, stages.COMPARISON, embedder=embedder)}", flush=True
        )
    except UserError as error:
        # hours of training must not end without scores and a model: the descriptor is taken as it is
        print(f"{_whitened_at(run)}: {error} ({stages.other_photos_command(run)})", file=sys.stderr)


def _whitened_at(run):
    """What the descriptors are measured as where a whitening could not be fitted, in words."""
    from mg_keras.runs.descriptor import is_whitened

    sizes = run.settings.resolutions
    kept = [size for size in sizes if is_whitened(run, size)]
    if not kept:
        return "not whitened"
    if kept == sizes:
        return "the whitening fitted earlier stays"
    without = ", ".join(f"{size} px" for size in sizes if size not in kept)
    return f"not whitened at {without}, elsewhere the whitening fitted earlier stays"
