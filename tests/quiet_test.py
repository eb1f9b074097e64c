import contextlib
import gc
import importlib
import sys

import pytest

from mg_keras import quiet


def test_what_is_not_to_be_found_is_found_again(tmp_path, monkeypatch):
    (tmp_path / "made_up_plots.py").write_text("")
    (tmp_path / "made_up_keras.py").write_text(
        "try:\n    import made_up_plots\nexcept ImportError:\n    made_up_plots = None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    finders = list(sys.meta_path)
    with quiet.not_found("made_up_plots"):
        assert importlib.import_module("made_up_keras").made_up_plots is None
        with pytest.raises(ModuleNotFoundError, match="'made_up_plots'"):
            importlib.import_module("made_up_plots")
    assert sys.meta_path == finders
    found = importlib.import_module("made_up_plots")
    # what was imported before stays
    with quiet.not_found("made_up_plots"):
        assert importlib.import_module("made_up_plots") is found


def test_garbage_is_looked_for_again_as_before():
    for was_on in (True, False):
        (gc.enable if was_on else gc.disable)()
        try:
            with contextlib.suppress(ValueError), quiet.without_collection():
                assert not gc.isenabled()
                raise ValueError
            assert gc.isenabled() == was_on
        finally:
            gc.enable()
