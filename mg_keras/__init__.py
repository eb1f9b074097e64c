"""mg_keras: one image embedding for classes, instances and copies (MultiGrain, Berman et al. 2019)."""

import importlib

__version__ = "0.1.0"
__all__ = ["MultiGrain", "Whitening", "layers"]

_WHERE = {"MultiGrain": "mg_keras.models", "Whitening": "mg_keras.embedding.whitening"}


def __getattr__(name):
    # loaded on first use: `--help` and the data tools need no TensorFlow, which takes seconds to import
    if name == "layers":
        return importlib.import_module("mg_keras.layers")
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'mg_keras' has no attribute {name!r}")
