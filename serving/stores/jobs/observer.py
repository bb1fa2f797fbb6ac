"""What the job index tells whoever counts. Called on the event loop; must not block and must not raise."""

from __future__ import annotations

from typing import Protocol


class JobObserver(Protocol):
    """Hears of the turns that jobs take in the index."""

    def created(self, model: str) -> None:
        """A job was put into the queue."""

    def claimed(self, model: str, attempts: int) -> None:
        """A job was given to a worker, for the ``attempts``-th time."""

    def leases_expired(self, num_requeued: int, num_exhausted: int, num_cancelled: int) -> None:
        """Jobs of workers that went silent were put back, or failed because that was the last attempt."""

    def ended(self, status: str, code: str) -> None:
        """A job is over; ``code`` is empty for a completed one."""


class NullJobObserver:
    """Hears nothing."""

    def created(self, model: str) -> None:
        """Ignore."""

    def claimed(self, model: str, attempts: int) -> None:
        """Ignore."""

    def leases_expired(self, num_requeued: int, num_exhausted: int, num_cancelled: int) -> None:
        """Ignore."""

    def ended(self, status: str, code: str) -> None:
        """Ignore."""
