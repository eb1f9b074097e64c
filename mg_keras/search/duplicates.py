"""Photos that are there twice: byte for byte, as edited or compressed copies, or showing the same thing.

Photos are joined where they are at least as similar as a threshold, and what is joined is a group (connected
components). A chain, in which each is like the next and the last is not like the first, is taken apart: a group has a
centre, the photo most like the others, and keeps those that are near to that one; the rest is grouped anew.

Copies are photos whose pixels are the same after a map (`verification`): descriptors say which pairs to compare. Where
a similarity is named, or there are no photos to open, it is the similarity that makes copies.
"""

import contextlib
import dataclasses
import datetime
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from mg_keras.errors import UserError
from mg_keras.progress import Progress
from mg_keras.search.index import Index
from mg_keras.search.standing_in import has_one_picture, stands_in
from mg_keras.search.store import Photo
from mg_keras.search.thumbnails import is_of_one_colour
from mg_keras.search.verification import FRAME
from mg_keras.search.verifying import NEAREST, Verifier, one_thread_each

EQUAL, COPY, SIMILAR = "equal", "copy", "similar"
KINDS = (EQUAL, COPY, SIMILAR)
"""Of groups, the closest first."""

# similarities that are held at once
_AT_ONCE = 1 << 25
# pairs of photos that are held at once, and the most and the fewest neighbours of a photo that are joined to it: more
# hold each other together already
_PAIRS = 1 << 23
_MOST_NEIGHBORS, _FEWEST_NEIGHBORS = 256, 16
_FIRST_NEIGHBORS = 32


@dataclasses.dataclass(frozen=True)
class Member:
    """A photo of a group, beside the one that is to be kept.

    Attributes:
        photo: `Photo`.
        relation: to the one that is kept: `"equal"` byte for byte, `"copy"`, or `"similar"` where it is less like that
            one than a copy must be.
        similarity: cosine with the one that is kept.
        side: 0, or 1 for a photo of the second of two albums.
        spare: whether it may go: it is equal to the one that is kept, or a copy of that very one, of no more pixels, by
            a threshold that was named, or where pixels are trusted, and that one has all that it has. Else copies are
            shown, and none goes.
        verified: of a copy by its pixels, the share that is the same, 0 to 1; else None.
    """

    photo: Photo
    relation: str
    similarity: float
    side: int
    spare: bool
    verified: float | None = None


@dataclasses.dataclass(frozen=True)
class Group:
    """Photos that belong together.

    Attributes:
        kind: `"equal"`: all are the same byte for byte; `"copy"`; or `"similar"`, of which nothing need go.
        keep: the photo that is proposed to be kept: the largest, of equal ones the least compressed, then the oldest.
        side: of the photo to keep, as `Member.side`.
        why: what speaks for it, in a few words.
        members: the others, most similar first.
    """

    kind: str
    keep: Photo
    side: int
    why: str
    members: list[Member]

    @property
    def photos(self) -> list[Photo]:
        """All of them, the one to keep first."""
        return [self.keep, *(member.photo for member in self.members)]


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """The groups of an album, or between two.

    Attributes:
        groups: equal ones first, then copies, then similar ones; large ones before small ones.
        folders: what was looked at, one name or two.
        copy, similar: the similarities from which on photos are copies, and show the same thing.
        estimated: whether the threshold of copies is a rule of thumb, as none was measured of the model.
        named: whether the caller named the threshold of copies; else they are to be looked at before they go.
        verified: whether copies were found by their pixels, as far as the photos could be opened.
        photos: all that were compared.
        unusable: photos that can't be used.
    """

    groups: list[Group]
    folders: tuple[str, ...]
    copy: float
    similar: float
    estimated: bool
    named: bool
    verified: bool
    photos: list[Photo]
    unusable: list[Photo]

    @property
    def spare(self) -> list[tuple[Photo, Photo]]:
        """(photo, the one that is kept) of all that may go."""
        return [(member.photo, group.keep) for group in self.groups for member in group.members if member.spare]

    @property
    def spare_bytes(self) -> int:
        """Bytes of what may go."""
        return sum(photo.file_size or 0 for photo, _ in self.spare)


