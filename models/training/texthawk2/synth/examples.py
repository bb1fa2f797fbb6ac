"""All tasks of texthawk2-nano by name, and random examples of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from models.training.texthawk2.synth import finding, reading
from models.training.texthawk2.synth.example import Example
from models.training.texthawk2.synth.fonts import FontSet, Split, default_fonts

Task = Callable[[np.random.Generator, Split, FontSet | None], Example]

TASKS: dict[str, Task] = {
    "word": reading.word,
    "line": reading.line,
    "chinese": reading.chinese,
    "two_pictures": reading.two_pictures,
    "page": reading.page,
    "ground_shape": finding.ground_shape,
    "ground_text": finding.ground_text,
    "chinese_ground": finding.chinese_ground,
    "read_box": finding.read_box,
    "caption": finding.caption,
    "count": finding.count,
    "absent": finding.absent,
    "interview": finding.interview,
}
MEASURED = tuple(name for name in TASKS if name not in ("interview", "page"))
"""What a user asks; an interview is made of these, and pages are not trained on."""
CHINESE_TASKS = ("chinese", "chinese_ground")
WEIGHTS: dict[str, float] = {
    "word": 0.10,
    "line": 0.20,
    "chinese": 0.06,
    "two_pictures": 0.03,
    "ground_shape": 0.03,
    "ground_text": 0.04,
    "chinese_ground": 0.02,
    "read_box": 0.02,
    "caption": 0.08,
    "count": 0.05,
    "absent": 0.02,
    "interview": 0.35,
}


def sample(
    rng: np.random.Generator,
    split: Split,
    weights: Mapping[str, float] | None = None,
    fonts: FontSet | None = None,
) -> Example:
    """A random example of a random task, by ``weights`` (``WEIGHTS`` when None; they need not sum to one).

    Without Chinese fonts in ``fonts`` the tasks in Chinese are left out.

    Raises:
        ValueError: an unknown task, a negative weight, or nothing to choose from.
    """
    weights = WEIGHTS if weights is None else weights
    unknown = sorted(set(weights) - set(TASKS))
    if unknown:
        raise ValueError(f"tasks {unknown} are unknown; choose from {sorted(TASKS)}")
    fonts = fonts or default_fonts()
    names = [name for name in weights if fonts.chinese or name not in CHINESE_TASKS]
    shares = np.asarray([weights[name] for name in names], float)
    if not names or not (shares >= 0).all() or not shares.sum() > 0:
        raise ValueError(f"weights {dict(weights)} must not be negative, and one of a task that can be drawn positive")
    chosen = names[int(rng.choice(len(names), p=shares / shares.sum()))]
    return TASKS[chosen](rng, split, fonts)
