"""A network on benchmarks: each photo is embedded once a resolution, and every row of the tables scored from that."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mg_keras.data import augmentations
from mg_keras.embedding.embedder import Embedder
from mg_keras.embedding.photos import Embeddings, embed_versions
from mg_keras.embedding.whitening import Whitening
from mg_keras.errors import UserError
from mg_keras.evaluation.evaluators import Answers, Benchmark
from mg_keras.poolings import RMAC


@dataclass(frozen=True)
class Row:
    """A way to make descriptors from a trunk's activations: one row of a table.

    Attributes:
        name: what `metrics.json` calls it.
        pooling: p* of GeM, or `RMAC`.
        whitening: `Whitening` of embeddings pooled so, or None.
    """

    name: str
    pooling: float | str
    whitening: Whitening | None = None

    @property
    def classifies(self) -> bool:
        """Whether the classifier reads embeddings pooled so: it was trained on GeM, and whitening changes no class."""
        return self.pooling != RMAC and self.whitening is None


def rows(p_star: float, whitening_of: Callable[[float | str], Whitening | None], comparison: bool = False) -> list[Row]:
    """The rows of one resolution: GeM at p*, and for comparison average pooling and R-MAC on the same trunk.

    Args:
        p_star: the exponent chosen for the resolution.
        whitening_of: pooling -> `Whitening` or None; where there is one, the pooling has a whitened row too.
        comparison: whether to add the rows for comparison.

    Returns:
        list of `Row`.
    """
    poolings = {"gem": float(p_star)}
    if comparison:
        poolings.update(average=1.0, rmac=RMAC)
    found = []
    for name, pooling in poolings.items():
        found.append(Row(name, pooling))
        if whitening := whitening_of(pooling):
            found.append(Row(f"{name}_whitened", pooling, whitening))
    return found


def measure(
    embedder: Embedder, benchmark: Benchmark, resolution: int, table_rows: Sequence[Row], seed: int = 0
) -> tuple[dict[str, dict[str, float]], Embeddings]:
    """Scores every row on one benchmark at one resolution.

    Args:
        embedder: `Embedder`, which embeds photos that benchmarks share once.
        benchmark: `Benchmark`.
        resolution: s*, pixels; up to that of training the centre crop, beyond it whole photos (sections 3.5, 4.2).
        table_rows: list of `Row`.
        seed: of the augmentations, for benchmarks of augmented versions.

    Returns:
        (scores, found): {row name: {metric: value}}, without the rows that the classifier can't read where it's a
        benchmark of classes, and the `Embeddings` of its photos, by the rows' poolings.
    """
    poolings = tuple(dict.fromkeys(row.pooling for row in table_rows))
    network, label = embedder.network, f"{benchmark.name} at {resolution} px"
    if benchmark.versions:
        augment = augmentations.get("full")
        found = embed_versions(
            network, benchmark.photos, augment, resolution, benchmark.versions, poolings, seed=seed, label=label
        )
    else:
        found = embedder.embed(benchmark.photos, resolution, poolings, label)
    scores = {}
    for row in table_rows:
        if benchmark.needs_logits and not row.classifies:
            continue
        values = found.values[poolings.index(row.pooling)]
        logits = network.classify(values) if benchmark.needs_logits else None
        descriptors = row.whitening.transform(values) if row.whitening else values
        scores[row.name] = benchmark.measure(Answers(found.rows, descriptors, logits))
    return scores, found


def measure_all(
    embedder: Embedder,
    benchmarks: Sequence[Benchmark],
    rows_at: Mapping[int, Sequence[Row]],
    seed: int = 0,
    keep: Callable[[Benchmark, int, Embeddings], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Measures benchmarks at several resolutions.

    Args:
        embedder: `Embedder`.
        benchmarks: list of `Benchmark`.
        rows_at: {resolution: list of `Row`}.
        seed: of the augmentations.
        keep: (benchmark, resolution, `Embeddings`) -> None, called with what each measure is made from.

    Returns:
        What `metrics.json` calls `benchmarks`: by name the benchmark's `description`, `warnings`, number of `photos`,
        names of the `unusable` ones, scores of `chance`, and `results`: {resolution: {row name: {"pooling": p* or
        "rmac", metric: value}}}.

    Raises:
        UserError: two benchmarks have one name.
    """
    names = Counter(benchmark.name for benchmark in benchmarks)
    name, times = next(iter(names.most_common(1)), ("", 0))
    if times > 1:
        raise UserError(
            f"{times} benchmarks are called {name}, and the scores of one alone would be kept: name each once, or call "
            "their folders or tables otherwise"
        )
    measured = {
        benchmark.name: {
            "description": benchmark.description,
            "warnings": list(benchmark.warnings),
            "photos": len(benchmark.photos),
            "unusable": [],
            "chance": dict(benchmark.chance),
            "results": {},
        }
        for benchmark in benchmarks
    }
    for resolution, table_rows in rows_at.items():
        poolings = {row.name: row.pooling for row in table_rows}
        for benchmark in benchmarks:
            entry = measured[benchmark.name]
            scores, found = measure(embedder, benchmark, resolution, table_rows, seed)
            entry["unusable"] = [benchmark.photos.names[row] for row in found.unusable]
            if keep:
                keep(benchmark, resolution, found)
            entry["results"][resolution] = {
                name: {"pooling": poolings[name], **values} for name, values in scores.items()
            }
    return measured
