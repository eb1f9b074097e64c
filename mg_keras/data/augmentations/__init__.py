"""Augmentation recipes by name (section 4.1).

A recipe is a function `augment(image, size, seed)` of TensorFlow operations, made for `tf.data` maps:

* `image`: uint8 `[H, W, 3]`, RGB, any size;
* `size`: int, the side of the result in pixels;
* `seed`: int32 or int64 `[2]`, the only source of randomness: the same seed gives the same picture, in whatever
  order and on whatever thread the photos come;
* it returns float32 `[size, size, 3]`, RGB in 0-255.

A new recipe is one file here, whose function is called `augment`, and its name in `AugmentationName`.

Keras's own layers are used where they do exactly this, which is for the affine warp alone. The others draw their
randomness from a stateful generator, so a photo's version would depend on the order of the threads, and several
compute something else: `RandomSaturation` works in HSV, `RandomContrast` blends with each channel's mean rather than
with the mean grey, `Equalization` rounds otherwise than PIL.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from mg_keras.errors import UserError

# the files are loaded on first use: to read settings needs no TensorFlow
AugmentationName = Literal["full", "standard", "autoaugment", "copies", "recaptured", "none"]
"""What a run's `augmentation` may be."""

NAMES = get_args(AugmentationName)


def get(name: str | Sequence[str]) -> Callable:
    """The recipe called `name`, or several that make versions in turn.

    Args:
        name: one of `NAMES`, or a list of them, in which one may be named again: the version whose seed's second value
            is i is made by recipe i modulo their number. `repeated_batches` numbers versions so: of `["standard",
            "copies", "copies"]` and three versions a photo, one of each photo is by `standard`.

    Returns:
        A function `augment(image, size, seed)`, as described above.

    Raises:
        UserError: there is no such recipe.

    Example:

    >>> import tensorflow as tf
    >>> get("standard")(tf.zeros([300, 200, 3], tf.uint8), size=96, seed=[1, 2]).shape
    TensorShape([96, 96, 3])
    """
    if isinstance(name, str):
        if name not in NAMES:
            raise UserError(f"Unknown augmentation {name!r}; the known ones are {', '.join(NAMES)}")
        return importlib.import_module(f"{__name__}.{name}").augment
    if not name:
        raise UserError("augmentation must be a recipe or a list of some, received []")
    recipes = [get(one) for one in name]
    return recipes[0] if len(recipes) == 1 else _in_turn(recipes)


def _in_turn(recipes):
    import tensorflow as tf

    def augment(image, size, seed):
        place = tf.cast(seed[1] % len(recipes), tf.int32)
        picture = tf.switch_case(place, [lambda recipe=recipe: recipe(image, size, seed) for recipe in recipes])
        return tf.ensure_shape(picture, [size, size, 3])

    return augment
