"""`folder:PATH`: the photos of a folder, a class in each subfolder, and how training and validation lie in it.

`folder:PATH?label=coarse,fine` is a tree of two levels, `coarse/fine/photo`: the label `coarse` of a photo is the
folder that is its class otherwise, and `fine` the folder in that one, called `COARSE/FINE`, however deep the photo lies
in it. The first is trained on, and all that are named are in `Split.label_columns`. `coarse` alone is for any folder,
also one whose classes would be refused as parts of a split, by their names.
"""

import dataclasses
import itertools
import os
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mg_keras.data.finding import KINDS, existing, find_photos, subfolders, told, why_none
from mg_keras.data.sources.contract import Source, SplitOptions, asked_columns, divide, usable
from mg_keras.data.sources.file_splits import HELD_OUT, TRAINING, UNLABELLED, converted, file_split
from mg_keras.data.sources.unlabelled import photos
from mg_keras.errors import UserError
from mg_keras.files import in_home, printable_name
from mg_keras.progress import say

# a contest's test photos come without labels
_TESTS = ("test", "testing")
# a word that begins so: train2017, seg_test, fold1
_CALLED_A_PART = re.compile(r"(?<![a-z])(train|val|test|dev|eval|fold|split|part)")


def open_folder(
    argument: str | os.PathLike,
    options: SplitOptions,
    resolution: int,
    data_dir: str | os.PathLike | None,
    instance_of: Callable | None = None,
    description: str | None = None,
) -> Source:
    """A class per subfolder; with folders of training and validation photos, those are the split.

    `unlabelled/` is set apart.
    """
    del resolution
    argument, columns = (argument, ()) if in_home(argument).is_dir() else asked_columns(argument)
    if unknown := set(columns) - {"coarse", "fine"}:
        raise UserError(f"the labels of a folder are coarse and fine, received {sorted(unknown)[0]!r}")
    root = existing(argument)
    layout = _layout(root, sure=bool(columns))
    levels = _levels(layout, root, columns)
    train, val = layout.train, layout.val
    if val is None:
        divided = {name: divide(name, files, options) for name, files in train.items()}
        train, val = ({name: pair[part] for name, pair in divided.items()} for part in (0, 1))
    unlabelled = photos(layout.unlabelled, data_dir) if layout.unlabelled else None
    copies = {}
    if layout.kinds:
        # what is to be refused is refused before a conversion that may take hours
        _source(train, val, copies, root, levels=levels)
        everything = [file for part in (train, val) for files in part.values() for file in files]
        copies, problems = converted(everything, layout.kinds, root, data_dir)
        layout.passed_over |= problems
        train, val = (
            {name: [file for file in files if file not in problems] for name, files in part.items()}
            for part in (train, val)
        )
        _refuse_empty(train, layout.folders, layout.passed_over, layout.training)
    source = _source(train, val, copies, root, instance_of, description, levels)
    if layout.unused:
        unused = _some([os.path.relpath(path, root) for path in layout.unused])
        say(f"not used for training or validation in {printable_name(root)}: {unused}")
    passed_over = told(layout.passed_over, root) + (unlabelled.passed_over if unlabelled else ())
    return dataclasses.replace(source, unlabelled=unlabelled, passed_over=passed_over)


def validation_folder(root: str | os.PathLike) -> str | None:
    """The folder in `root` that is called as validation photos are; None where there is none."""
    held_out = _called(subfolders(root)[0], [name for name in HELD_OUT if name not in _TESTS])
    return held_out[0] if held_out else None


@dataclasses.dataclass
class _Layout:
    """What lies where in a folder.

    Attributes:
        training: the folder that has the folders of the classes.
        folders: class -> its folders in `training`.
        train: class -> its files, for training or to be divided.
        val: the same for validation; None where that is to be divided from `train`.
        unlabelled: the folder of unlabelled photos, or None.
        unused: folders of which nothing is used.
        depth: folders below the root down to that which is within a class, such as 1 of `CLASS/` and 2 of
            `train/CLASS/` and of `CLASS/train/`.
        kinds, passed_over: as in `Found`.
    """

    training: str
    folders: dict = dataclasses.field(default_factory=dict)
    train: dict = dataclasses.field(default_factory=dict)
    val: dict | None = None
    unlabelled: str | None = None
    unused: list = dataclasses.field(default_factory=list)
    depth: int = 1
    kinds: dict = dataclasses.field(default_factory=dict)
    passed_over: dict = dataclasses.field(default_factory=dict)

    def find(self, classes, above):
        """Name -> files, of the classes name -> folders."""
        files = {}
        for name, folders in classes.items():
            files[name] = []
            for folder in folders:
                found = find_photos(folder, above)
                files[name] += found.files
                self.kinds |= found.kinds
                self.passed_over |= found.passed_over
        return files


