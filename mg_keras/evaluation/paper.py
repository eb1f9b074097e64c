"""The paper's own figures, to print beside those that are measured (MultiGrain, Tables 2 and 3).

All are of ResNet-50 trained on ImageNet unless a row says otherwise.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ClassRow:
    """A row of Table 2: ImageNet accuracy, %.

    Attributes:
        method, augmentation: as the table calls them.
        classification_weight: lambda; None where the method has none.
        exponent: the training exponent p; None where the table does not say.
        resolution: s*, pixels.
        top1, top5: %; None where the table does not say.
    """

    method: str
    classification_weight: float | None
    augmentation: str
    exponent: float | None
    resolution: int
    top1: float
    top5: float | None


@dataclass(frozen=True)
class RetrievalRow:
    """A row of Table 3. Each benchmark maps resolution s* -> score.

    Attributes:
        method: as the table calls it.
        classification_weight: lambda; None where the method has none.
        holidays: mAP, %.
        ukb: mean number of an object's four photos among the four nearest.
        copydays: mAP with 10 000 distractors, %.
    """

    method: str
    classification_weight: float | None
    holidays: dict[int | None, float]
    ukb: dict[int | None, float]
    copydays: dict[int | None, float]


def _class_rows():
    # (method, lambda, augmentation, s*), then top-1 and top-5 for p = 1, then for p = 3
    by_exponent = [
        ("ResNet-50 baseline", None, "full", 224, (76.2, 92.9), (76.2, 93.1)),
        ("MultiGrain", 1.0, "full", 224, (76.8, 93.2), (76.9, 93.5)),
        ("MultiGrain", 0.5, "full", 224, (77.0, 93.6), (77.4, 93.6)),
        ("MultiGrain", 0.5, "autoaugment", 224, (77.4, 93.6), (78.2, 93.9)),
        ("MultiGrain", 0.5, "full", 500, (76.5, 93.5), (78.6, 94.4)),
        ("MultiGrain", 0.5, "autoaugment", 500, (77.7, 94.0), (79.4, 94.8)),
        ("MultiGrain", 0.5, "full", 800, (73.5, 93.5), (77.2, 93.5)),
        ("MultiGrain", 0.5, "autoaugment", 800, (74.1, 91.8), (77.8, 93.9)),
    ]
    others = [
        ("PyTorch model zoo", (76.1, 92.9)),
        ("mixup", (76.7, 94.4)),
        ("BA (batch 1024)", (76.9, None)),
        ("AutoAugment", (77.6, 93.8)),
    ]
    for method, weight, augmentation, resolution, *scores in by_exponent:
        for exponent, (top1, top5) in zip((1.0, 3.0), scores, strict=True):
            yield ClassRow(method, weight, augmentation, exponent, resolution, top1, top5)
    for method, (top1, top5) in others:
        yield ClassRow(method, None, "", None, 224, top1, top5)


def _retrieval_rows():
    sizes = (224, 500, 800)
    ours = [
        ("PyTorch model zoo", None, (85.5, 86.6, 82.8), (3.71, 3.85, 3.80), (61.5, 61.1, 43.0)),
        ("ResNet-50, p = 1", None, (83.5, 88.8, 87.1), (3.60, 3.79, 3.82), (59.2, 69.9, 66.2)),
        ("ResNet-50, p = 3", None, (86.8, 90.0, 90.4), (3.73, 3.87, 3.89), (70.6, 78.9, 75.7)),
        ("MultiGrain", 1.0, (88.9, 91.8, 91.6), (3.78, 3.89, 3.91), (75.1, 81.2, 82.5)),
        ("MultiGrain", 0.5, (88.3, 91.5, 92.5), (3.78, 3.90, 3.91), (74.1, 80.7, 78.6)),
        ("MultiGrain + AA", 0.5, (86.5, 90.3, 89.4), (3.75, 3.89, 3.90), (69.7, 77.8, 76.1)),
    ]
    for method, weight, *benchmarks in ours:
        yield RetrievalRow(method, weight, *(dict(zip(sizes, scores, strict=True)) for scores in benchmarks))
    # None: the table gives no one resolution
    yield RetrievalRow("R-MAC (Tolias et al.)", None, {724: 90.9, 1024: 93.3}, {}, {})
    yield RetrievalRow("R-MAC, ResNet-101", None, {800: 91.4}, {None: 3.89}, {})
    yield RetrievalRow("GeM", None, {1000: 93.9}, {}, {})
    yield RetrievalRow("Neural codes", None, {None: 79.3}, {None: 3.56}, {})
    yield RetrievalRow("Fisher vectors", None, {None: 63.4}, {None: 3.35}, {None: 42.7})


TABLE_2 = tuple(_class_rows())
TABLE_3 = tuple(_retrieval_rows())
