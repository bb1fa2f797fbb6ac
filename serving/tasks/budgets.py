"""What a tenant may spend, has spent and has left, as ``/v1/budget`` and ``GetBudget`` show it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from typing_extensions import TypedDict
from vireo_pb.vireo.v1 import vireo_pb2

from schedulers.spending import next_day_s, next_month_s
from serving.stores.account import Account


class BudgetKindAnswer(TypedDict):
    """Joules, or engine seconds. ``level``: there now; below 0 in debt. It grows by ``per_s`` up to ``burst``.
    ``reserved``: set aside for requests that run. ``spent``: charged since the account exists. ``full_in_s``: until it
    is full, if nothing is spent meanwhile; null: never."""

    level: float
    per_s: float
    burst: float
    reserved: float
    spent: float
    full_in_s: float | None


class SpendingAnswer(TypedDict):
    """Of this day or month of UTC. ``spent_j``: charged, or set aside for requests that run. ``cap_j``: the most that
    may be; null: no limit. ``resets_in_s``: until the next one begins."""

    spent_j: float
    cap_j: float | None
    resets_in_s: float


class BudgetAnswer(TypedDict):
    """Both kinds and both periods are null for a tenant without a quota. ``open``: requests that have something set
    aside."""

    object: Literal["budget"]
    tenant: str
    open: int
    joules: BudgetKindAnswer | None
    seconds: BudgetKindAnswer | None
    day: SpendingAnswer | None
    month: SpendingAnswer | None


class BudgetListAnswer(TypedDict):
    """Those of all tenants."""

    object: Literal["list"]
    data: list[BudgetAnswer]


def shown_budget(tenant: str, account: Account | None) -> BudgetAnswer:
    """Return what is said of an account; None: the tenant has no quota."""
    if account is None:
        return {
            "object": "budget",
            "tenant": tenant,
            "open": 0,
            "joules": None,
            "seconds": None,
            "day": None,
            "month": None,
        }
    limits, level, reserved, spent = account.limits, account.level, account.reserved, account.spent
    spending, now_s = account.spending, account.spending.at_s
    return {
        "object": "budget",
        "tenant": tenant,
        "open": account.num_open,
        "joules": _kind(level.joules, limits.joules_per_s, limits.joules_burst, reserved.joules, spent.joules),
        "seconds": _kind(level.seconds, limits.seconds_per_s, limits.seconds_burst, reserved.seconds, spent.seconds),
        "day": _spending(spending.day_j, limits.max_joules_per_day, next_day_s(now_s) - now_s),
        "month": _spending(spending.month_j, limits.max_joules_per_month, next_month_s(now_s) - now_s),
    }


def shown_budgets(accounts: Mapping[str, Account | None]) -> BudgetListAnswer:
    """Return what is said of the accounts of all tenants."""
    return {"object": "list", "data": [shown_budget(tenant, account) for tenant, account in accounts.items()]}


def budget_message(shown: BudgetAnswer) -> vireo_pb2.TenantBudget:
    """Return the same as a message."""
    joules, seconds = (
        None if kind is None else vireo_pb2.Allowance(**kind) for kind in (shown["joules"], shown["seconds"])
    )
    day, month = (None if each is None else vireo_pb2.Spending(**each) for each in (shown["day"], shown["month"]))
    return vireo_pb2.TenantBudget(
        tenant=shown["tenant"], open=shown["open"], joules=joules, seconds=seconds, day=day, month=month
    )


def _kind(level: float, per_s: float, burst: float, reserved: float, spent: float) -> BudgetKindAnswer:
    full_in_s = (burst - level) / per_s if per_s else None if level < burst else 0.0
    return {
        "level": level,
        "per_s": per_s,
        "burst": burst,
        "reserved": reserved,
        "spent": spent,
        "full_in_s": full_in_s,
    }


def _spending(spent_j: float, cap_j: float, resets_in_s: float) -> SpendingAnswer:
    return {"spent_j": spent_j, "cap_j": None if math.isinf(cap_j) else cap_j, "resets_in_s": resets_in_s}
