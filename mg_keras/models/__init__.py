"""The network and the trunks it can stand on."""

from mg_keras.models.network import Network

__all__ = ["Network"]
