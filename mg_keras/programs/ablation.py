"""Trains and measures presets with several seeds, one run after another, and prints the table of means and deviations.

    mg-keras ablation --presets [caltech101_uniform_p1,caltech101_ra_p1] --seeds [0,1] --data folder:PATH

Any setting of a run can be given too and overrides every preset's. With `--lengths [20,60]` each preset is trained
once for 20 epochs and once for 60; lengths.png shows what becomes of their order. With
`--vary classification_weight=0.1,0.5,1` it is trained once with each value of a setting; trade.png shows how classes
and instances are traded. OUT/<preset>-seed<seed> (OUT/<preset>-<setting>=<value>-<epochs>epochs-seed<seed>) are
ordinary runs; what is finished is not done again, and the same command goes on after Ctrl-C, a crash or `kill -9`.
Writes ablation.json, ablation.md and ablation.png into OUT.
"""

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

from mg_keras.errors import UserError
from mg_keras.files import in_home
from mg_keras.limits import wanted
from mg_keras.programs.ablations import (
    Member,
    check_trainable,
    is_finished,
    more_pictures,
    row_name,
    train_members,
    write_report,
)
from mg_keras.programs.common import PRESETS, Parser, given, list_of, print_table, unknown, with_preset
from mg_keras.programs.whole_run import train_and_measure
from mg_keras.runs.config import PLACES, TrainConfig, add_settings, settings_of


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments, the runs, the table, and what failed."""
    arguments = given(arguments)
    parser = Parser("mg-keras ablation", __doc__)
    add_settings(parser, "a YAML file of settings for all runs")
    parser.add_argument("--presets", type=list_of(str), help="names, or paths of YAML files; rows of the table")
    parser.add_argument("--seeds", type=list_of(int, at_least=0), default=[0, 1], help="of the runs of each preset")
    parser.add_argument("--lengths", type=list_of(int, at_least=1), help="epochs of the runs; null: each preset's own")
    parser.add_argument("--vary", type=str, help="a setting and its values, such as classification_weight=0.1,0.5,1")
    parser.add_argument("--out", type=str, default="runs/ablation", help="the folder of the runs and the table")
    parser.add_argument(
        "--strategy", choices=["mirrored", "single"], default="mirrored", help="all GPUs, or one device"
    )
    parser.add_argument("--table_only", type=bool, default=False, help="train nothing; the table of finished runs")
    options = parser.parse_args(arguments)
    presets = [preset_file(preset) for preset in options.presets or []]
    lengths = sorted(options.lengths or [None], key=lambda length: length or 0)
    setting, values = values_of(options.vary)
    names = [row_name(name, setting, value, length) for name, _ in presets for value in values for length in lengths]
    if not names and (options.vary or options.lengths or not options.table_only):
        raise UserError("--presets must name at least one preset or YAML file")
    if options.table_only:
        show(write_report(options.out, names or None), options.out)
        return
    settled = {argument.partition("=")[0] for argument in arguments}
    if "--seed" in settled:
        raise UserError("an ablation takes its seeds from --seeds, a list such as [0,1], and no --seed")
    if options.lengths and "--epochs" in settled:
        raise UserError("--lengths are the epochs of the runs: give it or --epochs")
    if f"--{setting}" in settled or (setting == "epochs" and options.lengths):
        raise UserError(f"--vary has the values of {setting}: give them once")

    # the shortest first, and seed by seed: a table of all presets stands early
    members = [
        Member(
            row_name(name, setting, value, length),
            settings(parser, arguments, path, {"epochs": length, "seed": seed, setting: value}),
            Path(options.out),
        )
        for length in lengths
        for seed in options.seeds
        for value in values
        for name, path in presets
    ]
    train = partial(train_and_measure, strategy_name=options.strategy)
    failures, stopped = train_members(members, train, lambda: write_report(options.out, names), check_trainable)
    no_table = None
    if any(is_finished(member.run) for member in members):
        try:
            show(write_report(options.out, names), options.out)
        except UserError as error:
            no_table = error
            print(f"no table: {error}", file=sys.stderr)
    for name, reason in failures.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    if stopped:
        print("stopped; the same command goes on from there", file=sys.stderr)
        sys.exit(128 + stopped)
    sys.exit(1 if failures or no_table else 0)


def preset_file(preset: str) -> tuple[str, Path]:
    """(name in the table, YAML file) of a preset given by its name or as a file."""
    path = in_home(preset)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(f"no such preset file: {preset}")
        return path.stem, path
    (_, path, *_), name = with_preset(["--preset", preset], PRESETS)
    return name, Path(path)


def values_of(text: str | None) -> tuple[str | None, list[str | None]]:
    """(setting, its values as they are typed, numbers by size) of `SETTING=VALUE,...`; of None, (None, [None]).

    Raises:
        UserError: there is no such setting, or it is a list or a place; a value is empty, is given twice, or holds what
            a folder's name can't (runs are named by them).
    """
    if text is None:
        return None, [None]
    setting, _, values = text.partition("=")
    kinds = get_type_hints(TrainConfig, include_extras=True)
    known = [name for name, kind in kinds.items() if name not in (*PLACES, "seed") and "list" not in wanted(kind)]
    values = [value.strip() for value in list_of(str)(values)]
    if not all(values) or any(set("/=") & set(value) for value in values):
        raise UserError(f"--vary must be SETTING=VALUE,..., such as classification_weight=0.1,0.5; received {text!r}")
    if setting not in known:
        raise UserError(f"--vary: {unknown('setting of one value', setting, known)}")
    with contextlib.suppress(ValueError):
        values.sort(key=float)
    if len({_number_or_text(value) for value in values}) < len(values):
        raise UserError(f"--vary must have each value once; received {text!r}")
    return setting, values


def _number_or_text(value):
    try:
        return float(value)
    except ValueError:
        return value


def settings(
    parser: Parser, arguments: Sequence[str], path: str | os.PathLike, own: Mapping[str | None, Any]
) -> TrainConfig:
    """The `TrainConfig` of one run: the preset's, then the command line's, then its own settings that are not None."""
    own = [f"--{name}={value}" for name, value in own.items() if value is not None]
    return settings_of(parser.parse_args(["--config", str(path), *arguments, *own]))


def show(summary: Mapping[str, Any], out: str | os.PathLike) -> None:
    """Prints the table and where it lies."""
    from mg_keras.evaluation.tables import ablation_table

    print_table(ablation_table(summary))
    pictures = ["ablation.md", "ablation.png", *more_pictures(summary)]
    print(f"written: {Path(out) / 'ablation.json'}; beside it {', '.join(pictures)}", flush=True)
