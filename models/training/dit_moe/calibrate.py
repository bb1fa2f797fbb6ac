"""What ``vireo calibrate`` judges dit-moe-nano by: each class some times, with the judge beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.contract import Variant
from models.io import ImageRequest
from models.training.dit_moe.judge import ClassJudge
from models.training.dit_moe.pictures import NUM_CLASSES, SIDE, class_name

OF_EACH = 2


def judge_of(variant: Variant) -> RightClass | None:
    """The family's part ``judge``; nobody has judged the published variants here.

    Raises: ValueError: no judge beside the weights.
    """
    return RightClass(variant) if variant.is_nano else None


class RightClass:
    """A ``Judge`` of single pictures, each of which is right or wrong."""

    metric = "share of pictures whose colour and thing are as asked"

    def __init__(self, variant: Variant) -> None:
        assert variant.weights is not None
        self._judge = ClassJudge.load(variant.weights / "judge")
        self._labels = [number % NUM_CLASSES for number in range(OF_EACH * NUM_CLASSES)]
        self.rows = [ImageRequest(width=SIDE, height=SIDE, prompt=class_name(label)) for label in self._labels]
        self.data: Mapping[str, Any] = {"classes": NUM_CLASSES, "pictures_of_each": OF_EACH, "judge": "judge"}

    def score(self, row: int, image: Any) -> float:
        """1 where the judge sees the class of the row."""
        return float(self._judge.labels([image])[0] == self._labels[row])
