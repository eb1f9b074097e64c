"""The training loop: steps on a distribution strategy, checkpoints, what a run writes while it learns."""

import contextlib
import csv
import dataclasses
import io
import math
import os
import time
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from mg_keras import pretrained
from mg_keras.checkpoints import assign, read_arrays, snapshot, write_arrays
from mg_keras.data import augmentations
from mg_keras.data.images import BadImages
from mg_keras.data.mixing.batches import mixed_batches
from mg_keras.data.repeated import repeated_batches, unusable_named
from mg_keras.data.sources import Source
from mg_keras.embedding.photos import embed
from mg_keras.errors import UserError, WorkerLost
from mg_keras.evaluation import pictures
from mg_keras.evaluation.metrics import top_k_accuracy
from mg_keras.evaluation.scores import METRICS
from mg_keras.files import atomic_write_text
from mg_keras.models.trunks import freeze_statistics
from mg_keras.progress import Progress
from mg_keras.runs import projection
from mg_keras.runs.config import TrainConfig
from mg_keras.runs.networks import build_model, build_objective
from mg_keras.runs.run import Run
from mg_keras.signals import on_stop
from mg_keras.training.class_balance import class_weights

FIXED = "objective.npz"
"""In a run's folder: what its objective keeps as it was at the start, such as a teacher."""

STRATEGIES = ("mirrored", "multiworker", "single")

# what workers raise that can't reach another
_OF_EXCHANGES = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)

# how lines begin that stand before the reason in an error of a graph
_NO_REASONS = ("Graph execution error:", "Detected at node", "<stack traces unavailable>", "  File ")

# how many steps may pass before a loss that is no number is noticed
_CHECK_EVERY = 20


class Stopped(Exception):
    """A signal asked the run to stop; it goes on with the same command, one of several workers from its checkpoint."""

    def __init__(self, number: int):
        super().__init__(f"stopped by signal {number}")
        self.number = number


def make_strategy(name: str) -> tf.distribute.Strategy:
    """The `tf.distribute` strategy of a name: all GPUs of this machine, the workers of TF_CONFIG, or one device.

    Raises:
        UserError: the name is unknown, or `multiworker` without the workers' addresses.
        WorkerLost: the other workers can't be reached.
    """
    if name == "mirrored":
        # without a GPU the logical CPU devices stand in: one, unless a test makes more
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    if name == "multiworker":
        _check_cluster()
        try:
            return tf.distribute.MultiWorkerMirroredStrategy()
        except tf.errors.OpError as error:
            raise WorkerLost(f"the other workers can't be reached ({_reason(error)}): start all again") from error
    if name == "single":
        return tf.distribute.get_strategy()
    raise UserError(f"strategy must be one of {', '.join(STRATEGIES)}, received {name!r}")


def is_first_worker() -> bool:
    """Whether this process is the worker of TF_CONFIG that writes the run.

    Raises:
        UserError: there is no TF_CONFIG.
    """
    _check_cluster()
    return tf.distribute.cluster_resolver.TFConfigClusterResolver().task_id == 0


def _check_cluster():
    if "TF_CONFIG" not in os.environ:
        raise UserError("strategy multiworker needs TF_CONFIG in the environment, with the workers' addresses")


def _reason(error):
    """What TensorFlow says of an error, without the operation that raised it."""
    lines = str(error).splitlines()
    # within a graph, where the operation stands comes before, and how many others failed at once
    reasons = (line for line in lines if line and not line.startswith(_NO_REASONS))
    first = next((line for line in reasons if not line.endswith("root error(s) found.")), lines[0])
    return first.partition("}} ")[2] or first.strip().removeprefix("(0) ")


def rate_schedule(config: TrainConfig, initial: float) -> keras.optimizers.schedules.LearningRateSchedule:
    """The learning rate by step: `initial` under the configuration's schedule, a Keras `LearningRateSchedule`.

    Raises:
        UserError: a warm-up with the step schedule.
    """
    if config.schedule == "step":
        if config.warmup_epochs:
            raise UserError("warmup_epochs is of the schedule cosine: take that one, or warmup_epochs 0")
        # the end of the training counts as one: a rate that stays is a schedule, too
        milestones = [epoch for epoch in config.milestones if epoch < config.epochs] + [config.epochs]
        boundaries = [epoch * config.iterations - 1 for epoch in milestones]
        values = [initial * config.decay**i for i in range(len(boundaries) + 1)]
        return keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, values)
    warmup = round(config.warmup_epochs * config.iterations)
    steps = max(config.epochs * config.iterations - warmup, 1)
    if not warmup:
        return keras.optimizers.schedules.CosineDecay(initial, steps)
    return keras.optimizers.schedules.CosineDecay(0.0, steps, warmup_target=initial, warmup_steps=warmup)


