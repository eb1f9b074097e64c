"""Networks that were trained elsewhere: PyTorch checkpoints to MultiGrain and back.

`open_torch_checkpoint` says what a file holds, and needs no TensorFlow; `from_torch_checkpoint` makes a network of it.
PyTorch itself is never needed, and nothing of a checkpoint's pickle is ever run.
"""

import importlib

__all__ = [
    "PACKAGED",
    "Pretrained",
    "TorchCheckpoint",
    "class_names",
    "from_torch_checkpoint",
    "initialize",
    "open_torch_checkpoint",
    "save_torch_checkpoint",
    "to_torch_state_dict",
]

PACKAGED = "package"
"""What the model in the package is called where weights or a model are named."""

_WHERE = {
    **dict.fromkeys(("TorchCheckpoint", "open_torch_checkpoint"), "layouts"),
    **dict.fromkeys(
        ("Pretrained", "from_torch_checkpoint", "save_torch_checkpoint", "to_torch_state_dict"), "multigrain"
    ),
    **dict.fromkeys(("class_names", "initialize"), "initial"),
}


def __getattr__(name):
    # loaded on first use: to look into a file needs no TensorFlow, which takes seconds to import
    if name in _WHERE:
        return getattr(importlib.import_module(f"mg_keras.pretrained.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'mg_keras.pretrained' has no attribute {name!r}")
