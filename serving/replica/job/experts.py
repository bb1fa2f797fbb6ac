"""Counts what the experts of a replica's model are sent: beside the steps, on the replica's event loop."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from serving.delivery.job.experts import WINDOW_S, Counts, ExpertReport, PlacedFacts, added, balancedness, load_ratios
from serving.replica.job.base import StepDone
from serving.telemetry.events import ExpertsCounted, ExpertsPlaced, ExpertsRan, Sink

_MAX_TENANTS: Final = 32
_OTHERS: Final = "others"


@dataclass(slots=True)
class _Second:
    """What was counted between two roll calls."""

    until_s: float = 0.0
    slices: int = 0
    distinct: float = 0.0
    phases: dict[str, Counts] = field(default_factory=dict)
    tenants: dict[str, Counts] = field(default_factory=dict)


class ExpertMeter:
    """One per replica. ``add`` what each slice says, ``roll`` once a second; ``report`` any time."""

    def __init__(self, model: str, tell: Sink, clock: Callable[[], float] = time.monotonic) -> None:
        self._model = model
        self._tell = tell
        self._clock = clock
        self._now = _Second()
        self._window: deque[_Second] = deque()
        self._placed: PlacedFacts | None = None

    def add(self, rows: Iterable[tuple[str, bool, StepDone]]) -> None:
        """A slice is done: of each row its tenant, whether it was in the second half of its steps, and what it did."""
        counted = [(tenant, is_late, done.loads) for tenant, is_late, done in rows if done.loads is not None]
        if not counted:
            return
        now = self._now
        for tenant, is_late, loads in counted:
            _add(now.phases, "late" if is_late else "early", loads)
            is_known = tenant in now.tenants or len(now.tenants) < _MAX_TENANTS
            _add(now.tenants, tenant if is_known else _OTHERS, loads)
        woken = sum(loads for _, _, loads in counted) > 0
        distinct = float(woken.sum(axis=1).mean())
        now.slices += 1
        now.distinct += distinct
        self._tell(ExpertsRan(self._model, distinct))

    def roll(self, placed: PlacedFacts | None = None) -> None:
        """Forget what is too old, and tell the metrics what is left. ``placed``: where experts are now."""
        now_s = self._clock()
        if placed is not None:
            num_moved = placed.moves - (0 if self._placed is None else self._placed.moves)
            busiest = len(placed.rank_loads) * max(placed.rank_loads)
            self._tell(ExpertsPlaced(self._model, placed.version, num_moved, 1.0 / busiest if busiest else 1.0))
        self._placed = placed
        if self._now.slices:
            self._now.until_s = now_s
            self._window.append(self._now)
            self._now = _Second()
        while self._window and self._window[0].until_s < now_s - WINDOW_S:
            self._window.popleft()
        if not self._window:
            return
        phases = added([second.phases for second in self._window])
        self._tell(
            ExpertsCounted(
                model=self._model,
                balancedness={phase: balancedness(counts) for phase, counts in phases.items()},
                load_ratios=load_ratios(sum(phases.values())),  # type: ignore[arg-type]
            )
        )

    def report(self) -> ExpertReport:
        """What the window holds, up to the last second."""
        return ExpertReport(
            slices=sum(second.slices for second in self._window),
            distinct=sum(second.distinct for second in self._window),
            phases=added([second.phases for second in self._window]),
            tenants=added([second.tenants for second in self._window]),
            placed=self._placed,
        )


def _add(total: dict[str, Counts], name: str, loads: Counts) -> None:
    if name in total:
        total[name] += loads
    else:
        total[name] = loads.copy()
