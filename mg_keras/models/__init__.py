"""The model and the trunks it can stand on."""

from mg_keras.models.multigrain import MultiGrain

__all__ = ["MultiGrain"]
