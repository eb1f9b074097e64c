"""Makes a run of a PyTorch checkpoint: python -m mg_keras.pretrained CHECKPOINT --run runs/NAME.

`mg-keras import-weights` is the same program; `--help` says what it takes.
"""

from mg_keras.programs.common import run_program
from mg_keras.programs.import_weights import main

if __name__ == "__main__":
    run_program(main)
