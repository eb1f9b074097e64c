"""Chooses the test exponent p* of a run for each resolution: python train/choose_p_star.py --run runs/demo.

`mg-keras choose-p-star` is the same program; `--help` says what it takes.
"""

from mg_keras.programs.choose_p_star import main
from mg_keras.programs.common import run_program

if __name__ == "__main__":
    run_program(main)
