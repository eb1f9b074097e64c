"""No augmentation: the centre crop a photo is tested with, for runs that must see the same picture every time."""

from mg_keras.data import resolutions


def augment(image, size, seed):
    """Resizes the smallest side to `size * 256 / 224` and crops the centre.

    Args:
        image: uint8 `[H, W, 3]`, RGB.
        size: int, side of the result in pixels.
        seed: unused; here since every recipe takes one.

    Returns:
        float32 `[size, size, 3]`, RGB in 0-255.
    """
    del seed
    return resolutions.square(image, size)
