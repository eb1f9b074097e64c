import contextlib
import json
import os
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from mg_keras.errors import UserError
from mg_keras.search import store, thresholds
from mg_keras.search.index import Index
from mg_keras.search.writing import Changes
from tests.search.fake import FakeModel, album, noise


def unit_rows(count, size=8, seed=0):
    values = np.random.default_rng(seed).normal(size=(count, size))
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def names(found):
    return [getattr(each, "photo", each).name for each in found]


@pytest.fixture
def photos(tmp_path):
    """A folder of 30 photos, of which one is twice there, one smaller and one below another folder."""
    folder = tmp_path / "photos"
    paths = album(folder, 30)
    shutil.copy(paths[5], folder / "again.png")
    noise(3, (12, 12)).save(folder / "small.jpg", quality=95)
    album(folder / "deep" / "er", 1, first=100)
    return folder


def test_search_is_cosine_similarity_in_order():
    values, query = unit_rows(50), unit_rows(1, seed=1)[0]
    with Index.build(values, names=[f"{number:02}" for number in range(50)]) as index:
        hits = index.search(3 * query, k=7)
        order = np.argsort(-values @ query)[:7]
        assert names(hits) == [f"{number:02}" for number in order]
        np.testing.assert_allclose([hit.similarity for hit in hits], (values @ query)[order], atol=2e-3)
        near = index.range(query, 0.3)
        assert sorted(names(near)) == [f"{number:02}" for number in np.flatnonzero(values @ query >= 0.3)]
        assert len(index.search(query, 80)) == len(index) == 50


@pytest.mark.parametrize(("precision", "least", "count"), [(0.9, 0.3, 6), (0.99, 0.66, 2)])
def test_query_expansion_is_the_mean_with_neighbours_weighted_by_the_third_power(precision, least, count):
    model = FakeModel()
    model.class_names, model.thresholds = None, {"copy": {"0.99": 0.9}, "instance": {"0.9": 0.3, "0.99": 0.66}}
    values, query = unit_rows(50), unit_rows(1, seed=1)[0]
    similarities = values @ query
    kept = [number for number in np.argsort(-similarities)[:6] if similarities[number] >= least]
    # as many as were asked for are above the lower threshold, and fewer above the higher one
    assert len(kept) == count
    mean = query + sum(similarities[number] ** 3 * values[number] for number in kept)
    mean /= np.linalg.norm(mean)
    order = np.argsort(-values @ mean)[:20]
    with Index.build(values, model, names=[f"{number:02}" for number in range(50)]) as index:
        hits = index.search(query, k=20, expand=6, precision=precision)
        assert names(hits) == [f"{number:02}" for number in order]
        np.testing.assert_allclose([hit.similarity for hit in hits], (values @ mean)[order], atol=2e-3)


def test_a_folder_is_found_again_by_photo(photos, tmp_path):
    model = FakeModel()
    with Index.build(photos, model, tmp_path / "index") as index:
        # of equal files one is described
        assert model.embedded == 32
        assert len(index) == 33
        assert names(index.search(photos / "00005.png", 2)) == ["00005.png", "again.png"]
        for query in (noise(7), np.asarray(noise(7).convert("RGB")), (photos / "00007.png").read_bytes()):
            assert names(index.search(query, 1)) == ["00007.png"]
        photo = index.photo("00005.png")
        assert photo == index.photo(photos / "00005.png") == index.photo(photo.id)
        assert names(index.search(photo, 1)) == ["again.png"]
        assert (photo.width, photo.height, photo.file_size) == (24, 24, os.path.getsize(photo.path))
        assert names(index.photos(offset=31)) == ["deep/er/00100.png", "small.jpg"]
        assert index.about["searched_by"] == "exact"
        assert "33 photos" in repr(index)


def test_what_is_no_query_is_told(photos, tmp_path):
    with Index.build(photos, FakeModel(), tmp_path / "index") as index:
        for query, told in (([str(photos / "00007.png")], "a list of 1"), (("a", "b"), "a tuple of 2")):
            with pytest.raises(UserError, match=f"a query is one photo .*, received {told}"):
                index.search(query)
        assert names(index.search(bytearray((photos / "00007.png").read_bytes()), 1)) == ["00007.png"]
        with pytest.raises(UserError, match=r"no such folder or file: .*missing\.png"):
            index.add(photos / "missing.png")


