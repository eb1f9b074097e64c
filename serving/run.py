"""A local server for development: python serving/run.py --model models/multigrain.

`mg-keras serve` is the same program; `--help` says what it takes.
"""

from mg_keras.programs.common import run_program
from mg_keras.programs.serve import main

if __name__ == "__main__":
    run_program(main)
