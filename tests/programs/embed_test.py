"""What mg-keras embed hands to engines, without any; what it writes is tested in tests/train and tests/engines."""

import contextlib
import inspect
import sys
from types import ModuleType, SimpleNamespace

import pytest

from mg_keras.engines import running
from mg_keras.engines.ray import Ray
from mg_keras.engines.serving import Serving
from mg_keras.export import files
from mg_keras.programs import embed
from tests.search.fake import album


@pytest.fixture
def opened(monkeypatch):
    """Engines that were opened: what they are called -> the arguments that differ from nothing."""
    opened, model = (
        {},
        SimpleNamespace(
            path="models/mine",
            whitened=True,
            train_resolution=32,
            default_resolution=40,
            p_star={},
            pooling_exponent=3.0,
            class_names=None,
        ),
    )
    monkeypatch.setattr(files, "ExportedFiles", lambda path: model)
    written = SimpleNamespace(described=2, unusable=0)
    monkeypatch.setattr(running, "embed_to_files", lambda *_, **__: written)

    def stub(real):
        def engine(*arguments, **keywords):
            given = inspect.signature(real).bind(*arguments, **keywords).arguments
            opened[real.__name__] = {name: given[name] for name in list(given)[2:] if given[name] is not None}
            return contextlib.nullcontext()

        return engine

    for real in (Ray, Serving):
        module = ModuleType(real.__module__)
        setattr(module, real.__name__, stub(real))
        monkeypatch.setitem(sys.modules, real.__module__, module)
    return opened


def test_flags_of_an_engine_arrive_at_it(opened, tmp_path, capsys):
    album(tmp_path / "photos", 2)
    command = ["--model", "models/mine", "--photos", str(tmp_path / "photos"), "--out", str(tmp_path / "x.parquet")]
    ray = ["--address", "auto", "--workers", "3", "--cpus_a_worker", "4", "--gpus_a_worker", "0.5"]
    embed.main([*command, "--engine", "ray", *ray])
    assert opened.pop("Ray") == {"address": "auto", "workers": 3, "cpus": 4, "gpus": 0.5}
    assert "2 photos at 40 px, p* = 3, whitened" in capsys.readouterr().out
    embed.main([*command, "--engine", "ray"])
    assert opened.pop("Ray") == {"gpus": 0.0}
    servers = ["http://one:8501", "http://two:8501"]
    more = ["--name", "mine", "--in_flight", "6", "--batch", "16"]
    embed.main([*command, "--engine", "serving", "--servers", *servers, *more])
    assert opened.pop("Serving") == {"servers": servers, "name": "mine", "in_flight": 6, "batch": 16}
    embed.main([*command, "--engine", "serving", "--servers", *servers])
    assert opened == {"Serving": {"servers": servers}}
