"""What somebody decided about groups of duplicates, in place of what is proposed.

A decision holds of a group of the same photos, by their names and contents, whenever it is found again. It lies in the
index, so that the page and `mg-keras duplicates` know the same.
"""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

from mg_keras.errors import UserError
from mg_keras.search.duplicates import Duplicates, Group, Member
from mg_keras.search.store import Noted


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


class Decisions:
    """The decisions that lie in an index; use as a context manager.

    Args:
        folder: of the index.
    """

    def __init__(self, folder: Path):
        self._noted = Noted(folder)

    def __enter__(self) -> "Decisions":
        return self

    def __exit__(self, *_) -> None:
        self._noted.close()

    def of(self, group: Group) -> Decision | None:
        """What was decided about a group, or None."""
        found = self._noted.get(key_of(group))
        if found is None:
            return None
        found = json.loads(found)
        return Decision(found["skip"], tuple(map(os.fsdecode, map(bytes.fromhex, found["go"]))))

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
        found = {"skip": decision.skip, "go": sorted(os.fsencode(name).hex() for name in go)}
        self._noted.put(key_of(group), json.dumps(found))

    def applied(self, found: Duplicates) -> tuple[Duplicates, int]:
        """(what was found, as it was decided; of how many groups that is)."""
        groups, count = [], 0
        for group in found.groups:
            decision = self.of(group)
            count += decision is not None
            groups.append(group if decision is None else _as_decided(group, decision))
        return dataclasses.replace(found, groups=groups), count


def _as_decided(group, decision):
    gone = set() if decision.skip else set(decision.go)
    first = Member(group.keep, group.kind, 1.0, group.side, False)
    members = [dataclasses.replace(member, spare=member.photo.name in gone) for member in (first, *group.members)]
    kept = next(member for member in members if not member.spare)
    others = [member for member in members if member is not kept]
    return dataclasses.replace(group, keep=kept.photo, side=kept.side, why="as it was decided", members=others)
