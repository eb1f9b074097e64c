"""Which resolutions and rows are measured."""

from types import SimpleNamespace

from mg_keras.programs import scores


def test_a_saved_model_without_p_star_is_measured_at_the_resolution_that_it_describes_photos_at(monkeypatch):
    """As a packed network is, and as `mg-keras embed` describes photos with it."""
    monkeypatch.setattr(scores, "open_benchmark", lambda *arguments: "opened")
    monkeypatch.setattr(scores, "_measured", lambda exported, resolution, chosen, rows_at, method: rows_at)
    about = {"path": "model", "about": {"trunk": "small"}, "class_names": ["a"], "pooling_exponent": 3.0}
    sizes = {"train_resolution": 160, "default_resolution": 320}
    for p_star, expected in (({}, [320]), ({160: 2.0}, [160])):
        exported = SimpleNamespace(**about, **sizes, p_star=p_star)
        assert list(scores.evaluate_exported(exported, ["ukb=x"])) == expected
