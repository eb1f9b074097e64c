"""The formulas of PCA whitening (MultiGrain, section 3.4), once for all who compute them.

Functions over `numpy` (float64: fitting, folding) or `keras.ops` (float32: the layer, the exported graph), whichever is
given as `xp`; both name these operations alike.
"""

from types import ModuleType
from typing import Any

# of a descriptor whose values are all nearer to 0, float32 tells the direction badly or not at all
SMALLEST_DESCRIPTOR = 1e-30


def unit_rows(xp: ModuleType, rows: Any) -> Any:
    """`rows` [..., D] divided by their L2 norms; zero rows stay zero."""
    return rows / xp.maximum(xp.sqrt(xp.sum(rows * rows, axis=-1, keepdims=True)), 1e-12)


def unit_embeddings(xp: ModuleType, embeddings: Any, bias_channel: bool) -> Any:
    """ê: e / ||e||, or [e; 1] / ||[e; 1]|| with the bias channel. [..., d] → [..., d or d + 1]."""
    if bias_channel:
        embeddings = xp.concatenate([embeddings, xp.ones_like(embeddings[..., :1])], axis=-1)
    return unit_rows(xp, embeddings)


def whitened(xp: ModuleType, unit: Any, mean: Any, projection: Any) -> Any:
    """Φ = S (ê - μ), with `unit` = ê, as `unit_embeddings` gives it, and `projection` = Sᵀ. [N, D] → [N, k]."""
    return xp.matmul(unit - mean, projection)


def unwhitened(
    xp: ModuleType, descriptors: Any, mean: Any, inverse: Any, discarded_variance: Any = 0.0
) -> tuple[Any, Any]:
    """(Φ [N, k], ê [N, D]) that whitened descriptors u [N, k] came from; their norms are of no account.

    Φ = t u and ê = t S⁺ u + μ, with t the positive root of ||t S⁺ u + μ||² = 1 - r, where r is the variance that was
    discarded. There is exactly one, since ||μ||² < 1 - r. With all k = D dimensions, S⁺ is S⁻¹, r is 0 and both are
    exact. With fewer, ê is the part that was kept, given the norm it has on average: the whole is
    1 = ||kept||² + ||rest||² + 2 <rest, μ>, and the last two are r and 0 on average.
    """
    # squares of what is very long or short would not be numbers of float32
    largest = xp.max(xp.abs(descriptors), axis=-1, keepdims=True)
    descriptors = descriptors / xp.maximum(largest, SMALLEST_DESCRIPTOR)
    direction = xp.matmul(descriptors, inverse)
    a = xp.sum(direction * direction, axis=-1, keepdims=True)
    b = xp.sum(direction * mean, axis=-1, keepdims=True)
    c = 1.0 - discarded_variance - xp.sum(mean * mean)
    root = xp.sqrt(b * b + a * c)
    # The same root of a t² + 2 b t - c = 0 twice; which form subtracts nothing depends on the sign of b.
    t = xp.where(b > 0, c / (root + xp.abs(b)), (root + xp.abs(b)) / xp.maximum(a, 1e-30))
    return t * descriptors, t * direction + mean


def folded_logits(xp: ModuleType, phi: Any, unit: Any, kernel: Any, bias: Any) -> Any:
    """Class logits [N, C] by a classifier that `Whitening.fold` made with the bias channel: ||[e; 1]|| (Φ w' + b').

    The appended 1 gives the norm back: it is 1 / ê_last. `phi` is [N, k], `unit` ê [N, D], `kernel` w' [k, C].
    """
    return (xp.matmul(phi, kernel) + bias) / unit[..., -1:]


def kept_dimensions(dimensions: int | None, size: int) -> int:
    """k: `dimensions`, or all D = `size` for None.

    Raises:
        ValueError: for no whole number in 1 … D.
    """
    if dimensions is None:
        return size
    if int(dimensions) != dimensions or not 1 <= dimensions <= size:
        raise ValueError(f"dimensions must be a whole number from 1 to {size}, received {dimensions}")
    return int(dimensions)
