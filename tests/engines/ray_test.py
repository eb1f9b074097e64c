"""Files of descriptors by a Ray cluster, of which a machine vanishes in the middle."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
from pyarrow import parquet

from mg_keras.data.photo_lists import PhotoList
from mg_keras.embedding.settings import Settings
from mg_keras.engines import ray as module
from mg_keras.engines.ray import Ray
from mg_keras.engines.running import Written, embed_to_files
from mg_keras.errors import UserError
from mg_keras.export.files import ExportedFiles
from tests.engines.conftest import CLASSES, SIDE
from tests.serving import stand_in

ray = pytest.importorskip("ray", reason="the extra ray is not installed")
from ray.cluster_utils import Cluster  # noqa: E402

STORE = 100 << 20


def engine(exported, **more):
    files = ExportedFiles(exported)
    return Ray(files, Settings(SIDE, SIDE, 2.0, None, files.class_names), **more)


@pytest.mark.slow
def test_a_machine_that_vanishes_takes_nothing_with_it(exported, squares, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # lost machines are noticed in a second or two
    system = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
    head = {"num_cpus": 0, "object_store_memory": STORE, "_system_config": system, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        no_gpu = pytest.raises(UserError, match=r"no machine of the Ray cluster has 1 CPUs and 0\.5 GPUs")
        with engine(exported, address=cluster.address, gpus=0.5) as opened, no_gpu:
            opened.start()
        machines = [cluster.add_node(num_cpus=1, object_store_memory=STORE) for _ in range(2)]
        cluster.wait_for_nodes()
        counts = []
        with engine(exported, address=cluster.address) as opened:
            start, rows = opened.start, opened.rows

            def with_both():
                start()
                while opened._starting:
                    opened._meet(ray.wait(list(opened._starting))[0])
                assert len(opened._crew) == 2

            def counted(pieces, columns, count):
                for table in rows(pieces, columns, counts.append):
                    yield table
                    if len(counts) == 3:
                        cluster.remove_node(machines[0], allow_graceful=False)

            opened.start, opened.rows = with_both, counted
            written = embed_to_files(opened, PhotoList(squares), tmp_path / "x", photos_a_shard=8)
            assert len(opened._crew) == 1
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert written == Written(198, 2)
    assert sum(counts) == 200
    found = parquet.read_table(tmp_path / "x").sort_by("id")
    assert found["id"].to_pylist() == list(range(200)), "each photo has one row"
    good = [number for number in range(200) if number not in (7, 31)]
    expected = stand_in.expected([stand_in.photo(number, SIDE, SIDE) for number in good], [2.0] * len(good))
    values = np.asarray(found["embedding"].combine_chunks().flatten()).reshape(-1, stand_in.SIZE)
    np.testing.assert_allclose(values[good], expected["embedding"], atol=1e-3)
    assert [found["class"][row].as_py() for row in good] == [CLASSES[number] for number in expected["class"]]
    assert [found["error"][row].as_py() for row in (7, 31)] == ["the file is empty"] * 2


def test_nobody_waits_in_silence_where_all_machines_are_gone(exported, monkeypatch, capsys):
    monkeypatch.setattr(module, "_LOOK", 0.02)
    monkeypatch.setattr(module, "_SAY", 0.05)
    opened = engine(exported, cpus=2)
    # no machine, and so nothing that starts
    opened._ray, opened._seen = SimpleNamespace(nodes=list), time.monotonic()
    began = time.monotonic()
    for _ in range(8):
        assert opened._ready({}) == []
    assert time.monotonic() - began >= 0.08, "without using a core for it"
    assert capsys.readouterr().err.startswith("waiting for a worker of 2 CPUs\n")


def test_a_cluster_that_is_not_there_is_one_line(exported):
    with pytest.raises(UserError, match=r"no Ray cluster at 127\.0\.0\.1:1: "):
        engine(exported, address="127.0.0.1:1").start()
