"""A collection of a vector database answers as the index of the folder does."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from mg_keras.databases import DATABASES, open_collection
from mg_keras.databases.pushing import push
from mg_keras.errors import UserError
from mg_keras.programs import albums, search
from mg_keras.search import collection as collection_module
from mg_keras.search import thresholds
from mg_keras.search.album import NotThere
from mg_keras.search.collection import CollectionAlbum, CollectionIndex
from mg_keras.search.http_api import SearchServer
from mg_keras.search.index import Index
from tests.databases.written import write
from tests.search.fake import FakeModel, album, noise
from tests.search.http_api_test import Client, as_bytes


class Telling(FakeModel):
    """It says what `mg-keras embed` would have said of it."""

    def made_from(self, resolution):
        return {"network": "a network", "resolution": resolution, "pooling": 3.0, "whitening": None}


@pytest.fixture(scope="module", params=sorted(DATABASES))
def pushed(request, tmp_path_factory):
    """(an album, where its descriptors are)."""
    pytest.importorskip({"milvus": "pymilvus", "qdrant": "qdrant_client"}[request.param], reason="its extra is missing")
    place = tmp_path_factory.mktemp("pushed")
    paths = album(place / "photos", 40)
    for number in range(3):
        paths.append(place / "photos" / f"small{number}.jpg")
        noise(1, (12 + number, 12)).save(paths[-1], quality=95)
    model = FakeModel()
    descriptors = model.embed(paths)
    classes = [model.class_names[row] for row in model.classify(descriptors).probabilities.argmax(axis=1)]
    features = place / "features"
    for name in dict.fromkeys(classes):
        rows = [row for row, each in enumerate(classes) if each == name]
        write(features, descriptors[rows], [str(paths[row]) for row in rows], classes=[name], resolution=32)
    where = f"{request.param}:{place / 'vectors.db'}/photos"
    with open_collection(where) as collection:
        push([features], collection)
    return place / "photos", where


def told(hits):
    return sorted((str(hit.photo.path), round(hit.similarity, 2)) for hit in hits)


def test_it_finds_what_the_index_of_the_folder_does(pushed, tmp_path):
    folder, where = pushed
    with (
        CollectionIndex(open_collection(where, create=False), FakeModel()) as found_there,
        Index.build(folder, FakeModel(), tmp_path / "index") as index,
    ):
        assert len(found_there) == len(index) == 43
        for query in (folder / "00001.png", np.asarray(noise(7)), folder / "small0.jpg"):
            # the second is cut off within the copies, or the kind
            for k, expand in ((20, 0), (2, 0), (20, 3)):
                there, here = (each.find(query, k, 0.9, expand) for each in (found_there, index))
                for kind in ("copies", "instances", "kind"):
                    one, other = (told(getattr(answer, kind)) for answer in (there, here))
                    assert one == other or (k == 2 and [each[1] for each in one] == [each[1] for each in other])
                assert [name for name, _ in there.classes] == [name for name, _ in here.classes]
                shares = [share for _, share in here.classes]
                assert [share for _, share in there.classes] == pytest.approx(shares, abs=1e-3)
        # more than a database answers at once
        there, here = (each.find(folder / "00001.png", 10**12, expand=10**12) for each in (found_there, index))
        assert told(there.kind) == told(here.kind)
        photo = found_there.find(folder / "00001.png").copies[0].photo
        assert (photo.width, photo.height) == (640, 480)


def test_which_model_made_it_is_told_by_the_model_or_by_photos_that_are_here(pushed, monkeypatch):
    _, where = pushed
    with open_collection(where, create=False) as collection:
        model = Telling()
        CollectionIndex(collection, model)
        assert model.embedded == 0
        model = FakeModel()
        CollectionIndex(collection, model)
        assert model.embedded == 3
        monkeypatch.setattr(model, "embed", lambda photos, *_, **__: -FakeModel().embed(photos))
        with pytest.raises(UserError, match="was made by another model, or at another resolution: of "):
            CollectionIndex(collection, model)
        with pytest.raises(UserError, match="is of photos at the resolution 32, received 64"):
            CollectionIndex(collection, FakeModel(), 64)
        collection.some = lambda count: [{"uri": "s3://elsewhere/1.jpg"}]
        with pytest.raises(UserError, match="was made by another model than fake, as far as can be told"):
            CollectionIndex(collection, FakeModel())
        with pytest.raises(UserError, match="holds descriptors of 109 values, received one of 5"):
            CollectionIndex(collection, Telling()).find(np.ones(5))
        for given in ({"k": 0}, {"expand": -1}):
            with pytest.raises(UserError, match="must be at least"):
                CollectionIndex(collection, Telling()).find(np.ones(109), **given)


def test_thresholds_of_a_model_that_has_none_are_estimated(pushed, tmp_path, monkeypatch):
    folder, where = pushed
    model = Telling()
    model.thresholds = None
    with (
        CollectionIndex(open_collection(where, create=False), model) as there,
        Index.build(folder, model, tmp_path / "index") as index,
    ):
        for kind in ("copy", "instance"):
            assert there.threshold(kind) == pytest.approx(index.threshold(kind), abs=0.002)
    # of a collection of which not all are looked at, strangers are as near as of all
    monkeypatch.setattr(collection_module, "_LISTED", 20)
    given = []
    monkeypatch.setattr(thresholds, "estimated", lambda rows, used, photos: given.append((len(rows), photos)) or known)
    known = {"copy": {"0.99": 0.9}, "instance": {"0.99": 0.6}}
    with CollectionIndex(open_collection(where, create=False), model) as there:
        assert there.threshold("copy") == 0.9
    assert given == [(20, 43)]


def test_the_program_searches_a_collection(pushed, monkeypatch, capsys, tmp_path):
    folder, where = pushed
    monkeypatch.setattr(albums, "loaded", lambda options: FakeModel())
    out = tmp_path / "found.json"
    search.main([where, str(folder / "00001.png"), "--k", "4", "--out", str(out)])
    shown = capsys.readouterr().out
    assert f"copies:\n  1.000  {folder / '00001.png'}\n  0.9" in shown
    assert "43 photos searched" in shown
    assert len(json.loads(out.read_text())["copies"]) == 4
    for arguments, message in (
        ([], "is a collection: give a PHOTO, or --photos for a page of those below a folder"),
        (["--class", "green"], "--class is for folders"),
        (["x.jpg", "--index", "x"], "--index is for folders"),
        (["x.jpg", "--photos", "x"], "--photos is for the page"),
    ):
        with pytest.raises(UserError, match=message):
            search.main([where, *arguments])
    with pytest.raises(UserError, match="--photos is for a collection"):
        search.main([str(folder), "--photos", str(folder)])
    monkeypatch.setattr(albums, "loaded", None)
    with pytest.raises(UserError, match=r"there is no collection .*: mg-keras push makes one"):
        search.main([f"{where}2", "x.jpg"])


def test_the_program_serves_the_page_of_a_collection(pushed, monkeypatch, capsys):
    folder, where = pushed
    monkeypatch.setattr(albums, "loaded", lambda options: FakeModel())
    monkeypatch.setattr(search.signal, "signal", lambda *_: None)
    found = []

    def wait():
        url = capsys.readouterr().out.split()[1]
        found.append(Client(int(url.split(":")[2].strip("/"))).get("/api/status"))

    monkeypatch.setattr(search, "threading", SimpleNamespace(Event=lambda: SimpleNamespace(wait=wait)))
    search.main([where, "--photos", str(folder), "--port", "0", "--browser", "false"])
    assert [each["photos"] for each in found] == [43]
    # it was let go of
    open_collection(where, create=False).close()


def test_the_page_of_a_collection(pushed, tmp_path):
    folder, where = pushed
    album = CollectionAlbum(folder, FakeModel(), open_collection(where, create=False))
    server = SearchServer(album)
    server.start()
    client = Client(server.port)
    try:
        status = client.get("/api/status")
        assert (status["photos"], status["unusable"], status["classes"]) == (43, 0, False)
        assert (status["folder"], status["collection"]) == (where, True)
        listed = client.get("/api/photos?limit=40")
        assert (listed["total"], listed["more"], len(listed["photos"])) == (43, True, 40)
        assert not client.get("/api/photos?limit=40&offset=40")["more"]
        assert client.get("/api/classes") == client.get("/api/unusable") == []
        found = client.get("/api/search?k=5", "POST", as_bytes(noise(1)))
        names = {hit["photo"]["name"] for hit in found["copies"]}
        assert names == {str(folder / name) for name in ("00001.png", "small0.jpg", "small1.jpg", "small2.jpg")}
        first = found["copies"][0]["photo"]
        assert first["id"] < 2**53
        assert client.ask("GET", first["thumbnail"])[0] == 200
        # a photo of the collection is not among its own
        again = client.get(f"/api/search?photo={first['id']}&k=5")
        assert {hit["photo"]["name"] for hit in again["copies"]} == names - {first["name"]}
        part = client.get(f"/api/search?photo={first['id']}&box=0,0,1,0.99&k=5")
        assert first["name"] in {hit["photo"]["name"] for hit in part["copies"]}
        same = client.get(f"/api/same?photo={first['id']}&of={again['copies'][0]['photo']['id']}")
        assert isinstance(same, list)
        assert "photos are found by 'green' in folders" in client.refusal("/api/photos?text=green")
        assert "duplicates are looked for in folders" in client.refusal("/api/duplicates", method="POST")
        assert client.get("/api/update", "POST") == {"started": False}
        client.refusal("/api/photos/17", expected=404)
    finally:
        server.stop()
        album.stop()
    # photos that are files, but not below the folder, are not shown
    (tmp_path / "empty").mkdir()
    album = CollectionAlbum(tmp_path / "empty", FakeModel(), open_collection(where, create=False))
    try:
        (photo,) = album.index.photos(0, 1)
        with pytest.raises(NotThere, match="lies outside the folder"):
            album.file_of(photo)
        assert list((tmp_path / "empty").iterdir()) == []
    finally:
        album.stop()
