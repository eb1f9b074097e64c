"""Classes of unequal size: what each class's cross-entropy is multiplied by."""

import numpy as np


def class_weights(kind: str, labels: np.ndarray, num_classes: int) -> np.ndarray | None:
    """The weights of the classes in training.

    With N training photos, N_c of class c and K classes that have any, `"weights"` gives

        w_c = N / (K N_c)

    so that each class adds as much to the cross-entropy as any other, and the mean over the training photos is 1: the
    learning rate and lambda mean what they do without.

    Args:
        kind: `"none"` or `"weights"`, the setting `class_balance`.
        labels: class numbers [N] of the training photos.
        num_classes: C.

    Returns:
        float32 [C], 0 for a class without a photo; None for `"none"`.

    Example:

    >>> class_weights("weights", np.array([0, 0, 0, 1]), 2)
    array([0.6666667, 2.       ], dtype=float32)
    """
    if kind == "none":
        return None
    counts = np.bincount(labels, minlength=num_classes)
    weights = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return np.where(counts > 0, weights, 0.0).astype(np.float32)
