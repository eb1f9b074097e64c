"""The model that describes an index's photos: what is asked of it, and whether it is the one that made the index."""

import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from mg_keras.data import finding
from mg_keras.errors import UserError
from mg_keras.files import printable_name
from mg_keras.search.given import Descriptors
from mg_keras.search.photos import pixels

# photos of an array of descriptors that are embedded to see that the model is the one that made it
_CHECKED, _SAME = 3, 0.98
# rows of an index of shards among whose photos such are looked for
LOOKED_AT = 100
# classes that are kept of a photo
MOST_CLASSES = 5


class Model(Protocol):
    """What describes photos: `mg_keras.load` opens one."""

    class_names: list[str] | None
    resolution: int
    fingerprint: str

    def embed(self, photos: Any, resolution: int | None = None, *, on_error: str = "raise") -> np.ndarray:
        """float32 [N, D], unit norm; with `on_error="skip"` NaN for a photo that can't be used."""

    def classify(self, descriptors: np.ndarray, resolution: int | None = None) -> Any:
        """An object whose `probabilities` are float [N, C]."""


def check_model(
    model: Model,
    made_from: Mapping[str, Any] | None,
    resolution: int | None,
    some: Callable[[], Descriptors],
    where: str,
) -> None:
    """That the model made the descriptors of `where`: both say so, or it makes the same of photos that are here.

    Args:
        model: the one that is given.
        made_from: what the descriptors say of it; None or empty: nothing.
        resolution: pixels that they were made at; None: the model's.
        some: gives a few of them.
        where: what to call them.

    Raises:
        UserError: it makes others, or that can't be told.
    """
    told = getattr(model, "made_from", lambda _: {})(resolution or model.resolution)
    if told and made_from and all(made_from.get(name) == value for name, value in told.items()):
        return
    given = some()
    if not any(map(os.path.isfile, given.names)):
        raise UserError(
            f"{where} was made by another model than {getattr(model, 'path', 'this one')}, as far as can be told: give "
            "the one that described its photos"
        )
    if not check_made_by(given, model, resolution):
        raise UserError(f"{where}: no photo of those that are here can be embedded, by which the model would be told")


def check_made_by(given: Descriptors, model: Model, resolution: int | None) -> int:
    """That the model makes such descriptors: of the first photos that are there, it makes the same.

    Returns:
        How many were looked at.

    Raises:
        UserError: it makes others.
    """
    checked = 0
    for place, name in enumerate(given.names):
        if checked == _CHECKED or place >= LOOKED_AT:
            break
        if not os.path.isfile(name) or not np.isfinite(given.values[place]).all():
            continue
        own = model.embed([name], resolution, on_error="skip")[0]
        if not np.isfinite(own).all():
            continue
        if len(own) != given.values.shape[1]:
            raise UserError(
                f"{given.what} has {given.values.shape[1]} values a photo, where the model makes {len(own)}"
            )
        stored = np.asarray(given.values[place], np.float32)
        cosine = float(own @ stored / max(np.linalg.norm(stored), 1e-12))
        if cosine < _SAME:
            raise UserError(
                f"{given.what} was made by another model, or at another resolution: of {printable_name(name)} it has a "
                f"descriptor of cosine {cosine:.2f} with this model's"
            )
        checked += 1
    return checked


def unit(values: np.ndarray, size: int, what: str) -> np.ndarray:
    """Rows of unit norm, float32.

    Raises:
        UserError: they are of another size, or have no direction.
    """
    if values.shape[1] != size:
        raise UserError(f"{what} has descriptors of {values.shape[1]} values, where the index's have {size}")
    if not np.isfinite(values).all():
        raise UserError(f"{what} has a descriptor with a NaN or an infinity")
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    if not norms.all():
        raise UserError(f"{what} has a descriptor that is all 0")
    return values / norms


def embedded_query(model: Model, query: Any, resolution: int | None) -> np.ndarray:
    """float32 [D] of unit norm, of a photo.

    Raises:
        UserError: it can't be used; the message names it and says why.
    """
    photo, name = query, "the query"
    if isinstance(query, str | os.PathLike):
        photo, kind = looked_at(query)
        name = printable_name(photo)
        if kind:
            photo, problem = pixels(photo, kind, resolution or model.resolution)
            if problem:
                raise UserError(f"{name}: {problem}")
    values = model.embed([photo], resolution, on_error="skip")
    if not np.isfinite(values).all() or not values.any():
        raise UserError(f"{name}: {why_unusable(model, photo)}")
    return unit(values, values.shape[1], "the model")[0]


def looked_at(path: str | os.PathLike) -> tuple[str, str | None]:
    """(path, its kind if it is one of those that are converted) of a photo that is to be looked for.

    Raises:
        UserError: there is no such file, or it is no photo; the message names it.
    """
    path = os.path.expanduser(os.fspath(path))
    found, missing = finding.look_at([path], "query")
    if missing:
        raise UserError(f"no such file: {printable_name(path)}")
    if found.passed_over:
        raise UserError(f"{printable_name(path)}: {found.passed_over[path]}")
    return path, found.kinds.get(path)


def classes_of(model: Model, descriptor: np.ndarray, resolution: int | None) -> list[tuple[int, float]]:
    """(number, probability) of the likeliest classes of a descriptor, likeliest first."""
    probabilities = model.classify(descriptor[None], resolution).probabilities[0]
    order = np.argsort(-probabilities, kind="stable")[:MOST_CLASSES]
    return [(int(number), float(probabilities[number])) for number in order]


def why_unusable(model: Model, photo: Any) -> str:
    """Why the model can't use a photo, for people to read."""
    why = getattr(model, "why_unusable", None)
    return printable_name(why(photo)) if why else "can't be used"


def expanded(descriptor: np.ndarray, similarities: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Query expansion: float32 [D] of unit norm, from a query [D], neighbours [n, D] and their similarities to it."""
    mean = descriptor + (similarities[:, None] ** 3 * np.asarray(near, np.float32)).sum(axis=0)
    return mean / np.linalg.norm(mean)