def check_kinds(kinds: Sequence[str]) -> None:
    """Refuses what is none of `KINDS`.

    Raises:
        UserError: which says what is.
    """
    if unknown := set(kinds) - set(KINDS):
        raise UserError(f"kinds must be some of {', '.join(KINDS)}, received {', '.join(sorted(unknown))}")


def check_similarities(copy: float, similar: float) -> None:
    """Refuses similarities from which on photos can't be copies and similar.

    Raises:
        UserError: which says what can.
    """
    if not -1 <= similar <= copy <= 1:
        raise UserError(f"similar must be at most copy, and both from -1 to 1, received {similar} and {copy}")


def find_duplicates(
    index: Index,
    other: Index | None = None,
    kinds: Sequence[str] = KINDS,
    precision: float = 0.99,
    copy: float | None = None,
    similar: float | None = None,
    verify: bool = True,
    trust: bool = False,
    label: str | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Duplicates:
    """The duplicates in an album, or between two.

    Links to one and the same file are one photo.

    Args:
        index: of the album.
        other: a second album, made by the same model: then only what is in both counts, and it is the second's that is
            kept. Where one folder lies in the other, its photos are its own alone.
        kinds: of `KINDS`, those to look for.
        precision: share of the pairs that shall be right; it chooses the thresholds of the model.
        copy, similar: similarities in their place, -1 to 1; one that is named for copies makes them without a
            comparison of their pixels, and lets all go but those of a single colour, of more pixels than the one that
            is kept, and of several pages or frames.
        verify: whether copies are found by their pixels, where no similarity is named.
        trust: whether copies may go as equal ones do where the one that is kept has all that they have, pixel by pixel
            and as sharp (`standing_in`); those with a place that differs, and those by a similarity, may not.
        label: what to call it while it runs; None shows nothing.
        report: is called with how much of the verifying is done, and of how much, now and then.

    Raises:
        UserError: the two were made by different models, or are of one folder; or a value is out of range.

    Example:
        >>> for group in find_duplicates(Index.open("album")).groups:  # doctest: +SKIP
        ...     print(group.kind, group.keep.name, [member.photo.name for member in group.members])
    """
    named = copy is not None
    estimated = not named and not index.calibrated
    copy = index.threshold("copy", precision) if copy is None else copy
    similar = min(copy, index.threshold("instance", precision)) if similar is None else similar
    check_similarities(copy, similar)
    check_kinds(kinds)
    indexes = [index] if other is None else [index, other]
    if other is not None and other.about["fingerprint"] != index.about["fingerprint"]:
        raise UserError(f"{index.path} and {other.path} were made by different models, and can't be compared")
    nodes = _Nodes(indexes)
    with contextlib.ExitStack() as stack:
        verifier = None
        # descriptors that were given have no files
        files = any(photos[0].modified is not None for photos in nodes.photos)
        if verify and not named and COPY in kinds and files:
            stack.enter_context(one_thread_each())
            verifier = stack.enter_context(_verifier([photos[0] for photos in nodes.photos], index))
        judge = _Judge(nodes, copy, verifier)
        found = _groups(nodes, judge, kinds, copy, similar, named, trust, other is not None, label, report)
    unusable = [photo for each in indexes for photo in each.unusable()]
    folders = tuple(str(each.about["root"] or each.path) for each in indexes)
    return Duplicates(found, folders, copy, similar, estimated, named, verifier is not None, nodes.all_photos, unusable)


def _verifier(photos, index):
    contents = [photo.sha256 and bytes.fromhex(photo.sha256) for photo in photos]
    paths = [photo.path for photo in photos]
    return Verifier(paths, contents, index.path, lambda number: photos[number].is_as_it_was())


def _groups(nodes, judge, kinds, copy, similar, named, trust, between, label, report):
    groups: list[Group] = []
    make = _Maker(nodes, judge, named, trust, between)
    least = similar if SIMILAR in kinds else copy
    edges = nodes.edges(least, label) if {COPY, SIMILAR} & set(kinds) else _no_edges()
    if COPY not in kinds:
        joined = []
    elif judge.verifier:
        joined = grouped(judge.edges(edges, label, report), judge.same, 0.5)
    else:
        close = tuple(part[edges[2] >= copy] for part in edges)
        joined = grouped(close, nodes.similarities, (copy + similar) / 2)
    taken = {node for group in joined for node in group}
    joined += [[node] for node in range(len(nodes)) if node not in taken]
    if between:
        joined = nodes.with_equal_ones(joined)
    # of what belongs together one stands for all, among those that are similar
    stand_for = np.arange(len(nodes))
    for group in joined:
        made = make.group(group)
        if made is not None and made.kind in kinds:
            groups.append(made)
        stand_for[group] = group[0]
    if SIMILAR in kinds:
        edges = (stand_for[edges[0]], stand_for[edges[1]], edges[2])
        edges = tuple(part[edges[0] != edges[1]] for part in edges)
        members = {group[0]: group for group in joined}
        for group in grouped(edges, nodes.similarities, similar):
            made = make.similar([members[node] for node in group])
            if made is not None:
                groups.append(made)
    groups.sort(key=lambda group: (KINDS.index(group.kind), -len(group.members), os.fsencode(group.keep.name)))
    return groups


def grouped(
    edges: tuple[np.ndarray, np.ndarray, np.ndarray],
    similarities: Callable[[int, Sequence[int]], np.ndarray],
    guard: float,
) -> list[list[int]]:
    """Nodes that belong together, without chains.

    Args:
        edges: (one, other, similarity) of those that are joined, int, int and float [E], in either or both directions.
        similarities: (node, nodes) -> float [n], of one with several.
        guard: the least similarity of a group's members with its centre.

    Returns:
        Groups of two nodes or more, each in rising order.
    """
    neighbors = defaultdict(dict)
    for one, other, similarity in zip(*(part.tolist() for part in edges), strict=True):
        neighbors[one][other] = neighbors[other][one] = similarity
    groups = []
    left = [component for component in _components(neighbors, neighbors.keys()) if len(component) > 1]
    while left:
        component = left.pop()
        within = set(component)
        # the most like the others; of equals the first
        strength = {node: sum(s for each, s in neighbors[node].items() if each in within) for node in component}
        centre = max(sorted(component), key=strength.__getitem__)
        others = [node for node in sorted(component) if node != centre]
        near = np.asarray(similarities(centre, others)) >= guard
        # what is joined to the centre is near, however it was rounded
        group = [node for node, is_near in zip(others, near, strict=True) if is_near or node in neighbors[centre]]
        groups.append(sorted([centre, *group]))
        rest = within.difference(groups[-1])
        left += [component for component in _components(neighbors, rest) if len(component) > 1]
    return sorted(groups)


def _components(neighbors, nodes) -> list[list[int]]:
    left, components = set(nodes), []
    while left:
        first = left.pop()
        component, waiting = [first], [first]
        while waiting:
            for node in neighbors[waiting.pop()]:
                if node in left:
                    left.remove(node)
                    component.append(node)
                    waiting.append(node)
        components.append(component)
    return components


def _no_edges():
    return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)