def test_a_folder_without_photos_answers_nothing(tmp_path):
    (tmp_path / "photos").mkdir()
    with Index.build(tmp_path / "photos", FakeModel(), tmp_path / "index") as index:
        # as the page asks, which describes an upload once
        answer = index.find(index.describe(noise(1)))
        assert answer.copies == answer.instances == answer.kind == []
        found = index.find(noise(1), expand=3)
        assert found.copies == found.instances == found.kind == []
        assert index.search(noise(1)) == index.range(noise(1), 0.5) == []
        # of how many values descriptors are, the first one says
        album(tmp_path / "photos", 1)
        index.update()
        assert names(index.search(noise(0))) == ["00000.png"]


def test_three_granularities_of_one_descriptor(photos, tmp_path):
    blend = Image.blend(noise(3), noise(4), 0.4)
    blend.save(photos / "like3.png")
    model = FakeModel()
    with Index.build(photos, model, tmp_path / "index") as index:
        answer = index.find(index.photo("00003.png"), k=4)
        assert names(answer.copies) == ["small.jpg"]
        assert names(answer.instances) == ["like3.png"]
        likeliest, probability = answer.classes[0]
        classes = model.classify(model.embed([photos / "00003.png"])).probabilities[0]
        assert likeliest == model.class_names[int(np.argmax(classes))]
        assert probability == pytest.approx(max(classes), abs=1e-3)
        assert len(answer.kind) == 4
        assert {hit.photo.class_name for hit in answer.kind} == {likeliest}
        assert all(hit.similarity < model.thresholds["instance"]["0.9"] for hit in answer.kind)
        assert index.find(photos / "00003.png").copies[0].photo.name == "00003.png"
        only = index.search(photos / "00003.png", 40, class_name="green")
        assert {hit.photo.class_name for hit in only} == {"green"}
        assert len(only) == index.class_counts()["green"] == len(index.photos(class_name="green"))


def test_classes_are_searched_by_name(photos, tmp_path):
    with Index.build(photos, FakeModel(), tmp_path / "index") as index:
        found = index.find_class("Crimson", 5)
        shares = [share for _, share in found]
        assert shares == sorted(shares, reverse=True)
        assert found[0][0].class_name == "red, crimson"
        assert found[0][0].probability == pytest.approx(found[0][1])
        assert index.find_class("red", 2, offset=1) == found[1:3]
        counts = list(index.class_counts().values())
        assert counts == sorted(counts, reverse=True) != sorted(counts)
        with pytest.raises(UserError, match="no class is called 'grean'; near: green"):
            index.find_class("grean")
        with pytest.raises(UserError, match="no class is called ''"):
            index.find_class("")
    with Index.build(unit_rows(3)) as index, pytest.raises(UserError, match="knows no classes"):
        index.find_class("red")


def test_of_classes_with_hardly_a_share_nothing_is_kept(tmp_path):
    model = FakeModel()
    photos = [Image.new("RGB", (24, 24), colour) for colour in ((200, 100, 100), (190, 150, 150), (100, 100, 200))]
    shares = model.classify(model.embed(photos)).probabilities[:, model.class_names.index("blue")]
    assert shares == pytest.approx([0.0003, 0.02, 1], abs=0.002)
    with Index.build(photos, model) as index:
        assert [photo.name for photo, _ in index.find_class("blue")] == ["photo 3", "photo 2"]


def test_two_classes_of_one_name(tmp_path):
    folder, model = tmp_path / "photos", FakeModel()
    model.class_names = ["crane", "green", "crane"]
    folder.mkdir()
    for number in range(7):
        values = np.random.default_rng(number).integers(0, 60, (6, 6, 3))
        # four red ones, three blue ones
        values[..., 0 if number < 4 else 2] += 150
        Image.fromarray(values.astype(np.uint8)).resize((24, 24), 0).save(folder / f"{number}.png")
    with Index.build(folder, model, tmp_path / "index") as index:
        assert index.class_counts() == {"crane": 7}
        assert index.listed("crane") == len(index.photos(class_name="crane")) == 7
        assert len(index.search(folder / "5.png", 10, class_name="crane")) == 7
        # of one kind are those of one class, whatever the other is called
        for answer in (index.find(folder / "5.png", precision=0.99), Index.open(index.path).find(index.photo("5.png"))):
            assert answer.classes[0][0] == "crane"
            found = {hit.photo.name for hit in (*answer.copies, *answer.instances, *answer.kind)}
            assert found - {"5.png"} == {"4.png", "6.png"}


