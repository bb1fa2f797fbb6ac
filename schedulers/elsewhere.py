"""What each tenant was served by other models than the one that it asks now.

Every model has queues of its own, fair between tenants by joules. So that a tenant which fills one model pays in the
queue of another, a request brings along what its tenant was served elsewhere since its last request for that model
(``UnitArrived.elsewhere_j``), and that queue charges it (``schedulers.fair_queue``, "elsewhere"). Each joule is brought
once to each model, to whichever of its replicas gets the request: as the tenant's work there is spread, so is this.

It is forgotten by half every ``HALF_LIFE_S``: what counts is who uses the machine now, not who ever did.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

HALF_LIFE_S: Final = 10.0
_MAX_TENANTS = 4096
_LEAST_J = 1e-9


class _Served:
    """Of one tenant: joules by the model that has not been told of them, as of ``at_s``."""

    __slots__ = ("at_s", "untold_j")

    def __init__(self, at_s: float) -> None:
        self.at_s = at_s
        self.untold_j: dict[str, float] = {}

    def fade(self, now_s: float) -> None:
        if now_s > self.at_s:
            left = 0.5 ** ((now_s - self.at_s) / HALF_LIFE_S)
            self.untold_j = {model: joules * left for model, joules in self.untold_j.items()}
            self.at_s = now_s


class Elsewhere:
    """One per gateway. O(models) a request; of more than ``_MAX_TENANTS`` tenants, those longest unheard of are
    forgotten."""

    def __init__(self, models: Iterable[str]) -> None:
        self._models = tuple(models)
        self._tenants: OrderedDict[str, _Served] = OrderedDict()

    def serve(self, tenant: str, model: str, joules: float, now_s: float) -> None:
        """A model has served a tenant."""
        if len(self._models) < 2 or not joules > 0.0:
            return
        served = self._tenants.get(tenant)
        if served is None:
            served = self._tenants[tenant] = _Served(now_s)
            if len(self._tenants) > _MAX_TENANTS:
                self._tenants.popitem(last=False)
        self._tenants.move_to_end(tenant)
        served.fade(now_s)
        for other in self._models:
            if other != model:
                served.untold_j[other] = served.untold_j.get(other, 0.0) + joules

    def tell(self, tenant: str, model: str, now_s: float) -> float:
        """Joules for ``model`` to be told of; the next call tells what has come since."""
        served = self._tenants.get(tenant)
        if served is None:
            return 0.0
        served.fade(now_s)
        joules = served.untold_j.pop(model, 0.0)
        return joules if joules > _LEAST_J else 0.0
