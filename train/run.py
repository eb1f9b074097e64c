"""Trains a MultiGrain, measures it and exports it: python train/run.py --preset demo.

`mg-keras train` is the same program; `--help` says what it takes.
"""

from mg_keras.programs.common import run_program
from mg_keras.programs.train import main

if __name__ == "__main__":
    run_program(main)
