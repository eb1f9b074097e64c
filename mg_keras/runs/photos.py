"""The photos of a run: those of its settings, and whether photos are those it was begun with."""

import dataclasses
import unicodedata
from collections.abc import Sequence

import numpy as np

from mg_keras import objectives, pretrained
from mg_keras.data import sources
from mg_keras.data.sources import Source
from mg_keras.errors import UserError
from mg_keras.runs.config import PLACES, TrainConfig
from mg_keras.runs.run import Run


def open_source(settings: TrainConfig) -> Source:
    """Opens the photos that a run's settings name.

    Raises:
        UserError: they are not there, or can't be divided as the settings ask for.
    """
    options = sources.SplitOptions(
        settings.train_per_class, settings.val_per_class, settings.val_fraction, settings.seed
    )
    # the demo set is drawn at the largest size that it will be seen at
    resolution = int(np.clip(max(settings.resolutions), 32, 512))
    return sources.open_source(settings.data, options, resolution=resolution, data_dir=settings.data_dir)


def matched(run: Run, source: Source) -> Source:
    """A source with its classes numbered as the run has them: a class is its name, not its place in a list.

    A new run takes the classes as they are, and so does a network that came from elsewhere and was to be measured
    on classes that are not its own. Where the objective needs no labels, photos of any classes do (`numbered`).

    Args:
        run: `Run`.
        source: `mg_keras.data.sources.Source`.

    Returns:
        A `Source` of the same photos.

    Raises:
        UserError: the run was begun with other classes; the message names the difference.
    """
    if not (run.path / "classes.txt").is_file():
        return source
    from_elsewhere = [path.stem for path in run.checkpoints.paths()] == ["step-000000000"]
    if not (from_elsewhere or objectives.needs_labels(run.settings.objective)):
        return numbered(source, run.class_names)
    # before there was such a record, only a network from elsewhere could be begun with classes not its own
    unknown = source.class_names if from_elsewhere else run.class_names
    begun_with = run.data_record.get("classes", unknown)
    # to be measured on photos without labels, or of other classes
    if not begun_with or not set(begun_with) <= set(run.class_names):
        return source
    if difference := _difference(begun_with, source.class_names):
        raise UserError(
            f"{run.path} and {run.settings.data} have other classes: {difference}; give the classes their names "
            f"back, name the run's photos with --data, or train a new run (--init {run.path} starts from the "
            "weights of this one)"
        )
    return source.with_classes(run.class_names)


def numbered(source: Source, names: Sequence[str]) -> Source:
    """A source as a network of other photos is trained and measured on it, whose labels are not needed.

    Args:
        source: `mg_keras.data.sources.Source`.
        names: list of str, the network's classes.

    Returns:
        A `Source` of the same photos, the labels numbered as the network has them. If they are of any other class, all
        photos count as unlabelled.
    """
    if set(map(_key, source.class_names)) <= set(map(_key, names)):
        return source.with_classes(names)

    def unlabelled(split):
        return dataclasses.replace(split, load_labels=lambda: np.full(len(split), -1, np.int32))

    train, val = map(unlabelled, (source.train, source.val))
    return dataclasses.replace(source, class_names=[], train=train, val=val)


def known_classes(run: Run, source: Source) -> tuple[list[str], Source]:
    """The classes that a run's network tells apart, and its photos with their labels numbered so.

    Where the objective needs no labels, the classes are those of the network that training starts from, and the photos
    are `numbered` so.

    Args:
        run: `Run`.
        source: `Source`, of `matched`.

    Returns:
        (list of str, `Source`).

    Raises:
        UserError: the objective needs labels, and the photos have none; or the network has no classes.
    """
    config = run.settings
    if objectives.needs_labels(config.objective):
        if not source.class_names:
            raise UserError(
                f"{config.data} has no labels, which the objective {config.objective} needs: take --objective "
                "distilled_multigrain with --init"
            )
        return source.class_names, source
    begun = (run.path / "classes.txt").is_file()
    names = run.class_names if begun else pretrained.class_names(config.init, config.trunk, config.levels)
    return names, numbered(source, names)


def check_same_photos(run: Run, source: Source) -> str | None:
    """Refuses to go on training with other photos than before.

    Args:
        run: `Run`.
        source: of `matched`.

    Returns:
        str, a note on photos that came or went in the same place, or None.

    Raises:
        UserError: the place is another one, and so is the number of training photos.
    """
    before, now = run.data_record.get("training_photos"), len(source.train)
    if before in (None, now):
        return None
    found = f"{run.settings.data} has {now:,} training photos, where the run was begun with {before:,}"
    noted = TrainConfig.load(run.path / "config.yaml")
    if any(getattr(noted, place) != getattr(run.settings, place) for place in PLACES):
        raise UserError(
            f"{found}: these are not the photos of {run.path}, moved; give those to go on with it, or another "
            f"--run folder and --init {run.path} to train on with others"
        )
    return found


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