def _layout(root, sure):
    """What lies where below `root`; `sure`: the folders are the classes, whatever they hold."""
    inside, loose = subfolders(root)
    layout = _Layout(os.fspath(root), passed_over=loose)
    for folder in _called(inside, UNLABELLED):
        layout.unlabelled = folder
        del inside[os.path.basename(folder)]
    training, held_out = _called(inside, TRAINING), _called(inside, HELD_OUT)
    if training and (held_out or subfolders(training[0])[0]):
        return _split_layout(root, layout, inside, training, held_out)
    if held_out:
        raise UserError(
            f"{printable_name(held_out[0])} is called as validation photos are, and there is no "
            f"{printable_name(root / 'train')}: put the classes to learn there, or rename it if it is a class"
        )
    layout.folders = _classes(root, inside)
    layout.train = layout.find(layout.folders, [root])
    _refuse_empty(layout.train, layout.folders, layout.passed_over, root)
    _divide_by_class(root, layout, sure)
    return layout


def _split_layout(root, layout, inside, training, held_out):
    """Of a root that has the classes in a folder for training and, perhaps, in others."""
    if len(training) > 1:
        first, second = map(printable_name, training[:2])
        raise UserError(f"{first} and {second} are both called as training photos are: rename the one that has none")
    layout.training, layout.depth = training[0], 2
    layout.folders, loose = _classes_in(layout.training)
    layout.passed_over |= loose
    chosen, val_classes = None, None
    for folder in held_out:
        is_test = os.path.basename(folder).casefold() in _TESTS
        if is_test and not set(_by_name(subfolders(folder)[0])) & set(layout.folders):
            continue
        chosen, (val_classes, loose) = folder, _classes_in(folder)
        layout.passed_over |= loose
        break
    if chosen:
        unknown = sorted(set(val_classes) - set(layout.folders))
        if unknown:
            raise UserError(
                f"{printable_name(chosen)} has classes that {printable_name(layout.training)} has not: "
                f"{', '.join(unknown)}"
            )
    else:
        others = [folder for folder in inside.values() if folder not in (*training, *held_out)]
        _refuse_strangers(layout.training, layout.folders, others)
    layout.unused = [folder for folder in inside.values() if folder not in (layout.training, chosen)]
    layout.train = layout.find(layout.folders, [root, layout.training])
    _refuse_empty(layout.train, layout.folders, layout.passed_over, layout.training)
    if chosen:
        layout.val = layout.find(val_classes, [root, chosen])
        _refuse_empty(layout.val, val_classes, layout.passed_over, chosen)
    return layout


def _refuse_strangers(training, classes, others):
    """Nothing beside the folder of training photos says by its name that it is for validation: is it the one?"""
    alike = [folder for folder in others if set(_by_name(subfolders(folder)[0])) & set(classes)]
    for folder in alike or [folder for folder in others if find_photos(folder).files]:
        raise UserError(
            f"{printable_name(folder)} lies beside {printable_name(training)}, and its name does not say what for: if "
            f"it is for validation, call it {', '.join(HELD_OUT[:-1])} or {HELD_OUT[-1]}, otherwise move it "
            f"elsewhere; if both are classes, give {os.path.basename(training)}/ another name"
        )


def _divide_by_class(root, layout, sure):
    """Where classes have folders of training and validation photos each, those are the split."""
    start = len(os.path.join(root, ""))
    parts = {name: {} for name in layout.train}
    for name, files in layout.train.items():
        for file in files:
            # class / part / ...: what lies in the class's folder itself has no part
            inner = file[start:].split(os.sep, 2)
            parts[name].setdefault(inner[1].casefold() if len(inner) > 2 else None, []).append(file)
    if not any(set(found) & set(TRAINING) and set(found) & set(HELD_OUT) for found in parts.values()):
        if not sure:
            _refuse_parts(root, parts)
        return
    held_out = next(name for name in HELD_OUT if any(name in found for found in parts.values()))
    layout.val, layout.depth = {}, 2
    for name, found in parts.items():
        layout.train[name] = [file for part in TRAINING for file in found.pop(part, [])]
        layout.val[name] = found.pop(held_out, [])
        if not layout.train[name]:
            raise UserError(
                f"class {name!r} in {printable_name(root)} has no photo in a folder train, as other classes have: "
                "arrange all of them alike"
            )
        beside = "lies beside the folders of training and validation photos"
        layout.passed_over |= dict.fromkeys(found.pop(None, []), beside)
        layout.unused += [os.path.join(root, *files[0][start:].split(os.sep, 2)[:2]) for files in found.values()]


def _refuse_parts(root, parts):
    """Folders called like parts of a split (train2017, seg_test, fold1) that hold folders of mostly the same names.

    Args:
        parts: class -> names of its folders, and None where photos lie beside these.
    """
    called = [name for name in sorted(parts) if _CALLED_A_PART.search(name.casefold())]
    for one, other in itertools.pairwise(called):
        same = (parts[one].keys() & parts[other].keys()) - {None}
        if len(same) > 1 and 2 * len(same) > len(parts[one].keys() | parts[other].keys()):
            raise UserError(
                f"{one} and {other} in {printable_name(root)} hold folders of the same names ({_some(sorted(same))}): "
                f"if these are the classes, call the folder for training {TRAINING[0]} and that for validation "
                f"{HELD_OUT[0]}; if {one} and {other} are classes, give folder:{printable_name(root)}?label=coarse"
            )


