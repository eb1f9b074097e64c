"""What each score is called, its unit, and the digits that it is printed with: those of the paper's tables.

Everything that prints or draws a score asks here.
"""

from mg_keras.metric import MISSING, Metric, percentage

__all__ = ["METRICS", "MISSING", "Metric", "metric", "percentage"]

METRICS = {
    "top1": percentage("top-1"),
    "top5": percentage("top-5"),
    "val_top1": percentage("val top-1"),
    "val_top5": percentage("val top-5"),
    "instance": Metric("IN-aug", "/5"),
    "instance_whitened": Metric("whitened", "/5"),
    "views": Metric("views", "/4"),
    "copies": percentage("copies mAP"),
    "copies_unwhitened": percentage("unwhitened mAP"),
    # of UKB and IN-aug, of 4 or 5
    "score": Metric("score", ""),
    # near 100 %, where the second digit tells
    "class_agreement": percentage("class agreement", digits=2),
    "variance_kept": percentage("variance", digits=2),
}


def metric(name: str) -> Metric:
    """How the score `name` of a benchmark is shown; one that isn't declared is a share, as every mAP is."""
    return METRICS.get(name) or percentage(name)
