"""A run is one folder, and whatever comes after training needs nothing but that folder."""

import dataclasses
import json
import os
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mg_keras.checkpoints import Checkpoints, assign
from mg_keras.embedding.whitening import Whitening
from mg_keras.errors import UserError
from mg_keras.files import atomic_path, atomic_write_json, atomic_write_text, check_writable, printable_name
from mg_keras.runs.config import PLACES, TrainConfig

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
    metrics.json       scores by resolution, after training
    p_star.json        the chosen exponent of each resolution, the scores it was chosen by, and the fine-tuned ones
    sweep.json         accuracy and IN-aug score by resolution and exponent (only if asked for); sweep.png draws it
    whitening.npz      of the exported descriptor; whitening-SIZE.npz of the other resolutions,
                       whitening-SIZE-rmac.npz and whitening-SIZE-p1.npz of other poolings, for comparison
    whitening.json     by resolution: what the whitening was fitted on, and what it costs in classes
    saved_model/       <version>/ for TF Serving and tf.saved_model.load
    retrieval.png, scores.png, p_star.png
    bad_images.txt     photos that could not be used, and files and folders that were passed over, with the reason (only
                       if there are any)
    leaks.txt          photos that are the same in training and validation, or in two classes (only if there are any)
    best/              the results above of the best checkpoint, once it is measured: see `use_checkpoint`
    ```

    Args:
        path: the folder.
        config: `TrainConfig`.
    """

    def __init__(self, path: str | os.PathLike, config: TrainConfig):
        self.path, self.settings = Path(path), config
        self.checkpoints = Checkpoints(self.path / "checkpoints", config.keep_checkpoints)
        self.checkpoint = "last"

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
            source: of `matched`.
            is_chief: whether this is the worker that writes what is written once.
            class_names: the classes of the network; None: the source's.
        """
        self.save_settings()
        if is_chief:
            self.save_class_names(source.class_names if class_names is None else class_names)
            self.save_data(source)

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

    @property
    def config(self) -> dict[str, Any]:
        """The settings as a dict."""
        return dataclasses.asdict(self.settings)

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
        return self._read(self.path / "data.json")

    def matched(self, source: "Source") -> "Source":
        """A source with its classes numbered as the run has them: a class is its name, not its place in a list.

        A new run takes the classes as they are, and so does a network that came from elsewhere and was to be measured
        on classes that are not its own.

        Args:
            source: `mg_keras.data.sources.Source`.

        Returns:
            A `Source` of the same photos.

        Raises:
            UserError: the run was begun with other classes; the message names the difference.
        """
        if not (self.path / "classes.txt").is_file():
            return source
        # before there was such a record, only a network from elsewhere could be begun with classes not its own
        from_elsewhere = [path.stem for path in self.checkpoints.paths()] == ["step-000000000"]
        unknown = source.class_names if from_elsewhere else self.class_names
        begun_with = self.data_record.get("classes", unknown)
        # one that was begun without labels has the classes of its teacher
        if not begun_with or not set(begun_with) <= set(self.class_names):
            return source
        if difference := _difference(begun_with, source.class_names):
            raise UserError(
                f"{self.path} and {self.settings.data} have other classes: {difference}; give the classes their names "
                f"back, name the run's photos with --data, or train a new run (--init {self.path} starts from the "
                "weights of this one)"
            )
        return source.with_classes(self.class_names)

    def check_same_photos(self, source: "Source") -> str | None:
        """Refuses to go on training with other photos than before.

        Args:
            source: of `matched`.

        Returns:
            str, a note on photos that came or went in the same place, or None.

        Raises:
            UserError: the place is another one, and so is the number of training photos.
        """
        before, now = self.data_record.get("training_photos"), len(source.train)
        if before in (None, now):
            return None
        found = f"{self.settings.data} has {now:,} training photos, where the run was begun with {before:,}"
        noted = TrainConfig.load(self.path / "config.yaml")
        if any(getattr(noted, place) != getattr(self.settings, place) for place in PLACES):
            raise UserError(
                f"{found}: these are not the photos of {self.path}, moved; give those to go on with it, or another "
                f"--run folder and --init {self.path} to train on with others"
            )
        return found

    @cached_property
    def model(self) -> "MultiGrain":
        """The trained model, from the last checkpoint or the one that `use_checkpoint` named.

        Raises:
            UserError: there is no checkpoint yet.
        """
        return self.load_model(self.checkpoint)

    def use_checkpoint(self, which: str) -> None:
        """Takes the model of the `"last"` or the `"best"` checkpoint, and the results that were made with it.

        Raises:
            ValueError: for any other name.
        """
        if which not in ("last", "best"):
            raise ValueError(f"which must be 'last' or 'best', received {which!r}")
        self.checkpoint = which
        self.__dict__.pop("model", None)

    @property
    def results(self) -> Path:
        """Where p*, whitenings, metrics and pictures lie.

        The best checkpoint's have a folder of their own, so that no p* or whitening of one checkpoint meets the other's
        embeddings.
        """
        return self.path if self.checkpoint == "last" else self.path / self.checkpoint

    def use(self, **settings) -> None:
        """Takes other settings for what is done now; those in the folder stay.

        Args:
            settings: of `TrainConfig`; None keeps the run's own.

        Raises:
            UserError: one of them is not what it may be.
        """
        given = {name: value for name, value in settings.items() if value is not None}
        self.settings = dataclasses.replace(self.settings, **given)

    def load_model(self, which: str) -> "MultiGrain":
        """The model of the `"last"` or the `"best"` checkpoint."""
        found = self.checkpoints.load(which)
        if found is None:
            raise UserError(f"{self.path} has no checkpoint yet: run mg-keras train first")
        path, arrays, _ = found
        # TensorFlow's seconds are spent where there is a network to build
        from mg_keras.runs.networks import build_model

        model = build_model(self.settings, len(self.class_names))
        assign({"model": model.state_variables}, arrays, path)
        return model

    def whitening_path(self, resolution: int, pooling: float | str | None = None) -> Path:
        """Where a fitted whitening lies.

        Args:
            resolution: s*, pixels. The whitening of the training resolution is the exported one.
            pooling: None for that of the resolution's p*; an exponent or `"rmac"` for one that is fitted beside it, for
                comparison.
        """
        if pooling is not None:
            name = pooling if isinstance(pooling, str) else f"p{pooling:g}"
            return self.results / f"whitening-{resolution}-{name}.npz"
        exported = resolution == self.settings.resolution
        return self.results / ("whitening.npz" if exported else f"whitening-{resolution}.npz")

    def whitening_at(self, resolution: int, pooling: float | str | None = None) -> Whitening | None:
        """The `Whitening` at a `whitening_path`, or None before it is fitted."""
        path = self.whitening_path(resolution, pooling)
        return Whitening.load(path) if path.exists() else None

    @property
    def whitening(self) -> Whitening | None:
        """The `Whitening` that is exported, or None before it is fitted."""
        return self.whitening_at(self.settings.resolution)

    @property
    def whitening_report(self) -> dict[int, dict[str, Any]]:
        """Resolution -> how its whitening was fitted and what it costs in classes; empty before the fit."""
        return {int(resolution): entry for resolution, entry in self._read(self.results / "whitening.json").items()}

    def save_whitening_report(self, report: Mapping[int, Mapping[str, Any]]) -> None:
        """Writes `whitening.json`."""
        atomic_write_json(self.results / "whitening.json", report)

    @property
    def p_star(self) -> dict[int, float]:
        """Resolution in pixels -> the exponent chosen for it; empty before the choice."""
        table = self._read(self.results / "p_star.json").get("p_star", {})
        return {int(resolution): value for resolution, value in table.items()}

    @property
    def p_star_scores(self) -> dict[int, dict[float, float]]:
        """Resolution -> {exponent: IN-aug score}; empty before the choice."""
        table = self._read(self.results / "p_star.json").get("scores", {})
        return {int(size): {float(p): score for p, score in scores.items()} for size, scores in table.items()}

    @property
    def p_star_fine_tuned(self) -> dict[int, dict[str, Any]]:
        """Resolution -> `{"p_star", "initial", "photos"}` of the exponent learnt for it; empty before that."""
        return {
            int(size): entry for size, entry in self._read(self.results / "p_star.json").get("fine_tuned", {}).items()
        }

    def save_p_star(
        self,
        p_star: Mapping[int, float],
        scores: Mapping[int, Mapping[float, float]],
        fine_tuned: Mapping[int, Mapping[str, Any]],
        **how,
    ) -> None:
        """Writes `p_star.json`.

        Args:
            p_star: resolution -> the exponent in use.
            scores: resolution -> {exponent: IN-aug score}.
            fine_tuned: resolution -> an entry of `p_star_fine_tuned`.
            how: how the scores were measured.
        """
        content = {"p_star": p_star, "scores": _by_name(scores), "fine_tuned": fine_tuned, **how}
        atomic_write_json(self.results / "p_star.json", content)

    @property
    def exponent_sweep(self) -> dict[int, dict[float, dict[str, float]]]:
        """Resolution -> exponent -> `{"top1", "top5", "instance"}`; empty before they were measured."""
        return {
            int(size): {float(p): scores for p, scores in by_exponent.items()}
            for size, by_exponent in self._read(self.results / "sweep.json").items()
        }

    def save_exponent_sweep(self, sweep: Mapping[int, Mapping[float, Mapping[str, float]]]) -> None:
        """Writes `sweep.json`."""
        atomic_write_json(self.results / "sweep.json", _by_name(sweep))

    @property
    def metrics(self) -> dict[str, Any]:
        """What `metrics.json` holds; empty before the evaluation."""
        return self._read(self.results / "metrics.json")

    def save_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Writes `metrics.json`."""
        atomic_write_json(self.results / "metrics.json", metrics)

    def _read(self, path):
        if not path.exists():
            return {}
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is no JSON: {error}") from error


def _by_name(table):
    """Resolution -> exponent -> ..., its exponents as text: 3 and 3.0, measured now or read before, are one name."""
    return {
        size: {repr(float(p)).removesuffix(".0"): value for p, value in by_exponent.items()}
        for size, by_exponent in table.items()
    }


def _key(name):
    """A class's name whatever its Unicode form: file systems change it."""
    return unicodedata.normalize("NFC", name)


def _difference(known, found):
    """What two lists of classes don't share, in words; empty where there is nothing."""
    known, found = ({_key(name): name for name in names} for names in (known, found))
    parts = (
        ("the data lacks {}, which the run knows", [known[key] for key in known if key not in found]),
        ("the data has {}, which the run doesn't know", [found[key] for key in found if key not in known]),
    )
    return "; ".join(words.format(_some(names)) for words, names in parts if names)


def _some(names, most=5):
    """Up to five names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def load_run(
    path: str | os.PathLike, resolutions: Sequence[int] | None = None, checkpoint: str = "last", data: str | None = None
) -> Run:
    """The run in the folder `path`, for programs that come after training.

    Args:
        path: the folder.
        resolutions: pixels to measure at instead of those of the settings; None keeps them.
        checkpoint: `"last"` or `"best"`, as `Run.use_checkpoint` takes it.
        data: where its photos lie now, as `TrainConfig.data`; None: where they were.

    Raises:
        UserError: there is no run.
    """
    run = Run.open(path)
    run.use(evaluation_resolutions=resolutions, data=data)
    run.use_checkpoint(checkpoint)
    return run
