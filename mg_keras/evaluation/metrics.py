"""Scores of classes, instances and copies, on arrays."""

import math
from collections.abc import Collection, Sequence

import numpy as np

from mg_keras.evaluation.search import nearest


def top_k_accuracy(logits: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Compute the share of images whose label is among the `k` largest logits.

    Among equal logits the lower class comes first, so a network that answers the same for every class scores as one
    that always says class 0.

    Args:
        logits: [N, C], any scale, no NaN.
        labels: integers [N] in 0 … C - 1.
        k: 1 to C.

    Returns:
        The share, 0 to 1.

    Raises:
        ValueError: shapes that don't fit, no images, a NaN, a label or `k` out of range.

    Example:
        >>> top_k_accuracy([[0.1, 0.9], [0.8, 0.2]], [1, 1], k=1)
        0.5
    """
    logits, labels = np.asarray(logits), _integers(labels, "labels")
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or logits.size == 0:
        raise ValueError(
            "logits must be [images, classes] and labels [images], "
            f"received the shapes {logits.shape} and {labels.shape}"
        )
    num_classes = logits.shape[1]
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"labels must be from 0 to {num_classes - 1}, received some from {labels.min()} to {labels.max()}"
        )
    if not 1 <= k <= num_classes:
        raise ValueError(f"k must be from 1 to the {num_classes} classes, received {k}")
    # Nothing is larger than a NaN, so every image of a network that diverged would count as right.
    if np.isnan(logits).any():
        raise ValueError(f"logits must not be NaN, but row {np.argmax(np.isnan(logits).any(axis=1))} holds some")
    own = logits[np.arange(len(labels)), labels][:, None]
    before = (logits > own) | ((logits == own) & (np.arange(num_classes) < labels[:, None]))
    return float(np.mean(before.sum(axis=1) < k))


def average_precision(ranks: Sequence[int], num_positives: int) -> float:
    """Compute one query's average precision in the trapezoid form (MultiGrain's retrieval benchmarks).

    For the n-th positive (from 0) at rank r (from 0) of R positives,
    `AP = sum_n (1/R) ((n/r if r > 0 else 1) + (n+1)/(r+1)) / 2`.

    Args:
        ranks: ranks from 0 of the positives that were found, in any order.
        num_positives: R, the positives there are; those not found add nothing.

    Returns:
        The average precision, 0 to 1.

    Raises:
        ValueError: ranks that are negative, doubled or not integers, or more of them than positives.

    Example:
        >>> average_precision([0, 2], num_positives=2)
        0.7916666666666666
    """
    ranks = np.sort(_integers(ranks, "ranks"))
    if num_positives < 1:
        raise ValueError(f"num_positives must be at least 1, received {num_positives}")
    if ranks.ndim != 1 or len(ranks) > num_positives:
        raise ValueError(f"ranks must be a list of at most {num_positives} ranks, received the shape {ranks.shape}")
    if len(ranks) and (ranks[0] < 0 or np.any(np.diff(ranks) == 0)):
        raise ValueError(f"ranks must be distinct and from 0, received {ranks.tolist()}")
    found = np.arange(len(ranks))
    before = np.where(ranks > 0, found / np.maximum(ranks, 1), 1.0)
    after = (found + 1) / (ranks + 1)
    return float(np.sum(before + after) / 2 / num_positives)


def mean_average_precision(
    rankings: Sequence[Sequence[int]],
    positives: Sequence[Collection[int]],
    ignored: Sequence[Collection[int]] | None = None,
) -> float:
    """Compute the mean over queries of the trapezoid average precision.

    Args:
        rankings: for each query, row numbers of the database, nearest first: an array [Q, N], or lists that may be
            shorter than the database (a positive that is not in one adds nothing).
        positives: for each query, the row numbers that are right; at least one.
        ignored: for each query, the row numbers taken out of its ranking before ranks are counted: the query itself
            in Holidays, images too hard to tell in Oxford and Paris revisited.

    Returns:
        mAP, 0 to 1.

    Raises:
        ValueError: lists of different lengths, no queries, a query without positives, a row number twice in a
            ranking or negative, or one that is both positive and ignored.

    Example:
        >>> mean_average_precision([[0, 2, 1], [1, 0, 2]], positives=[[2], [1]], ignored=[[0], []])
        1.0
    """
    if ignored is None:
        ignored = [()] * len(rankings)
    if not len(rankings) == len(positives) == len(ignored) or len(rankings) == 0:
        raise ValueError(
            "rankings, positives and ignored must hold one entry a query, received "
            f"{len(rankings)}, {len(positives)} and {len(ignored)}"
        )
    scores = []
    for query, (ranking, right, left_out) in enumerate(zip(rankings, positives, ignored, strict=True)):
        if len(right) == 0:
            raise ValueError(f"query {query} has no positives: leave it out of the queries")
        try:
            scores.append(average_precision(positive_ranks(ranking, right, left_out), len(set(right))))
        except ValueError as error:
            raise ValueError(f"query {query}: {error}") from None
    return float(np.mean(scores))


def positive_ranks(ranking: Sequence[int], positives: Collection[int], ignored: Collection[int] = ()) -> np.ndarray:
    """Find the ranks of one query's positives, those ignored taken out of the ranking first.

    Args:
        ranking: row numbers of the database, nearest first; it may be shorter than the database.
        positives: the row numbers that are right.
        ignored: the row numbers that count neither for nor against.

    Returns:
        int64, ranks from 0 of the positives that are in the ranking, rising.

    Raises:
        ValueError: a row number twice in the ranking or negative, or one that is both positive and ignored.

    Example:
        >>> positive_ranks([4, 0, 2, 1], positives=[0, 1, 3], ignored=[4])
        array([0, 2])
    """
    ranking = _integers(ranking, "the ranking")
    if len(ranking) and (ranking.min() < 0 or len(np.unique(ranking)) < len(ranking)):
        raise ValueError("the ranking must hold row numbers from 0, each once")
    if both := set(positives) & set(ignored):
        raise ValueError(f"rows are both positive and ignored: {sorted(map(int, both))}")
    kept = ranking[~np.isin(ranking, list(ignored))]
    return np.flatnonzero(np.isin(kept, list(positives)))


def precision_at(ranks: Sequence[int], num_positives: int, k: int) -> float:
    """Compute the precision of the first `k` images (mP@k of Oxford and Paris revisited, where averaged over queries).

    Where the last of the positives stands before rank k, the precision of the images up to it: a query with fewer
    positives than k can reach 1.

    Args:
        ranks: ranks from 0 of the positives that were found, in any order.
        num_positives: the positives there are; those not found stand behind all others.
        k: at least 1.

    Returns:
        The precision, 0 to 1.

    Raises:
        ValueError: more ranks than positives, or a number out of range.

    Example:
        >>> precision_at([0, 3], num_positives=2, k=10), precision_at([0, 3], num_positives=3, k=10)
        (0.5, 0.2)
    """
    ranks = _integers(ranks, "ranks")
    if k < 1 or num_positives < max(1, len(ranks)):
        raise ValueError(
            f"k must be at least 1 and num_positives at least the {len(ranks)} found, received {k} and {num_positives}"
        )
    if len(ranks) == num_positives:
        k = min(k, ranks.max() + 1)
    return float(np.sum(ranks < k) / k)


def group_score(embeddings: np.ndarray, groups: Sequence, k: int) -> float:
    """Compute the mean number of a query's own group among its `k` nearest images, itself included.

    UKB's score with groups of four and k = 4; the IN-aug score, by which p* is chosen (MultiGrain, section 4.2), with
    five augmented copies of an image and k = 5.

    Args:
        embeddings: [N, d] descriptors, normalised here; each row is a query against all rows.
        groups: [N], the group of each image: numbers or strings.
        k: 1 to N.

    Returns:
        The mean number, 0 to the smaller of k and the group's size.

    Raises:
        ValueError: shapes that don't fit, descriptors that are not finite or all zero, `k` out of range.

    Example:
        >>> group_score([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]], ["cup", "cup", "key", "key"], k=2)
        2.0
    """
    return float(np.mean(group_counts(embeddings, groups, k)))


def group_counts(embeddings: np.ndarray, groups: Sequence, k: int) -> np.ndarray:
    """What `group_score` is the mean of: for each query, the number of its group among its `k` nearest.

    Args:
        embeddings, groups, k: as `group_score` takes them.

    Returns:
        int64 [N].

    Raises:
        ValueError: as `group_score`.
    """
    groups = np.asarray(groups)
    if groups.ndim != 1 or len(groups) != len(embeddings):
        raise ValueError(
            f"groups must hold one entry for each of the {len(embeddings)} embeddings, "
            f"received the shape {groups.shape}"
        )
    _, indices = nearest(embeddings, embeddings, k)
    return np.sum(groups[indices] == groups[:, None], axis=1)


def micro_average_precision(scores: np.ndarray, is_positive: np.ndarray, num_positives: int) -> float:
    """Compute µAP: average precision over the answers to all queries in one list (Image Similarity Challenge).

    The answers are ordered by score, whatever their query, so that a score must mean the same for every query.
    `µAP = sum_i precision_i (recall_i - recall_(i-1))`; equal scores share one threshold, so their order is of no
    account.

    Args:
        scores: [N], one for each answer (a query and a database image), higher is surer.
        is_positive: booleans [N], whether the answer is right.
        num_positives: the right answers there are; those not given add nothing.

    Returns:
        µAP, 0 to 1.

    Raises:
        ValueError: shapes that don't fit, scores that are NaN, or more right answers than `num_positives`.

    Example:
        >>> micro_average_precision([0.9, 0.8, 0.3], [True, False, True], num_positives=2)
        0.8333333333333333
    """
    recall, precision = _recall_and_precision(scores, is_positive, num_positives)
    return float(np.sum(precision * np.diff(recall, prepend=0.0)))


def recall_at_precision(
    scores: np.ndarray, is_positive: np.ndarray, num_positives: int, precision: float = 0.9
) -> float:
    """Compute the largest recall at a threshold whose precision is high enough (Image Similarity Challenge, R@P90).

    Every score is a threshold, at which the answers with this score or a higher one are given; equal scores share it.

    Args:
        scores: [N], one for each answer (a query and a database image), higher is surer.
        is_positive: booleans [N], whether the answer is right.
        num_positives: the right answers there are.
        precision: the least share of right ones among the answers given, above 0 to 1.

    Returns:
        The recall, 0 to 1; 0 if no threshold is precise enough.

    Raises:
        ValueError: as `micro_average_precision`, or a `precision` out of range.

    Example:
        >>> recall_at_precision([0.9, 0.8, 0.3], [True, False, True], num_positives=2)
        0.5
    """
    if not 0 < precision <= 1:
        raise ValueError(f"precision must be above 0 and at most 1, received {precision}")
    recall, reached = _recall_and_precision(scores, is_positive, num_positives)
    return float(np.max(recall[reached >= precision], initial=0.0))


def _recall_and_precision(scores, is_positive, num_positives):
    """Recall and precision at each different score, from the highest down."""
    scores, is_positive = np.asarray(scores), np.asarray(is_positive)
    if scores.ndim != 1 or scores.shape != is_positive.shape or is_positive.dtype != bool:
        raise ValueError(
            "scores and is_positive must be numbers [N] and booleans [N], received the shapes "
            f"{scores.shape} and {is_positive.shape} and the type {is_positive.dtype}"
        )
    if np.isnan(scores).any():
        raise ValueError(f"scores must not be NaN, but number {np.argmax(np.isnan(scores))} is")
    if num_positives < 1 or np.sum(is_positive) > num_positives:
        raise ValueError(
            f"num_positives must be at least 1 and the {np.sum(is_positive)} right answers given, "
            f"received {num_positives}"
        )
    if len(scores) == 0:
        return np.zeros(0), np.zeros(0)
    order = np.argsort(-scores, kind="stable")
    scores, is_positive = scores[order], is_positive[order]
    last_of_score = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    found = np.cumsum(is_positive)[last_of_score]
    return found / num_positives, found / (last_of_score + 1)


def chance_average_precision(num_positives: int, database_size: int) -> float:
    """Compute the expected trapezoid average precision of a ranking in random order.

    With R positives among N, an image at rank r is positive with probability R/N and has r q positives before it on
    average, q = (R-1)/(N-1); summed, `AP = (R + N q + (1 - q) H_N) / 2N`, H_N the N-th harmonic number.

    Args:
        num_positives: R, 1 to N.
        database_size: N.

    Raises:
        ValueError: R not in 1 … N.
    """
    if not 1 <= num_positives <= database_size:
        raise ValueError(f"num_positives must be from 1 to the database's {database_size}, received {num_positives}")
    follows = (num_positives - 1) / max(database_size - 1, 1)
    harmonic = np.sum(1.0 / np.arange(1, database_size + 1))
    return float((num_positives + database_size * follows + (1 - follows) * harmonic) / (2 * database_size))


def chance_group_score(group_size: int, num_images: int, k: int) -> float:
    """Compute the expected `group_score` of descriptors that find the query itself and otherwise know nothing.

    Args:
        group_size: images of each group, 1 to `num_images`.
        num_images: N, all images.
        k: neighbours looked at, 1 to N.

    Raises:
        ValueError: a number out of range.
    """
    if not (1 <= group_size <= num_images and 1 <= k <= num_images):
        raise ValueError(
            f"group_size and k must be from 1 to the number of images, received {group_size}, {k} and {num_images}"
        )
    return 1 + (k - 1) * (group_size - 1) / max(num_images - 1, 1)


def chance_precision_at(num_positives: int, database_size: int, k: int) -> float:
    """Compute the expected `precision_at` of a ranking in random order.

    With R positives among N, R/N of any first images are positive on average. Where the last positive is the m-th
    image, m < k, which happens for C(m-1, R-1) of the C(N, R) orders, the precision is R/m in place of R/k.

    Args:
        num_positives: R, 1 to N.
        database_size: N.
        k: at least 1; beyond N it counts the images that are not there as wrong, as `precision_at` does.

    Raises:
        ValueError: a number out of range.
    """
    if not 1 <= num_positives <= database_size or k < 1:
        raise ValueError(
            f"num_positives must be from 1 to the database's {database_size} and k at least 1, "
            f"received {num_positives} and "
            f"{k}"
        )
    expected = num_positives / database_size * min(k, database_size) / k
    for last in range(num_positives, min(k, database_size + 1)):
        share = math.comb(last - 1, num_positives - 1) / math.comb(database_size, num_positives)
        expected += share * (num_positives / last - num_positives / k)
    return expected


def chance_micro_average_precision(num_positives: Sequence[int], database_size: int | Sequence[int], k: int) -> float:
    """Compute the expected `micro_average_precision` of random answers, `k` different images for each query.

    With F right ones among M answers in random order, of P there are to find,
    `µAP = (F H_M + F (F-1) (M - H_M) / (M-1)) / (P M)`, H_M the M-th harmonic number; F is the sum over queries of
    hypergeometric numbers.

    Args:
        num_positives: for each query, the positives in the database, from 0; one of them in all at least.
        database_size: N, images of the database; or [Q], of what each query is searched for in.
        k: answers for each query, 1 to N.

    Raises:
        ValueError: a number out of range.
    """
    positives = _integers(num_positives, "num_positives")
    sizes = np.broadcast_to(database_size, positives.shape)
    if not 1 <= k <= sizes.min() or positives.sum() < 1 or positives.min() < 0 or np.any(positives > sizes):
        raise ValueError(
            f"k and the positives of a query must be at most the database's {database_size}, and k and all positives "
            f"at least 1, received {k} and {positives.tolist()}"
        )
    answers, share = len(positives) * k, k / sizes
    harmonic = np.sum(1.0 / np.arange(1, answers + 1))
    found = share * positives
    expected = np.sum(found)
    of_one_query = np.sum(found * (positives - 1.0) * (k - 1) / np.maximum(sizes - 1, 1))
    of_two_queries = expected**2 - np.sum(found**2)
    pairs = (of_one_query + of_two_queries) * (answers - harmonic) / max(answers - 1, 1)
    return float((expected * harmonic + pairs) / (positives.sum() * answers))


def _integers(values: Sequence[int], name: str) -> np.ndarray:
    """An integer array; an empty list counts as one."""
    array = np.asarray(values)
    if array.size == 0:
        return array.astype(np.int64)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must be integers, received the type {array.dtype}")
    return array
