"""What a usable photo is, in numbers, for those who look at files without TensorFlow."""

import numpy as np

MAX_PIXELS = 128_000_000
MIN_SIDE = 8


def in_0_to_1(array: np.ndarray) -> str | None:
    """Why pixels can't be used that are floats in 0-1, as other libraries have photos; None of any others.

    Taken as they are, in 0-255, they would be a black photo.
    """
    if array.dtype.kind == "f" and array.size and array.min() >= 0 and array.max() <= 1 and (array % 1).any():
        return "an array with values in 0-1, where 0-255 was expected: multiply them by 255"
    return None
