"""The search over HTTP, by a server in this process and a model of milliseconds."""

import http.client
import io
import json
import os
import re
import shutil
import socket
import threading
import time
from urllib.parse import quote

import pytest
from PIL import Image

from mg_keras.errors import UserError
from mg_keras.search import album as album_module
from mg_keras.search import http_api, openapi
from mg_keras.search.album import Album
from mg_keras.search.http_api import SearchServer
from mg_keras.search.thumbnails import thumbnail
from tests.search.fake import FakeModel, album, noise

HOSTILE = "<img src=x onerror=alert(1)>.png"


def as_bytes(image, form="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


class Client:
    """Requests to a server, and what JSON answers hold."""

    def __init__(self, port, headers=None):
        self.port, self.headers = port, headers or {}

    def ask(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, self.headers | headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def get(self, path, method="GET", body=None, expected=200, **headers):
        status, _, told = self.ask(method, path, body, **headers)
        assert status == expected, told
        return json.loads(told)

    def refusal(self, path, expected=400, **keywords):
        return self.get(path, expected=expected, **keywords)["error"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """An album: 12 photos, one twice, one small, one with a hostile name, one broken, and a link that leads out."""
    root = tmp_path_factory.mktemp("served")
    paths = album(root / "photos", 12)
    shutil.copy(paths[0], root / "photos" / "twice.png")
    noise(1, (12, 12)).save(root / "photos" / "small.jpg", quality=95)
    noise(50).save(root / "photos" / HOSTILE)
    (root / "photos" / "broken.jpg").write_bytes(paths[2].read_bytes()[:200])
    (root / "outside").mkdir()
    noise(60).save(root / "outside" / "secret.png")
    os.symlink(root / "outside" / "secret.png", root / "photos" / "link.png")
    return root


@pytest.fixture(scope="module")
def served(photos):
    with_album = Album(photos / "photos", FakeModel(), photos / "index")
    with_album.update()
    with_album.wait()
    server = SearchServer(with_album)
    server.start()
    yield with_album, Client(server.port)
    server.stop()
    with_album.stop()


def names(hits):
    return [hit["photo"]["name"] for hit in hits]


def numbered(client, name):
    return next(each for each in client.get("/api/photos?limit=500")["photos"] if each["name"] == name)


def test_status_and_paging(served):
    _, client = served
    status = client.get("/api/status")
    assert (status["photos"], status["unusable"], status["classes"]) == (16, 1, True)
    assert status["indexing"] == {"running": False, "done": 17, "total": 17, "error": None}
    first, second = (client.get(f"/api/photos?limit=10&offset={offset}") for offset in (0, 10))
    assert first["total"] == 16
    assert (first["more"], second["more"]) == (True, False)
    assert len({photo["id"] for photo in first["photos"] + second["photos"]}) == 16
    assert [each["name"] for each in client.get("/api/unusable")] == ["broken.jpg"]
    classes = client.get("/api/classes")
    assert sum(each["photos"] for each in classes) == 16
    of_class = client.get(f"/api/photos?class={quote(classes[0]['name'])}")
    assert of_class["total"] == len(of_class["photos"]) == classes[0]["photos"]
    by_word = client.get("/api/photos?text=crimson&limit=3")
    shares = [photo["probability"] for photo in by_word["photos"]]
    assert by_word["more"]
    assert shares == sorted(shares, reverse=True)


def test_search_by_an_upload_a_photo_and_a_region(served):
    _, client = served
    found = client.get("/api/search?k=5", "POST", as_bytes(noise(1)))
    assert set(names(found["copies"])) == {"00001.png", "small.jpg"}
    assert found["copies"][0]["similarity"] == pytest.approx(1, abs=1e-3)
    assert found["instances"] == []
    top = found["classes"][0]["name"]
    assert {hit["photo"]["class"] for hit in found["kind"]} <= {top}
    upload = found["query"]["upload"]
    assert client.get(f"/api/search?k=5&upload={upload}")["copies"] == found["copies"]
    assert Image.open(io.BytesIO(client.ask("GET", found["query"]["picture"])[2])).size == (24, 24)
    # a photo of the album is not among its own
    own = numbered(client, "00001.png")
    assert names(client.get(f"/api/search?photo={own['id']}")["copies"]) == ["small.jpg"]
    # a region is described as a photo by itself
    both = Image.new("RGB", (48, 24))
    both.paste(noise(3), (0, 0))
    both.paste(noise(4), (24, 0))
    sent = client.get("/api/search", "POST", as_bytes(both))["query"]["upload"]
    for box, name in (("0,0,0.5,1", "00003.png"), ("0.5,0,1,1", "00004.png")):
        part = client.get(f"/api/search?upload={sent}&box={box}")
        assert names(part["copies"]) == [name]
        assert part["query"]["box"] == [float(each) for each in box.split(",")]
    half = client.get(f"/api/search?photo={own['id']}&box=0,0,1,0.99")
    assert "small.jpg" in names(half["copies"])


def test_of_many_uploads_the_one_that_was_not_used_for_longest_is_forgotten(served, monkeypatch):
    _, client = served
    monkeypatch.setattr(album_module, "_QUERIES", 2)
    first, second = (client.get("/api/search", "POST", as_bytes(noise(n)))["query"]["upload"] for n in (1, 2))
    assert client.get(f"/api/search?upload={first}")
    third = client.get("/api/search", "POST", as_bytes(noise(3)))["query"]["upload"]
    for upload in (first, third):
        assert client.get(f"/api/search?upload={upload}")["query"]["upload"] == upload
    assert "not kept any more" in client.refusal(f"/api/search?upload={second}", 404)


def test_pictures_are_made_here_and_kept(served):
    with_album, client = served
    photo = numbered(client, "00002.png")
    status, headers, told = client.ask("GET", photo["thumbnail"])
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    assert "immutable" in headers["Cache-Control"]
    kept = list((with_album.path / "thumbnails").rglob("*.jpg"))
    assert told in [path.read_bytes() for path in kept]
    assert client.ask("GET", photo["picture"])[2].startswith(b"\xff\xd8")
    # what has no version in its address may be another picture later
    status, headers, again = client.ask("GET", photo["thumbnail"].partition("?")[0])
    assert (status, headers["Cache-Control"], again) == (200, "no-store", told)


def test_what_was_changed_since_is_not_kept_for_what_it_was(served):
    with_album, client = served
    # equal ones, of which one is another now
    photo, twin = numbered(client, "00000.png"), numbered(client, "twice.png")
    path = with_album.folder / "00000.png"
    before = path.read_bytes()
    noise(99).save(path)
    try:
        for what in ("thumbnail", "picture"):
            status, headers, _ = client.ask("GET", photo[what])
            assert (status, headers["Cache-Control"]) == (200, "no-store")
    finally:
        path.write_bytes(before)
    told = client.ask("GET", twin["thumbnail"])[2]
    assert told == thumbnail(with_album.folder / "twice.png")
    # of a power cut
    (kept,) = (path for path in (with_album.path / "thumbnails").rglob("*.jpg") if path.read_bytes() == told)
    kept.write_bytes(b"")
    assert client.ask("GET", twin["thumbnail"])[2] == told == kept.read_bytes()


def test_an_index_within_the_album_is_none_of_its_photos(tmp_path):
    album(tmp_path / "photos", 3)
    within = Album(tmp_path / "photos", FakeModel(), tmp_path / "photos" / "index")
    for _ in range(2):
        within.update()
        within.wait()
        photos = within.index.photos()
        assert [photo.name for photo in photos] == ["00000.png", "00001.png", "00002.png"]
        for photo in photos:
            assert within.thumbnails.get(photo.path, photo.sha256)
    assert len(list(within.path.rglob("*.jpg"))) == 3
    assert within.index.update().passed_over == ()


def test_what_lies_outside_the_folder_is_not_served(served):
    _, client = served
    link = numbered(client, "link.png")
    for what in ("thumbnail", "picture"):
        assert "outside the folder" in client.refusal(f"/api/photos/{link['id']}/{what}", 404)
    for path in ("/../setup.py", "/%2e%2e/%2e%2e/etc/passwd", "/api/photos/..%2f..%2fetc", "/page.html", "/openapi.py"):
        assert client.ask("GET", path)[0] == 404


def test_duplicates(served):
    with_album, client = served
    assert client.get("/api/duplicates")["found"] is False
    assert client.get("/api/duplicates?precision=0.9", "POST") == {"started": True}
    with_album.wait()
    found = client.get("/api/duplicates")
    assert [group["kind"] for group in found["groups"]] == ["equal", "copy"]
    assert (found["total"], found["spare"]) == (2, 1)
    assert found["groups"][0]["keep"]["name"] == "00000.png"
    assert [(each["photo"]["name"], each["spare"]) for each in found["groups"][1]["members"]] == [("small.jpg", False)]
    (copies,) = client.get("/api/duplicates?kind=copy&limit=1")["groups"]
    assert copies["decision"] == {"skip": False, "go": []}
    # what is decided in place of that is kept, and one of a group stays
    decided = {"key": copies["key"], "skip": True, "go": [copies["keep"]["id"]]}
    assert client.get("/api/decisions", "POST", json.dumps(decided)) == {"noted": True}
    (copies,) = client.get("/api/duplicates?kind=copy")["groups"]
    assert copies["decision"] == {"skip": True, "go": decided["go"]}
    every = [copies["keep"]["id"], copies["members"][0]["photo"]["id"]]
    for wrong, expected, told in (
        (decided | {"go": every}, 400, "one photo of a group stays"),
        (decided | {"go": [99]}, 400, "only photos of a group can go from it"),
        (decided | {"key": "0"}, 404, "there is no such group any more"),
        (decided | {"go": "1"}, 400, "a decision is"),
        ([], 400, "a decision is"),
    ):
        assert told in client.refusal("/api/decisions", expected, method="POST", body=json.dumps(wrong))


def test_a_group_of_which_a_photo_has_changed_is_told_to_and_not_decided(tmp_path):
    paths = album(tmp_path / "photos", 3)
    for number, path in enumerate(paths[:2]):
        shutil.copy(path, path.with_name(f"twice{number}.png"))
    changing = Album(tmp_path / "photos", FakeModel(), tmp_path / "index")
    changing.update()
    changing.wait()
    changing.compare(0.9)
    changing.wait()
    server = SearchServer(changing)
    server.start()
    client = Client(server.port)
    try:
        found = client.get("/api/duplicates")["groups"]
        assert [group["changed"] for group in found] == [False, False]
        gone = next(group for group in found if group["keep"]["name"] == "00000.png")
        decided = json.dumps({"key": gone["key"], "skip": False, "go": [gone["members"][0]["photo"]["id"]]})
        assert client.get("/api/decisions", "POST", decided) == {"noted": True}
        paths[0].unlink()
        for _ in range(2):
            shown = {group["keep"]["name"]: group["changed"] for group in client.get("/api/duplicates")["groups"]}
            assert shown == {"00000.png": True, "00001.png": False}
            told = client.refusal("/api/decisions", 404, method="POST", body=decided)
            assert told == "a photo of this group has changed or is gone: look for duplicates again"
            # whether the index knows of it or not
            changing.update()
            changing.wait()
        changing.compare(0.9)
        changing.wait()
        assert [group["changed"] for group in client.get("/api/duplicates")["groups"]] == [False]
    finally:
        server.stop()
        changing.stop()


def test_copies_by_their_pixels(served):
    _, client = served
    photo, small, other = (numbered(client, name)["id"] for name in ("00001.png", "small.jpg", "00002.png"))
    found = client.get(f"/api/same?photo={photo}&of={small},{other},{photo}")
    assert {each["id"] for each in found} == {small, photo}
    assert all(0.9 < each["verified"] <= 1 for each in found)
    # one whose file is not there, or that is not in the album any more, is lost alone
    outside = numbered(client, "link.png")["id"]
    assert client.get(f"/api/same?photo={photo}&of={outside},{10**9},{small}") == found[:1]
    body = as_bytes(noise(2, (60, 60)))
    upload = client.get("/api/search", "POST", body)["query"]["upload"]
    assert [each["id"] for each in client.get(f"/api/same?upload={upload}&of={photo},{other}")] == [other]
    for wrong in ("", "1,x", ",".join(["1"] * 33)):
        assert "of must be numbers" in client.refusal(f"/api/same?photo={photo}&of={wrong}")


def test_bad_requests_are_one_line_and_the_server_goes_on(served):
    _, client = served
    photo = numbered(client, "00002.png")["id"]
    for path, told in (
        ("/api/search", "one of photo and upload is needed"),
        ("/api/search?photo=1&upload=a", "one of photo and upload is needed"),
        ("/api/search?photo=-1", "photo must be a whole number"),
        (f"/api/search?photo={photo}&k=0", "k must be a whole number from 1 to 500, received '0'"),
        (f"/api/search?photo={photo}&precision=nan", "precision must be above 0"),
        (f"/api/search?photo={photo}&precision=0.999", "no threshold of copy is known"),
        (f"/api/search?photo={photo}&box=1,2", "box must be left,top,right,bottom"),
        (f"/api/search?photo={photo}&box=0.5,0,0.2,1", "a box is left,top,right,bottom as shares"),
        (f"/api/search?photo={photo}&box=0,0,0.01,0.01", "the box is "),
        ("/api/photos?text=zebra", "no class is called 'zebra'"),
        ("/api/duplicates?kind=odd", "kind must be one of"),
    ):
        answer = client.refusal(path)
        assert told in answer
        assert "\n" not in answer
    assert client.refusal("/api/search?photo=999999", 404) == "there is no photo 999999"
    assert "not kept any more" in client.refusal("/api/search?upload=none", 404)
    for number in ("9" * 18, "9" * 19, "9" * 5000, "-1", "one"):
        assert client.refusal(f"/api/photos/{number}", 404).startswith("there is no")
    assert client.refusal("/api/search", 400, method="POST", body=b"not a photo at all")
    assert client.ask("DELETE", "/api/photos")[0] == 405
    assert client.get("/api/status")["photos"] == 16


def test_large_uploads_are_refused_before_they_are_read(served, recwarn):
    _, client = served
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as connection:
        connection.sendall(
            b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000000\r\n\r\n" + bytes(1000)
        )
        told = b""
        while not told.endswith(b"}") and (part := connection.recv(65536)):
            told += part
    assert told.startswith(b"HTTP/1.1 413 ")
    assert b"the request has 200000000 bytes, more than the 33554432 allowed" in told
    # few bytes, many pixels
    header = as_bytes(Image.new("1", (20_000, 8_000)))
    assert len(header) < 100_000
    assert "20,000 x 8,000 pixels" in client.refusal("/api/search", method="POST", body=header)
    assert not [each for each in recwarn if issubclass(each.category, Image.DecompressionBombWarning)]


def test_other_sites_are_refused_and_pages_secured(served):
    _, client = served
    for host in ("evil.example", "localhost.evil.example", "[::1", ""):
        assert client.refusal("/api/status", 403, Host=host).startswith("this server is asked as localhost")
    for origin in ("http://evil.example", "http://[", "null"):
        told = client.refusal("/api/update", 403, method="POST", Origin=origin)
        assert told == "requests of other sites are refused"
    own = f"127.0.0.1:{client.port}"
    assert client.get("/api/update", "POST", Host=own, Origin=f"http://{own}") == {"started": True}
    for path in ("/", "/page.js", "/api/status", "/nothing"):
        headers = client.ask("GET", path)[1]
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert headers["X-Content-Type-Options"] == "nosniff"
    page = client.ask("GET", "/")[2].decode()
    # the policy forbids all that is inline, and nothing comes from elsewhere
    assert not re.search(r"<script(?! src)|<style|\son\w+=|style=|https?://", page)
    script = client.ask("GET", "/page.js")[2].decode()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|https?://", script)


def test_a_token_where_others_reach_the_server(served):
    with_album, _ = served
    with pytest.raises(UserError, match=r"0\.0\.0\.0 is reached from elsewhere: a token is needed"):
        SearchServer(with_album, "0.0.0.0")
    server = SearchServer(with_album, "0.0.0.0", token="secret-token")
    server.start()
    try:
        client = Client(server.port)
        assert server.url == f"http://0.0.0.0:{server.port}/?token=secret-token"
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": f"mg_keras_{server.port}=wrong"}):
            for path in ("/api/status", "/api/photos/1/thumbnail", "/page.js", "/api/openapi.json"):
                assert "a token is needed" in client.refusal(path, 401, **headers)
        assert client.ask("GET", "/")[0] == client.ask("GET", "/?token=wrong")[0] == 401
        assert client.get("/api/status", Authorization="Bearer secret-token")["photos"] == 16
        status, headers, _ = client.ask("GET", "/?token=secret-token")
        assert (status, headers["Location"]) == (303, "/")
        assert "HttpOnly" in headers["Set-Cookie"]
        cookie = headers["Set-Cookie"].partition(";")[0]
        assert client.ask("GET", "/", Cookie=cookie, Host="my.machine")[0] == 200
    finally:
        server.stop()


def test_the_description_names_every_route(served):
    with_album, client = served
    told = client.get("/api/openapi.json")
    application = http_api.search_application(with_album, None, None)._application
    routes = {
        (re.sub(r":\w+}", "}", route.path), method.lower())
        for route in application.routes
        for method in route.methods - {"HEAD"}
        if route.path.startswith("/api/")
    }
    assert routes == {(path, method) for path, methods in told["paths"].items() for method in methods}
    known = set(told["components"]["schemas"])
    assert set(re.findall(r"#/components/schemas/(\w+)", json.dumps(told))) <= known
    # what is answered has what is described
    for path, name in (("/api/status", "Status"), ("/api/photos/1", "Photo")):
        assert set(client.get(path)) == set(openapi.description()["components"]["schemas"][name]["required"])


def test_results_come_while_the_index_grows(tmp_path, monkeypatch):
    monkeypatch.setattr("mg_keras.search.writing._FIRST_CHUNK", 4)
    monkeypatch.setattr("mg_keras.search.writing._LARGEST_CHUNK", 4)
    album(tmp_path / "photos", 8)
    model, going_on = FakeModel(), threading.Event()
    embed, slow = model.embed, []

    def waits(photos, *arguments, **keywords):
        if len(photos) > 1 and slow:
            assert going_on.wait(120)
        slow.append(len(photos))
        return embed(photos, *arguments, **keywords)

    model.embed = waits
    growing = Album(tmp_path / "photos", model, tmp_path / "index")
    server = SearchServer(growing)
    server.start()
    client = Client(server.port)
    try:
        assert client.get("/api/photos") == {"total": 0, "more": False, "photos": []}
        assert "come again" in client.refusal("/api/search?photo=1", 503)
        assert growing.update()
        assert not growing.update()
        while not len(growing):
            assert growing.indexing.error is None
            time.sleep(0.01)
        assert client.get("/api/status")["indexing"] == {"running": True, "done": 4, "total": 8, "error": None}
        assert client.get("/api/photos")["total"] == 4
        assert names(client.get("/api/search?photo=1&k=3")["kind"])
        going_on.set()
        growing.wait()
        assert client.get("/api/status")["photos"] == 8
        # a folder that vanishes: one line, and what is known stays
        shutil.move(tmp_path / "photos", tmp_path / "elsewhere")
        growing.update()
        growing.wait()
        status = client.get("/api/status")
        assert "no such folder" in status["indexing"]["error"]
        assert status["photos"] == 8
        assert "not there any more" in client.refusal("/api/photos/1/thumbnail", 404)
    finally:
        going_on.set()
        server.stop()
        growing.stop()
    with pytest.raises(UserError, match="made by another model"):
        Album(tmp_path / "elsewhere", FakeModel("other"), tmp_path / "index")


def test_what_compares_ends_when_the_server_does(tmp_path):
    album(tmp_path / "photos", 3)
    noise(1, (12, 12)).save(tmp_path / "photos" / "small.jpg", quality=95)
    stopped = Album(tmp_path / "photos", FakeModel(), tmp_path / "index")
    stopped.update()
    stopped.wait()
    stopped.stop()
    assert stopped.compare(precision=0.9)
    stopped.wait()
    assert stopped.duplicates is stopped.comparing.error is None
    assert not stopped.comparing.running


def test_of_a_folder_whose_photos_can_not_be_used_it_is_told_how_many(tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    broken = Album(tmp_path / "photos", FakeModel(), tmp_path / "index")
    server = SearchServer(broken)
    server.start()
    client = Client(server.port)
    try:
        assert client.get("/api/status")["unusable"] == 0
        broken.update()
        broken.wait()
        status = client.get("/api/status")
        assert (status["photos"], status["unusable"], status["classes"]) == (0, 3, True)
        broken.indexing.running = True
        assert len(client.get("/api/unusable")) == 3
    finally:
        server.stop()
        broken.stop()


def test_files_that_are_passed_over_are_counted_with_the_reason(tmp_path):
    album(tmp_path / "photos", 1)
    (tmp_path / "photos" / "a.cr2").write_bytes(b"raw")
    passed = Album(tmp_path / "photos", FakeModel(), tmp_path / "index")
    server = SearchServer(passed)
    server.start()
    client = Client(server.port)
    try:
        status = client.get("/api/status")
        assert (status["passed_over"], status["why_passed_over"]) == (0, None)
        passed.update()
        passed.wait()
        status = client.get("/api/status")
        assert (status["photos"], status["passed_over"], status["indexing"]["error"]) == (1, 1, None)
        assert re.fullmatch(r"a camera's raw file, .* \(a\.cr2\)", status["why_passed_over"])
    finally:
        server.stop()
        passed.stop()
    shutil.rmtree(tmp_path / "index")
    (tmp_path / "photos" / "00000.png").unlink()
    passed = Album(tmp_path / "photos", FakeModel(), tmp_path / "index")
    passed.update()
    passed.wait()
    assert re.fullmatch(r"no photo of .*photos can be used: a camera's raw file, .*", passed.indexing.error)


def test_queries_come_between_the_photos_of_the_folder():
    model, order = FakeModel(), []
    embed, started, go_on = model.embed, threading.Event(), threading.Event()

    def noted(photos, *arguments, **keywords):
        order.append(len(photos))
        if len(order) == 1:
            started.set()
            assert go_on.wait(20)
        return embed(photos, *arguments, **keywords)

    model.embed = noted
    turns = album_module._InTurns(model)
    many = [noise(0)] * (2 * album_module._AT_ONCE)
    threads = [threading.Thread(target=turns.embed, args=(many,))]
    threads[0].start()
    assert started.wait(20)
    threads.append(threading.Thread(target=turns.embed, args=([noise(1)],)))
    threads[1].start()
    while turns._next < 2:
        pass
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert order == [album_module._AT_ONCE, 1, album_module._AT_ONCE]