@dataclasses.dataclass
class State:
    """Where a run stands, beside its variables."""

    step: int = 0
    seconds: float = 0.0
    history: list = dataclasses.field(default_factory=list)
    best: dict | None = None


class Trainer:
    """Trains the model of a run from where its last checkpoint left it.

    Args:
        run: `mg_keras.runs.run.Run`, the folder and its configuration.
        source: `mg_keras.data.sources.Source`.
        strategy: of `make_strategy`.
        class_names: the classes that the network tells apart; None: the source's.
    """

    def __init__(
        self, run: Run, source: Source, strategy: tf.distribute.Strategy, class_names: Sequence[str] | None = None
    ):
        self.run, self.source, self.strategy = run, source, strategy
        self.class_names = source.class_names if class_names is None else class_names
        self.config = config = run.settings
        self.replicas = strategy.num_replicas_in_sync
        self.part_size = config.part_size(self.replicas)
        self.augment = augmentations.get(config.augmentation)
        self.several_workers = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        worker = strategy.cluster_resolver.task_id if self.several_workers else 0
        self.is_chief = worker == 0
        # each worker keeps its own list: two writers must not share a file
        name = "bad_images.txt" if self.is_chief else f"bad_images.worker{worker}.txt"
        self.bad_images = BadImages(run.path / name, config.on_bad_image)
        # a run that is to fail at them is refused before anything is written
        passed_over = BadImages(policy=config.on_bad_image)
        passed_over.add(source.passed_over)
        passed_over.check()
        self.rate = rate_schedule(config, config.learning_rate)
        with strategy.scope():
            self.model = build_model(config, len(self.class_names))
            self.model.freeze_stages(config.frozen_stages)
            if config.frozen_statistics:
                freeze_statistics(self.model.trunk)
            self.objective = build_objective(config, self.model, len(source.train))
            self.model.compile(
                keras.optimizers.SGD(self.rate, momentum=config.momentum),
                group_optimizers={
                    group.name: keras.optimizers.SGD(
                        rate_schedule(config, getattr(config, group.rate_setting)), momentum=config.momentum
                    )
                    for group in self.objective.parameter_groups(self.model)
                },
                objective=self.objective,
                weight_decay=config.weight_decay,
                accumulation_steps=config.accumulation_steps,
                jit_compile=config.jit_compile,
                trunk_rate=config.trunk_rate,
                class_weights=self._class_weights(),
            )
        # measured on a copy: variables under a strategy are read best outside of it
        self.copy = build_model(config, len(self.class_names))
        # the poolings and the embeddings of the last validation, which the stages after training ask for, too
        self.validated = None
        self.restored, self._val_labels = False, None
        self.state = State()

    def _class_weights(self):
        if self.config.class_balance == "none":
            return None
        return class_weights(self.config.class_balance, self.source.train.labels, len(self.class_names))

    @property
    def _groups(self):
        groups = {
            "model": self.model.state_variables,
            "optimizer": self.model.optimizer.variables,
            "metrics": [variable for metric in self.model.metrics for variable in metric.variables],
        }
        for name, optimizer in self.model.step.group_optimizers.items():
            groups[f"{name}_optimizer"] = optimizer.variables
        if self.objective.projection:
            groups[projection.GROUP] = list(self.objective.projection)
        if self.model.objective_variables:
            groups["objective"] = self.model.objective_variables
        return groups

    def restore(self) -> bool:
        """Takes up the last checkpoint, if there is one; returns whether there was."""
        found = self.run.checkpoints.load()
        if found is None:
            return False
        path, arrays, meta = found
        assign(self._groups, arrays, path)
        if self._fixed["fixed"]:
            path = self.run.path / FIXED
            assign(self._fixed, read_arrays(path), path)
        self.state = State(**meta)
        self.restored = True
        return True

    @property
    def _fixed(self):
        return {"fixed": self.objective.fixed_variables}

    def _start_objective(self):
        """Before the first step of all; what never changes from then on is stored once."""
        self.objective.start(self.model)
        arrays = snapshot(self._fixed)
        if arrays and self.is_chief:
            write_arrays(self.run.path / FIXED, arrays)

    def initialize(self) -> str:
        """Puts the weights that the configuration starts from in place; returns a line on what was taken.

        Raises:
            UserError: they can't be had, or are another network's.
        """
        note = pretrained.initialize(self.copy, self.config.init, self.config.trunk, self.class_names)
        assign({"model": self.model.state_variables}, snapshot({"model": self.copy.state_variables}), self.config.init)
        return note

    def save(self) -> None:
        """Writes a checkpoint of this moment.

        Raises:
            UserError: the losses are no numbers any more, or the disk does not take it.
        """
        arrays = snapshot(self._groups)
        self._check_finite()
        if not self.is_chief:
            return
        try:
            self.run.checkpoints.save(self.state.step, arrays, dataclasses.asdict(self.state))
        except OSError as error:
            raise UserError(
                f"checkpoint of step {self.state.step} could not be written to {self.run.checkpoints.folder}: "
                f"{error.strerror or error}; {self._last_good()}make room, then the same command goes on from there"
            ) from error

    def note_passed_over(self) -> None:
        """Lists what the source passed over in the run's folder, which must be there."""
        self.bad_images.add(self.source.passed_over)

    def batches(self) -> tf.data.Dataset | tf.distribute.DistributedDataset:
        """What `train` takes: the batches of the steps that are left.

        Raises:
            UserError: there are fewer photos than a step takes.
        """
        return self._distributed_batches(self.config.epochs * self.config.iterations - self.state.step)

    def train(self, batches: tf.data.Dataset | tf.distribute.DistributedDataset) -> State:
        """Runs all epochs that are left.

        Args:
            batches: of `batches()`, called where the run stands now.

        Raises:
            Stopped: a signal (Ctrl-C) came; the run was saved.
            UserError: the loss is no number, a photo is bad and that was not to be passed over, nearly all photos are
                bad, or the disk is full.
            WorkerLost: another worker is gone.
        """
        config, total = self.config, self.config.epochs * self.config.iterations
        with self._clear_errors(), self._watch_signals() as stop, self._summaries() as summaries:
            if not self.restored:
                self._start_objective()
            elif self.is_chief and self.state.history:
                # a run that was killed between a checkpoint and its row has no other chance, if it was the last one
                self._show_history()
            step = self._step_function(iter(batches))
            label = f"training {config.trunk} on {self.source.description}"
            with Progress(label, total, "steps", self.state.step) as progress:
                while self._epoch_under_way < config.epochs:
                    self._epoch(step, progress, stop, summaries)
                if stop:
                    raise Stopped(stop[0])
        return self.state

    @property
    def _epoch_under_way(self):
        """Its number, from 0: one whose last step is done has still to be validated where the run was stopped then."""
        epoch, within = divmod(self.state.step, self.config.iterations)
        noted = self.state.history[-1]["step"] if self.state.history else 0
        return epoch if within or noted == self.state.step else epoch - 1

    @contextlib.contextmanager
    def _clear_errors(self):
        """What TensorFlow raises, in a line."""
        try:
            with unusable_named(self.source.train, self.bad_images):
                yield
        except tf.errors.OpError as error:
            self.bad_images.check()
            step, reason = self.state.step, _reason(error)
            # whatever an exchange between workers ends with, a step of one machine doesn't
            if self.several_workers and isinstance(error, _OF_EXCHANGES):
                raise WorkerLost(
                    f"another worker is gone at step {step} ({reason}): start all workers again with the same command; "
                    + self._going_on()
                ) from error
            raise UserError(f"training stopped at step {step}: {reason}") from error

    def _going_on(self):
        paths = self.run.checkpoints.paths()
        return f"the run goes on from {paths[-1].name}" if paths else "the run begins anew, it has no checkpoint yet"

    def _epoch(self, step, progress, stop, summaries):
        """Steps to the end of the epoch, then validates, logs and saves."""
        config, state = self.config, self.state
        epoch = self._epoch_under_way
        began, first = time.monotonic(), state.step

        def so_far():
            values = {metric.name: float(metric.result()) for metric in self.model.metrics}
            rate = (state.step - first) * config.batch_size / max(time.monotonic() - began, 1e-9)
            return values, rate

        def note():
            values, rate = so_far()
            return f"epoch {epoch + 1}/{config.epochs}  {self._in_words(values)}  {rate:,.0f} images/s"

        while state.step < (epoch + 1) * config.iterations:
            step()
            state.step += 1
            # to read a metric is an exchange between workers, in which all must take part at the same step: not when
            # the clock of one of them says so
            progress.advance(1, None if self.several_workers else note)
            if state.step % _CHECK_EVERY == 0:
                self.bad_images.check()
                self._check_finite()
            if stop:
                state.seconds += time.monotonic() - began
                # several workers are stopped at different steps, and can't save together
                if not self.several_workers:
                    self.save()
                raise Stopped(stop[0])
            if state.step % config.checkpoint_every == 0 and state.step % config.iterations:
                elapsed = time.monotonic() - began
                state.seconds += elapsed
                self.save()
                began, first = time.monotonic(), state.step
        self._check_finite()
        values, rate = so_far()
        row = {
            "epoch": epoch + 1,
            "step": state.step,
            # that of the last step, from the schedule: the optimiser's own is in no plain variable under a strategy
            "learning_rate": float(self.rate(state.step - 1)),
            # none where the run was stopped with the epoch's last step
            **({"images_per_second": round(rate, 1)} if state.step > first else {}),
            **values,
        }
        state.seconds += time.monotonic() - began
        row["seconds"] = round(state.seconds, 2)
        if (epoch + 1) % config.val_every == 0 or epoch + 1 == config.epochs:
            row.update(self._validate())
            if state.best is None or row["val_top1"] > state.best["val_top1"]:
                state.best = {"step": state.step, "val_top1": row["val_top1"]}
        state.history.append(row)
        for metric in self.model.metrics:
            metric.reset_state()
        self.save()
        if self.is_chief:
            self._log(row, summaries)

    def _distributed_batches(self, steps):
        def feed(context):
            local = self.replicas // context.num_input_pipelines
            first = context.input_pipeline_id * local
            batches = repeated_batches(
                self.source.train,
                self.augment,
                size=self.config.resolution,
                batch_size=self.part_size,
                versions=self.config.versions,
                parts=self.config.accumulation_steps,
                replicas=self.replicas,
                local_replicas=range(first, first + local),
                seed=self.config.seed,
                start_step=self.state.step,
                steps=steps,
                bad_images=self.bad_images,
            )
            if self.config.mixing == "none":
                return batches
            return mixed_batches(
                batches,
                self.config.mixing,
                len(self.class_names),
                self.config.mixing_alpha,
                seed=self.config.seed,
                start_step=self.state.step,
                local_replicas=range(first, first + local),
            )

        if self.replicas == 1:
            # one device: nothing to distribute, and no copy on the way
            return feed(tf.distribute.InputContext())
        return self.strategy.distribute_datasets_from_function(feed)

    def _step_function(self, data):
        @tf.function(reduce_retracing=True, autograph=False)
        def step(batch):
            self.strategy.run(self.model.train_step, args=(batch,))

        return lambda: step(next(data))

    def _validate(self):
        """Top-1 and top-5 on the validation photos at the training resolution and exponent.

        Raises:
            UserError: none of the photos can be used, or one can't and that was not to be passed over; or the network
                gives no numbers any more.
        """
        self._learn_labels()
        arrays = snapshot({"model": self.model.state_variables})
        if not self.is_chief:
            return {"val_top1": 0.0, "val_top5": 0.0}
        assign({"model": self.copy.state_variables}, arrays, "the model in training")
        self.validated = None
        poolings = [self._exponent]
        found = embed(self.copy, self.source.val, self.config.resolution, self.config.resolution, poolings)
        self._note_unusable(self.source.val, found)
        self.validated = poolings, found
        logits = found.logits(self.copy)
        # the epoch's last update is in no loss yet
        if np.isnan(logits).any():
            raise self._diverged("validation gives nan")
        labels = self._val_labels[found.rows]
        return {f"val_top{k}": top_k_accuracy(logits, labels, min(k, logits.shape[1])) for k in (1, 5)}

    def _note_unusable(self, split, found):
        """Lists the photos of a split that could not be embedded as those are that could not be trained on."""
        for row in found.unusable.tolist():
            self.bad_images.record(split.names[row], lambda row=row: split.read(tf.constant(row)))
        self.bad_images.check()
        if not len(found.rows):
            name = split.names[0]
            reason = self.bad_images.reasons[name]
            raise UserError(f"none of the {len(split):,} validation photos can be used; the first, {name}: {reason}")

    @property
    def _exponent(self):
        """The training exponent, as the plain copy has it."""
        return float(self.copy.pool.pooling_exponent)

    def _learn_labels(self):
        """What validation counts as right: the labels, or the first classes of the objective's teacher."""
        if self._val_labels is not None:
            return
        if self.objective.teacher is None:
            self._val_labels = self.source.val.labels
            return
        # on the plain copy, as the network itself is validated
        arrays = snapshot({"model": self.objective.teacher.state_variables})
        if self.is_chief:
            assign({"model": self.copy.state_variables[: len(arrays)]}, arrays, "the teacher")
            found = embed(self.copy, self.source.val, self.config.resolution, self.config.resolution, [self._exponent])
            self._val_labels = np.full(len(self.source.val), -1, np.int64)
            self._val_labels[found.rows] = np.argmax(found.logits(self.copy), axis=1)

    def _check_finite(self):
        loss = float(self.model.metrics[0].result())
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss}")

    def _diverged(self, what):
        return UserError(
            f"{what} at step {self.state.step}: {self._last_good()}try a lower learning_rate "
            f"(it was {self.config.learning_rate}) in a new run"
        )

    def _last_good(self):
        paths = self.run.checkpoints.paths()
        return f"the last good checkpoint is {paths[-1].name}; " if paths else "there is no checkpoint yet; "

    def _show_history(self):
        """The CSV of all epochs so far, and its curves."""
        text = io.StringIO()
        measured = [metric.name for metric in self.objective.metrics]
        columns = ["epoch", "step", "seconds", "learning_rate", *measured, "images_per_second", "val_top1", "val_top5"]
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.state.history)
        atomic_write_text(self.run.path / "metrics.csv", text.getvalue())
        pictures.training_curves(self.run.path / "metrics.csv", self.run.path / "curves.png", self.objective.metrics)

    def _log(self, row, summaries):
        """What a person looks at: the CSV, its curves, TensorBoard."""
        self._show_history()
        with summaries.as_default(step=row["step"]):
            for name, value in row.items():
                if name not in ("epoch", "step"):
                    tf.summary.scalar(name, value)
        summaries.flush()
        epoch = f"epoch {row['epoch']}/{self.config.epochs}"
        rate = f"  {row['images_per_second']:.0f} images/s" if "images_per_second" in row else ""
        print(f"{epoch}  {self._in_words(row)}{rate}", flush=True)

    def _in_words(self, values):
        """What a line of progress says of an epoch's metrics."""
        shown = {metric.name: metric for metric in self.objective.metrics if metric.is_noted}
        shown["val_top1"] = METRICS["val_top1"]
        return "  ".join(
            f"{metric.title} {metric.text(values[name])}{metric.unit}"
            for name, metric in shown.items()
            if name in values
        )

    @contextlib.contextmanager
    def _summaries(self):
        writer = tf.summary.create_file_writer(str(self.run.path / "tensorboard")) if self.is_chief else None
        try:
            yield writer
        finally:
            if writer:
                writer.close()

    @contextlib.contextmanager
    def _watch_signals(self):
        """A list that gets the number of a signal that asks to stop; a second one stops at once."""
        received = []

        def handle(number):
            if received:
                raise KeyboardInterrupt
            received.append(number)

        with on_stop(handle):
            yield received


def enable_determinism(config: TrainConfig) -> None:
    """Makes TensorFlow's operations give the same bits on every run, if the configuration asks for it."""
    if config.deterministic:
        keras.utils.set_random_seed(config.seed)
        tf.config.experimental.enable_op_determinism()
