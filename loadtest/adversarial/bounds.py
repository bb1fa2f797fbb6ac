"""How long an answer may get before the guard's length bound says something: who knows the guard stays under it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from models.registry import find
from schedulers.guard.calibration import FILE_NAME, GuardCalibration
from schedulers.guard.text import Asked


def bounds_of(model_id: str, questions: Sequence[str], cap: int) -> list[int]:
    """Tokens, of each question about one picture, ``cap`` at most.

    Raises: ValueError: the model has no calibration, so there is no bound.
    """
    _, variant = find(model_id)
    path = variant.weights / FILE_NAME if variant.weights is not None else None
    if path is None or not path.is_file():
        raise ValueError(
            f"{model_id} has no {FILE_NAME}, so it has no bound to stay under; `vireo guard calibrate` makes one"
        )
    calibration = GuardCalibration.from_plain(json.loads(path.read_text(encoding="utf-8")))
    return [min(cap, calibration.expected(Asked(text, num_images=1), cap).bound_tokens) for text in questions]
