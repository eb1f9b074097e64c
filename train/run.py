"""Trains a MultiGrain, measures it and exports it: python train/run.py --preset demo.

The same command after Ctrl-C, a crash or `kill -9` goes on where the run was.
"""

import sys
from pathlib import Path

# a checkout works as it is: the rooms beside this one are importable
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mg_keras.programs.common import Parser, run_program, with_preset
from mg_keras.programs.whole_run import train_and_measure
from mg_keras.runs.config import add_settings, settings_of

HERE = Path(__file__).resolve().parent


def main():
    """Arguments, then every stage of a run."""
    arguments, preset = with_preset(sys.argv[1:], HERE / "presets")
    parser = Parser("train/run.py", __doc__)
    add_settings(parser, "a YAML file of settings")
    parser.add_argument("--preset", help=f"settings by name: {', '.join(sorted(presets()))}")
    parser.add_argument("--run", help="the run's folder; default: runs/<preset>")
    parser.add_argument("--strategy", default="mirrored", help="mirrored (all GPUs), multiworker (TF_CONFIG) or single")
    options = parser.parse_args(arguments)
    run = train_and_measure(settings_of(options), options.run or f"runs/{preset or 'run'}", options.strategy)
    if run:
        finish(run)


def presets():
    """The names of the presets there are."""
    return [path.stem for path in (HERE / "presets").glob("*.yaml")]


def finish(run):
    """Exports a run that is trained and measured, and says where to look."""
    from mg_keras.export.saved_model import export_run, usage

    print(usage(export_run(run, run.path / "saved_model")))
    print(f"\nLook at {run.path}/: retrieval.png, scores.png, p_star.png, curves.png; figures in metrics.json")


if __name__ == "__main__":
    run_program(main)
