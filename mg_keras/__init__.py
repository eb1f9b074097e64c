"""mg_keras: one image embedding for classes, instances and copies (MultiGrain, Berman et al. 2019)."""

import importlib

__version__ = "0.1.0"

# name -> the module that has it; None: it is a module itself
_WHERE = {
    "MultiGrain": "mg_keras.multigrain",
    "Whitening": "mg_keras.embedding.whitening",
    "layers": None,
    "load": "mg_keras.loading",
}
__all__ = ["MultiGrain", "Whitening", "layers", "load"]


def __dir__():
    return [*__all__, "__version__"]


def __getattr__(name):
    # loaded on first use: `--help` and the data tools need no TensorFlow, which takes seconds to import
    if name not in _WHERE:
        raise AttributeError(f"module 'mg_keras' has no attribute {name!r}")
    where = _WHERE[name]
    return getattr(importlib.import_module(where), name) if where else importlib.import_module(f"mg_keras.{name}")
