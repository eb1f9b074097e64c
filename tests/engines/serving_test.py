"""Files of descriptors by servers: two of them, of which one goes in the middle, and then both."""

import io
import threading
from contextlib import ExitStack

import fsspec
import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from mg_keras.data.photo_lists import PhotoList
from mg_keras.embedding import shards
from mg_keras.embedding.settings import Settings
from mg_keras.embedding.work import Piece
from mg_keras.engines.running import Written, embed_to_files
from mg_keras.engines.serving import Serving
from mg_keras.errors import UserError
from mg_keras.export.files import ExportedFiles
from tests.engines.conftest import CLASSES, SIDE
from tests.serving import stand_in
from tests.serving.conftest import local_server

COUNT, BROKEN = 200, (7, 31)


@pytest.fixture(scope="module")
def photos(squares, tmp_path_factory):
    # a photo on its side: rows have the size that is seen
    folder = tmp_path_factory.mktemp("turned")
    (folder / "turned.jpg").write_bytes(turned())
    return [squares, folder]


def turned():
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stand_in.photo(0, 20, 30)).save(file, "JPEG", exif=exif)
    return file.getvalue()


def engine(model, servers, **more):
    files = ExportedFiles(model)
    settings = Settings(SIDE, SIDE, 2.0, None, files.class_names)
    return Serving(files, settings, servers, batch=4, patience=0.5, **more)


@pytest.mark.slow
def test_two_servers_one_of_which_goes_and_then_both(exported, photos, tmp_path):
    out = f"{tmp_path}/x/"

    def write(servers, counted=lambda photos: None):
        with engine(exported, servers) as opened:
            rows = opened.rows
            opened.rows = lambda pieces, columns, count: rows(pieces, columns, counted)
            return embed_to_files(opened, PhotoList(photos), out, photos_a_shard=16)

    with ExitStack() as one, ExitStack() as other:
        first = one.enter_context(local_server(exported))
        second = other.enter_context(local_server(exported))
        seen = []

        def stop(photos):
            seen.append(photos)
            if sum(seen) >= 20:
                one.close()
            if sum(seen) >= 80:
                other.close()

        with pytest.raises(UserError, match=r"UNAVAILABLE: all 2 servers are away: .*; the same command goes on"):
            write([first.rest, second.grpc], stop)
    there = sum(parquet.read_metadata(path).num_rows for path in (tmp_path / "x").glob("*.parquet"))
    assert 16 <= there < COUNT, "pieces that were whole are kept"
    with local_server(exported) as third:
        seen.clear()
        assert write([third.grpc], seen.append) == Written(COUNT - 1, 2)
    assert sum(seen) == COUNT + 1 - there, "only what is missing is described"

    found = parquet.read_table(out).sort_by("id")
    assert found["id"].to_pylist() == list(range(COUNT + 1))
    good = [number for number in range(COUNT) if number not in BROKEN]
    expected = stand_in.expected([stand_in.photo(number, SIDE, SIDE) for number in good], [2.0] * len(good))
    values = np.asarray(found["embedding"].combine_chunks().flatten()).reshape(-1, 4)
    np.testing.assert_allclose(values[good], expected["embedding"], atol=1e-3)
    assert [found["class"][row].as_py() for row in good] == [CLASSES[number] for number in expected["class"]]
    np.testing.assert_allclose([found["probability"][row].as_py() for row in good], expected["probability"], atol=1e-5)
    assert [found["error"][row].as_py() for row in BROKEN] == ["the file is empty"] * 2
    assert (found["width"][COUNT].as_py(), found["height"][COUNT].as_py()) == (20, 30)
    assert found["sha256"].null_count == 0


def test_servers_that_are_not_there_or_are_none(exported):
    with pytest.raises(UserError, match="--servers: a server must be HOST:PORT or http://HOST:PORT, received 'x'"):
        engine(exported, ["x"])
    files = ExportedFiles(exported)
    files.preparation = "aspect"
    with pytest.raises(UserError, match=rf"a square of their middle up to the {SIDE} px .* received {SIDE}"):
        Serving(files, Settings(SIDE, SIDE, 3.0), ["http://127.0.0.1:1"])


def test_nothing_is_read_ahead_for_servers_that_are_away(exported):
    files = fsspec.filesystem("memory")
    try:
        for number in range(40):
            files.pipe(f"/served/{number:02}.png", stand_in.png(stand_in.photo(number, SIDE, SIDE)))
        photos = list(PhotoList("memory://served/"))
        columns, before = shards.schema(4, "float16", {}), set(threading.enumerate())
        with engine(exported, ["http://127.0.0.1:1"]) as opened, pytest.raises(UserError, match="the server is away"):
            list(opened.rows(iter([Piece(np.arange(40), photos)]), columns, lambda photos: None))
        assert set(threading.enumerate()) <= before, "no thread is left"
    finally:
        files.rm("/served", recursive=True)
