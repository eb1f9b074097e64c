"""Python runs this at its start where this folder is on PYTHONPATH: there `resnet18` is two small blocks.

Graphs run as they are written, too. So programs and the processes that they start can be run as a user runs them, in
less time: `tests.train.tiny.start`.
Where TRAINING_ALONE is in the environment, too, runs end after training: nothing is measured and exported, and where it
is MADE_UP the scores are.
"""

import gc
import os

from tests.imports import run_graphs_as_written, when_imported

TRAINING_ALONE = "MG_KERAS_TESTS_TRAINING_ALONE"
MADE_UP = "scores are made up"
STAGES = {"stackwise_num_filters": [64, 16], "stackwise_num_blocks": [1, 1], "stackwise_num_strides": [1, 2]}


def _small_trunk(trunks):
    backbone, arguments = trunks.TRUNKS["resnet18"]
    trunks.TRUNKS["resnet18"] = backbone, {**arguments, **STAGES}


def _nothing_measured(whole_run):
    if os.environ[TRAINING_ALONE] == MADE_UP:
        from tests.programs.pretend import score

        whole_run._measure = lambda run, *_: score(run)
    else:
        whole_run._measure = lambda *of_a_run: None


def _nothing_exported(train):
    train.finish = lambda run: None


if __name__ == "sitecustomize":
    # see tests/conftest.py
    gc.set_threshold(100_000, 50, 100)
    run_graphs_as_written()
    when_imported("mg_keras.models.trunks", _small_trunk)
    if TRAINING_ALONE in os.environ:
        when_imported("mg_keras.programs.whole_run", _nothing_measured)
        when_imported("mg_keras.programs.train", _nothing_exported)
