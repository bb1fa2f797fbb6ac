"""The operating points of a video model, within what it can do, and the choice of one for a clip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from models.contract import SettingError, Value
from models.io import ClipRequest
from models.operating_points import point_name
from schedulers.cost import Units
from schedulers.plan import Budget as PointBudget
from schedulers.plan import Load, Plan, Point, Refusal, Settings, plan, with_settings
from serving.domain import Budget
from serving.errors import BudgetInfeasible, DeadlineUnreachable, UnsupportedVideo
from serving.tasks.videos.limits import STEPS, ClipLimits

_CUSTOM = "custom"
"""Settings that nobody calibrated: metrics count points by name, and callers could make up any number of these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoPoints:
    """``points``: the best first."""

    points: tuple[Point, ...]
    limits: ClipLimits

    @property
    def names(self) -> tuple[str, ...]:
        """All points, best first."""
        return tuple(point.name for point in self.points)

    def name_of(self, made: Plan) -> str:
        """What the chosen point is called."""
        return made.point.name if made.point.name in self.names else _CUSTOM

    def choose(self, clip: ClipRequest, fixed: Mapping[str, Value], budget: Budget, load: Load) -> Plan:
        """The best point that makes the clip with what is fixed.

        Raises:
            UnsupportedVideo: none can, whatever it may cost.
            DeadlineUnreachable: one would fit if nothing waited.
            BudgetInfeasible: none fits; the message names the nearest.
        """

        def work(settings: Settings) -> Units:
            return self.limits.work(clip, self.limits.family.check_point(settings)).units

        points = with_settings(self.points, fixed, work, point_name, partial(self._is_possible, clip))
        latency_s = None if budget.latency_ms is None else budget.latency_ms / 1e3
        wanted = PointBudget(latency_s=latency_s, energy_j=budget.energy_j, quality_floor=budget.quality_floor)
        made = plan(points, work, wanted, load)
        if isinstance(made, Plan):
            return made
        if made.retry_after_s is None:
            raise _refusal(made)
        raise DeadlineUnreachable(
            f"the jobs that wait take {load.queued_s:.1f} s, which leaves too little of latency_ms "
            f"{budget.latency_ms:g}; allow more, or retry later",
            param="vireo.latency_ms",
            retry_after_s=made.retry_after_s,
        )

    def _is_possible(self, clip: ClipRequest, base: Settings, made: Settings) -> bool:
        """Whether the sampler works with the weights of that point and so many steps, and the rest with the clip."""
        (_, was), (_, sampler) = self.limits.sampler_of(base), self.limits.sampler_of(made)
        if was is None or sampler is None or sampler.weights != was.weights:
            return False
        if STEPS in made and not sampler.takes(int(made[STEPS])):
            return False
        try:
            self.limits.check_allowed(clip, self.limits.family.check_point(made))
        except SettingError:
            return False
        return True


def _refusal(refusal: Refusal) -> BudgetInfeasible | UnsupportedVideo:
    if refusal.nearest is None:
        return UnsupportedVideo(f"{refusal.message}; fix fewer of them")
    names = {"latency": "latency_ms", "energy": "energy_j", "quality": "quality_floor"}
    return BudgetInfeasible(refusal.message, param=f"vireo.{names[refusal.breaks[0]]}")
