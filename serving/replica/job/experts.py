"""Counts what the experts of a replica's model are sent: beside the steps, on the replica's event loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from schedulers.experts.loads import ExpertLoads, balancedness
from serving.delivery.job.experts import Counts, ExpertReport, PlacedFacts, load_ratios
from serving.replica.job.base import StepDone
from serving.telemetry.events import ExpertsCounted, ExpertsPlaced, ExpertsRan, Sink

_WINDOW: Final = 64
"""Seconds, in eight parts: between 57 and 64 of them count."""
_MAX_TENANTS: Final = 32
_OTHERS: Final = "others"


@dataclass(slots=True)
class _Second:
    """What was counted between two roll calls."""

    slices: int = 0
    distinct: float = 0.0
    phases: dict[str, Counts] = field(default_factory=dict)
    tenants: dict[str, Counts] = field(default_factory=dict)


@dataclass(slots=True)
class _Windows:
    """Of one shape of experts."""

    phases: ExpertLoads
    tenants: ExpertLoads

    @classmethod
    def of(cls, loads: Counts) -> _Windows:
        num_layers, num_experts = loads.shape
        return cls(ExpertLoads(num_layers, num_experts, _WINDOW), ExpertLoads(num_layers, num_experts, _WINDOW))


class ExpertMeter:
    """One per replica. ``add`` what each slice says, ``roll`` once a second; ``report`` any time."""

    def __init__(self, model: str, tell: Sink) -> None:
        self._model = model
        self._tell = tell
        self._now = _Second()
        self._slices: deque[tuple[int, float]] = deque(maxlen=_WINDOW)
        self._windows: _Windows | None = None
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
        if placed is not None:
            num_moved = placed.moves - (0 if self._placed is None else self._placed.moves)
            self._tell(ExpertsPlaced(self._model, placed.version, num_moved, balancedness([placed.rank_loads])))
        self._placed = placed
        now, self._now = self._now, _Second()
        self._slices.append((now.slices, now.distinct))
        windows = self._count(now)
        if windows is None or not windows.phases.groups:
            return
        phases = {phase: windows.phases.counts(phase) for phase in windows.phases.groups}
        self._tell(
            ExpertsCounted(
                model=self._model,
                balancedness={phase: balancedness(counts) for phase, counts in phases.items()},
                load_ratios=load_ratios(np.array(windows.phases.counts())),
            )
        )

    def _count(self, second: _Second) -> _Windows | None:
        if self._windows is None and second.phases:
            self._windows = _Windows.of(next(iter(second.phases.values())))
        if (windows := self._windows) is None:
            return None
        for window, groups in ((windows.phases, second.phases), (windows.tenants, second.tenants)):
            for group, loads in groups.items():
                is_known = group in window.groups or len(window.groups) < _MAX_TENANTS
                window.add(loads.tolist(), group if is_known else _OTHERS)
            window.turn()
        return windows

    def report(self) -> ExpertReport:
        """What the window holds, up to the last second."""
        windows = self._windows
        return ExpertReport(
            slices=sum(slices for slices, _ in self._slices),
            distinct=sum(distinct for _, distinct in self._slices),
            phases={} if windows is None else _arrays(windows.phases),
            tenants={} if windows is None else _arrays(windows.tenants),
            placed=self._placed,
        )


def _add(total: dict[str, Counts], name: str, loads: Counts) -> None:
    if name in total:
        total[name] += loads
    else:
        total[name] = loads.copy()


def _arrays(window: ExpertLoads) -> dict[str, Counts]:
    return {group: np.array(window.counts(group)) for group in window.groups}
