"""Every family that is installed keeps the contract. There is no test file for a single one."""

from __future__ import annotations

import pytest

from models.registry import families
from models.testing import Check, checks_of

pytestmark = pytest.mark.timeout(600)  # the jobs among them run a dozen times


@pytest.mark.parametrize("check", [check for family in families().values() for check in checks_of(family)], ids=str)
def test_family_keeps_the_contract(check: Check) -> None:
    check()
