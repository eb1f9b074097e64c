"""Trains and measures presets with several seeds: python train/ablation.py --presets A,B --seeds 0,1.

`mg-keras ablation` is the same program; `--help` says what it takes.
"""

from mg_keras.programs.ablation import main
from mg_keras.programs.common import run_program

if __name__ == "__main__":
    run_program(main)
