"""What benchmarks.exponents and benchmarks.whitenings share: embeddings of a run, kept on disk for a second call."""

import zlib
from pathlib import Path

import numpy as np

from mg_keras.errors import UserError
from mg_keras.files import atomic_path


def kept(folder, name, made_from, embed, dtype=np.float32):
    """Embeddings float32 [P, N, D] and int64 [N], of which photo each is: those of an earlier call, or `embed()`.

    Args:
        folder: Path where they are kept as `dtype`, to which those of the first call are rounded, too; None: nothing is
            kept, nor rounded.
        name: str, what the file's name begins with.
        made_from: all that decides them, such as the network's fingerprint and the photos; files of something else are
            not taken.
        embed: function without arguments -> `mg_keras.embedding.photos.Embeddings`.
        dtype: what they are kept as.
    """
    path = folder and folder / f"{name}-{zlib.crc32(repr(made_from).encode()):08x}.npz"
    if not path:
        found = embed()
        return found.values, found.rows
    if not path.exists():
        found = embed()
        with atomic_path(path) as partial:
            np.savez(partial, values=found.values.astype(dtype), numbers=found.rows)
    with np.load(path) as arrays:
        return arrays["values"].astype(np.float32), arrays["numbers"]


def embed_all(run, photos, size, poolings, label):
    """`embed` of files or PIL images, every one of which must be usable: scores go by their places."""
    from mg_keras.data.given import given_photos
    from mg_keras.embedding.photos import embed

    found = embed(run.model, given_photos(photos), size, run.settings.resolution, poolings, label)
    if len(found.unusable):
        raise UserError(f"{photos[found.unusable[0]]} can't be used: take it out of the folder")
    return found


def some_photos(folder, count, seed):
    """A split of `count` photos of a folder, drawn with a seed, in their order; None: all."""
    from mg_keras.data import sources

    photos = sources.photos(Path(folder))
    return photos.subset(np.sort(np.random.default_rng(seed).permutation(len(photos))[:count]))


def embed_some_versions(run, folder, count, recipe, size, poolings, seed, label, versions=None):
    """`embed_versions` of `some_photos`, so many of each (None: IN-aug's) by the recipe called so."""
    from mg_keras.data import augmentations
    from mg_keras.embedding.photos import embed_versions
    from mg_keras.finishing.pooling_exponent import VERSIONS

    some = some_photos(folder, count, seed)
    return embed_versions(run.model, some, augmentations.get(recipe), size, versions or VERSIONS, poolings, seed, label)
