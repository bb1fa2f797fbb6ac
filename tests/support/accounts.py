"""Accounts of tenants as a test says they are: ``serving.service.Accounts``."""

from __future__ import annotations

from schedulers.admission import BucketLimits, BucketState, Cost
from schedulers.spending import DAY_S, Spending
from serving.errors import StoreUnavailable
from serving.stores.account import Account


def make_account(joules: float = 60.0, seconds: float = 9.0, reserved_j: float = 12.0, num_open: int = 2) -> Account:
    """Joules come back at 2 W up to 100; seconds, of which there are 10, never. At one in the night, 500 J of the 900
    of a day are spent."""
    return Account(
        limits=BucketLimits(
            joules_per_s=2.0, joules_burst=100.0, seconds_per_s=0.0, seconds_burst=10.0, max_joules_per_day=900.0
        ),
        level=BucketState(joules, seconds, 0.0),
        reserved=Cost(reserved_j, 0.5),
        spent=Cost(4310.0, 70.0),
        num_open=num_open,
        spending=Spending(at_s=40 * DAY_S + 3600.0, day_j=500.0, month_j=700.0, open_j=reserved_j),
    )


class FakeAccounts:
    """``owner`` has a quota, bob has none, and that of ``lost`` cannot be read."""

    def __init__(self, owner: str = "ada") -> None:
        self.tenants: tuple[str, ...] = (owner, "bob")
        self.owner = owner
        self.held = make_account()

    async def account(self, tenant: str) -> Account | None:
        if tenant == "lost":
            raise StoreUnavailable("accounts cannot be read now", retry_after_s=1.0)
        return self.held if tenant == self.owner else None
