"""Python runs this at its start where this folder is on PYTHONPATH: there `resnet18` is two small blocks.

Graphs run as they are written, too. So programs and the processes that they start can be run as a user runs them, in
less time: `tests.train.tiny.start`.
Where TRAINING_ALONE is in the environment, too, runs end after training: nothing is measured and exported, and where it
is MADE_UP the scores are.
"""

import gc
import importlib.abc
import importlib.util
import os
import sys

from tests.graphs import run_as_written

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


class _Changed(importlib.abc.MetaPathFinder):
    """Changes a module as it is imported: no process that does without TensorFlow imports it for this."""

    def __init__(self, name, change):
        self.name, self.change = name, change

    def find_spec(self, name, path, target=None):
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_change(module):
            execute(module)
            self.change(module)

        spec.loader.exec_module = execute_and_change
        return spec


if __name__ == "sitecustomize":
    # see tests/conftest.py
    gc.set_threshold(100_000, 50, 100)
    sys.meta_path.insert(0, _Changed("tensorflow", run_as_written))
    sys.meta_path.insert(0, _Changed("mg_keras.models.trunks", _small_trunk))
    if TRAINING_ALONE in os.environ:
        sys.meta_path.insert(0, _Changed("mg_keras.programs.whole_run", _nothing_measured))
        sys.meta_path.insert(0, _Changed("mg_keras.programs.train", _nothing_exported))
