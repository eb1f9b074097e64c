import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mg_keras.embedding import shards
from mg_keras.errors import UserError
from mg_keras.programs import albums, search
from mg_keras.search import neighbors, sharded
from mg_keras.search.index import Index
from tests.search.fake import SIDE, FakeModel, album
from tests.search.neighbors_test import clustered
from tests.search.shards_of_parquet import write_folder

COUNT, UNUSABLE = 4000, (5, 1700, 3999)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Work so small is done before threads have met."""
    before = sharded.faiss.omp_get_max_threads()
    sharded.faiss.omp_set_num_threads(1)
    yield
    sharded.faiss.omp_set_num_threads(before)


@pytest.fixture(scope="module")
def values():
    return clustered(COUNT, 32, centres=200).astype(np.float16)


@pytest.fixture(scope="module")
def features(tmp_path_factory, values):
    return write_folder(tmp_path_factory.mktemp("large") / "features", values, 900, UNUSABLE)


@pytest.fixture(scope="module")
def built(tmp_path_factory, features):
    """An index of two shards, made here rather than in processes."""
    out = tmp_path_factory.mktemp("large") / "index"
    with pytest.MonkeyPatch.context() as patch:
        here(patch)
        sharded.build([features], out, shards=2, workers=2)
    return out


def here(patch):
    """Shards are made in this process."""

    class Pool:
        def __init__(self, workers, context, start, arguments):
            patch.setattr(sharded, "_end_with_parent", lambda: None)
            start(*arguments[:-1], 1)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def submit(self, function, *arguments):
            future = sharded.concurrent.futures.Future()
            try:
                future.set_result(function(*arguments))
            except UserError as error:
                future.set_exception(error)
            return future

        def shutdown(self, **_):
            pass

    patch.setattr(sharded.concurrent.futures, "ProcessPoolExecutor", Pool)


def true_rows(values, queries, k):
    stored = values.astype(np.float32)
    cosines = queries @ (stored / np.linalg.norm(stored, axis=1, keepdims=True)).T
    cosines[:, list(UNUSABLE)] = -np.inf
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(cosines, order, 1)


def test_the_library_opens_it_and_ranks_by_exact_cosines(built, values, monkeypatch):
    monkeypatch.setattr(neighbors, "_FEW", 0)
    queries = clustered(40, 32, centres=200).astype(np.float32)
    true, cosines = true_rows(values, queries, 10)
    with Index.load(built) as index:
        assert len(index) == COUNT - len(UNUSABLE)
        assert index.about["neighbors"]["recall"] >= 0.95
        hits = [index.search(query, 10) for query in queries]
        rows = np.array([[hit.photo.row for hit in each] for each in hits])
        assert neighbors.recall(rows, true) >= 0.95
        same = rows[:, 0] == true[:, 0]
        found = np.array([each[0].similarity for each in hits])
        np.testing.assert_allclose(found[same], cosines[same, 0], atol=1e-5)
        assert hits[0][0].photo.name == f"a/{rows[0, 0]:05}.jpg"
        # a photo of the index as query, which is not among its answers; and the other ways to ask
        photo = index.photo(17)
        assert photo.row == 17
        assert 17 not in [hit.photo.row for hit in index.search(photo, 5)]
        near = index.range(queries[0], float(cosines[0, 3]) - 1e-6)
        assert [hit.photo.row for hit in near][:4] == true[0, :4].tolist()
        assert index.find(queries[0], 3).kind or index.find(queries[0], 3).instances
        assert index.photo(5).problem == "broken"
        np.testing.assert_array_equal(index.descriptors([photo]), [index.describe(photo)])
        with pytest.raises(UserError, match="is not in the index any more, or can't be used"):
            index.descriptors([photo, index.photo(5)])
        for ask in (index.update, index.photos, index.class_counts, lambda: index.remove("a"), lambda: index.save("x")):
            with pytest.raises(UserError, match="an index of shards"):
                ask()


@pytest.mark.parametrize("code_bytes", [64, 32, 8])
def test_codes_of_every_size(tmp_path, features, values, code_bytes, monkeypatch):
    here(monkeypatch)
    monkeypatch.setattr(neighbors, "_FEW", 0)
    sharded.build([features], tmp_path / "index", shards=1, code_bytes=code_bytes, cells=32)
    queries = clustered(20, 32, centres=200).astype(np.float32)
    with Index.open(tmp_path / "index") as index:
        found = [[hit.photo.row for hit in index.search(query, 10)] for query in queries]
    assert neighbors.recall(np.array(found), true_rows(values, queries, 10)[0]) >= 0.95


def test_a_rotation_is_taken_where_it_pays(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    # few directions hold all, and each value has some of them: codes of single values are wasteful
    low = rng.normal(size=(6000, 4)) @ rng.normal(size=(4, 16)) + 0.01 * rng.normal(size=(6000, 16))
    low = (low / np.linalg.norm(low, axis=1, keepdims=True)).astype(np.float32)
    assert sharded.trained(low, 4, 8, 0)[1].shape == (16, 16)
    plain = rng.normal(size=(6000, 16))
    plain = (plain / np.linalg.norm(plain, axis=1, keepdims=True)).astype(np.float32)
    assert sharded.trained(plain, 4, 8, 0)[1] is None
    here(monkeypatch)
    monkeypatch.setattr(neighbors, "_FEW", 0)
    sharded.build([write_folder(tmp_path / "features", low)], tmp_path / "index", code_bytes=4, cells=32)
    with Index.open(tmp_path / "index") as index:
        assert index.about["neighbors"]["rotated"]
        assert index.search(low[9], 1)[0].photo.row == 9


def test_many_cells_are_found_by_a_graph(tmp_path, features, monkeypatch):
    here(monkeypatch)
    monkeypatch.setattr(neighbors, "_FEW", 0)
    monkeypatch.setattr(sharded, "GRAPH_CELLS", 64)
    sharded.build([features], tmp_path / "index", cells=128)
    with Index.open(tmp_path / "index") as index:
        assert index.about["neighbors"]["recall"] >= 0.95


def test_the_same_command_goes_on_and_the_old_index_stays(tmp_path, features, values, monkeypatch):
    """Processes; the first attempt is killed after its first shard."""
    out = tmp_path / "index"
    code = (
        "import sys\nfrom pathlib import Path\nfrom mg_keras.search import sharded\n"
        "if __name__ == '__main__':\n    sharded.build([sys.argv[1]], Path(sys.argv[2]), shards=40, workers=1)\n"
    )
    (tmp_path / "program.py").write_text(code)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, tmp_path / "program.py", features, out]
    process = subprocess.Popen(command, env=environment)
    until = time.monotonic() + 60
    while not list(out.glob("*-0000.npz")):
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(UserError, match="there is no index at"):
        Index.open(out)
    first = next(out.glob("*-0000.faiss"))
    before = first.stat().st_mtime_ns
    # the worker ends with the one that it worked for
    while True:
        made = len(list(out.glob("*-[0-9]*.npz")))
        time.sleep(0.3)
        if made == len(list(out.glob("*-[0-9]*.npz"))):
            break
    here(monkeypatch)
    sharded.build([features], out, shards=40)
    assert first.stat().st_mtime_ns == before
    with Index.open(out) as index:
        assert len(index) == COUNT - len(UNUSABLE)
        # another one takes its place, and while that can't be finished, the old one is there
        monkeypatch.setattr(sharded, "_make_shard", lambda shard: os.listdir("/nowhere"))
        with pytest.raises((UserError, OSError)):
            sharded.build([features], out, shards=2)
        assert not index.refresh()
    monkeypatch.undo()
    here(monkeypatch)
    sharded.build([features], out, shards=2)
    assert not list(out.glob("*-0005.*"))
    with Index.open(out) as index:
        assert index.about["shards"] == 2


def test_a_photo_that_two_writers_had_is_found_once(tmp_path, values, monkeypatch):
    here(monkeypatch)
    folder = write_folder(tmp_path / "features", values[:2000], 1000)
    write_folder(folder, values[500:600], first=500)
    sharded.build([folder], tmp_path / "index")
    with Index.open(tmp_path / "index") as index:
        assert len(index) == 2000
        assert len({hit.photo.name for hit in index.search(values[510].astype(np.float32), 8)}) == 8


def test_mistakes(tmp_path, features, values, built, monkeypatch):
    here(monkeypatch)
    build = sharded.build
    with pytest.raises(UserError, match=r"of one size, received 32 values in .* and 20 in"):
        build([features, write_folder(tmp_path / "narrow", values[:50, :20])], tmp_path / "x")
    with pytest.raises(UserError, match="of one model, received other resolution in"):
        build(
            [features, write_folder(tmp_path / "other", values[:50], made_from={"network": "one", "resolution": 96})],
            tmp_path / "x",
        )
    few = write_folder(tmp_path / "few", values[:100])
    with pytest.raises(UserError, match="takes 1,024 descriptors at least, received 100"):
        build([few], tmp_path / "x")
    with pytest.raises(UserError, match="--cells must be at most the number of descriptors, 4,000, received 5,000"):
        build([features], tmp_path / "x", cells=5000)
    with pytest.raises(UserError, match=r"--bytes must be 1 to 16, 32 \(8 bits a value\) or 64 .* received 20"):
        build([features], tmp_path / "x", code_bytes=20)
    bad = write_folder(tmp_path / "bad", values[:1500], unusable=range(1400))
    with pytest.raises(UserError, match="must be usable to learn from, received 100"):
        build([bad], tmp_path / "x")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(UserError, match=r"holds a\.jpg: choose another folder"):
        build([features], tmp_path / "photos")
    with pytest.raises(UserError, match="needs a path"):
        Index.build(features, shards=2)
    with monkeypatch.context() as full:
        full.setattr(sharded, "trained", lambda *_: (sharded.faiss.IndexFlatIP(32), None))
        full.setattr(sharded.faiss, "write_index", lambda *_: (_ for _ in ()).throw(RuntimeError("No space left")))
        with pytest.raises(UserError, match="full can't be written to: No space left"):
            build([features], tmp_path / "full")
    shard = sorted(features.iterdir())[1]
    shard.rename(tmp_path / "away")
    with pytest.raises(UserError, match="is gone, whose 900 descriptors the index needs"):
        Index.open(built)
    (tmp_path / "away").rename(shard)
    with Index.open(built) as index:
        assert index.about["searched_by"] == "pq"


def test_photos_are_queries_with_the_model_that_made_it(tmp_path, monkeypatch, capsys):
    here(monkeypatch)
    paths, model = album(tmp_path / "photos", 4), FakeModel()
    others = clustered(1200, SIDE * SIDE * 3 + 1)
    described = np.concatenate([model.embed(paths), others]).astype(np.float16)
    columns = shards.schema(described.shape[1], "float16", {"resolution": 32})
    uris = [*map(str, paths), *map(str, range(1200))]
    (tmp_path / "features").mkdir()
    shards.write(tmp_path / "features", shards.usable_rows(columns, np.arange(1204), uris, described))
    out = tmp_path / "index"
    Index.build(tmp_path / "features", path=out, shards=1).close()
    monkeypatch.setattr(albums, "loaded", lambda options: model)
    search.main([str(out), str(paths[2])])
    shown = capsys.readouterr().out
    assert f"1.000  {paths[2]}" in shown
    assert "1,204 photos searched" in shown
    with Index.open(out, model) as index:
        assert index.calibrated
        assert index.thresholds == model.thresholds
    with Index.open(out) as index:
        assert not index.calibrated
    with pytest.raises(UserError, match="is an index of shards, which has no page"):
        search.main([str(out)])
    for flag, value in (("index", "x"), ("recursive", "false"), ("resolution", "64"), ("class", "green")):
        photo = [str(paths[2])] if flag != "class" else []
        with pytest.raises(UserError, match=f"--{flag} is for folders of photos: .* is an index of shards"):
            search.main([str(out), *photo, f"--{flag}", value])
    other = FakeModel()
    other.embed = lambda photos, *_, **__: np.roll(model.embed(photos), 1, axis=1)
    with pytest.raises(UserError, match="was made by another model"):
        Index.open(out, other)
    other.embed = lambda photos, *_, **__: model.embed(photos)[:, :20]
    with pytest.raises(UserError, match="has 109 values a photo, where the model makes 20"):
        Index.open(out, other)


@pytest.mark.parametrize(
    ("rows", "cores", "shards"),
    [(1_000, 8, 1), (1_000_000, 2, 2), (1_000_000, 8, 4), (4_000_000, 1, 1), (9_000_000, 1, 3), (9_000_000, 8, 8)],
)
def test_shards_are_one_a_core_where_that_pays_and_none_is_too_large(rows, cores, shards):
    assert sharded.default_shards(rows, cores) == shards


def test_nothing_but_what_it_made_is_removed(tmp_path):
    features = write_folder(tmp_path / "features", clustered(2000, 32))
    out = tmp_path / "index"
    Index.build(features, path=out, shards=2)
    # an album's names are not an index's, whatever they end in
    for name in ("IMG-0001.jpg", "scan-2024.pdf"):
        (tmp_path / "album").mkdir(exist_ok=True)
        (tmp_path / "album" / name).touch()
        with pytest.raises(UserError, match="choose another folder"):
            Index.build(features, path=tmp_path / "album", shards=2)
        assert (tmp_path / "album" / name).exists()
        (tmp_path / "album" / name).unlink()
    (out / ".gitignore").touch()
    (out / f"{'0' * 16}-0001.faiss").touch()
    # the same again has nothing to do but to remove what another plan left
    Index.build(features, path=out, shards=2)
    assert (out / ".gitignore").exists()
    assert not (out / f"{'0' * 16}-0001.faiss").exists()
    # an album with a file that many programs write is no index of shards
    (tmp_path / "album" / "index.json").write_text("{}")
    assert not sharded.is_sharded(tmp_path / "album")


def test_the_same_command_mends_what_was_damaged(tmp_path):
    values = clustered(2000, 32)
    features = write_folder(tmp_path / "features", values)
    out = tmp_path / "index"
    Index.build(features, path=out, shards=2)
    (shard,) = out.glob("*-0001.faiss")
    shard.unlink()
    with pytest.raises(UserError, match="build it anew"):
        Index.load(out).search(values[0], 1)
    Index.build(features, path=out, shards=2)
    # as a power cut leaves it
    (rows,) = out.glob("*rows.npz")
    whole = rows.read_bytes()
    rows.write_bytes(b"")
    with pytest.raises(UserError, match="build it anew"):
        Index.load(out)
    rows.write_bytes(whole)
    (out / "mg-keras-shards.json").write_text("{")
    Index.build(features, path=out, shards=2)
    with Index.load(out) as index:
        assert index.search(values[3], 1)[0].similarity == pytest.approx(1, abs=1e-3)
