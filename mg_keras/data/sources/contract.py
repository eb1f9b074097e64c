"""What every kind of source gives: photos known by number, labelled or not, and how they are divided."""

import dataclasses
import functools
import os
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from mg_keras.data.images import decode_common, problem, try_decode
from mg_keras.errors import UserError
from mg_keras.files import in_home


@dataclasses.dataclass(frozen=True)
class SplitOptions:
    """How a source without its own validation photos is divided; drawn class by class with the seed.

    Photos without classes are divided as if they were one.

    Args:
        train_per_class: photos a class for training at most, drawn before those for validation; None takes all that
            validation leaves.
        val_per_class: photos a class for validation at most; None takes all that are left where `train_per_class` is
            given, else `val_fraction` of the class.
        val_fraction: share of each class, between 0 and 1, for validation, where neither number is given. At least one
            photo of a class stays for training.
        seed: int >= 0, of the division.

    Raises:
        UserError: a value out of range.
    """

    train_per_class: int | None = None
    val_per_class: int | None = None
    val_fraction: float = 0.2
    seed: int = 0

    def __post_init__(self):
        for name in ("train_per_class", "val_per_class"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, or null for the default, received {value}")
        if not 0 < self.val_fraction < 1:
            raise UserError(f"val_fraction must lie between 0 and 1, received {self.val_fraction}")
        if self.seed < 0:
            raise UserError(f"seed must be at least 0, received {self.seed}")


@dataclasses.dataclass(frozen=True)
class Split:
    """Some photos of a source.

    Attributes:
        names: what to call each photo in messages and lists.
        read: int64 scalar tensor -> string scalar tensor, the encoded bytes; graph code.
        load_labels: () -> int32 [N] class numbers (-1: no label).
        instance_of: name -> the instance a photo shows, or None where that is not known.
        adjust: what the decoded photo still needs before it is measured, such as a rotation or a crop: (number, int64
            scalar; image, uint8 [H, W, 3]) -> uint8 image; graph code. None: nothing.
        parts: the splits that this one is made of, one after the other; none for a split of its own. What is known of a
            part need not be found out again.
        files: the path that `read` opens for each photo; None where photos are not files of their own.
        passed_over: (name, reason) of what was found beside these photos and can't be one of them.
        stream: how photos are read for training where that is quicker in an order of the source's own: as
            `mg_keras.data.shards.Stream` is called. None: by number.
        label_columns: of photos that have several labels, such as coarse and fine: column -> int32 [N], numbers of
            `Source.label_columns`.
    """

    names: list
    read: Callable
    load_labels: Callable
    instance_of: Callable | None = None
    adjust: Callable | None = None
    parts: tuple = ()
    files: list | None = None
    passed_over: tuple = ()
    stream: Callable | None = None
    label_columns: dict = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def image(self, row: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The photo numbered `row`, decoded and as `adjust` makes it; graph code.

        Args:
            row: int64 scalar tensor.

        Returns:
            (ok, image): a bool scalar, and RGB in 0-255 [H, W, 3], or one of 1x1 pixel where it can't be used.
        """
        ok, image = try_decode(self.read, row)
        if self.adjust:
            image = tf.cond(ok, lambda: self.adjust(row, image), lambda: image)
        return ok, image

    def common_image(self, row: tf.Tensor, decode: Callable = decode_common) -> tuple[tf.Tensor, tf.Tensor]:
        """The photo numbered `row` as `image` gives it, quickly, if it is a JPEG or a PNG; graph code.

        Args:
            row: int64 scalar tensor.
            decode: bytes -> (image, size), as `decode_common` gives them, perhaps reduced. What `adjust` changes is
                decoded in full: it counts pixels.

        Returns:
            (image, size): RGB in 0-255 [h, w, 3], and int32 [H, W], the photo's own height and width.

        Raises:
            tf.errors.OpError: (when it runs) the photo is of another kind, or can't be used.
        """
        if self.adjust is None:
            return decode(self.read(row))
        image = self.adjust(row, decode_common(self.read(row))[0])
        return image, tf.shape(image)[:2]

    def reason(self, row: int) -> str:
        """Why the photo numbered `row` can't be used, in a few words."""
        return problem(lambda: self.read(tf.constant(row))) or "could not be read"

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """int32 [N]; read once, when first asked for."""
        return np.asarray(self.load_labels(), np.int32)

    @property
    def labelled(self) -> bool:
        """Whether any of the photos has a label."""
        return bool((self.labels >= 0).any())

    @functools.cached_property
    def instances(self) -> np.ndarray | None:
        """int32 [N], equal for photos of one instance, or None where the source does not know."""
        if self.instance_of is None:
            return None
        return np.unique([self.instance_of(name) for name in self.names], return_inverse=True)[1].astype(np.int32)

    def subset(self, rows: Sequence[int] | np.ndarray) -> "Split":
        """The photos numbered `rows`, as a split of their own."""
        rows = np.asarray(rows, np.int64)
        table = tf.constant(rows)
        return Split(
            [self.names[row] for row in rows],
            lambda index: self.read(table[index]),
            lambda: self.labels[rows],
            self.instance_of,
            self.adjust and (lambda index, image: self.adjust(table[index], image)),
            files=self.files and [self.files[row] for row in rows],
            label_columns={name: labels[rows] for name, labels in self.label_columns.items()},
        )


@dataclasses.dataclass(frozen=True)
class Source:
    """Training, validation and perhaps unlabelled photos.

    Attributes:
        description: a few words on it.
        class_names: a line of text each, all different, Unicode in its composed form (NFC); none where the photos have
            no labels.
        train, val: `Split`.
        unlabelled: `Split`, or None where there are none.
        passed_over: (name, reason) of files and folders that were found and hold no photos that can be used.
        label_columns: of photos that have several labels: column -> names of its classes, in the order of their
            numbers in `Split.label_columns`. `with_classes` leaves them as they are.
    """

    description: str
    class_names: list
    train: Split
    val: Split
    unlabelled: Split | None = None
    passed_over: tuple = ()
    label_columns: dict = dataclasses.field(default_factory=dict)

    def with_classes(self, names: Sequence[str]) -> "Source":
        """The same photos, a class numbered by the place of its name in `names`.

        Args:
            names: list of str, in any order, with every class of this source among them; a name in another Unicode form
                is the same.

        Returns:
            A `Source`; the same one where the photos have no classes.

        Raises:
            KeyError: a class is not among them.
        """
        if not self.class_names:
            return self
        place = {unicodedata.normalize("NFC", name): number for number, name in enumerate(names)}
        numbers = np.array([place[unicodedata.normalize("NFC", name)] for name in self.class_names], np.int32)

        def numbered(split):
            return dataclasses.replace(split, load_labels=lambda: np.where(split.labels < 0, -1, numbers[split.labels]))

        return dataclasses.replace(self, class_names=list(names), train=numbered(self.train), val=numbered(self.val))


def usable(source: Source, place: str) -> Source:
    """The source itself, if it has classes to tell apart, or none at all, and photos to measure on."""
    if len(source.class_names) == 1:
        raise UserError(f"{place} has one class only ({source.class_names[0]!r}): at least two are needed")
    if not len(source.val):
        raise UserError(
            f"no photo is left for validation in {place}: take fewer for training, or add photos (a class of "
            "one or two may give none)"
        )
    return source


def divide(name: str, items: Sequence, options: SplitOptions) -> tuple[list, list]:
    """(training, validation) items of the class `name`; a class's draw does not depend on the others."""
    rng = np.random.default_rng([options.seed, zlib.crc32(os.fsencode(name))])
    items = [items[i] for i in rng.permutation(len(items))]
    held_out = options.val_per_class
    if options.train_per_class is not None:
        train, rest = items[: options.train_per_class], items[options.train_per_class :]
        return train, rest if held_out is None else rest[:held_out]
    if held_out is None:
        held_out = round(options.val_fraction * len(items))
    held_out = min(held_out, len(items) - 1)
    return items[held_out:], items[:held_out]


def asked_columns(argument: str) -> tuple[str, tuple[str, ...]]:
    """What names photos, and the columns of their labels: of `NAME?label=COLUMN,COLUMN`; none where none is named.

    Raises:
        UserError: a column is empty or there twice, in whatever case.
    """
    name, given, columns = str(argument).rpartition("?label=")
    if not given:
        return str(argument), ()
    columns = tuple(column.strip() for column in columns.split(","))
    if not all(columns) or len({column.casefold() for column in columns}) < len(columns):
        raise UserError(f"?label= must name columns of labels, all different, received {argument!r}")
    return name, columns


def cache_folder(data_dir: str | os.PathLike | None) -> Path:
    """Where files that were made or converted are kept: `data_dir`, or else the cache in the home folder."""
    return in_home(data_dir) if data_dir else Path.home() / ".cache" / "mg_keras"
