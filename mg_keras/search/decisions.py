"""What somebody decided about groups of duplicates, in place of what is proposed.

A decision holds of a group of the same photos, by their names and contents, whenever it is found again. Where photos
are grouped otherwise since, as one was added or another threshold is asked for, those that the last decision about them
kept are never proposed to go. It lies in the cache in the home folder, by the album and not by the index: the page and
`mg-keras duplicates` know the same, whatever model, resolution or index either of them was told. The album is its path:
where its folder is renamed, it has no decisions.
"""

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from mg_keras.errors import UserError
from mg_keras.search.duplicates import Duplicates, Group, related
from mg_keras.search.index import Index
from mg_keras.search.store import Noted, root_of


@dataclasses.dataclass(frozen=True)
class Decision:
    """About one group.

    Attributes:
        skip: whether all of it is kept; what `go` says waits until that is taken back.
        go: names of the photos that go, never all of them.
    """

    skip: bool
    go: tuple[str, ...]


def key_of(group: Group) -> str:
    """What a group is known by: a hash of the names and contents of its photos, in hexadecimal."""
    photos = sorted((os.fsencode(photo.name), os.fsencode(photo.sha256 or "")) for photo in group.photos)
    return hashlib.sha256(b"\0".join(part for photo in photos for part in photo)).hexdigest()


def proposed(group: Group) -> Decision:
    """What happens to a group of which nothing was decided."""
    return Decision(False, tuple(member.photo.name for member in group.members if member.spare))


@dataclasses.dataclass(frozen=True)
class Applied:
    """What was found, as it was decided.

    Attributes:
        found: with the groups as they were decided; photos that a decision keeps may not go from any other.
        count: of how many groups something was decided.
        unmatched: decisions about photos that are there, and are no group by themselves now.
    """

    found: Duplicates
    count: int
    unmatched: int


class Decisions:
    """The decisions about an album; use as a context manager.

    Those about a folder are the same for every index of it; those about photos that are in no folder lie in the index.

    Args:
        folder: of an index of the album.

    Raises:
        UserError: the index can't be read; or by whatever reads them, where they can't be read.
    """

    def __init__(self, folder: Path):
        root = root_of(folder)
        # they were kept in the index before
        self._places = [Noted(folder), *([] if root is None else [Noted(_place(root), is_index=False)])]

    def __enter__(self) -> "Decisions":
        return self

    def __exit__(self, *_) -> None:
        for place in self._places:
            place.close()

    def about(self, groups: Sequence[Group]) -> list[Decision]:
        """Of each group what was decided, or else what is proposed, without what a decision keeps."""
        notes = self._notes()
        last = _last_words(notes)
        return [_about(group, notes.get(key_of(group)), last) for group in groups]

    def put(self, group: Group, decision: Decision) -> None:
        """Notes what was decided.

        Raises:
            UserError: none of the group would stay, a photo that goes is none of it, or it can't be kept.
        """
        names, go = {photo.name for photo in group.photos}, set(decision.go)
        if not go <= names:
            raise UserError("only photos of a group can go from it")
        if go == names:
            raise UserError("one photo of a group stays")
        found = {
            "skip": decision.skip,
            "go": sorted(os.fsencode(name).hex() for name in go),
            "photos": sorted([os.fsencode(photo.name).hex(), photo.sha256 or ""] for photo in group.photos),
            "noted": time.time_ns(),
        }
        self._places[-1].put(key_of(group), json.dumps(found))

    def applied(self, found: Duplicates, index: Index) -> Applied:
        """What was found, as it was decided.

        Args:
            found: of `find_duplicates`.
            index: in which it was found; tells how photos are related to one that is kept in place of another.
        """
        notes = self._notes()
        last, keys, groups, count = _last_words(notes), set(), [], 0
        for group in found.groups:
            key = key_of(group)
            keys.add(key)
            decision = _about(group, notes.get(key), last)
            if key in notes:
                count += 1
                groups.append(_as_decided(group, decision, found, index))
            else:
                members = [
                    dataclasses.replace(member, spare=member.photo.name in decision.go) for member in group.members
                ]
                groups.append(dataclasses.replace(group, members=members))
        there = {_known_by(photo) for photo in found.photos}
        unmatched = sum(key not in keys and _still_matters(note, last, there) for key, note in notes.items())
        return Applied(dataclasses.replace(found, groups=groups), count, unmatched)

    def _notes(self):
        notes = {}
        for place in self._places:
            for key, value in place.all().items():
                note = _Note.read(value)
                if key not in notes or note.when >= notes[key].when:
                    notes[key] = note
        return notes


def _place(root):
    """Where the decisions about a folder lie; it may have several names, by links."""
    number = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:16]
    return Path.home() / ".cache" / "mg_keras" / "decisions" / f"{number}.sqlite"


@dataclasses.dataclass(frozen=True)
class _Note:
    """A decision, and of which photos, by (name, content), and when it was made."""

    decision: Decision
    photos: tuple[tuple[str, str], ...]
    when: int

    @classmethod
    def read(cls, text):
        found = json.loads(text)
        # of those that were made before these were noted, only the group itself is known
        photos = tuple((_name(name), content) for name, content in found.get("photos", ()))
        return cls(Decision(found["skip"], tuple(map(_name, found["go"]))), photos, found.get("noted", 0))

    def stays(self, name):
        return self.decision.skip or name not in self.decision.go


def _name(text):
    return os.fsdecode(bytes.fromhex(text))


def _known_by(photo):
    return photo.name, photo.sha256 or ""


def _last_words(notes):
    """Photo, by (name, content) -> the last note about it."""
    last = {}
    for note in sorted(notes.values(), key=lambda note: note.when):
        last |= dict.fromkeys(note.photos, note)
    return last


def _about(group, own, last):
    """What happens to a group, by the note about it, if there is one, and by those about its photos."""
    decision = proposed(group) if own is None else own.decision
    known = {photo.name: last.get(_known_by(photo)) for photo in group.photos}
    kept = {
        name
        for name, note in known.items()
        # what the group's own note says may wait, and is no word about another group
        if note and note.stays(name) and (own is None or note.when > own.when)
    }
    return Decision(decision.skip, tuple(name for name in decision.go if name not in kept))


def _still_matters(note, last, there):
    """Whether it is the last word about a photo, and several of its photos are there."""
    return sum(photo in there for photo in note.photos) > 1 and any(
        photo in there and last[photo] is note for photo in note.photos
    )


def _as_decided(group, decision, found, index):
    gone = set() if decision.skip else set(decision.go)
    sides = {group.keep.name: group.side, **{member.photo.name: member.side for member in group.members}}
    members, keep = group.members, next(photo for photo in group.photos if photo.name not in gone)
    if keep is not group.keep:
        # how they are related to the one that was proposed says nothing of this one
        members = related(index, found, keep, [photo for photo in group.photos if photo is not keep])
    members = [
        dataclasses.replace(member, side=sides[member.photo.name], spare=member.photo.name in gone)
        for member in members
    ]
    return dataclasses.replace(group, keep=keep, side=sides[keep.name], why="as it was decided", members=members)
