"""Fits the whitening of a run's descriptors: python train/whiten.py --run runs/demo.

`mg-keras whiten` is the same program; `--help` says what it takes.
"""

from mg_keras.programs.common import run_program
from mg_keras.programs.whiten import main

if __name__ == "__main__":
    run_program(main)
