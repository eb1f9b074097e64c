"""Photos embedded once, however many stages and benchmarks ask for their embeddings."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from mg_keras.data.sources import Split
from mg_keras.embedding.photos import EmbeddingNetwork, Embeddings, embed

KEPT_BYTES = 2 << 30
"""What an `Embedder` keeps at most: three poolings of 80 000 photos by ResNet-50."""


@dataclasses.dataclass(frozen=True)
class _Kept:
    """The embeddings of a split at a resolution. It holds the split, so that no other can take its place in memory."""

    split: Split
    poolings: tuple
    found: Embeddings


class Embedder:
    """Embeds photos with a network, and keeps what it found for whoever asks for the same again.

    Splits are told apart as objects: ask with the same `Split`, not with one like it. Embeddings of versions
    (`embed_versions`) are not kept.

    Args:
        network: `MultiGrain`, or another network of `mg_keras.embedding.photos`, which must not change meanwhile.
        train_resolution: pixels of the training crops.
        also: poolings to compute beside those that are asked for, in the same run of the trunk: those that a later
            stage will ask for.
        limit: bytes of embeddings to keep. What was asked for longest ago is forgotten first, and embedded anew if it
            is asked for again.

    Example:
        >>> embedder = Embedder(model, 224, also=[1.0, RMAC])  # doctest: +SKIP
        >>> embedder.embed(source.val, 500, [4.0])  # doctest: +SKIP
        >>> embedder.embed(source.val, 500, [4.0, RMAC])  # nothing is left to compute  # doctest: +SKIP
    """

    def __init__(self, network: EmbeddingNetwork, train_resolution: int, also: Sequence = (), limit: int = KEPT_BYTES):
        self.network, self.train_resolution = network, train_resolution
        self.also, self.limit = tuple(also), limit
        # (identity of a split, resolution) -> _Kept; what was asked for last stands last
        self._kept = {}

    def embed(self, split: Split, resolution: int, poolings: Sequence, label: str | None = None) -> Embeddings:
        """Embeddings of a split's usable photos, each of its `parts` by itself, so that no other need embed them.

        Args:
            split: the photos.
            resolution: s*, pixels.
            poolings: p* and `RMAC`, at least one.
            label: what to call it while it runs; None shows nothing.

        Returns:
            `Embeddings`, to be read only: others get the same arrays.
        """
        if not split.parts:
            return self._embed(split, resolution, poolings, label)
        starts = np.cumsum([0, *(len(part) for part in split.parts)])[:-1]
        found = [self._embed(part, resolution, poolings, label) for part in split.parts]
        return Embeddings(
            np.concatenate([one.rows + start for one, start in zip(found, starts, strict=True)]),
            np.concatenate([one.values for one in found], axis=1),
            np.concatenate([one.unusable + start for one, start in zip(found, starts, strict=True)]),
        )

    def put(self, split: Split, resolution: int, poolings: Sequence, found: Embeddings) -> None:
        """Takes over what the same network was asked elsewhere: the embeddings of a split by `poolings`."""
        self._keep(_Kept(split, tuple(poolings), found), resolution)

    def _embed(self, split, resolution, poolings, label):
        kept = self._kept.get((id(split), resolution))
        known = kept.poolings if kept else ()
        if not set(poolings) <= set(known):
            missing = tuple(pooling for pooling in dict.fromkeys([*poolings, *self.also]) if pooling not in known)
            found = embed(self.network, split, resolution, self.train_resolution, missing, label)
            if kept:
                found = dataclasses.replace(found, values=np.concatenate([kept.found.values, found.values]))
            kept = _Kept(split, (*known, *missing), found)
        self._keep(kept, resolution)
        places = [kept.poolings.index(pooling) for pooling in poolings]
        # a part without a copy, where they lie side by side
        side_by_side = places == list(range(places[0], places[0] + len(places)))
        chosen = slice(places[0], places[0] + len(places)) if side_by_side else places
        return dataclasses.replace(kept.found, values=kept.found.values[chosen])

    def _keep(self, kept, resolution):
        key = id(kept.split), resolution
        self._kept.pop(key, None)
        self._kept[key] = kept
        while sum(one.found.values.nbytes for one in self._kept.values()) > self.limit:
            del self._kept[next(iter(self._kept))]