class _Nodes:
    """Contents of photos, each once an album: node -> its photos."""

    def __init__(self, indexes):
        self.photos, self.sides, self._rows, self._snapshots, self._starts = [], [], [], [], []
        self.all_photos = []
        below = _of_the_other(indexes)
        for side, index in enumerate(indexes):
            state, neighbors = index.snapshot()
            self._snapshots.append((state, neighbors))
            self._starts.append(len(self.photos))
            of_rows = defaultdict(list)
            # of that state: rows are others in the next one
            for photo in state.select("WHERE photos.row IS NOT NULL ORDER BY photos.name"):
                if below[side] and photo.name.startswith(below[side]):
                    continue
                of_rows[photo.row].append(photo)
                self.all_photos.append(photo)
            for row in sorted(of_rows):
                self.photos.append(_each_once(of_rows[row]))
                self.sides.append(side)
                self._rows.append(row)
        self._rows = np.array(self._rows, np.int64)

    def __len__(self):
        return len(self.photos)

    def values(self, nodes):
        """float32 [n, D]."""
        found = [
            np.asarray(self._snapshots[self.sides[node]][0].descriptors[self._rows[node]], np.float32) for node in nodes
        ]
        return np.stack(found) if found else np.empty((0, 1), np.float32)

    def similarities(self, node, others):
        return self.values(others) @ self.values([node])[0] if len(others) else np.empty(0)

    def edges(self, threshold, label):
        """(one, other, similarity) of the pairs that are at least so similar: of one album, or between two."""
        ends = [*self._starts[1:], len(self)]
        (state, _), (_, found) = self._snapshots[0], self._snapshots[-1]
        first, start, end = range(ends[0]), self._starts[-1], ends[-1]
        if not first or start == end:
            return _no_edges()
        node_of_row, among = self._among(found, np.arange(start, end))
        parts, step = [_no_edges()], max(16, min(1024, _AT_ONCE // max(1, end - start)))
        exact = found.base.kind == "exact"
        most = max(_FEWEST_NEIGHBORS, min(_MOST_NEIGHBORS, _PAIRS // max(1, len(first))))
        rows = self._rows[start:end]
        target = np.asarray(found.descriptors[rows], np.float32) if exact else None
        with Progress(label or "", len(first) if label else 0, "photos") as progress:
            for begin in range(0, len(first), step):
                nodes = np.arange(begin, min(begin + step, len(first)))
                queries = np.asarray(state.descriptors[self._rows[nodes]], np.float32)
                if exact:
                    one, other, values = _near(queries @ target.T, threshold, most)
                    other = other + start
                else:
                    one, other, values = _near_by_index(found, queries, threshold, most, among)
                    other = node_of_row[other]
                one = nodes[one]
                kept = one != other
                parts.append((one[kept], other[kept], values[kept]))
                if label:
                    progress.advance(len(nodes))
        return tuple(map(np.concatenate, zip(*parts, strict=True)))

    def ends(self):
        """The nodes that are compared with each other: of the album, or of one and of the other."""
        starts = [*self._starts, len(self)]
        return range(starts[0], starts[1]), range(starts[-2], starts[-1])

    def nearest(self, count):
        """Pairs of each node and those nearest to it, int64 [E, 2], in both directions of two albums."""
        first, second = self.ends()
        pairs = [self._nearest(first, second, count)]
        if len(self._starts) > 1:
            pairs.append(self._nearest(second, first, count))
        return np.concatenate(pairs)

    def _nearest(self, first, second, count):
        state = self._snapshots[self.sides[first[0]]][0] if len(first) else None
        found = self._snapshots[self.sides[second[0]]][1] if len(second) else None
        if state is None or found is None:
            return np.empty((0, 2), np.int64)
        node_of_row, among = self._among(found, np.arange(second.start, second.stop))
        pairs = []
        for begin in range(first.start, first.stop, 1024):
            nodes = np.arange(begin, min(begin + 1024, first.stop))
            queries = np.asarray(state.descriptors[self._rows[nodes]], np.float32)
            # one more, as a photo is its own nearest
            _, rows = found.nearest(queries, count + 1, among)
            one, place = np.nonzero(rows >= 0)
            pairs.append(np.stack([nodes[one], node_of_row[rows[one, place]]], axis=1))
        pairs = np.concatenate(pairs)
        return pairs[pairs[:, 0] != pairs[:, 1]]

    def _among(self, found, nodes):
        """(node of each row, -1 of those that are none; the rows that are nodes, None where all are that are used)."""
        node_of_row = np.full(len(found.descriptors), -1)
        node_of_row[self._rows[nodes]] = nodes
        among = node_of_row >= 0
        # of photos that are the other album's, an album's index has rows, too
        return node_of_row, among if np.count_nonzero(among) < np.count_nonzero(found.used) else None

    def with_equal_ones(self, groups):
        """Of two albums: groups that hold the same content are one."""
        of_content, place, merged = {}, {}, []
        for group in groups:
            contents = {photo.sha256 for node in group for photo in self.photos[node] if photo.sha256}
            targets = sorted({place[of_content[each]] for each in contents if each in of_content})
            number = len(merged)
            merged.append(sorted({*group, *(node for target in targets for node in merged[target])}))
            for target in targets:
                merged[target] = []
            for node in merged[number]:
                place[node] = number
            for node in group:
                for photo in self.photos[node]:
                    if photo.sha256:
                        of_content.setdefault(photo.sha256, node)
        return [group for group in merged if group]


def _of_the_other(indexes):
    """Of each album the folder in it, with a slash behind it, whose photos are the other album's, or None."""
    roots = [index.about["root"] for index in indexes]
    if len(roots) < 2 or None in roots:
        return [None] * len(roots)
    first, second = map(os.path.realpath, roots)
    if first == second:
        raise UserError(f"two albums must be two folders, received {roots[0]} and {roots[1]}")
    return [
        os.path.join(os.path.relpath(inner, outer), "") if inner.startswith(os.path.join(outer, "")) else None
        for outer, inner in ((first, second), (second, first))
    ]


class _Judge:
    """Says which nodes are copies: by their pixels where there is a verifier and both can be opened, else by cosine."""

    def __init__(self, nodes, copy, verifier):
        self.nodes, self.copy, self.verifier = nodes, copy, verifier

    def edges(self, edges, label, report):
        """(one, other, score) of copies, where `edges` are those at least so similar as similar ones are."""
        nodes = self.nodes
        first, second = nodes.ends()
        total = len({*first, *second})
        with Progress(f"{label or ''}: pixels", 2 * total if label else 0, "photos") as progress:
            done = 0.0

            def step(count):
                nonlocal done
                whole, done = int(done), done + count
                if label:
                    progress.advance(int(done) - whole)
                if report:
                    report(min(int(done), 2 * total), 2 * total)

            afar = self.verifier.alike_from_afar(first, second, step)
            near = np.sort(nodes.nearest(NEAREST), axis=1)
            pairs, firsts = np.unique(np.concatenate([near, afar]), axis=0, return_index=True)
            each = total / max(1, len(pairs))
            verdicts = self.verifier.verify(pairs, firsts >= len(near), lambda count: step(count * each))
        copies = np.array([bool(verdict and verdict.same) for verdict in verdicts], bool)
        # of a copy it can be 0: its limits are of the mean
        scores = np.array([verdict.score if verdict else 0 for verdict in verdicts], np.float32)
        # what can't be opened is judged by similarity
        one, other, similarity = (part[edges[2] >= self.copy] for part in edges)
        shut = self.verifier.shut
        blind = np.array([a in shut or b in shut for a, b in zip(one.tolist(), other.tolist(), strict=True)], bool)
        return (
            np.concatenate([pairs[copies, 0], one[blind]]),
            np.concatenate([pairs[copies, 1], other[blind]]),
            np.concatenate([scores[copies], similarity[blind]]),
        )

    def same(self, node, others):
        """1 or 0, of one node with several."""
        relations = self.relations(node, others, self.nodes.similarities(node, others))
        return np.array([relation == COPY for relation, *_ in relations], float)

    def relations(self, node, others, cosines):
        """Of one node and each of several: (`COPY` or `SIMILAR`, share of the pixels that is the same or None, whether
        they are the same throughout in the same frame)."""
        verdicts = self.verifier.verdicts(node, others) if self.verifier else [None] * len(others)
        return [
            # what is the same after a map says nothing of what is beside it
            (
                (COPY, verdict.score, verdict.throughout and verdict.how == FRAME)
                if verdict.same
                else (SIMILAR, None, False)
            )
            if verdict
            else (COPY if cosine >= self.copy else SIMILAR, None, False)
            for verdict, cosine in zip(verdicts, cosines, strict=True)
        ]


class _Maker:
    """Makes groups of nodes: which photo to keep, and how the others are related to it."""

    def __init__(self, nodes, judge, named, trust, between):
        self.nodes, self.judge, self.named, self.trust, self.between = nodes, judge, named, trust, between

    def group(self, nodes):
        """Equal ones and copies; None where there is nothing of the kind."""
        photos = self._photos(nodes)
        if len(photos) < 2 or (self.between and len({side for _, side, _ in photos}) < 2):
            return None
        keep, side, node = self._best(photos)
        cosines = dict(zip(nodes, self.nodes.similarities(node, nodes), strict=True))
        unequal = sorted({each for photo, _, each in photos if photo is not keep and not _is_equal(photo, keep)})
        of_unequal = self.judge.relations(node, unequal, [cosines[each] for each in unequal])
        relations = dict(zip(unequal, of_unequal, strict=True))
        members = []
        for photo, its_side, its_node in photos:
            if photo is keep:
                continue
            equal = _is_equal(photo, keep)
            similarity = 1.0 if equal else float(min(cosines[its_node], 1.0))
            relation, verified, throughout = (EQUAL, None, True) if equal else relations[its_node]
            by_copy = relation == COPY and self._may_go(photo, keep, throughout)
            # nothing goes because of a third photo that it is like; and of the second album, nothing at all
            spare = (equal or by_copy) and not (self.between and its_side == side)
            members.append(Member(photo, relation, similarity, its_side, spare, verified))
        kind = EQUAL if all(member.relation == EQUAL for member in members) else COPY
        return self._made(kind, keep, side, members)

    def _may_go(self, copy, keep, throughout):
        """Whether a copy may go for the one that is kept."""
        if (copy.width is None) != (keep.width is None) or _pixels(copy) > _pixels(keep):
            # it is the larger one, or may be
            return False
        if self.named:
            # what has nothing to be seen in it is like all that hasn't, and of several pages one was compared
            has_one = copy.modified is None or has_one_picture(copy.path)
            return has_one and not is_of_one_colour(copy.path)
        # a threshold that nobody named lets nothing go, nor do pixels of which some are others
        if not (self.trust and throughout) or _is_less_compressed(copy, keep):
            return False
        return stands_in(keep.path, copy.path) and copy.is_as_it_was() and keep.is_as_it_was()

    def similar(self, groups):
        """Those that show one thing; of copies the best stands for all."""
        best = [self._best(self._photos(nodes)) for nodes in groups]
        if self.between and len({side for _, side, _ in best}) < 2:
            return None
        keep, side, node = self._best(best)
        others = [each for each in best if each[0] is not keep]
        cosines = self.nodes.similarities(node, [each[2] for each in others])
        members = [
            Member(photo, SIMILAR, float(min(cosine, 1.0)), its_side, False)
            for (photo, its_side, _), cosine in zip(others, cosines, strict=True)
        ]
        return self._made(SIMILAR, keep, side, members)

    def _photos(self, nodes):
        photos = [(photo, self.nodes.sides[node], node) for node in nodes for photo in self.nodes.photos[node]]
        if not self.between or len({side for _, side, _ in photos}) < 2:
            return photos
        # a link from one album into the other is that one's photo, whose file would go with it
        of_second = {_file(photo) for photo, side, _ in photos if side} - {None}
        return [each for each in photos if each[1] or _file(each[0]) not in of_second]

    def _best(self, photos):
        last = max(side for _, side, _ in photos)
        return min((each for each in photos if not self.between or each[1] == last), key=lambda each: _rank(each[0]))

    def _made(self, kind, keep, side, members):
        members.sort(key=_nearness)
        why = "of the second folder" if self.between else _why(keep, [member.photo for member in members])
        return Group(kind, keep, side, why, members)


def _is_equal(photo, other):
    return photo.sha256 is not None and photo.sha256 == other.sha256


def _nearness(member):
    """The most like the one to keep first."""
    score = member.similarity if member.verified is None else member.verified
    return KINDS.index(member.relation), -score, _rank(member.photo)


def related(index: Index, found: Duplicates, keep: Photo, photos: Sequence[Photo]) -> list[Member]:
    """Photos of a group, as they are related to another one of it that is kept: none of them is to go by that.

    Args:
        index: of the album.
        found: in which the group is.
        keep: the one that is kept.
        photos: the others.

    Returns:
        Them, the most like it first.
    """
    equal = [photo for photo in photos if _is_equal(photo, keep)]
    every = [keep, *(photo for photo in photos if not _is_equal(photo, keep))]
    members = [Member(photo, EQUAL, 1.0, 0, False) for photo in equal]
    with contextlib.ExitStack() as stack:
        verifier = None
        if found.verified and len(every) > 1:
            stack.enter_context(one_thread_each())
            verifier = stack.enter_context(_verifier(every, index))
        values = index.descriptors(every)
        cosines = values[1:] @ values[0]
        relations = _Judge(None, found.copy, verifier).relations(0, range(1, len(every)), cosines)
    for photo, cosine, (relation, verified, _) in zip(every[1:], cosines, relations, strict=True):
        members.append(Member(photo, relation, float(min(cosine, 1.0)), 0, False, verified))
    return sorted(members, key=_nearness)


def _near(similarities, threshold, most):
    """(query, column, similarity) of those at or above a threshold, of each query the most similar ones."""
    near = similarities >= threshold
    for query in np.flatnonzero(near.sum(axis=1) > most):
        cut = np.partition(similarities[query], -most)[-most]
        near[query] &= similarities[query] >= cut
    one, other = np.nonzero(near)
    return one, other, similarities[one, other]


def _near_by_index(found, queries, threshold, most, among=None):
    k = _FIRST_NEIGHBORS
    while True:
        values, rows = found.nearest(queries, k, among)
        near = (rows >= 0) & (values >= threshold)
        if k >= most or not near[:, -1].any():
            one, place = np.nonzero(near)
            return one, rows[one, place], values[one, place]
        k *= 2


def _each_once(photos: Iterable[Photo]) -> list[Photo]:
    """Without those that are links to another one's file; a file of its own goes before a link to it."""
    photos = list(photos)
    if len(photos) < 2:
        return photos
    seen, kept = set(), []
    for photo in sorted(photos, key=lambda photo: os.path.islink(photo.path)):
        found = _file(photo)
        if found is None or found not in seen:
            seen.add(found)
            kept.append(photo)
    return sorted(kept, key=lambda photo: os.fsencode(photo.name))


def _file(photo):
    """What a photo's file is known by, whatever leads to it, or None where there is none."""
    try:
        found = os.stat(photo.path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _pixels(photo):
    """Infinitely many of one whose size is not known: it is not to go because another one's is."""
    return math.inf if photo.width is None else photo.width * photo.height


def _is_less_compressed(photo, other):
    """Whether it has more bytes for as many pixels."""
    return _pixels(photo) == _pixels(other) and (photo.file_size or 0) > (other.file_size or 0)


def _rank(photo):
    """The best first: the largest, the least compressed, the oldest; then the shortest name."""
    return (-_pixels(photo), -(photo.file_size or 0), photo.modified or 0, len(photo.name), os.fsencode(photo.name))


def _why(keep, others):
    if _pixels(keep) > max(map(_pixels, others)):
        if keep.width is None:
            return "the one whose size is not known"
        return f"the largest, {keep.width} x {keep.height}"
    if (keep.file_size or 0) > max(photo.file_size or 0 for photo in others):
        return f"the least compressed, {words_of_bytes(keep.file_size)}"
    if (keep.modified or 0) < min(photo.modified or 0 for photo in others):
        return f"the oldest, {datetime.datetime.fromtimestamp((keep.modified or 0) / 1e9):%Y-%m-%d %H:%M}"
    return "the one with the shortest name"


def words_of_bytes(count: int) -> str:
    """`1.2 MB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
