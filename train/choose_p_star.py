"""Chooses the test exponent p* of a run for each resolution: python train/choose_p_star.py --run runs/demo.

Cross-validation on IN-aug over p* = 1 to 10; writes p_star.json and p_star.png into the run.
"""

import sys
from pathlib import Path

# a checkout works as it is: the rooms beside this one are importable
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mg_keras.programs import import_tensorflow, run_program, stage_arguments


def main():
    """Arguments, the choice, and what was chosen."""
    options = stage_arguments("train/choose_p_star.py", __doc__)
    import_tensorflow()
    from mg_keras.training import stages
    from mg_keras.training.runs import load_run

    run = load_run(options.run)
    run.use_resolutions(options.resolutions)
    for size, exponent in stages.choose_p_star(run, stages.open_source(run.settings)).items():
        print(f"{size} px: p* = {exponent} (IN-aug {run.p_star_scores[size][exponent]:.2f} of 5)")
    print(f"written: {run.path / 'p_star.json'}, {run.path / 'p_star.png'}")


if __name__ == "__main__":
    run_program(main)
