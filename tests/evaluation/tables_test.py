import re

import pytest
from rich.console import Console

from mg_keras.evaluation import paper
from mg_keras.evaluation.records import of_benchmarks, summary
from mg_keras.evaluation.tables import class_table, retrieval_table

METRICS = {
    "method": {
        "name": "resnet18",
        "classification_weight": 0.5,
        "augmentation": "full",
        "pooling_exponent": 3.0,
    },
    "benchmarks": {
        "imagenet": {
            "results": {
                "224": {
                    "gem": {"pooling": 3.0, "top1": 0.7012, "top5": 0.9123},
                    "average": {"pooling": 1.0, "top1": 0.5, "top5": 0.75},
                }
            }
        },
        "holidays": {
            "results": {
                "224": {"gem": {"pooling": 3.0, "mAP": 0.8123}, "rmac_whitened": {"pooling": "rmac", "mAP": 0.5}},
                "500": {"gem": {"pooling": 4.0, "mAP": 0.9}},
            }
        },
        "ukb": {"results": {"224": {"gem": {"pooling": 3.0, "score": 3.456}}}},
        "copies": {"results": {"224": {"gem": {"pooling": 3.0, "mAP": 0.25, "mAP blur": 0.125, "micro-AP": 0.0625}}}},
    },
}


def printed(table):
    console = Console(width=250, record=True)
    console.print(table)
    return console.export_text()


def line_of(text, *words):
    (line,) = [line for line in text.splitlines() if all(word in line for word in words)]
    return " ".join(line.replace("│", " ").replace("┃", " ").split())


def test_classes_stand_above_the_papers_table_2():
    text = printed(class_table(METRICS))
    assert line_of(text, "on imagenet, GeM") == "resnet18 on imagenet, GeM 0.5 full 3 224 3 70.1 / 91.2"
    assert line_of(text, "average pooling") == "resnet18 on imagenet, average pooling 0.5 full 3 224 1 50.0 / 75.0"
    assert line_of(text, "MultiGrain", "79.4") == "paper: MultiGrain 0.5 autoaugment 3 500 79.4 / 94.8"
    assert line_of(text, "BA (batch 1024)") == "paper: BA (batch 1024) – – – 224 76.9 / –"
    assert text.count("paper:") == len(paper.TABLE_2) == 20


def test_retrieval_stands_above_the_papers_table_3():
    text = printed(retrieval_table(METRICS))
    # Holidays at two resolutions, UKB, copies with mAP and micro-AP, and the paper's Copydays, which was not measured
    assert line_of(text, "resnet18, GeM") == "resnet18, GeM 0.5 81.2 90.0 3.46 25.0 6.2 –"
    assert line_of(text, "resnet18, R-MAC") == "resnet18, R-MAC, whitened 0.5 50.0 – – – – –"
    ours = "paper: MultiGrain 0.5 88.3 91.5 92.5 3.78 3.90 3.91 – – 74.1 80.7 78.6"
    assert line_of(text, "MultiGrain", "88.3") == ours
    assert line_of(text, "R-MAC (Tolias") == "paper: R-MAC (Tolias et al.) – 90.9 (s=724) 93.3 (s=1024) – – – –"
    # as the paper has it, not 90 and 3.8
    line = "paper: ResNet-50, p = 3 – 86.8 90.0 90.4 3.73 3.87 3.89 – – 70.6 78.9 75.7"
    assert line_of(text, "ResNet-50, p = 3") == line
    assert "3.71 3.85 3.80" in line_of(text, "PyTorch model zoo")
    assert "mAP blur" not in text


def test_of_what_a_file_holds_a_part_is_shown():
    in_short = {"p_star": 3.0, "top1": 0.7, "top5": 0.9, "copies": 0.25, "copies_unwhitened": 0.25}
    metrics = {
        **METRICS,
        "benchmarks": {"classes": METRICS["benchmarks"]["imagenet"], **METRICS["benchmarks"]},
        "resolutions": {"224": in_short, "500": {"p_star": 4.0, "copies": 0.5}},
        "chance": {"top1": 0.1, "copies": 0.01},
    }
    shown = of_benchmarks(metrics, ["classes", "holidays"], [224])
    assert shown["resolutions"] == {"224": {"p_star": 3.0, "top1": 0.7, "top5": 0.9}}
    assert shown["chance"] == {"top1": 0.1}
    assert list(shown["benchmarks"]) == ["classes", "holidays"]
    assert list(shown["benchmarks"]["holidays"]["results"]) == ["224"]
    assert shown["method"] is metrics["method"]
    # none of the run's own photos
    assert of_benchmarks(metrics, ["holidays"], [224, 500])["resolutions"] == {}
    assert of_benchmarks(metrics, list(metrics["benchmarks"]), [224, 500]) == metrics


@pytest.mark.parametrize(("table", "kept"), [(class_table, "holidays"), (retrieval_table, "imagenet")])
def test_a_table_without_anything_to_say_is_none(table, kept):
    assert table({**METRICS, "benchmarks": {kept: METRICS["benchmarks"][kept]}}) is None


def test_every_published_figure_has_the_papers_digits():
    """Percentages have one digit, scores of 4 two, whatever the figure."""
    text = printed(class_table(METRICS)) + printed(retrieval_table(METRICS))
    lines = [line for line in text.splitlines() if "paper: " in line]
    assert len(lines) == len(paper.TABLE_2) + len(paper.TABLE_3)
    for line in lines:
        scores = re.findall(r"\d+\.\d+", line.replace(" 0.5 ", ""))
        assert scores, line
        assert all(re.fullmatch(r"[1-4]\.\d\d|\d\d\.\d", score) for score in scores), line


def test_scores_in_short_are_those_of_the_exponent_in_use():
    everything = {
        "classes": {
            "chance": {"top1": 0.1},
            "results": {str(size): {"gem": {"pooling": 3.0, "top1": 0.5}} for size in (160, 224, 288)},
        },
        "copies": {"results": {"224": {"gem": {"pooling": 4.0, "mAP": 0.75}}}},
    }
    assert summary(everything, {160: 3, 224: 4.0}) == {
        "resolutions": {
            "160": {"p_star": 3, "top1": 0.5},
            # classes were measured before another p* was chosen
            "224": {"p_star": 4.0, "copies_unwhitened": 0.75, "copies": 0.75},
        },
        "chance": {"top1": 0.1},
    }
    # the plain descriptor is not what is used where there is a whitening, measured or not
    assert summary(everything, {224: 4.0}, [224])["resolutions"]["224"] == {"p_star": 4.0, "copies_unwhitened": 0.75}