def test_a_photo_that_is_gone_is_no_query(tmp_path, monkeypatch):
    # as older indexes have it
    monkeypatch.setattr(store, "_SCHEMA", store._SCHEMA.replace("AUTOINCREMENT", ""))
    for name, same_number in (("old", True), ("new", False)):
        folder = tmp_path / name
        *_, last = album(folder, 3)
        with Index.build(folder, FakeModel(), tmp_path / f"{name} index") as index:
            query = index.photo(last)
            last.unlink()
            index.update()
            noise(77).save(folder / "another.png")
            index.update()
            assert (index.photo("another.png").id == query.id) is same_number
            with pytest.raises(UserError, match=r"00002\.png is not in the index any more"):
                index.search(query)
            # what was written over is another photo, too
            query = index.photo("00001.png")
            noise(78).save(folder / "00001.png")
            index.update()
            with pytest.raises(UserError, match=r"00001\.png is not in the index any more"):
                index.search(query)
        monkeypatch.undo()


def test_an_update_describes_only_what_changed(photos, tmp_path):
    model = FakeModel()
    index = Index.build(photos, model, tmp_path / "index")
    model.embedded = 0
    assert index.update() == Changes()
    os.utime(photos / "00001.png")
    os.rename(photos / "00002.png", photos / "renamed.png")
    os.rename(photos / "deep", photos / "deeper")
    (photos / "00004.png").unlink()
    noise(500).save(photos / "00006.png")
    album(photos, 2, first=200)
    assert index.update() == Changes(added=2, changed=2, removed=1, moved=2, embedded=3)
    assert model.embedded == 3
    assert names(index.search(noise(500), 1)) == ["00006.png"]
    assert names(index.search(noise(2), 1)) == ["renamed.png"]
    assert index.photo("00002.png") is None
    assert index.photo("00001.png").modified == (photos / "00001.png").stat().st_mtime_ns
    assert index.search(noise(6), 1)[0].similarity < 0.9
    index.close()


def test_a_build_goes_on_and_recursion_can_be_switched_off(photos, tmp_path):
    with Index.build(photos, FakeModel(), tmp_path / "index", recursive=False) as index:
        assert len(index) == 32
    model = FakeModel()
    looked = []
    with Index.build(photos, model, tmp_path / "index", report=lambda *how: looked.append(how)) as index:
        assert (len(index), model.embedded, looked) == (33, 1, [(1, 1)])


def test_a_folder_that_a_link_leads_to_has_one_index(photos, tmp_path):
    (tmp_path / "link").symlink_to(photos)
    model = FakeModel()
    for name in ("link", "photos", "link"):
        with Index.build(tmp_path / name, model, tmp_path / "index") as index:
            assert len(index) == 33
    # of equal files one is described, once
    assert model.embedded == 32
    assert index.about["root"] == str(photos)
    with pytest.raises(UserError, match=r"is an index of the folder .*photos, received .*deep"):
        Index.build(photos / "deep", model, tmp_path / "index")


def test_add_and_remove(photos, tmp_path, monkeypatch):
    # what is called so here is another file
    monkeypatch.chdir(tmp_path)
    noise(1).save("00009.png")
    elsewhere = album(tmp_path / "elsewhere", 2, first=300)
    with Index.build(photos, FakeModel(), tmp_path / "index") as index:
        seen = []
        assert index.add(elsewhere, report=lambda *how: seen.append(how)).added == 2
        assert index.add(np.ones((1, 109)), ["one"], report=lambda *how: seen.append(how)).added == 1
        assert seen == [(2, 2), (1, 1)]
        index.remove("one")
        assert index.add([noise(310)], ["by hand"]).added == 1
        assert names(index.search(noise(301), 1)) == [str(elsewhere[1])]
        assert index.photo("00009.png").path == photos / "00009.png"
        assert index.add(np.ones((1, 109)), ["a descriptor"]).added == 1
        # an update of the folder leaves what lies elsewhere, and what is no file
        assert index.update() == Changes()
        assert names(index.search(noise(310), 1)) == ["by hand"]
        assert index.remove(["by hand", "a descriptor"]) == 2
        assert index.remove([elsewhere[0], photos / "00000.png", "00009.png", "never there"]) == 3
        assert elsewhere[0].exists()
        # of the folder, it is found again
        assert index.update().added == 2
    with Index.build([noise(1), noise(2)], FakeModel()) as index:
        assert names(index.photos()) == ["photo 1", "photo 2"]
        with pytest.raises(UserError, match="no index of a folder"):
            index.update()


