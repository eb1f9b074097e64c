"""Runs by their former path; they are `mg_keras.runs.run` now."""

from mg_keras.runs.run import Run, load_run

__all__ = ["Run", "load_run"]
