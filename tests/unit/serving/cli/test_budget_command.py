"""``vireo budget`` against the front door with accounts behind it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator

import pytest
import typer
from typer.testing import CliRunner, Result

from serving.cli import budget_command
from serving.client.exits import Exit
from serving.front.auth import Authenticator
from serving.stores.account import Account
from tests.support.accounts import FakeAccounts
from tests.support.clients import FrontDoor, asgi
from tests.support.fake_service import FakeService
from tests.support.served_door import ServedDoor, served


@pytest.fixture(scope="module")
def door() -> Iterator[ServedDoor]:
    keys = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("ada", "bob", "lost")}
    service = FakeService()
    service.accounts = FakeAccounts()
    with served(service, Authenticator(keys, False, admins=("bob",))) as door:
        yield door


def vireo(door: ServedDoor, *arguments: str) -> Result:
    app = typer.Typer()
    app.callback()(lambda: None)
    budget_command.register(app)
    return CliRunner().invoke(app, ["budget", "--url", door.url, *arguments], env={"COLUMNS": "100"})


def test_budget_is_that_of_the_key(door: ServedDoor) -> None:
    document = json.loads(vireo(door, "--key", "ada", "--json").stdout)
    assert (document["tenant"], document["open"]) == ("ada", 2)
    kinds = {"level": 60.0, "per_s": 2.0, "burst": 100.0, "reserved": 12.0, "spent": 4310.0, "full_in_s": 20.0}
    assert document["joules"] == kinds
    assert document["seconds"]["full_in_s"] is None
    assert document["day"] == {"spent_j": 500.0, "cap_j": 900.0, "resets_in_s": 23 * 3600.0}
    assert (document["month"]["spent_j"], document["month"]["cap_j"]) == (700.0, None)
    shown = vireo(door, "--key", "ada").stdout
    assert all(word in shown for word in ("ada", "4310", "20 s", "never"))
    day, month = (next(line for line in shown.splitlines() if f"joules/{each}" in line) for each in ("day", "month"))
    assert all(word in day.split() for word in ("400", "900", "500", "23"))
    assert "no limit" in month


def test_tenant_without_a_quota_has_no_limit(door: ServedDoor) -> None:
    assert json.loads(vireo(door, "--key", "bob", "--json").stdout)["joules"] is None
    assert "no limit" in vireo(door, "--key", "bob").stdout


def test_only_an_admin_sees_those_of_all(door: ServedDoor) -> None:
    document = json.loads(vireo(door, "--all", "--key", "bob", "--json").stdout)
    assert [one["tenant"] for one in document["data"]] == ["ada", "bob"]
    refused = vireo(door, "--all", "--key", "ada")
    assert (refused.exit_code, "an admin's to see" in refused.stderr) == (Exit.REFUSED, True)


async def test_those_of_all_are_read_one_after_another_while_tenants_come_and_go() -> None:
    class Shifting(FakeAccounts):
        reading = most_reading = 0

        async def account(self, tenant: str) -> Account | None:
            self.reading += 1
            self.most_reading = max(self.most_reading, self.reading)
            await asyncio.sleep(0)
            self.reading, self.tenants = self.reading - 1, ("bob",)
            return await super().account(tenant)

    service, accounts, admin = FakeService(), Shifting(), Authenticator({}, True)
    service.accounts = accounts
    reply = await asgi(FrontDoor(service, authenticator=admin).app, "GET", "/v1/budgets")
    assert [(one["tenant"], one["open"]) for one in reply.json["data"]] == [("ada", 2), ("bob", 0)]
    assert accounts.most_reading == 1


def test_accounts_that_cannot_be_read_are_said_to_be_so(door: ServedDoor) -> None:
    result = vireo(door, "--key", "lost")
    assert result.exit_code not in (0, Exit.REFUSED)
    assert "cannot be read now" in result.stderr
