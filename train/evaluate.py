"""Measures a run on classes, instances and copies: python train/evaluate.py --run runs/demo.

Writes metrics.json, scores.png and retrieval.png into the run.
"""

import sys
from pathlib import Path

# a checkout works as it is: the rooms beside this one are importable
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mg_keras.programs import import_tensorflow, run_program, stage_arguments


def main():
    """Arguments, the measures, and the table."""

    def more(parser):
        parser.add_argument("--checkpoint", default="last", choices=["last", "best"], help="which one to measure")

    options = stage_arguments("train/evaluate.py", __doc__, more)
    import_tensorflow()
    from rich.console import Console

    from mg_keras.evaluation.report import scores_table
    from mg_keras.training import stages
    from mg_keras.training.runs import load_run

    run = load_run(options.run)
    run.use_resolutions(options.resolutions)
    run.model = run.load_model(options.checkpoint)
    Console().print(scores_table(stages.evaluate(run, stages.open_source(run.settings))))
    print(f"written: {run.path / 'metrics.json'}, {run.path / 'scores.png'}, {run.path / 'retrieval.png'}")


if __name__ == "__main__":
    run_program(main)
