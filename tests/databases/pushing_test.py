"""Descriptors into the databases' own engines, in files: all of them, once, whatever stops it on the way."""

import http.server
import importlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import faiss
import numpy as np
import pytest

from mg_keras.databases import DATABASES, open_collection, pushing
from mg_keras.databases.collection import Address, Away, key_of
from mg_keras.databases.pushing import Pushed, push
from mg_keras.errors import UserError
from mg_keras.programs import push as program
from tests.databases.written import descriptors, uris_of, write

ROOT = Path(__file__).resolve().parents[2]
# Qdrant's local mode waits for the disk with every photo
_MEMORY = Path("/dev/shm")


@pytest.fixture
def place():
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture(params=sorted(DATABASES))
def where(request, place):
    pytest.importorskip({"milvus": "pymilvus", "qdrant": "qdrant_client"}[request.param], reason="its extra is missing")
    return f"{request.param}:{place / 'vectors.db'}/photos"


def unit(values):
    values = np.asarray(values, np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


# the fourth request is the last
_KILLED = """
import os, signal, sys
from mg_keras.databases import open_collection, pushing
with open_collection(sys.argv[2]) as collection:
    put, puts = collection.put, []
    def put_or_die(photos):
        put(photos)
        puts.append(photos)
        if len(puts) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
    collection.put = put_or_die
    pushing.push([sys.argv[1]], collection, 1000)
"""


def test_killed_and_pushed_again_it_finds_what_faiss_does(where, place):
    values = descriptors(10_000)
    features = write(place / "features", values, unusable=3)
    killed = subprocess.run([sys.executable, "-c", _KILLED, features, where], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    with open_collection(where) as collection:
        there = collection.count()
        assert 3000 <= there <= 4000
        assert push([features], collection, 1000) == Pushed(10_000 - there, there, 3, 10_000)
        queries, exact = unit(descriptors(10, seed=1)), faiss.IndexFlatIP(32)
        exact.add(unit(values))
        similarities, rows = exact.search(queries, 10)
        found = collection.nearest(queries, 10)
        assert [[hit.payload["uri"] for hit in one] for one in found] == [
            [uris_of(10_000)[row] for row in one] for one in rows
        ]
        np.testing.assert_allclose([[hit.similarity for hit in one] for one in found], similarities, atol=1e-5)


def test_what_is_there_is_not_sent_again_and_what_has_changed_takes_its_place(where, place):
    values = descriptors(300)
    features = write(place / "features", values, a_shard=200)
    with open_collection(where) as collection:
        assert push([features], collection, 64) == Pushed(300, 0, 0, 300)
    with open_collection(where, create=False) as collection:
        assert push(sorted(features.iterdir()), collection) == Pushed(0, 300, 0, 300)
        values[7] = -values[8]
        # a photo that is listed twice is one photo, and those of other folders come beside
        uris = uris_of(299)
        changed = write(place / "changed", values, [*uris, uris[0]], photos="others")
        more = write(place / "more", descriptors(5, seed=2), uris_of(5, 1000), classes=None)
        assert push([changed, more], collection) == Pushed(1 + 1 + 5, 298, 0, 305)
        first, *_, last = collection.nearest(unit(-values[8:9]), 305)[0]
        assert (first.key, first.payload) == (
            key_of(uris[7]),
            {"uri": uris[7], "width": 640, "height": 480, "class": "dog", "probability": 0.5},
        )
        assert first.similarity == pytest.approx(1, abs=1e-5)
        assert last.similarity == pytest.approx(-1, abs=1e-5)
        dogs = collection.nearest(unit(values[:1]), 305, "dog")[0]
        assert {hit.payload["class"] for hit in dogs} == {"dog"}
        # one of the cats by the later row of its uri
        assert len(dogs) == 151
        assert collection.nearest(unit(values[:1]), 1, 'no "such" \\ class')[0] == []
        (bare,) = collection.nearest(unit(descriptors(1, seed=2)), 1)[0]
        assert (bare.payload["class"], bare.payload["probability"]) == (None, None)


def test_descriptors_of_another_model_are_refused(where, place):
    features = write(place / "features", descriptors(5))
    others = {
        "holds descriptors made from other network, resolution": write(
            place / "other", descriptors(5), network="another", resolution=320
        ),
        "holds descriptors of 32 values, received 16": write(place / "small", descriptors(5, 16)),
    }
    with open_collection(where) as collection:
        push([features], collection)
        for message, folder in others.items():
            with pytest.raises(UserError, match=message) as refused:
                push([folder], collection)
            assert "\n" not in str(refused.value)
            with pytest.raises(UserError, match="push one at a time"):
                push([features, folder], collection)
        assert collection.count() == 5
        with pytest.raises(UserError, match=r"another (instance|process)"):
            subprocess_push(features, where)


def subprocess_push(features, where):
    """What a second process has to say."""
    ended = subprocess.run(
        [sys.executable, "-m", "mg_keras", "push", "--from", features, "--to", where],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    raise UserError(ended.stderr)


def test_a_collection_of_others_is_left_alone(where, place):
    features = write(place / "features", descriptors(5))
    with open_collection(where) as collection:
        collection.create({"dimensions": 32})
        collection.create({"dimensions": 32})
        collection.description = lambda: {}
        with pytest.raises(UserError, match="was not made by mg-keras push: choose another collection"):
            push([features], collection)
        assert collection.count() == 0


def test_files_that_are_none_and_places_that_are_taken(where, place):
    with pytest.raises(UserError, match=r"there is no .* mg-keras push makes one"):
        open_collection(where, create=False)
    features = write(place / "features", descriptors(5))
    name = where.partition(":")[0]
    taken = place / "taken.db"
    taken.mkdir()
    (taken / "photo.jpg").touch()
    with pytest.raises(UserError, match=r"taken\.db is there and is no "):
        open_collection(f"{name}:{taken}/photos")
    for wrong in ("nowhere", "features/shard.parquet"):
        with pytest.raises(UserError, match="must be folders or files of Parquet, received "):
            pushing.push([features, place / wrong], None)
    (features / "shard-x.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"shard-x\.parquet can't be read as Parquet: "):
        pushing.push([features], None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("qdrant:photos", "a collection is DATABASE:PLACE/COLLECTION"),
        ("qdrant:http://host", "a collection is DATABASE:PLACE/COLLECTION"),
        ("vectors/photos", "a collection is DATABASE:PLACE/COLLECTION"),
        ("weaviate:http://host/photos", "unknown database 'weaviate'; known: milvus, qdrant"),
        ("qdrant:http://me:secret@host/photos", "secrets go into the environment"),
    ],
)
def test_addresses(text, message):
    with pytest.raises(UserError, match=r"^[^\n]*$") as refused:
        open_collection(text)
    assert message in str(refused.value)
    assert "secret@" not in str(refused.value)
    address = Address.parse("milvus:http://host:19530/db/photos")
    assert (address.place, address.collection, address.is_server) == ("http://host:19530/db", "photos", True)


def test_a_client_that_is_not_installed(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'pymilvus'")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UserError, match=r'^No module named \'pymilvus\': pip install "mg-keras\[milvus\]" '):
        open_collection("milvus:x.db/photos")


def test_a_database_that_is_away_for_a_moment(monkeypatch, place, capsys):
    pytest.importorskip("qdrant_client", reason="its extra is missing")
    slept = []
    monkeypatch.setattr(pushing.time, "sleep", slept.append)
    with open_collection(f"qdrant:{place / 'q'}/photos") as collection:
        put, tries = collection.put, []

        def away(photos):
            tries.append(len(photos))
            if len(tries) < limit:
                raise Away("qdrant:http://host/photos can't be reached: refused")
            put(photos)

        collection.put, limit = away, 3
        features = write(place / "features", descriptors(5))
        assert push([features], collection).count == 5
        assert (tries, slept) == ([5, 5, 5], [1, 2])
        assert "refused; trying again in 2 s" in capsys.readouterr().err
        limit = 99
        with pytest.raises(Away, match="refused; the same command goes on where it was"):
            push([write(place / "more", descriptors(5), uris_of(5, 10))], collection)


@pytest.mark.parametrize(("status", "message"), [(403, "refuses the key: QDRANT_API_KEY must"), (503, "answered 503")])
def test_the_key_of_a_server_is_in_the_environment_and_in_no_message(monkeypatch, status, message):
    pytest.importorskip("qdrant_client", reason="its extra is missing")
    keys = []

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            keys.append(self.headers["api-key"])
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("QDRANT_API_KEY", "a secret")
        where = f"qdrant:http://127.0.0.1:{server.server_port}/photos"
        with open_collection(where) as collection, pytest.raises(UserError, match=message) as refused:
            collection.description()
        server.shutdown()
    assert keys == ["a secret"]
    assert where in str(refused.value)
    assert "a secret" not in str(refused.value)
    # where nothing listens any more
    with open_collection(where) as collection, pytest.raises(Away, match=f"^{where} can't be reached: "):
        collection.description()


def test_milvus_takes_its_token_from_the_environment(monkeypatch):
    milvus = pytest.importorskip("mg_keras.databases.milvus", reason="its extra is missing", exc_type=ImportError)
    made = []
    monkeypatch.setattr(milvus, "MilvusClient", lambda *args, **options: made.append((args, options)))
    monkeypatch.setenv("MILVUS_TOKEN", "a secret")
    open_collection("milvus:http://127.0.0.1:1/db/photos")
    assert made == [(("http://127.0.0.1:1/db",), {"token": "a secret", "timeout": 10})]
    monkeypatch.undo()
    with pytest.raises(Away, match=r"^milvus:http://127\.0\.0\.1:1/photos can't be reached: [^\n]*$"):
        open_collection("milvus:http://127.0.0.1:1/photos")


def test_a_milvus_server_that_is_away_when_it_is_opened_is_waited_for(monkeypatch, place):
    milvus = pytest.importorskip("mg_keras.databases.milvus", reason="its extra is missing", exc_type=ImportError)
    features, slept, tried = write(place / "features", descriptors(5)), [], []
    client = milvus.MilvusClient

    def connected(where, **options):
        tried.append(where)
        if len(tried) < limit:
            raise milvus.MilvusException(2, "Fail connecting to server on 127.0.0.1:1, illegal connection params")
        return client(str(place / "m.db"))

    monkeypatch.setattr(milvus, "MilvusClient", connected)
    monkeypatch.setattr(pushing.time, "sleep", slept.append)
    arguments, limit = ["--from", str(features), "--to", "milvus:http://127.0.0.1:1/photos"], 99
    with pytest.raises(Away, match=r"can't be reached: Fail .*; the same command goes on where it was"):
        program.main(arguments)
    assert (len(tried), slept) == (6, [1, 2, 4, 8, 16])
    limit = len(tried) + 2
    monkeypatch.setattr(pushing, "push", lambda *_, **__: Pushed(5, 0, 0, 5))
    program.main(arguments)
    assert len(tried) == limit


def test_a_milvus_server_that_is_started_anew_is_waited_for(monkeypatch, place):
    server = pytest.importorskip("milvus_lite.adapter.grpc.server", reason="its extra is missing")
    running = list(server.start_server_in_thread(str(place / "m.db"), host="127.0.0.1", port=0))
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        # gRPC doesn't try at every moment
        time.sleep(0.4)
        if len(slept) == 2:
            running[:] = server.start_server_in_thread(str(place / "m.db"), host="127.0.0.1", port=running[2])

    def stop():
        running[0].stop(0).wait()
        running[1].close()

    with open_collection(f"milvus:http://127.0.0.1:{running[2]}/photos") as collection:
        put, puts = collection.put, []

        def put_and_stop(photos):
            put(photos)
            puts.append(photos)
            if len(puts) == 2:
                stop()

        collection.put = put_and_stop
        monkeypatch.setattr(pushing, "time", SimpleNamespace(sleep=sleep))
        assert push([write(place / "features", descriptors(80))], collection, 20) == Pushed(80, 0, 0, 80)
        assert slept[:2] == [1, 2]
    stop()


def test_the_program_says_what_came_of_it(where, place, capsys):
    features = write(place / "features", descriptors(1100), unusable=2)
    program.main(["--from", str(features), "--to", where, "--batch", "500"])
    shown = capsys.readouterr()
    assert shown.out == (
        f"pushed: {where}, 1,100 photos sent, 0 were there already; it holds 1,100\n"
        "2 photos have no descriptor and were left out: the column error says why\n"
    )
    assert "photos  1,102/1,102 photos" in shown.err
    # one file more
    shutil.copytree(features, place / "again")
    program.main(["--from", str(features), str(place / "again"), "--to", where])
    assert "0 photos sent, 2,200 were there already; it holds 1,100" in capsys.readouterr().out
    with pytest.raises(UserError, match="--batch must be a whole number, at least 1"):
        program.main(["--from", str(features), "--to", where, "--batch", "0"])
