"""Measures a run, or an exported SavedModel, on benchmarks: python train/evaluate.py --run runs/demo.

`mg-keras evaluate` is the same program; `--help` says what it takes.
"""

from mg_keras.programs.common import run_program
from mg_keras.programs.evaluate import main

if __name__ == "__main__":
    run_program(main)
