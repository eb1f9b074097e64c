"""Photos described by TF Serving, or what speaks as it does: one server or many."""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa
from PIL import Image

from mg_keras.data.photo_lists import Contents
from mg_keras.embedding import shards
from mg_keras.embedding.settings import Settings
from mg_keras.embedding.work import Piece
from mg_keras.engines.contract import Engine
from mg_keras.errors import UserError
from mg_keras.export.files import ExportedFiles
from mg_keras.preparations import ASPECT
from mg_keras.serving.client import Client
from mg_keras.serving.codes import ServingError
from mg_keras.serving.servers import Servers

_ORIENTATION = 0x0112


class Serving(Engine):
    """An engine of servers that serve a SavedModel; photos are read here and sent as they are (signature `encoded`).

    Args:
        files: the SavedModel that is served: its names of classes, and its version, which alone is asked.
        settings: how photos are described; without a whitening, as the model has its own.
        servers: as `mg_keras.serving.servers.addresses` takes them; a name with several addresses is several servers.
        name: what the model is called there.
        in_flight: requests under way at a server.
        batch: photos of a request.
        patience: seconds for which all servers may be away.

    Raises:
        UserError: a server that is none, or servers would prepare photos in another way than all else does.
    """

    def __init__(
        self,
        files: ExportedFiles,
        settings: Settings,
        servers: Sequence[str],
        name: str = "multigrain",
        in_flight: int = 4,
        batch: int = 8,
        patience: float = 60.0,
    ):
        if files.preparation == ASPECT and settings.resolution <= settings.train_resolution:
            raise UserError(
                f"servers take whole photos, where this model has a square of their middle up to the "
                f"{settings.train_resolution} px of its training: give --resolution above that, or another --engine; "
                f"received {settings.resolution}"
            )
        self._settings, self._batch = settings, batch
        self.made_from = settings.made_from(files.fingerprint(), files.precision)
        self.dimensions = files.about["embedding_size"]
        version = int(files.path.name) if files.path.name.isdecimal() else None
        try:
            self._servers = Servers(servers, in_flight, patience, name=name, version=version, batch_size=batch)
        except (ValueError, ServingError) as error:
            raise UserError(f"--servers: {error}") from error

    def close(self) -> None:
        """Closes the connections."""
        self._servers.close()

    def rows(self, pieces: Iterator[Piece], columns: pa.Schema, counted: Callable[[int], None]) -> Iterator[pa.Table]:
        """As `Engine.rows`."""

        under_way = set()

        def requests():
            for piece in pieces:
                opened = _Opened(piece)
                under_way.add(opened)
                for start in range(0, len(piece.photos), self._batch):
                    yield opened, range(start, min(start + self._batch, len(piece.photos)))

        def ask(client, request):
            return self._table(client, *request, columns)

        try:
            # closed at once, so that nobody asks for the photos of what is closed below
            with contextlib.closing(self._servers.answers(requests(), ask)) as answers:
                for (opened, rows), table in answers:
                    counted(len(rows))
                    if (whole := opened.whole(table)) is not None:
                        under_way.remove(opened)
                        yield whole
        except ServingError as error:
            raise UserError(f"{error}; the same command goes on where it was") from error
        finally:
            for opened in under_way:
                opened.contents.close()

    def _table(self, client: Client, opened, rows, columns):
        """The rows of some photos of a piece."""
        ids, uris, contents = opened.piece.ids, opened.uris, opened.contents
        photos = {row: contents.decodable(row) for row in rows}
        errors = {row: contents.trouble(row) or "the file is empty" for row, photo in photos.items() if not photo}
        sent = [row for row in rows if row not in errors]
        if sent:
            found = client.embed(
                [photos[row] for row in sent], self._settings.resolution, self._settings.pooling, on_error="skip"
            )
            if found.embedding.shape[1] != self.dimensions:
                raise ServingError(
                    "FAILED_PRECONDITION",
                    f"the servers have another model: descriptors have {found.embedding.shape[1]} values, where "
                    f"--model has {self.dimensions}",
                )
            errors |= {sent[place]: reason for place, reason in found.errors.items()}
        tables = []
        if usable := [place for place, row in enumerate(sent) if row not in errors]:
            rows, (classes, probabilities) = [sent[place] for place in usable], (None, None)
            if (names := self._settings.named_classes) is not None:
                classes, probabilities = [names[number] for number in found.classes[usable]], found.probability[usable]
            tables.append(
                shards.usable_rows(
                    columns,
                    ids[rows],
                    [uris[row] for row in rows],
                    found.embedding[usable],
                    [_size(photos[row]) for row in rows],
                    classes,
                    probabilities,
                    [contents.sha256(row) for row in rows],
                )
            )
        if errors:
            hashes = [contents.sha256(row) for row in errors]
            tables.append(
                shards.unusable_rows(
                    columns, ids[list(errors)], [uris[row] for row in errors], list(errors.values()), hashes
                )
            )
        return pa.concat_tables(tables)


class _Opened:
    """A piece that is under way, and what there is of it."""

    def __init__(self, piece):
        self.piece, self.contents = piece, Contents(piece.photos)
        self.uris = [photo.uri for photo in piece.photos]
        self._tables, self._left = [], len(piece.photos)

    def whole(self, table):
        """All rows, once there are all of them."""
        self._tables.append(table)
        self._left -= len(table)
        if self._left:
            return None
        self.contents.close()
        return pa.concat_tables(self._tables).sort_by("id")


def _size(contents):
    """(height, width) of a photo, upright; None of both where its header is not understood."""
    try:
        with Image.open(io.BytesIO(contents)) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION, 1) >= 5
    except Exception:  # decoders raise anything
        return None, None
    return (width, height) if turned else (height, width)
