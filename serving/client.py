"""The client by its former path; it is `mg_keras.serving.client` now."""

from mg_keras.serving.client import Client, GrpcClient, RestClient
from mg_keras.serving.codes import ServingError

__all__ = ["Client", "GrpcClient", "RestClient", "ServingError"]
