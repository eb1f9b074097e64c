"""A run is one folder, and whatever comes after training needs nothing but that folder."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mg_keras.checkpoints import Checkpoints, assign
from mg_keras.errors import UserError
from mg_keras.files import atomic_path, atomic_write_json, atomic_write_text, check_writable, printable_name, try_lock
from mg_keras.runs.config import PLACES, TrainConfig
from mg_keras.runs.results import Results, read_json

if TYPE_CHECKING:
    from mg_keras.data.sources import Source
    from mg_keras.multigrain import MultiGrain


class Run:
    """The folder of a run.

    ```
    config.yaml        every setting
    classes.txt        the names of the classes, one a line, in the order of the logits
    data.json          what it was begun with: the classes of the data, the numbers of photos
    checkpoints/       step-*.npz: the last ones and the best
    objective.npz      what the objective keeps as it was at the start, such as a teacher (only if there is any)
    metrics.csv        a row for each epoch; curves.png draws it, tensorboard/ holds it too
    metrics.json       scores by resolution, after training; the step and fingerprint of the network that they are of
    p_star.json        the chosen exponent of each resolution, the scores it was chosen by, the fine-tuned ones, and the
                       fingerprint of the network that they are of
    sweep.json         accuracy and IN-aug score by resolution and exponent (only if asked for); sweep.png draws it
    whitening.npz      of the exported descriptor; whitening-SIZE.npz of the other resolutions,
                       whitening-SIZE-rmac.npz and whitening-SIZE-p1.npz of other poolings, for comparison
    whitening.json     by resolution: what the whitening was fitted on, of which network, and what it costs in classes
    saved_model/       <version>/ for TF Serving and tf.saved_model.load
    retrieval.png, scores.png, p_star.png, and of labels of two levels categories.png
    bad_images.txt     photos that could not be used, and files and folders that were passed over, with the reason (only
                       if there are any); bad_images.workerN.txt of the workers after the first
    leaks.txt          photos that are the same in training and validation, or in two classes (only if there are any)
    best/              the results above of the best checkpoint, once it is measured: `Run(checkpoint="best")`
    ```

    Args:
        path: the folder.
        settings: `TrainConfig`.
        checkpoint: `"last"`, or `"best"` for the model of that checkpoint and the results that were made with it.

    Raises:
        ValueError: for any other checkpoint.
    """

    def __init__(self, path: str | os.PathLike, settings: TrainConfig, checkpoint: str = "last"):
        if checkpoint not in ("last", "best"):
            raise ValueError(f"checkpoint must be 'last' or 'best', received {checkpoint!r}")
        self.path, self.settings, self.checkpoint = Path(path), settings, checkpoint
        self.checkpoints = Checkpoints(self.path / "checkpoints", settings)

    @property
    def trained_share(self) -> float:
        """How much of the training has been saved, 0-1."""
        return self.trained_steps / (self.settings.epochs * self.settings.iterations)

    @property
    def trained_steps(self) -> int:
        """The steps of training that have been saved: that of the last checkpoint, 0 where there is none."""
        paths = self.checkpoints.paths()
        return _step_of(paths[-1]) if paths else 0

    @classmethod
    def at(cls, path: str | os.PathLike, config: TrainConfig) -> Self:
        """A new run, of which nothing is written yet, or the run in a folder, to go on with.

        Raises:
            UserError: the folder holds another run, or something that is no run, or can't be written to.
        """
        path = Path(path)
        # one look for all: other workers start in the same folder meanwhile, and write aside under hidden names
        there = [item.name for item in path.iterdir() if not item.name.startswith(".")] if path.is_dir() else []
        if "config.yaml" in there:
            # the whitening is fitted anew in any case
            changed = TrainConfig.load(path / "config.yaml").differences(config, without=(*PLACES, "unlabelled"))
            if changed:
                raise UserError(
                    f"{path} holds a run with other settings ({'; '.join(changed)}): give the same ones to go on with "
                    "it, or another --run folder; to train on with others from where it is, give another --run folder "
                    f"and --config {path / 'config.yaml'} --init {path}"
                )
        elif there or path.is_file():
            raise UserError(f"{path} is not empty and holds no run: give another --run folder")
        check_writable(path)
        return cls(path, config)

    @classmethod
    def start(cls, path: str | os.PathLike, config: TrainConfig) -> Self:
        """As `at`, and writes the settings: to make a run without training it."""
        run = cls.at(path, config)
        run.save_settings()
        return run

    def begin(self, source: "Source", is_chief: bool = True, class_names: Sequence[str] | None = None) -> None:
        """Writes what a run has before its first step: its settings, its classes and what is known of its photos.

        Args:
            source: of `mg_keras.runs.photos.matched`.
            is_chief: whether this is the worker that writes what is written once.
            class_names: the classes of the network; None: the source's.
        """
        self.save_settings()
        if is_chief:
            self.save_class_names(source.class_names if class_names is None else class_names)
            self.save_data(source)

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Keeps others from training the run meanwhile; a process that is killed keeps nobody out.

        Raises:
            UserError: another process is training it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        # not the folder itself, which an ablation keeps for its member
        descriptor = os.open(self.path / ".training", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not try_lock(descriptor):
                raise UserError(f"{self.path} is being trained by another process: give another --run folder")
            yield
        finally:
            os.close(descriptor)

    def save_settings(self) -> None:
        """Writes `config.yaml`, unless it is as it should be."""
        path = self.path / "config.yaml"
        if not path.is_file() or TrainConfig.load(path) != self.settings:
            with atomic_path(path) as partial:
                self.settings.save(partial)

    @classmethod
    def open(cls, path: str | os.PathLike) -> Self:
        """The run in a folder.

        Raises:
            UserError: there is none.
        """
        path = Path(path)
        if not (path / "config.yaml").is_file():
            raise UserError(f"no run in {path}: it has no config.yaml; mg-keras train makes one")
        return cls(path, TrainConfig.load(path / "config.yaml"))

    def save_class_names(self, names: Sequence[str]) -> None:
        """Notes the classes, in the order of the logits. That is done once: what was learnt belongs to these numbers.

        Raises:
            UserError: others are noted already.
        """
        names = [printable_name(name) for name in names]
        path = self.path / "classes.txt"
        if not path.exists():
            atomic_write_text(path, "".join(f"{name}\n" for name in names))
        elif self.class_names != names:
            raise UserError(f"{path} holds other classes, or in another order: give another folder for a new run")

    @cached_property
    def class_names(self) -> list[str]:
        """The names of the classes, in the order of the logits.

        Raises:
            UserError: they are not noted.
        """
        path = self.path / "classes.txt"
        if not path.is_file():
            raise UserError(f"{path} is missing: it holds the names of the classes, a line each, in the logits' order")
        return path.read_text(encoding="utf-8").splitlines()

    def save_data(self, source: "Source") -> None:
        """Notes what the run is begun with, to know its photos again where they are moved. That is done once."""
        if not (self.path / "data.json").exists():
            content = {
                "classes": source.class_names,
                "training_photos": len(source.train),
                "validation_photos": len(source.val),
            }
            atomic_write_json(self.path / "data.json", content)

    @property
    def data_record(self) -> dict[str, Any]:
        """What `save_data` noted; empty for a run that is older than that."""
        return read_json(self.path / "data.json")

    @cached_property
    def model(self) -> "MultiGrain":
        """The trained model, of the checkpoint.

        Raises:
            UserError: there is no checkpoint yet.
        """
        return self._model_and_step[0]

    @property
    def model_step(self) -> int:
        """The steps that the `model` was trained for, whatever has been saved since it was loaded.

        Raises:
            UserError: there is no checkpoint yet.
        """
        return self._model_and_step[1]

    @cached_property
    def _model_and_step(self):
        found = self.checkpoints.load(self.checkpoint, ["model"])
        if found is None:
            raise UserError(f"{self.path} has no checkpoint yet: run mg-keras train first")
        path, arrays, _ = found
        # TensorFlow's seconds are spent where there is a network to build
        from mg_keras.runs.networks import build_model

        model = build_model(self.settings, len(self.class_names))
        assign({"model": model.state_variables}, arrays, path)
        return model, _step_of(path)

    @cached_property
    def fingerprint(self) -> str:
        """That of the `model`: results note it, to be known as those of another network once training has gone on."""
        return self.model.fingerprint()

    @property
    def results(self) -> Results:
        """p*, whitenings, metrics and pictures.

        The best checkpoint's have a folder of their own, so that no p* or whitening of one checkpoint meets the other's
        embeddings.
        """
        folder = self.path if self.checkpoint == "last" else self.path / self.checkpoint
        return Results(folder, self.settings.resolution, self.settings.pooling_exponent)

    def changed(self, checkpoint: str | None = None, **settings) -> Self:
        """The same run with another checkpoint or other settings, for what is done now; those in the folder stay.

        Args:
            checkpoint: `"last"` or `"best"`; None: the same.
            settings: of `TrainConfig`; None keeps the run's own.

        Raises:
            ValueError: there is no such checkpoint.
            UserError: a setting is not what it may be.
        """
        given = {name: value for name, value in settings.items() if value is not None}
        return type(self)(self.path, dataclasses.replace(self.settings, **given), checkpoint or self.checkpoint)


def _step_of(checkpoint):
    """A checkpoint's step, by the name of its file."""
    return int(checkpoint.stem.removeprefix("step-"))


def load_run(
    path: str | os.PathLike,
    resolutions: Sequence[int] | None = None,
    checkpoint: str = "last",
    data: str | None = None,
    **settings,
) -> Run:
    """The run in the folder `path`, for programs that come after training.

    Args:
        path: the folder.
        resolutions: pixels to measure at instead of those of the settings; None keeps them.
        checkpoint: `"last"` or `"best"`, as `Run` takes it.
        data: where its photos lie now, as `TrainConfig.data`; None: where they were.
        settings: as `Run.changed` takes them.

    Raises:
        UserError: there is no run, or a setting is not what it may be.
    """
    return Run.open(path).changed(checkpoint, evaluation_resolutions=resolutions, data=data, **settings)
