"""Versions that come and go while the local server runs."""

import os
import shutil
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mg_keras.errors import UserError
from mg_keras.serving.client import GrpcClient, RestClient
from mg_keras.serving.codes import ServingError
from mg_keras.serving.versions import Versions, VersionStatus
from tests.serving import stand_in
from tests.serving.conftest import local_server

PHOTO = stand_in.photo(0)
FILE = stand_in.png(PHOTO)
# the version's number is what it adds to each logit
LOGIT = stand_in.expected([PHOTO], [3.0])["logits"][0, 0]


@pytest.fixture
def folder(model, tmp_path):
    """A model's folder whose version 1 may be changed."""
    shutil.copytree(model / "1", tmp_path / "multigrain" / "1")
    return tmp_path / "multigrain"


@pytest.fixture(scope="module")
def newer(tmp_path_factory):
    """Version 2, to be copied."""
    return stand_in.save(tmp_path_factory.mktemp("newer"), version=2, shift=2.0)


def add(newer, folder, version):
    shutil.copytree(newer, folder / f".{version}")
    (folder / f".{version}").rename(folder / str(version))


def answering(client):
    """Which version a client was answered by."""
    return {0: 1, 2: 2}[round(float(client.embed([FILE], 0).logits[0, 0] - LOGIT))]


def wait_for(client, expected):
    until = time.monotonic() + 30
    while (states := client.status()) != expected:
        assert time.monotonic() < until, states
        time.sleep(0.02)


