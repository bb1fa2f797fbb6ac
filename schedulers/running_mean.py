"""What something took lately: the mean of observations, of which the newest counts most."""

from __future__ import annotations


class RunningMean:
    """``weight``: of the newest observation; the first one counts whole."""

    __slots__ = ("_weight", "value")

    def __init__(self, weight: float) -> None:
        self._weight = weight
        self.value: float | None = None
        """None before anything was observed."""

    def observe(self, value: float) -> None:
        """One more."""
        self.value = value if self.value is None else self.value + self._weight * (value - self.value)
