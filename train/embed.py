"""Writes the descriptors of photos: python train/embed.py --run runs/demo --photos FOLDER --out features.npy.

`mg-keras embed` is the same program; `--help` says what it takes.
"""

from mg_keras.programs.common import run_program
from mg_keras.programs.embed import main

if __name__ == "__main__":
    run_program(main)