@pytest.mark.parametrize("older", [False, True])
def test_a_file_from_elsewhere_under_another_name_stays(tmp_path, older):
    folder, elsewhere = tmp_path / "photos", tmp_path / "elsewhere.png"
    album(folder, 2)
    noise(99).save(elsewhere)
    Index.build(folder, FakeModel(), tmp_path / "index").close()
    if older:
        # of the time before paths were kept
        with contextlib.closing(sqlite3.connect(tmp_path / "index" / "index.sqlite")) as database:
            database.execute("ALTER TABLE photos DROP COLUMN path")
    with Index.open(tmp_path / "index", FakeModel()) as index:
        assert index.photo("00001.png").path == folder / "00001.png"
        assert len(index.find_class("green")) == 2
        assert index.add([elsewhere], names=["mine"]).added == 1
        assert index.photo("mine").path == elsewhere
        assert index.update() == Changes()
        assert names(index.search(elsewhere, 1)) == ["mine"]
        # the folder's own of that name takes its place
        noise(98).save(folder / "mine", "png")
        assert index.update() == Changes(changed=1, embedded=1)
        assert index.photo("mine").path == folder / "mine"


def test_a_photo_of_the_folder_is_one_however_its_path_is_written(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Index.build("photos", FakeModel(), "index") as index:
        noise(310).save("photos/new.png")
        added = index.add(["photos/new.png", f"{photos}//00001.png", f"{photos}/deep/../00002.png"])
        assert (added.added, added.changed) == (1, 2)
        assert index.photo("photos/new.png").name == index.photo(f"{photos}/./new.png").name == "new.png"
        # a file that is gone, too
        os.unlink("photos/new.png")
        assert index.remove(["photos/new.png", "photos//00001.png"]) == 2
        assert len(index) == 32


def test_a_copy_is_whole_and_temporary_ones_go(photos, tmp_path):
    index = Index.build(photos, FakeModel())
    index.save(tmp_path / "kept")
    path = index.path
    index.close()
    assert not path.exists()
    with Index.load(tmp_path / "kept", FakeModel()) as kept:
        assert names(kept.search(photos / "small.jpg", 1)) == ["small.jpg"]
        with pytest.raises(UserError, match="kept is there already"):
            kept.save(tmp_path / "kept")
        kept.remove("small.jpg")


def test_nameless_descriptors_never_take_the_place_of_others(tmp_path):
    values = unit_rows(6, 16)
    with Index.build(values[:3], path=tmp_path) as index:
        with pytest.raises(UserError, match=r"descriptors without names are called row 0 and so on, .* give names"):
            index.add(values[3:])
        assert len(index) == 3
        index.add(values[3:], ["a", "b", "c"])
        assert len(index) == 6


def test_images_of_two_palettes_are_two_photos():
    one = noise(1).quantize(8)
    other = one.copy()
    other.putpalette(one.getpalette()[::-1])
    with Index.build([one, other, one.copy()], FakeModel()) as index:
        rows = [photo.row for photo in index.photos()]
    assert rows[0] == rows[2] != rows[1]
    # nor are several of grey one of many rows
    with Index.build([noise(1).convert("L"), noise(2).convert("L")], FakeModel()) as index:
        assert len(index) == 2


def test_nameless_photos_never_take_the_place_of_others():
    with Index.build([noise(1)], FakeModel()) as index:
        with pytest.raises(UserError, match=r"photos without names are called photo 1 .* has photo 1 already.*"):
            index.add(noise(2))
        index.add(noise(2), ["second"])
        # who says the name means it
        assert index.add(noise(3), ["photo 1"]).changed == 1
        assert names(index.photos()) == ["photo 1", "second"]


def test_approximate_indexes_agree_with_the_exact_one(tmp_path, monkeypatch):
    monkeypatch.setattr("mg_keras.search.neighbors._FEW", 10)
    monkeypatch.setattr("mg_keras.search.neighbors.TAIL_ROWS", 200)
    centres = unit_rows(30, 16)
    values = centres[np.arange(2000) % 30] + 0.1 * unit_rows(2000, 16, seed=1)
    listed = [f"{number}" for number in range(2000)]
    with Index.build(values[:1600], names=listed[:1600], path=tmp_path, kind="ivf") as index:
        assert index.about["neighbors"]["rows"] == 1600
        index.add(values[1600:1700], listed[1600:1700])
        assert index.about["neighbors"]["rows"] == 1600
        index.add(values[1700:], listed[1700:])
        assert index.about["neighbors"]["rows"] == 2000
        index.remove(listed[:100])
        unit = values / np.linalg.norm(values, axis=1, keepdims=True)
        hits = 0
        for query in unit[::50]:
            true = np.argsort(-unit[100:] @ query)[:10] + 100
            hits += len({str(number) for number in true} & set(names(index.search(query, 10))))
        assert hits / 400 >= 0.95


def test_descriptors_from_files(tmp_path):
    values = unit_rows(6).astype(np.float32)
    values[2] = np.nan
    np.save(tmp_path / "features.npy", values)
    (tmp_path / "features.txt").write_text("".join(f"{letter}.jpg\n" for letter in "abcdef"))
    with Index.build(tmp_path / "features.npy") as index:
        assert names(index.photos()) == ["a.jpg", "b.jpg", "d.jpg", "e.jpg", "f.jpg"]
        assert [(photo.name, photo.problem) for photo in index.unusable()] == [("c.jpg", "no descriptor")]
    column = [None if np.isnan(row).any() else row.astype(np.float16).tolist() for row in values]
    table = pa.table({"uri": list("abcdef"), "embedding": pa.array(column, pa.list_(pa.float16(), 8))})
    (tmp_path / "shards").mkdir()
    parquet.write_table(table.slice(0, 3), tmp_path / "shards" / "shard-0.parquet")
    parquet.write_table(table.slice(2), tmp_path / "shards" / "shard-1.parquet")
    with Index.build(tmp_path / "shards") as index:
        assert names(index.photos()) == ["a", "b", "d", "e", "f"]
        assert names(index.unusable()) == ["c"]
        assert names(index.search(values[4], 1)) == ["e"]
    parquet.write_table(table.rename_columns(["uri", "vector"]), tmp_path / "other.parquet")
    for what, kwargs, message in (
        (tmp_path / "other.parquet", {}, "columns uri, vector, where one of embedding"),
        (values, {"names": ["a"]}, "has 6 descriptors, where there are 1 names"),
        (values[:2], {"names": ["a", "a"]}, "has the name a twice"),
        (np.zeros((2, 3), int), {}, r"int64 \[2, 3\], where floats"),
        (np.zeros((2, 3)) + np.inf, {"kind": "best"}, "kind must be one of auto, exact"),
    ):
        with pytest.raises(UserError, match=message):
            Index.build(what, **kwargs)
    (tmp_path / "broken.npy").write_bytes(b"no array")
    (tmp_path / "broken.parquet").write_bytes(b"no table")
    np.save(tmp_path / "number.npy", np.float32(3))
    (tmp_path / "number.txt").write_text("a\n")
    np.save(tmp_path / "latin.npy", values)
    (tmp_path / "latin.txt").write_bytes(b"\xe9\n")
    for name, message in (
        ("broken.npy", r"broken\.npy can't be read as"),
        ("broken.parquet", r"broken\.parquet can't be read as"),
        ("number.npy", r"number\.npy holds float32 .*, where floats"),
        ("latin.npy", r"latin\.txt can't be read as a list of photos"),
    ):
        with pytest.raises(UserError, match=message):
            Index.build(tmp_path / name)


def test_parquet_of_two_models_is_refused(tmp_path):
    def write(name, size, made_from=None):
        table = pa.table({"uri": [name], "embedding": pa.array(unit_rows(1, size).tolist(), pa.list_(pa.float32()))})
        told = made_from and {b"mg_keras": json.dumps(made_from).encode()}
        parquet.write_table(table.replace_schema_metadata(told), tmp_path / f"{name}.parquet")

    write("a", 8, {"network": "one", "resolution": 224, "photos": "some"})
    write("b", 8, {"network": "one", "resolution": 224, "photos": "others"})
    write("c", 8)
    assert len(Index.build(tmp_path)) == 3
    write("d", 8, {"network": "two", "resolution": 224})
    with pytest.raises(UserError, match=r"of one model, received other network in .*d\.parquet than in .*a\.parquet"):
        Index.build(tmp_path)
    write("d", 4)
    with pytest.raises(UserError, match=r"of one size, received 8 values and 4 in .*d\.parquet"):
        Index.build(tmp_path)
    # within a file, whose values might be those of as many rows
    column = pa.array([[1.0, 0, 0, 0], [0.0, 1], [0.0, 1]], pa.list_(pa.float32()))
    parquet.write_table(pa.table({"uri": list("abc"), "embedding": column}), tmp_path / "mixed.parquet")
    with pytest.raises(UserError, match=r"of one size, received 4 values and 2 in .*mixed\.parquet"):
        Index.build(tmp_path / "mixed.parquet")


def test_more_answers_than_there_are_photos_take_no_more_memory(tmp_path):
    many = 10**12
    with Index.build(unit_rows(5), names=list("abcde")) as index:
        query = index.descriptors(index.photos()[:1])[0]
        assert len(index.search(query, many, expand=many)) == 5
        answer = index.find(index.photo("a"), many, expand=many)
        assert sum(map(len, (answer.copies, answer.instances, answer.kind))) == 4
        for ask, options, message in (
            (index.find, {"k": 0}, "k must be at least 1, received 0"),
            (index.search, {"expand": -1}, "expand must be at least 0, received -1"),
        ):
            with pytest.raises(UserError, match=message):
                ask(query, **options)


def test_descriptors_that_take_the_place_of_others_are_changes(tmp_path):
    values = unit_rows(5)
    values[4] = np.nan
    with Index.build(values[:4], names=list("abcd")) as index:
        assert index.add(values[2:], ["a", "e", "f"]) == Changes(added=2, changed=1, unusable=1)
        assert len(index) == 5


def test_names_of_photos_are_their_own(tmp_path):
    paths = album(tmp_path / "photos", 2)
    for what, given, message in (
        (paths, ["x", "x"], "the list of names has the name x twice: each must have its own"),
        (paths, [Path("x"), "x"], "the list of names has the name x twice"),
        (paths, ["x"], "names must be as many as photos, 2, received 1"),
        (tmp_path / "photos", ["x", "y"], "names are of photos that are given one by one"),
    ):
        with pytest.raises(UserError, match=message):
            Index.build(what, FakeModel(), tmp_path / "index", given)
        # what is refused begins nothing
        assert not (tmp_path / "index").exists()
    with Index.build(paths, FakeModel(), names=["x", "y"]) as index:
        assert names(index.photos()) == ["x", "y"]
        with pytest.raises(UserError, match="the list of names has the name z twice"):
            index.add(paths, ["z", "z"])


def test_photos_of_odd_kinds_beside_descriptors_of_no_known_resolution(tmp_path):
    model = FakeModel()
    Index.build(model.embed([noise(1)]), path=tmp_path / "index", names=["a"]).close()
    noise(2).save(tmp_path / "scan.tif")
    with Index.open(tmp_path / "index", model) as index:
        assert index.add(tmp_path / "scan.tif").added == 1
        assert names(index.search(noise(2), 1)) == [str(tmp_path / "scan.tif")]


def test_another_model_is_refused(photos, tmp_path):
    Index.build(photos, FakeModel(), tmp_path / "index").close()
    with pytest.raises(UserError, match=r"was made by another model \(fake\)"):
        Index.open(tmp_path / "index", FakeModel("other"))
    with pytest.raises(UserError, match=r"was made by another model \(fake\)"):
        Index.build(photos, FakeModel("other"), tmp_path / "index")
    with Index.open(tmp_path / "index") as index:
        with pytest.raises(UserError, match="as query needs the model that made"):
            index.search(photos / "00000.png")
        with pytest.raises(UserError, match="with the model that made it"):
            index.update()
        assert names(index.search(index.photo("00005.png"), 1)) == ["again.png"]
        with pytest.raises(UserError, match="descriptors of 8 values, where the index's have 109"):
            index.search(np.ones(8))
        with pytest.raises(UserError, match="NaN"):
            index.search(np.full(109, np.nan))
        with pytest.raises(UserError, match="all 0"):
            index.search(np.zeros(109))
    # of descriptors, by those of photos that are there
    model, paths = FakeModel(), sorted(photos.glob("*.png"))
    values = model.embed(paths)
    with Index.build(values, model, names=map(str, paths)) as index:
        assert names(index.search(paths[4], 1)) == [str(paths[4])]
        assert index.class_counts()
    with pytest.raises(UserError, match=r"made by another model, or at another resolution: of .*00000.png"):
        Index.build(np.roll(values, 1, axis=1), model, names=map(str, paths))
    with pytest.raises(UserError, match="of photos at the resolution 32, received 64"):
        Index.build(photos, FakeModel(), tmp_path / "index", resolution=64)
    with pytest.raises(UserError, match="photos need a model"):
        Index.build(photos)


def test_odd_files_are_told_and_do_no_harm(photos, tmp_path):
    (photos / "text.jpg").write_text("no photo")
    (photos / "empty.png").write_bytes(b"")
    (photos / "film.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(20))
    (photos / "cut.tif").write_bytes(b"II*\0" + bytes(40))
    noise(400).save(photos / "scan.tif")
    noise(401).save(photos / "phone.avif", quality=100)
    hostile = os.fsencode(photos) + b"/<img src=x onerror=alert(1)>\n\xff.png"
    noise(402).save(os.fsdecode(hostile))
    os.symlink(photos / "nowhere.png", photos / "dangling.png")
    # of a clock that was wrong: more nanoseconds than a number of SQLite holds
    os.utime(photos / "00001.png", ns=(10**19, 10**19))
    model = FakeModel()
    with Index.build(photos, model, tmp_path / "index") as index:
        troubles = {photo.name: photo.problem for photo in index.unusable()}
        assert sorted(troubles) == ["cut.tif", "empty.png", "text.jpg"]
        assert troubles["text.jpg"] == "not a photo"
        assert "TIFF that can't be opened" in troubles["cut.tif"]
        assert names(index.search(noise(400), 1)) == ["scan.tif"]
        assert names(index.search(photos / "phone.avif", 1)) == ["phone.avif"]
        assert index.search(noise(402), 1)[0].photo.path == photos / os.fsdecode(os.path.basename(hostile))
        model.embedded = 0
        changes = index.update()
        assert (changes.added, model.embedded) == (0, 0)
        assert [os.path.basename(name) for name, _ in changes.passed_over] == ["dangling.png", "film.mp4"]
        for query, message in (
            (photos / "text.jpg", r"text\.jpg: not a photo"),
            (photos / "film.mp4", r"film\.mp4: not a JPEG"),
            (photos / "none.jpg", r"no such file: .*none\.jpg"),
            (b"", "the query: not a photo"),
            (photos / "cut.tif", r"cut\.tif: TIFF that can't be opened"),
        ):
            with pytest.raises(UserError, match=message) as told:
                index.search(query)
            assert "\n" not in str(told.value)


def test_what_could_not_be_read_is_tried_again(tmp_path):
    class Shaken(FakeModel):
        """Can't read the first photo, for a reason."""

        reason = "could not be read: Input/output error"

        def embed(self, photos, resolution=None, on_error="raise"):
            values = super().embed(photos, resolution, on_error)
            if self.reason:
                values[0] = np.nan
            return values

        def why_unusable(self, photo):
            return self.reason

    model = Shaken()
    album(tmp_path / "photos", 2)
    with Index.build(tmp_path / "photos", model, tmp_path / "index") as index:
        assert [photo.problem for photo in index.unusable()] == [model.reason]
        number = index.about["state"]
        # still the same: no change
        assert index.update() == Changes(unusable=1)
        assert index.about["state"] - number <= 1
        model.reason = None
        assert index.update() == Changes(changed=1, embedded=1)
        assert names(index.photos()) == ["00000.png", "00001.png"]
        assert index.update() == Changes()
        # what is no photo stays none, until its file changes
        (tmp_path / "photos" / "00000.png").write_bytes((tmp_path / "photos" / "00001.png").read_bytes()[:60])
        model.reason = "not a photo"
        index.update()
        model.embedded = 0
        assert index.update() == Changes()
        assert model.embedded == 0


def test_a_folder_that_vanishes_loses_nothing(photos, tmp_path):
    with Index.build(photos, FakeModel(), tmp_path / "index") as index:
        os.rename(photos, tmp_path / "unplugged")
        with pytest.raises(UserError, match=r"no such folder any more: .*photos; .* keeps what it has"):
            index.update()
        photos.mkdir()
        with pytest.raises(UserError, match=r"no photo is left below .*photos, where .* has 33: is the disk there"):
            index.update()
        assert len(index) == 33
    with pytest.raises(UserError, match=r"no such folder or file: .*gone"):
        Index.build(tmp_path / "gone", FakeModel())
    with pytest.raises(UserError, match=r"there is no index at .*gone"):
        Index.open(tmp_path / "gone")


def test_a_linked_folder_whose_disk_is_away_loses_nothing(photos, tmp_path):
    album(tmp_path / "disk", 2, first=600)
    link = photos / "link"
    link.symlink_to(tmp_path / "disk")
    with Index.build(photos, FakeModel(), tmp_path / "index") as index:
        assert len(index) == 35
        os.rename(tmp_path / "disk", tmp_path / "unplugged")
        assert index.update() == Changes(passed_over=((str(link), "a link that leads nowhere"),))
        assert len(index) == 35
        # what is in the folder by itself now is there once
        os.rename(tmp_path / "unplugged", photos / "disk")
        link.unlink()
        link.symlink_to(photos / "disk")
        assert index.update().moved == 2
        assert len(index) == 35


def test_it_vanishes_on_the_way(photos, tmp_path):
    class Thief(FakeModel):
        def embed(self, *arguments, **options):
            values = super().embed(*arguments, **options)
            shutil.rmtree(photos)
            return values

    with pytest.raises(UserError, match="no such folder any more"):
        Index.build(photos, Thief(), tmp_path / "index")
    with Index.open(tmp_path / "index") as index:
        assert len(index) == 32


def test_thresholds_are_the_models_or_estimated():
    with Index.build([noise(1)], FakeModel()) as index:
        assert index.threshold("copy") == 0.95
        assert index.threshold("copy", 0.9) == index.threshold("copy", 0.5) == 0.9
        with pytest.raises(UserError, match=r"of copy is known for a precision of 0.999; known: 0.9, 0.99"):
            index.threshold("copy", 0.999)
    values = unit_rows(500, 64) + 0.1
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    found = thresholds.estimated(values, np.ones(500, bool))
    similarities = (values @ values.T)[np.triu_indices(500, 1)]
    mean, spread = similarities.mean(), similarities.std()
    assert found["copy"]["0.99"] == pytest.approx(mean + 0.7 * (1 - mean), abs=0.01)
    # 1 of 25 000 normal values is 3.94 deviations above
    assert found["instance"]["0.9"] == pytest.approx(max(mean + 0.4 * (1 - mean), mean + 3.94 * spread), abs=0.02)
    assert thresholds.estimated(np.ones((9, 4)) / 2, np.ones(9, bool))["copy"]["0.99"] <= 0.995
    assert thresholds.estimated(values[:0], np.ones(0, bool))["copy"]["0.9"] == 0.55
    # the more photos there are, the nearer is the nearest stranger
    of_more = thresholds.estimated(values, np.ones(500, bool), photos=50_000)
    assert of_more["instance"]["0.9"] == pytest.approx(mean + 4.93 * spread, abs=0.02)
    # where strangers may be as near as copies, what is nearly equal is a copy still
    wide = thresholds.estimated(unit_rows(200, 4), np.ones(200, bool))
    for shares in wide.values():
        assert list(shares.values()) == pytest.approx([0.95, 0.95], abs=0.005)


def test_thresholds_of_a_kind_that_the_model_has_none_of_are_estimated(tmp_path):
    model, paths = FakeModel(), album(tmp_path / "photos", 12)
    noise(1, (12, 12)).save(tmp_path / "photos" / "small.jpg", quality=95)
    # as mg-keras pack --copies measures it, and where no cosine gives the precision
    for model.thresholds in ({"copy": {"0.9": 0.9}}, {"copy": {"0.9": 0.9}, "instance": {}}):
        with Index.build(tmp_path / "photos", model) as index:
            assert index.calibrated
            assert index.thresholds["copy"] == {"0.9": 0.9}
            assert {hit.photo.name for hit in index.find(paths[1]).copies} == {"00001.png", "small.jpg"}
    model.thresholds = {"instance": {"0.9": 0.95, "0.99": 0.95}}
    with Index.build(tmp_path / "photos", model) as index:
        assert not index.calibrated
        # copies begin lower than instances do
        assert index.threshold("copy", 0.9) < 0.9
        assert {hit.photo.name for hit in index.find(noise(1)).copies} == {"00001.png", "small.jpg"}
        assert index.find(Image.blend(noise(3), noise(300), 0.35)).copies[0].photo.name == "00003.png"


def test_instances_are_found_where_no_threshold_gives_so_high_a_precision():
    known = {"copy": {"0.9": 0.66}, "instance": {"0.9": 0.58}}
    assert thresholds.pick(known, "instance", 0.99) == 0.58
    with pytest.raises(UserError, match=r"no threshold of copy is known for a precision of 0.99; known: 0.9"):
        thresholds.pick(known, "copy", 0.99)
    with pytest.raises(UserError, match="no threshold of instance is known"):
        thresholds.pick({"copy": {"0.9": 0.66}}, "instance", 0.9)
