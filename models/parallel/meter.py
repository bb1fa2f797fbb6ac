"""Counts what crosses between ranks."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Traffic:
    """Sum over the calls of one collective by one rank."""

    calls: int = 0
    sent_bytes: int = 0
    waited_s: float = 0.0


@dataclass(kw_only=True)
class CommunicationMeter:
    """Calls, bytes that this rank sent to others, and seconds in which it did nothing but wait, by collective.

    Bytes are those of the algorithm (what leaves the rank when each piece goes straight to its receiver), not of a
    library's choice of route. Waiting includes waiting for a slower rank. Receives are the senders' bytes.
    """

    by_collective: dict[str, Traffic] = field(default_factory=dict)

    def record(self, collective: str, sent_bytes: int, waited_s: float = 0.0) -> None:
        """Add one call."""
        traffic = self.by_collective.setdefault(collective, Traffic())
        traffic.calls += 1
        traffic.sent_bytes += sent_bytes
        traffic.waited_s += waited_s

    @property
    def sent_bytes(self) -> int:
        """Bytes of all collectives."""
        return sum(traffic.sent_bytes for traffic in self.by_collective.values())

    @property
    def waited_s(self) -> float:
        """Seconds of all collectives."""
        return sum(traffic.waited_s for traffic in self.by_collective.values())

    def reset(self) -> None:
        """Forget everything."""
        self.by_collective.clear()