def _classes_in(folder):
    """(name -> folders, passed_over) of a folder with one subfolder a class."""
    inside, loose = subfolders(folder)
    return _classes(Path(folder), inside), loose


def _classes(folder, inside):
    """Class name -> its folders, in order of name, of the subfolders `inside` a folder (name -> path)."""
    if not inside:
        raise UserError(
            f"{printable_name(folder)} has no subfolder: a folder of photos has one subfolder for each class"
        )
    return _by_name(inside)


def _by_name(inside):
    """Class name -> folders.

    A name that one system composes (é) and another writes as letter and accent is one name. Bytes that are no UTF-8
    and what ends a line are shown as escapes: a class's name is one line of a list.
    """
    classes, written = {}, {}
    for raw, path in inside.items():
        composed = unicodedata.normalize("NFC", raw)
        name = printable_name(composed)
        if written.setdefault(name, composed) != composed:
            raise UserError(
                f"two classes in {printable_name(os.path.dirname(path))} are both written {name}: rename one"
            )
        classes.setdefault(name, []).append(path)
    return dict(sorted(classes.items()))


def _called(inside, names):
    """The folders that are called by one of `names`, in any case, in the order of these."""
    return [path for wanted in names for name, path in inside.items() if name.casefold() == wanted]


def _refuse_empty(classes, folders, passed_over, place):
    """Classes (name -> files) without photos are refused, with what was passed over in their `folders`."""
    empty = [name for name, files in classes.items() if not files]
    if not empty:
        return
    inside = [folder for name in empty for folder in folders[name]]
    lost = {
        path: reason
        for path, reason in passed_over.items()
        if any(path == folder or path.startswith(os.path.join(folder, "")) for folder in inside)
    }
    message = f"no photo for class {', '.join(map(repr, empty))} in {printable_name(place)}: "
    if lost:
        raise UserError(message + why_none(lost, place))
    raise UserError(f"{message}add photos ({KINDS}) or remove the empty folder")


def _levels(layout, root, columns):
    """Column -> file -> name of its class, of those asked for; the layout's classes become those of the first one."""
    if not columns:
        return {}
    files = {file: name for part in (layout.train, layout.val or {}) for name, found in part.items() for file in found}
    levels = {"coarse": files}
    if "fine" in columns:
        levels["fine"] = {file: f"{name}/{_inner(file, name, layout, root)}" for file, name in files.items()}
    if columns[0] == "fine":
        layout.folders = {}
        for file, name in levels["fine"].items():
            layout.folders.setdefault(name, [os.path.dirname(file)])

        def by_fine(classes):
            found = {}
            for file in (file for files in classes.values() for file in files):
                found.setdefault(levels["fine"][file], []).append(file)
            return found

        layout.train, layout.val = by_fine(layout.train), layout.val and by_fine(layout.val)
        unknown = sorted(set(layout.val or {}) - set(layout.train))
        if unknown:
            raise UserError(f"{printable_name(root)} has no photo to train on of {_some(unknown)}")
    return {column: levels[column] for column in columns}


def _inner(file, coarse, layout, root):
    """The folder in that of the class `coarse` in which a photo lies, at any depth."""
    below = Path(os.path.relpath(file, root)).parts[layout.depth : -1]
    if not below:
        raise UserError(
            f"{printable_name(file)} has no fine label: with the label fine a photo lies in a folder in that of "
            f"its class, such as {coarse}/FINE"
        )
    return printable_name(unicodedata.normalize("NFC", below[0]))


def _source(train, val, copies, root, instance_of=None, description=None, levels=None):
    names, levels = sorted(train), levels or {}
    everything = [file for part in (train, val) for files in part.values() for file in files]
    known = {column: sorted({of_file[file] for file in everything}) for column, of_file in levels.items()}
    numbers = {column: {name: number for number, name in enumerate(found)} for column, found in known.items()}

    def split(classes):
        pairs = [(file, label) for label, name in enumerate(names) for file in classes.get(name, [])]
        labels = np.array([label for _, label in pairs])
        columns = {
            column: np.array([numbers[column][of_file[file]] for file, _ in pairs], np.int32)
            for column, of_file in levels.items()
        }
        return file_split([file for file, _ in pairs], labels, copies, instance_of, columns)

    description = description or f"folder {printable_name(root.name)}"
    source = Source(description, names, split(train), split(val), label_columns=known)
    return usable(source, printable_name(root))


def _some(names):
    """The first of many names."""
    shown = ", ".join(printable_name(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5:,} more"
