"""What tests change in a module as it is imported, so that no process imports it for that."""

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType


def when_imported(name: str, change: Callable[[ModuleType], None]) -> None:
    """Calls `change(module)` once the module of that name is imported, now if it is."""
    if name in sys.modules:
        change(sys.modules[name])
    else:
        sys.meta_path.insert(0, _Changed(name, change))


def run_graphs_as_written() -> None:
    """Switches TensorFlow's optimisation of graphs off in this process: what runs once or twice isn't worth it."""
    options = {"disable_meta_optimizer": True}
    when_imported("tensorflow", lambda tensorflow: tensorflow.config.optimizer.set_experimental_options(options))


class _Changed(importlib.abc.MetaPathFinder):
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
