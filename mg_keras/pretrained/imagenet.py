"""Makes a run of EfficientNet-Lite0 as it was trained on ImageNet: python -m mg_keras.pretrained.imagenet --help.

The weights come with the package of the extra `offline`. Where the data's classes are named by WordNet id, such as
n02110341, the classifier tells these apart; otherwise all 1000. The run's folder is one that train/evaluate.py,
train/choose_p_star.py, train/whiten.py and export/run.py take.
"""

from mg_keras.programs.common import Parser, run_program
from mg_keras.quiet import import_tensorflow


def main():
    """Arguments, the network and the run."""
    parser = Parser("python -m mg_keras.pretrained.imagenet", __doc__)
    parser.add_argument("--run", type=str, required=True, help="the folder of a new run")
    parser.add_argument("--data", type=str, required=True, help="photos to measure on: what train/run.py takes")
    options = parser.parse_args()
    import_tensorflow()
    from mg_keras.pretrained import save_imagenet_run

    run, note = save_imagenet_run(options.run, options.data)
    if note:
        print(f"note: {note}")
    print(f"written: {run.path}, for train/evaluate.py --run {run.path} and what else takes a run")


if __name__ == "__main__":
    run_program(main)
