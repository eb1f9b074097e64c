"""Exports a run as a SavedModel: python export/run.py --run runs/demo --out models/multigrain.

`mg-keras export` is the same program; `--help` says what it takes.
"""

from mg_keras.programs.common import run_program
from mg_keras.programs.export import main

if __name__ == "__main__":
    run_program(main)
