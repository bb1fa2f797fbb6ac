"""A scheduler that does what the test wrote down, for the paths of the driver that no real policy takes on purpose."""

from __future__ import annotations

from collections.abc import Callable

from schedulers.types import Decision, Event

Script = Callable[[Event], list[Decision]]


class ScriptedScheduler:
    """Answers each event with ``script(event)`` and remembers what it was told."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.events: list[Event] = []
        self.wakeup_s: float | None = None

    def handle(self, now_s: float, *events: Event) -> list[Decision]:
        """Record the events and carry out the script."""
        self.events.extend(events)
        return [decision for event in events for decision in self._script(event)]

    def check_invariants(self) -> None:
        """Nothing to check."""

    def queued_s(self, now_s: float) -> float:
        """Nothing is predicted."""
        return 0.0

    def next_wakeup_s(self) -> float | None:
        """What the test set."""
        return self.wakeup_s
