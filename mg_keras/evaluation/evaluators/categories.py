"""Categories at each level of labels: retrieval, classification by neighbours, and a linear probe.

For descriptors that are to be finer than the labels they were trained on (Touvron et al. 2021), and for what any
network makes of photos that it was not trained on.
"""

from collections.abc import Callable

import numpy as np

from mg_keras.data import sources
from mg_keras.data.sources import Source, Split
from mg_keras.errors import UserError
from mg_keras.evaluation.evaluators.contract import Answers, Benchmark, joined
from mg_keras.evaluation.folders import Options
from mg_keras.evaluation.metrics import chance_average_precision
from mg_keras.evaluation.neighbors import category_average_precisions, vote
from mg_keras.files import in_home

# C of scikit-learn's logistic regression
_INVERSE_DECAY = 10.0


def categories(
    source: Source,
    k: int = Options.neighbors,
    temperature: float = Options.neighbor_temperature,
    name: str = "categories",
) -> Benchmark:
    """Retrieval and classification by neighbours at each level of the labels.

    Of a level called `fine`:

    * `fine mAP`: each validation photo is a query among the others, and those with its label are right;
    * `fine kNN`: the share of validation photos whose label is that of the vote of the `k` nearest training photos;
    * `fine kNN in coarse`: the same among training photos with the query's label at the level `coarse`, for each level
      that the labels of `fine` are parts of.

    A photo that could not be used counts as not found.

    Args:
        source: photos with labels, of several levels or one, which is called `class`.
        k: of the vote, at least 1.
        temperature: of the vote, > 0.
        name: what to call it.

    Raises:
        UserError: the photos have no labels.
    """
    levels = _levels(source, name)
    inside = _nested(levels)
    train_size, size = len(source.train), len(source.train) + len(source.val)

    def measure(answers: Answers) -> dict[str, float]:
        train, test = (answers.rows < train_size, answers.rows >= train_size)
        known, asked = answers.rows[train], answers.rows[test] - train_size
        database, queries = answers.descriptors[train], answers.descriptors[test]
        scores, share = {}, len(asked) / (size - train_size)
        labels = {level: (pair[0][known], pair[1][asked]) for level, pair in levels.items()}
        missing = {
            level: np.bincount(pair[1], minlength=pair[1].max() + 1)
            - np.bincount(labels[level][1], minlength=pair[1].max() + 1)
            for level, pair in levels.items()
        }
        precisions = category_average_precisions(queries, {level: pair[1] for level, pair in labels.items()}, missing)
        for level, (of_train, of_test) in labels.items():
            # queries that can't be used and that others have the label of score 0
            alone = np.bincount(levels[level][1])[levels[level][1]] == 1
            scores[f"{level} mAP"] = float(np.nansum(precisions[level]) / max(np.sum(~alone), 1))
            hits = vote(queries, database, of_train, k, temperature) == of_test if len(known) else np.zeros(1)
            scores[f"{level} kNN"] = share * float(np.mean(hits)) if len(asked) else 0.0
        for fine, coarse in inside:
            hits = 0
            for group in np.unique(labels[coarse][1]):
                rows, of_query = labels[coarse][0] == group, labels[coarse][1] == group
                if rows.any():
                    found = vote(queries[of_query], database[rows], labels[fine][0][rows], k, temperature)
                    hits += np.sum(found == labels[fine][1][of_query])
            scores[f"{fine} kNN in {coarse}"] = float(hits / (size - train_size))
        return scores

    words = " and ".join(f"{len(np.unique(pair[0])):,} of {level}" for level, pair in levels.items())
    return Benchmark(
        name,
        f"{source.description}: {len(source.val):,} photos among each other, and by the votes of {k} of "
        f"{len(source.train):,} for training, temperature {temperature:g}; classes: {words}",
        joined(source.train, source.val),
        measure,
        _chance(levels, inside),
        warnings=_crossing(levels, source.label_columns) if len(levels) > 1 and not inside else (),
    )


