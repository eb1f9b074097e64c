"""Trains a MultiGrain, measures it and exports it: mg-keras train --preset demo.

The same command after Ctrl-C, a crash or `kill -9` goes on where the run was; of a finished run it says what is there.
"""

from collections.abc import Sequence

from mg_keras.errors import UserError
from mg_keras.programs import albums
from mg_keras.programs.common import PRESETS, Parser, given, preset_names, with_preset
from mg_keras.programs.export import export_run, exported_version
from mg_keras.programs.whole_run import train_and_measure
from mg_keras.runs.config import add_settings, settings_of
from mg_keras.runs.run import Run


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments, then every stage of a run."""
    arguments, preset = with_preset(given(arguments), PRESETS)
    parser = Parser("mg-keras train", __doc__)
    add_settings(parser, "a YAML file of settings")
    parser.add_argument("--preset", help=f"settings by name: {', '.join(preset_names(PRESETS))}")
    parser.add_argument("--run", help="the run's folder; default: runs/<preset>")
    parser.add_argument("--strategy", default="mirrored", help="mirrored (all GPUs), multiworker (TF_CONFIG) or single")
    options = parser.parse_args(arguments)
    if options.preset:
        # the first of the command line has become a file of settings; a second one, or one in a file, says nothing
        raise UserError(f"--preset is given once, on the command line: {options.preset} would change nothing")
    run = train_and_measure(settings_of(options), options.run or f"runs/{preset or 'run'}", options.strategy)
    if run:
        finish(run)


def finish(run: Run) -> None:
    """Exports a run that is trained and measured, unless that was done, and says where to look."""
    from mg_keras.export.saved_model import usage

    folder = run.path / "saved_model"
    there = exported_version(run, folder)
    if there:
        print("it is exported as it is:")
    print(usage(there or export_run(run, folder)))
    print(f"\nLook at {run.path}/: retrieval.png, scores.png, p_star.png, curves.png; figures in metrics.json")
    if run.settings.data == "demo":
        print(f"Search its photos in the browser:\n  {albums.indexed_demo(run, run.path / 'saved_model')}")
