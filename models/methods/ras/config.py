"""Which steps of region-adaptive sampling run every token, and how the others choose."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RasConfig:
    """``share`` of the tokens is run in a sparse step. The first ``num_warmup_steps`` and the steps at ``resets``
    (fractions of all steps) are dense: they undo the error that stale tokens collect. ``starvation_scale`` is how fast
    a token that is left out gains importance.

    Raises: ValueError: a number out of range.
    """

    share: float = 0.5
    num_warmup_steps: int = 4
    resets: tuple[float, ...] = (0.43, 0.71)
    starvation_scale: float = 0.1
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}; need more than 0, at most 1")
        if self.num_warmup_steps < 1:
            raise ValueError(f"num_warmup_steps is {self.num_warmup_steps}; the first step fills the caches: need 1")
        if any(not 0 <= reset <= 1 for reset in self.resets):
            raise ValueError(f"resets are {self.resets}; need fractions of all steps, 0 to 1")
        if self.starvation_scale < 0 or self.epsilon <= 0:
            raise ValueError(f"starvation_scale {self.starvation_scale} or epsilon {self.epsilon} is out of range")

    def is_dense(self, step: int, num_steps: int) -> bool:
        """Whether this step, counted from 0, runs every token."""
        return step < self.num_warmup_steps or step in {round(reset * num_steps) for reset in self.resets}

    def num_active(self, num_tokens: int) -> int:
        """Tokens of a sparse step."""
        return max(1, round(self.share * num_tokens))


def predicted_bytes(
    *, num_layers: int, num_tokens: int, width: int, patch_values: int, rows: int, itemsize: int
) -> int:
    """What a ``RasState`` holds after its first step. ``width`` is heads times head dim."""
    caches = 2 * num_layers * rows * num_tokens * width * itemsize
    return caches + rows * num_tokens * patch_values * itemsize + num_tokens * 4
