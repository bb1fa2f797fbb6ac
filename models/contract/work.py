"""What a request asks for, counted before it runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

UNITS = ("macs", "slices", "pixels", "image_tokens", "prompt_tokens", "output_tokens", "token_steps", "experts_read")
"""Units of work that a planner may price. ``macs``: multiply-accumulates. ``slices``: passes of the network.
``pixels``: those that are decoded, of all frames, each as often as it is. ``image_tokens``: made of pictures.
``token_steps``: tokens of a latent times the steps taken on them; in a chat, tokens in the cache times the tokens
written from them."""
STEP_UNITS = ("macs", "slices", "token_steps", "experts_read")
"""Those of a job's steps; the others count what is done before and after them."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a request asks for at a point, before it runs: named units, and the most bytes that it may hold meanwhile.

    Where only the replica can count, both are upper bounds.

    Raises: ValueError: an unknown unit, or a number that is negative or not finite.
    """

    units: Mapping[str, float]
    bytes_held: int

    def __post_init__(self) -> None:
        for name, amount in self.units.items():
            if name not in UNITS:
                raise ValueError(f"work unit {name!r} is unknown; units are {', '.join(UNITS)}")
            if not math.isfinite(amount) or amount < 0:
                raise ValueError(f"{amount} {name} cannot be done")
        if self.bytes_held < 0:
            raise ValueError(f"{self.bytes_held} bytes cannot be held")
