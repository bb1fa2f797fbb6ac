"""What a worker tells whoever counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from serving.replica.video.worker import HeldJob


class WorkerObserver(Protocol):
    """Hears of every turn in the life of a job; for metrics."""

    def claimed(self, queue_s: float, attempts: int) -> None:
        """A job was taken from the queue, ``queue_s`` after it was made."""

    def stepped(self, num_jobs: int, elapsed_s: float) -> None:
        """One step of a batch came back."""

    def preempted(self) -> None:
        """A job had to wait for a more urgent one."""

    def lease_lost(self) -> None:
        """Somebody else may work on it."""

    def completed(self, held: HeldJob) -> None:
        """The clip is in the index."""

    def failed(self, code: str) -> None:
        """A job ended without a clip."""


class NullWorkerObserver:
    """Hears nothing."""

    def claimed(self, queue_s: float, attempts: int) -> None:
        """Ignore."""

    def stepped(self, num_jobs: int, elapsed_s: float) -> None:
        """Ignore."""

    def preempted(self) -> None:
        """Ignore."""

    def lease_lost(self) -> None:
        """Ignore."""

    def completed(self, held: HeldJob) -> None:
        """Ignore."""

    def failed(self, code: str) -> None:
        """Ignore."""