@pytest.mark.slow
def test_a_version_swapped_in_under_load_loses_no_request(folder, newer):
    with local_server(folder) as server:
        seen, faults, enough = [], [], threading.Event()

        def ask(client):
            while not enough.is_set():
                try:
                    seen.append(answering(client))
                except Exception as error:
                    faults.append(error)

        makers = [(RestClient, server.rest), (GrpcClient, server.grpc)] * 2
        clients = [make(chosen, retries=0) for make, chosen in makers]
        threads = [threading.Thread(target=ask, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        while len(seen) < 20 and not faults:
            time.sleep(0.01)
        add(newer, folder, 2)
        wait_for(clients[0], {1: "END", 2: "AVAILABLE"})
        # and on, now that version 1 is gone
        count = len(seen)
        while len(seen) < count + 40 and not faults:
            time.sleep(0.01)
        enough.set()
        for thread in threads:
            thread.join()
        for client in clients:
            client.close()
    assert not faults
    assert set(seen) == {1, 2}
    assert set(seen[-20:]) == {2}


@pytest.mark.slow
def test_several_versions_their_labels_and_one_that_is_taken_away(folder, newer):
    add(newer, folder, 2)
    labels = {"stable": 1, "canary": 2}
    with local_server(folder, num_versions=0, version_labels=labels) as server:
        for make, chosen in ((RestClient, server.rest), (GrpcClient, server.grpc)):
            asked = [{"version": 1}, {"version": 2}, {"label": "stable"}, {"label": "canary"}, {}]
            assert [answering(make(chosen, **which)) for which in asked] == [1, 2, 1, 2, 2]
            assert make(chosen).status() == {1: "AVAILABLE", 2: "AVAILABLE"}
            assert make(chosen, label="canary").status() == {2: "AVAILABLE"}
        shutil.rmtree(folder / "2")
        client = RestClient(server.rest, retries=0)
        wait_for(client, {1: "AVAILABLE", 2: "END"})
        assert answering(client) == 1
        with pytest.raises(ServingError, match="Servable not found") as refused:
            RestClient(server.rest, label="canary").embed([FILE], 0)
        assert refused.value.code == "NOT_FOUND"


@pytest.mark.slow
def test_a_broken_version_leaves_the_old_one_and_is_tried_again_when_it_changes(folder, newer, capsys):
    with local_server(folder) as server:
        client = RestClient(server.rest)
        (folder / "2").mkdir()
        (folder / "2" / "saved_model.pb").write_bytes(b"half a model")
        wait_for(client, {1: "AVAILABLE", 2: "END"})
        assert answering(client) == 1
        shutil.copytree(newer, folder / "2", dirs_exist_ok=True)
        wait_for(client, {1: "END", 2: "AVAILABLE"})
        assert answering(client) == 2
    assert "version 2 is left out: " in capsys.readouterr().err


@pytest.mark.parametrize("spoilt", stand_in.SPOILT)
def test_a_version_that_cannot_be_loaded_is_left_out_whatever_the_reason(folder, newer, spoilt, capsys):
    versions = Versions(folder, "multigrain", poll_seconds=3600)
    add(newer, folder, 2)
    stand_in.spoil(folder / "2", spoilt)
    for _ in range(2):
        versions.refresh()
    left_out, served = versions.statuses()
    assert (left_out.version, left_out.state) == (2, "END")
    assert left_out.code != "OK"
    assert stand_in.SPOILT[spoilt] in left_out.message
    assert (served.version, served.state) == (1, "AVAILABLE")
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"version 2 is left out: {left_out.message}"
    add(newer, folder, 3)
    versions.refresh()
    assert versions.statuses(version=3)[0].state == "AVAILABLE"
    versions.stop()


def test_a_broken_version_from_the_start(folder, newer, capsys):
    add(newer, folder, 2)
    stand_in.spoil(folder / "2", "half a file")
    versions = Versions(folder, "multigrain", count=2, poll_seconds=3600)
    assert {status.version: status.state for status in versions.statuses()} == {1: "AVAILABLE", 2: "END"}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("version 2 is left out: ")
    versions.stop()


def test_files_that_go_while_they_are_looked_at(folder, monkeypatch):
    versions = Versions(folder, "multigrain", poll_seconds=3600)
    (folder / "2").mkdir()
    (folder / "2" / ".saved_model.pb.Xa81b2").write_bytes(b"what rsync has copied so far")
    stat, looks = os.stat, []

    def gone_at_the_second_look(path, *arguments, **keywords):
        if str(path).endswith(".Xa81b2"):
            looks.append(path)
            if len(looks) % 2 == 0:
                raise FileNotFoundError(path)
        return stat(path, *arguments, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", gone_at_the_second_look)
        for _ in range(3):
            versions.refresh()
    assert len(looks) >= 2
    assert versions.statuses(version=2)[0].state == "END"
    versions.stop()


def test_the_watcher_goes_on_whatever_happens(folder, newer, monkeypatch, capsys):
    versions = Versions(folder, "multigrain", poll_seconds=0.01)
    iterdir, polls, enough = Path.iterdir, [], threading.Event()

    def fail(path):
        # other servers have watchers too
        if path != folder:
            return iterdir(path)
        polls.append(path)
        if len(polls) == 3:
            enough.set()
        raise RuntimeError("nobody thought of it")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "iterdir", fail)
        assert enough.wait(30)
    add(newer, folder, 2)
    until = time.monotonic() + 30
    while versions.statuses()[0] != VersionStatus(2, "AVAILABLE") and time.monotonic() < until:
        time.sleep(0.01)
    versions.stop()
    assert versions.statuses()[0].version == 2
    said = capsys.readouterr().err
    assert said.count("RuntimeError: nobody thought of it") == 1
    assert "Traceback" in said


def test_a_folder_that_is_gone_for_a_while_is_told_once_each_time(folder, capsys):
    versions = Versions(folder, "multigrain", poll_seconds=3600)
    for times in (1, 2):
        folder.rename(folder.with_name("away"))
        for _ in range(3):
            versions.refresh()
        folder.with_name("away").rename(folder)
        versions.refresh()
        assert versions.statuses() == [VersionStatus(1, "AVAILABLE")]
        assert capsys.readouterr().err.count("cannot be read") == 1, times
    versions.stop()


def test_nobody_who_reads_what_is_said(folder, newer, monkeypatch):
    def fail(text):
        raise BrokenPipeError

    versions = Versions(folder, "multigrain", poll_seconds=3600)
    add(newer, folder, 2)
    stand_in.spoil(folder / "2", "half a file")
    monkeypatch.setattr(sys.stderr, "write", fail)
    versions.refresh()
    assert versions.statuses(version=2)[0].state == "END"
    versions.stop()


def test_a_version_is_freed_when_its_last_user_is_done(folder, newer):
    versions = Versions(folder, "multigrain", poll_seconds=3600)
    inputs = {"embedding": np.ones((1, 4), np.float32)}
    with versions.use("multigrain") as servable:
        add(newer, folder, 2)
        versions.refresh()
        assert [(status.version, status.state) for status in versions.statuses()] == [(2, "AVAILABLE"), (1, "END")]
        assert servable.version == 1
        np.testing.assert_allclose(
            servable.run("classify_embedding", inputs)["logits"][0], stand_in.KERNEL.sum(0), 1e-5
        )
    with pytest.raises(RuntimeError, match="closed"):
        servable.run("classify_embedding", inputs)
    versions.stop()


def test_other_names_in_the_folder_are_no_versions(folder, newer):
    add(newer, folder, "2.partial")
    (folder / "3").write_text("a file")
    (folder / "notes").mkdir()
    # no request could ask for it
    add(newer, folder, 2**63)
    versions = Versions(folder, "multigrain", count=0, poll_seconds=3600)
    assert [status.version for status in versions.statuses()] == [1]
    versions.stop()


def test_a_folder_that_cannot_be_served(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        Versions(tmp_path / "nothing", "multigrain")
    with pytest.raises(UserError, match="none is there"):
        Versions(tmp_path, "multigrain")
    (tmp_path / "7").mkdir()
    with pytest.raises(UserError, match="7 cannot be loaded"):
        Versions(tmp_path, "multigrain")
