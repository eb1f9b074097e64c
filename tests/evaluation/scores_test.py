import pytest

from mg_keras.evaluation.scores import METRICS, metric


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("top1", 0.9, "90.0"),
        ("top5", 1.0, "100.0"),
        ("mAP", 0.8834, "88.3"),
        ("recall at 90 % precision", 0.5, "50.0"),
        ("score", 3.8, "3.80"),
        ("instance", 4.996, "5.00"),
        ("views", 4, "4.00"),
        ("class_agreement", 0.9995, "99.95"),
        ("copies", None, "–"),
    ],
)
def test_a_measured_value_is_printed_in_its_unit(name, value, shown):
    assert metric(name).text(value) == shown


def test_a_published_value_is_in_its_unit_already():
    assert metric("mAP").text_in_unit(90) == "90.0"
    assert metric("score").text_in_unit(3.8) == "3.80"
    assert metric("top5").text_in_unit(None) == "–"


def test_headings_say_the_unit():
    assert [METRICS[name].heading for name in ("top1", "instance")] == ["top-1 %", "IN-aug /5"]