def probe(
    source: Source, k: int = Options.neighbors, temperature: float = Options.neighbor_temperature, name: str = "probe"
) -> Benchmark:
    """What a network's descriptors tell of classes that it need not know: by neighbours, and by a linear classifier.

    Of a level called `class`: `class kNN` as `categories` has it, and `class linear`, the accuracy of a logistic
    regression that is fitted to the descriptors of the training photos.

    Args:
        source, k, temperature, name: as `categories` takes them.

    Raises:
        UserError: the photos have no labels.
    """
    levels = _levels(source, name)
    train_size = len(source.train)

    def measure(answers: Answers) -> dict[str, float]:
        train, test = (answers.rows < train_size, answers.rows >= train_size)
        known, asked = answers.rows[train], answers.rows[test] - train_size
        database, queries = answers.descriptors[train], answers.descriptors[test]
        scores = {}
        for level, (of_train, of_test) in levels.items():
            for kind, classify in (("kNN", _voting(k, temperature)), ("linear", linear_classes)):
                hits = 0
                if len(known) and len(asked):
                    hits = np.sum(classify(queries, database, of_train[known]) == of_test[asked])
                scores[f"{level} {kind}"] = float(hits / len(source.val))
        return scores

    words = " and ".join(f"{len(np.unique(pair[0])):,} of {level}" for level, pair in levels.items())
    chance = {
        f"{level} {kind}": 1 / len(np.unique(pair[0])) for level, pair in levels.items() for kind in ("kNN", "linear")
    }
    return Benchmark(
        name,
        f"{source.description}: {len(source.val):,} photos by {k} neighbours and by a linear classifier of "
        f"{len(source.train):,}; classes: {words}",
        joined(source.train, source.val),
        measure,
        chance,
    )


def linear_classes(queries: np.ndarray, database: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The classes [Q] of rows by a logistic regression on unit-norm rows with labels [N].

    Args:
        queries: [Q, d], of any norm.
        database: [N, d], of any norm.
        labels: integers [N].
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import normalize

    if len(np.unique(labels)) == 1:
        return np.full(len(queries), labels[0])
    return (
        LogisticRegression(C=_INVERSE_DECAY, max_iter=500).fit(normalize(database), labels).predict(normalize(queries))
    )


def opened(kind: Callable[..., Benchmark], place: str, options: Options) -> Benchmark:
    """`categories` or `probe` of photos: as `--data` says it, or of a folder or a table by its path alone."""
    spec = place
    if place.partition(":")[0] not in sources.NAMES:
        is_table = in_home(place.partition("?")[0]).is_file()
        spec = f"{'csv' if is_table else 'folder'}:{place}"
    source = sources.open_source(spec, data_dir=options.data_dir)
    # several of them stand in one table
    return kind(source, *options.votes, name=f"{kind.__name__} ({source.description})")


def _voting(k, temperature):
    return lambda queries, database, labels: vote(queries, database, labels, k, temperature)


def _levels(source, name):
    """Level -> (labels of the training photos, of the validation photos), all of them known."""
    splits: tuple[Split, Split] = (source.train, source.val)
    levels = {level: tuple(split.label_columns[level] for split in splits) for level in source.label_columns}
    levels = levels or {"class": tuple(split.labels for split in splits)}
    if any((labels < 0).any() or not len(labels) for pair in levels.values() for labels in pair):
        raise UserError(f"the benchmark {name} needs photos that all have labels, received {source.description}")
    return levels


def _nested(levels):
    """(fine, coarse), names of levels, where each class of the one lies in one class of the other."""
    pairs = []
    for fine in levels:
        for coarse in levels:
            both = [np.concatenate(levels[level]) for level in (fine, coarse)]
            counts = len(np.unique(both[0])), len(np.unique(both[1])), len(np.unique(np.stack(both), axis=1).T)
            if counts[0] == counts[2] > counts[1]:
                pairs.append((fine, coarse))
    return pairs


def _crossing(levels, names):
    """A sentence on a class of the finest level that lies in two of the coarsest; none where there is no such class."""
    by_size = sorted(levels, key=lambda level: len(names[level]))
    coarse, fine = by_size[0], by_size[-1]
    pairs = np.unique(np.stack([np.concatenate(levels[level]) for level in (fine, coarse)], axis=1), axis=0)
    again = np.flatnonzero(np.diff(pairs[:, 0]) == 0)
    if not len(again):
        return ()
    first, second = (f"{names[coarse][label]!r}" for label in pairs[again[0] : again[0] + 2, 1])
    both = f"{names[fine][pairs[again[0], 0]]!r} is in {first} and in {second}"
    return (f"no {fine} kNN in {coarse}, as {fine} labels lie in several {coarse} ones: {both}",)


def _chance(levels, inside):
    chance = {}
    for level, (of_train, of_test) in levels.items():
        counts = np.bincount(of_test)
        several = counts[counts > 1]
        expected = [chance_average_precision(int(count) - 1, len(of_test) - 1) for count in several]
        chance[f"{level} mAP"] = float(np.average(expected, weights=several)) if len(several) else 0.0
        chance[f"{level} kNN"] = 1 / len(np.unique(of_train))
    for fine, coarse in inside:
        groups, sizes = np.unique(levels[coarse][1], return_counts=True)
        kinds = [len(np.unique(levels[fine][0][levels[coarse][0] == group])) for group in groups]
        chance[f"{fine} kNN in {coarse}"] = float(np.average(1 / np.maximum(kinds, 1), weights=sizes))
    return chance
