"""What may be said of how p* is chosen; without TensorFlow, since `mg-keras choose-p-star --help` reads it."""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mg_keras.data.augmentations import AugmentationName
from mg_keras.errors import UserError
from mg_keras.poolings import MOST_EXPONENT

if TYPE_CHECKING:
    from mg_keras.data.sources import Source

EXPONENTS = tuple(range(1, 11))
"""What cross-validation tries where nothing is said."""
TOLERANCE = 1.0
METHODS = ("cross-validation", "fine-tuning", "both")


@dataclasses.dataclass(frozen=True)
class Choosing:
    """How p* is chosen.

    Attributes:
        exponents: those that cross-validation tries, each > 0 and at most 1000.
        method: `"cross-validation"`, `"fine-tuning"`, or `"both"`: then the choice in use is cross-validation's.
        per_class: photos of each class to fine-tune on, at most.
        epochs: of fine-tuning.
        sweep: whether to measure class accuracy at each of the exponents and at the fine-tuned one, too.
        augmentation: the recipe of IN-aug's versions; the paper's is `full`.
        tolerance: how many standard errors below the best an exponent's score may be, at least 0; of those the one
            nearest to that of training is taken.

    Raises:
        UserError: an exponent, `per_class`, `epochs` or `tolerance` is out of range.
        ValueError: there is no such method.
    """

    exponents: Sequence[float] = EXPONENTS
    method: str = "cross-validation"
    per_class: int = 50
    epochs: int = 1
    sweep: bool = False
    augmentation: AugmentationName = "copies"
    tolerance: float = TOLERANCE

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, received {self.method!r}")
        if not self.exponents or not all(0 < exponent <= MOST_EXPONENT for exponent in self.exponents):
            wanted = f"one or more numbers > 0 and at most {MOST_EXPONENT:g}"
            raise UserError(f"exponents must be {wanted}, received {list(self.exponents)}")
        for name in ("per_class", "epochs"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"{name} must be at least 1, received {value}")
        if not 0 <= self.tolerance < math.inf:
            raise UserError(f"tolerance must be a number of at least 0, received {self.tolerance}")

    def check(self, source: "Source") -> None:
        """Refuses, before anything is measured, photos that the method can't choose by.

        Raises:
            UserError: they have no classes, and p is to be fine-tuned, or accuracy to be measured.
        """
        if self.method != "cross-validation" and not source.train.labelled:
            raise UserError(
                "p is fine-tuned on the classes of photos, and these have none: choose it by cross-validation"
            )
        if self.sweep and not source.val.labelled:
            raise UserError("a sweep measures the accuracy on classes, and these photos have none: leave it out")
