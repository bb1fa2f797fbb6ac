"""The share of a tenant's rows that may reach the last exit of a model, on one gateway."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from schedulers.deep_share import DeepShare
from serving.delivery.unary.wire import SampleAnswer
from serving.domain import Budget
from serving.errors import BudgetInfeasible, DeepShareSpent

CURBED = "deep_share"
"""In ``degraded``."""
_RETRY_S = 1.0


@dataclass(slots=True)
class Depth:
    """How deep the rows of one request may go. ``curbed_exit``: the exit that is theirs at the latest; 0: any."""

    curbed_exit: int = 0
    num_run: int = 0
    num_deep: int = 0

    def within(self, budget: Budget) -> Budget:
        """The budget of rows that leave in time; whoever has sent it is told."""
        if not self.curbed_exit:
            return budget
        settings = {**budget.settings, f"exit_{self.curbed_exit}": 0.0}
        return replace(budget, settings=settings, degraded=(*budget.degraded, CURBED))

    def ran(self, outcomes: Sequence[object], num_exits: int) -> None:
        """What has become of the rows."""
        exits = [outcome.exit_index for outcome in outcomes if isinstance(outcome, SampleAnswer)]
        self.num_run, self.num_deep = len(exits), exits.count(num_exits - 1)


class DeepRows:
    """``limits``: by tenant, None for no bound. Use from one event loop."""

    def __init__(self, limits: Mapping[str, float | None]) -> None:
        self._limits = limits
        self._share = DeepShare()

    @contextmanager
    def counted(self, tenant: str, model: str, num_exits: int, rows: int) -> Iterator[Depth]:
        """Count the rows of one request, from before they are planned until they are done.

        Raises: DeepShareSpent: they may not go deep, and nothing else fits their budget.
        """
        limit, key = self._limits.get(tenant), (tenant, model)
        if limit is None or num_exits < 2:
            yield Depth()
            return
        may = self._share.take(key, rows, limit)
        depth = Depth(curbed_exit=0 if may else num_exits - 1)
        try:
            yield depth
        except BudgetInfeasible as error:
            if may:
                raise
            raise DeepShareSpent(
                f"of the rows of tenant {tenant!r}, {limit:.0%} may reach the last exit (max_deep_share), and no "
                f"operating point without it fits: {error.message}; lower quality_floor, or retry later",
                param="vireo",
                retry_after_s=_RETRY_S,
            ) from None
        finally:
            self._share.done(key, taken=rows if may else 0, rows=depth.num_run, deep=depth.num_deep)
