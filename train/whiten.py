"""Fits the whitening of a run's descriptors: python train/whiten.py --run runs/demo --unlabelled FOLDER.

Writes whitening.npz into the run; export/run.py folds it into the classifier.
"""

import sys
from pathlib import Path

# a checkout works as it is: the rooms beside this one are importable
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mg_keras.programs import import_tensorflow, run_program, stage_arguments


def main():
    """Arguments, the fit, and what it was fitted on."""

    def more(parser):
        parser.add_argument("--unlabelled", type=str, help="folder of photos; default: the run's own")
        parser.add_argument("--shrinkage", type=float, help="0-1, for fewer photos than dimensions; default: none")

    options = stage_arguments("train/whiten.py", __doc__, more)
    import_tensorflow()
    from mg_keras.training import stages
    from mg_keras.training.runs import load_run

    run = load_run(options.run)
    run.use_resolutions(options.resolutions)
    run.settings.unlabelled = options.unlabelled or run.settings.unlabelled
    if options.shrinkage is not None:
        run.settings.whitening_shrinkage = options.shrinkage
    print(f"whitening fitted on {stages.fit_whitening(run, stages.open_source(run.settings))}")
    print(f"written: {', '.join(str(run.whitening_path(size)) for size in run.settings.resolutions)}")


if __name__ == "__main__":
    run_program(main)
