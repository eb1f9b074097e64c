"""Photos in shards, TFRecord files and WebDataset tars: what lies where, and how training reads it."""

from mg_keras.data.shards.index import Index, open_index
from mg_keras.data.shards.stream import Stream
from mg_keras.data.stores import store_of

__all__ = ["Index", "Stream", "open_index", "store_of"]
