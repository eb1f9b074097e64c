"""The projection of a run's objective as its descriptor, in place of a whitening that is fitted."""

import numpy as np

from mg_keras.data.sources import Source
from mg_keras.embedding.embedder import Embedder
from mg_keras.embedding.whitening import Whitening, class_agreement
from mg_keras.errors import UserError
from mg_keras.finishing.stages import exponent_at
from mg_keras.progress import announce
from mg_keras.runs.projection import projection_of
from mg_keras.runs.run import Run
from mg_keras.whitening_formulas import unit_embeddings


def take_projection(run: Run, source: Source) -> str:
    """Makes the L2-normalised projection the descriptor of a run at each of its resolutions.

    Writes what `stages.fit_whitening` writes, so that measures, exports and searches take it, and removes whitenings of
    other poolings. The class of a photo stays what it is; of a stored descriptor it is approximate.

    Args:
        run: `Run`.
        source: its photos; those for validation tell what a descriptor keeps of the embedding and its class.

    Returns:
        str, what it was taken from.

    Raises:
        UserError: the run's objective trained none, or no validation photo can be used.
    """
    projection = projection_of(run)
    if projection is None:
        raise UserError(f"{run.path} was trained with the objective {run.settings.objective}, which projects nothing")
    embedder = Embedder(run.model, run.settings.resolution)
    announce(f"measuring the projection on {len(source.val):,} validation photos")
    for size in run.settings.resolutions:
        exponent = exponent_at(run, size)
        found = embedder.embed(source.val, size, [exponent], f"projection at {size} px")
        if not len(found.rows):
            raise UserError("none of the validation photos can be used: what a projection keeps can't be measured")
        descriptor = _with_loss(projection, found.values[0])
        for stale in run.results.glob(f"whitening-{size}-*.npz"):
            stale.unlink()
        descriptor.save(run.whitening_path(size))
        entry = {
            "p_star": exponent,
            "dimensions": descriptor.projection_.shape[1],
            "embedding_dimensions": descriptor.projection_.shape[0],
            "variance_kept": descriptor.variance_kept_,
            "shrinkage": None,
            "photos": 0,
            "fitted_on": f"projection of the objective {run.settings.objective}",
            **class_agreement(descriptor, found.values[0], source.val.labels[found.rows], run.model.classify),
            "validation_photos": len(found.rows),
        }
        run.save_whitening_report({**run.whitening_report, size: entry})
    return f"the projection that {run.settings.objective} trained"


def _with_loss(projection, embeddings):
    """The projection, knowing how much of ê it leaves out of embeddings [N, d], on average."""
    unit = unit_embeddings(np, np.asarray(embeddings, np.float64), True)
    back = unit @ projection.projection_ @ projection.inverse_
    left_out = min(float(np.mean(np.sum((unit - back) ** 2, axis=1))), 1 - 1e-9)
    return Whitening(projection.mean_, projection.projection_, True, left_out)
