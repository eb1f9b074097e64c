"""Looks into a PyTorch checkpoint, and makes a run of it: python -m mg_keras.pretrained CHECKPOINT --run runs/NAME.

Without --run it only says what the file is. Nothing of the file is run, and PyTorch is not needed. The run's folder is
one that train/evaluate.py, train/choose_p_star.py, train/whiten.py and export/run.py take.
"""

from pathlib import Path

from mg_keras.errors import UserError
from mg_keras.pretrained import open_torch_checkpoint
from mg_keras.programs.common import Parser, run_program
from mg_keras.quiet import import_tensorflow


def main():
    """Arguments, what the file is, and the run."""
    parser = Parser("python -m mg_keras.pretrained", __doc__)
    parser.add_argument("checkpoint", type=str, help="a .pth file: MultiGrain's, or a ResNet of torchvision")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--describe", action="store_true", help="only say what the file is, as without --run")
    what.add_argument("--run", type=str, help="the folder of a new run")
    parser.add_argument("--data", type=str, help="with --run: photos to measure on: what train/run.py takes")
    parser.add_argument(
        "--class_names", type=str, help="with --run: a file, a class a line, in the order of the logits"
    )
    parser.add_argument("--strict", type=bool, default=True, help="refuse a file with tensors of unknown names (true)")
    options = parser.parse_args()
    if options.run and not options.data:
        raise UserError("--run needs --data, the photos that the run is measured on: what train/run.py takes")
    if not options.run and (options.data or options.class_names):
        raise UserError("--data and --class_names are a run's: give --run, the folder of a new one")
    print(open_torch_checkpoint(options.checkpoint).describe())
    if options.run:
        make_run(options)


def make_run(options):
    """The network and its folder."""
    names = options.class_names and read_names(Path(options.class_names))
    import_tensorflow()
    from mg_keras.pretrained import from_torch_checkpoint, save_run

    run, note = save_run(from_torch_checkpoint(options.checkpoint, names, options.strict), options.run, options.data)
    if note:
        print(f"note: {note}")
    print(f"written: {run.path}, for train/evaluate.py --run {run.path} and what else takes a run")


def read_names(path):
    """The lines of a file."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read as a list of classes: {error}") from error


if __name__ == "__main__":
    run_program(main)
