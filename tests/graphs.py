"""Graphs that run as they are written: what a test runs once or twice is not worth optimising."""

from types import ModuleType


def run_as_written(tensorflow: ModuleType) -> None:
    """Switches TensorFlow's optimisation of graphs off, in this process: a fifth of the time of tests that trace."""
    tensorflow.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
