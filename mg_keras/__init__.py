"""mg_keras: one image embedding for classes, instances and copies (MultiGrain, Berman et al. 2019)."""

import importlib

from mg_keras.quiet import without_collection

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
    with without_collection():
        module = importlib.import_module(where or f"mg_keras.{name}")
    return getattr(module, name) if where else module
