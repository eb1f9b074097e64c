"""Python runs this at its start where this folder is on PYTHONPATH: there `resnet18` is two small blocks.

So programs and the processes that they start can be run as a user runs them, in less time: `tests.train.tiny.start`.
"""

import gc
import importlib.abc
import importlib.util
import sys

WHERE = "mg_keras.models.trunks"
STAGES = {"stackwise_num_filters": [64, 16], "stackwise_num_blocks": [1, 1], "stackwise_num_strides": [1, 2]}


class _SmallTrunk(importlib.abc.MetaPathFinder):
    """Changes the table of trunks as it is imported: no process that does without TensorFlow imports it for this."""

    def find_spec(self, name, path, target=None):
        if name != WHERE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_change(module):
            execute(module)
            backbone, arguments = module.TRUNKS["resnet18"]
            module.TRUNKS["resnet18"] = backbone, {**arguments, **STAGES}

        spec.loader.exec_module = execute_and_change
        return spec


if __name__ == "sitecustomize":
    # see tests/conftest.py
    gc.set_threshold(100_000, 50, 100)
    sys.meta_path.insert(0, _SmallTrunk())
