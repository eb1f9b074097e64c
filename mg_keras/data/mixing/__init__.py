"""Ways of mixing the images of a batch, and their labels with them, by name.

A way is a function `mix(images, labels, alpha, seed)` of TensorFlow operations, of a replica's batch as a whole:

* `images`: float32 `[B, H, W, 3]`; `labels`: float32 `[B, C]`, shares of the classes;
* `alpha`: > 0, of the Beta distribution from which a batch's share is drawn; large values mix half and half;
* `seed`: integers `[2]`, the only source of randomness;
* it returns (images, labels) of the same shapes, the rows of the labels with the same sums.

The first of a pair never has the smaller share: its instance id stays the id of what is mostly seen. As each image is
first and second once, and the draw of the share is symmetric, a batch holds the same mixtures as without that.

A new way is one file here, whose function is called `mix`, and its name in `MixingName`. `draws` has what ways share,
and `batches` mixes a stream of batches.
"""

import importlib
from collections.abc import Callable
from typing import Literal, get_args

# the files are loaded on first use: to read settings needs no TensorFlow
MixingName = Literal["none", "mixup", "cutmix"]
"""What a run's `mixing` may be."""

NAMES = get_args(MixingName)


def get(name: str) -> Callable:
    """The way called `name`, a function as described above.

    Args:
        name: one of `NAMES`, but `"none"`.

    Raises:
        ValueError: there is no such way.
    """
    known = [other for other in NAMES if other != "none"]
    if name not in known:
        raise ValueError(f"kind must be one of {', '.join(known)}, received {name!r}")
    return importlib.import_module(f"{__name__}.{name}").mix
