"""What the front door tells the metrics. Every label is bounded, whatever callers send."""

from __future__ import annotations

from typing import Protocol

from serving.domain import Surface

UNKNOWN = "unknown"
"""Label of a model that is not served, and of a caller that has not proved who it is."""

OK = "ok"
PARTIAL = "partial"
"""Outcome of a call in which some images failed and some did not."""


class IngressObserver(Protocol):
    """Hears of every inference call, exactly once at each end."""

    def started(self, surface: Surface) -> None:
        """One more call is in flight."""
        ...

    def finished(self, *, surface: Surface, model: str, tenant: str, outcome: str, seconds: float) -> None:
        """A call is over. ``outcome`` is ``ok``, ``partial`` or the code of its error; ``model`` is a served id or
        ``unknown``."""
        ...


class NullObserver:
    """Hears nothing."""

    def started(self, surface: Surface) -> None:
        """Do nothing."""

    def finished(self, *, surface: Surface, model: str, tenant: str, outcome: str, seconds: float) -> None:
        """Do nothing."""
