"""Exports a run as a SavedModel: python export/run.py --run runs/demo --out models/multigrain."""

import sys
from pathlib import Path

# a checkout works as it is: the rooms beside this one are importable
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mg_keras.programs.common import Parser, number, run_program
from mg_keras.quiet import import_tensorflow


def main():
    """Arguments, the export, and how to use what it wrote."""
    parser = Parser("export/run.py", __doc__)
    parser.add_argument("--run", type=str, required=True, help="the run's folder, such as runs/demo")
    parser.add_argument("--data", type=str, help="where the run's photos lie now; default: where they were")
    parser.add_argument("--out", type=str, required=True, help="the model's folder; versions are numbered inside")
    parser.add_argument(
        "--version", type=number(int, at_least=1), help="the number to write; default: the next free one"
    )
    parser.add_argument(
        "--precision",
        choices=["float32", "bfloat16"],
        default="float32",
        help="what the trunk computes in; bfloat16 needs a processor with avx512_bf16 or AMX to be fast",
    )
    parser.add_argument(
        "--check_photos",
        type=number(int, at_least=1),
        default=16,
        help="validation photos to compare with the Keras model (16)",
    )
    options = parser.parse_args()
    import_tensorflow()
    from mg_keras.export.saved_model import export_run, usage
    from mg_keras.runs.run import load_run

    run = load_run(options.run, data=options.data)
    print(usage(export_run(run, options.out, options.version, options.precision, options.check_photos)))


if __name__ == "__main__":
    run_program(main)
