"""The projection that a run's objective trained on the embedding, as a descriptor."""

import numpy as np

from mg_keras.checkpoints import first_of
from mg_keras.embedding.whitening import Whitening
from mg_keras.errors import UserError
from mg_keras.runs.run import Run

GROUP = "projection"
"""What a checkpoint calls the kernel [d, k] and the bias [k] of it."""


def projection_of(run: Run) -> Whitening | None:
    """The projection of a run's checkpoint, in the form of a whitening of mean 0; None where its objective has none.

    With ê = [e; 1] / ||[e; 1]|| and the kernel over the bias W, `ê @ W` is the projection of e but for its norm, so its
    descriptors are exactly the L2-normalised projections, and what takes a whitening takes it: measures and exports.

    Args:
        run: `Run`.

    Raises:
        UserError: the projection has more values than [e; 1].
    """
    found = run.checkpoints.load(run.checkpoint, [GROUP])
    arrays = [array for _, array in first_of(found[1], GROUP, 2)] if found else []
    if not arrays:
        return None
    kernel, bias = arrays
    if kernel.shape[1] > len(kernel) + 1:
        raise UserError(
            f"{run.path} projects embeddings of {len(kernel)} values to {kernel.shape[1]}: as a descriptor "
            f"projection_dimensions must be at most {len(kernel) + 1}"
        )
    return Whitening(np.zeros(len(kernel) + 1), np.concatenate([kernel, bias[None]]))
