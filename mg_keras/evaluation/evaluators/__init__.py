"""Benchmarks with one contract: photos to describe, and scores of what a network says of them.

`contract` says what a `Benchmark` is. Those with a folder of their own are opened by name, as programs do, with
`mg_keras.evaluation.folders`; each checks its folder and says what is missing and where it comes from. `classes`,
`in_aug`, `copies`, `views`, `categories` and `probe` measure on any photos.
"""

from mg_keras.evaluation.evaluators.categories import categories, probe
from mg_keras.evaluation.evaluators.classification import classes, imagenet
from mg_keras.evaluation.evaluators.contract import Answers, Benchmark, Search
from mg_keras.evaluation.evaluators.copy_detection import copies, image_similarity
from mg_keras.evaluation.evaluators.groups import in_aug, ukb, views
from mg_keras.evaluation.evaluators.retrieval import copydays, holidays, revisited

__all__ = [
    "Answers",
    "Benchmark",
    "Search",
    "categories",
    "classes",
    "copies",
    "copydays",
    "holidays",
    "image_similarity",
    "imagenet",
    "in_aug",
    "probe",
    "revisited",
    "ukb",
    "views",
]
