"""The public model, and the step that trains it."""

from mg_keras.multigrain.model import MultiGrain

__all__ = ["MultiGrain"]
