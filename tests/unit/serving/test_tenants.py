"""Tenants that change: records over the configuration, and what a change makes of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import pytest

from schedulers.fair_queue import FairQueue
from schedulers.shared_slots import SharedSlots, Turn
from serving.config import TenantSettings, from_mapping, resolve
from serving.errors import Unauthenticated
from serving.front.auth import Authenticator, Credentials
from serving.gateway.node import build_authenticator
from serving.tenants import (
    FIELDS,
    MAX_RECORDS,
    KeyRecord,
    Known,
    LiveTenants,
    TenantKey,
    TenantRecord,
    TenantRecords,
    Tenants,
    added,
    changed,
    overlay,
    removed,
    rotated,
)

NONE = TenantRecords()
OLD, NEW, OTHER = "ab" * 32, "cd" * 32, "ef" * 32
ADA = TenantSettings(name="ada", api_key_sha256=(OLD,), weight=2.0, burst_j=5.0)
BASE = {"ada": Known.of(ADA)}
NOW_S = 1_000.0


@dataclass(eq=False)
class Queued:
    tenant: str
    number: int
    deadline_s: float = math.inf
    joules: float = 1.0
    rank: tuple[float, float] = (0.0, 0.0)
    batch_key: Hashable = ()
    elsewhere_j: float = 0.0


def keys_of(tenants: Tenants) -> dict[str, float]:
    return {key.sha256: key.until_s for key in tenants.keys}


def test_without_records_it_is_the_configuration() -> None:
    tenants = overlay([ADA], NONE)
    assert tenants.keys == (TenantKey("ada", OLD, math.inf),)
    assert tenants.settings["ada"].model_dump(exclude={"api_key_sha256"}) == ADA.model_dump(exclude={"api_key_sha256"})


def test_gateways_tell_of_everything_but_keys() -> None:
    assert set(BASE["ada"].fields) == set(FIELDS)
    assert OLD not in repr(BASE["ada"])
    assert BASE["ada"].settings.weight == ADA.weight


def test_added_tenant_has_the_defaults_and_what_was_set() -> None:
    tenants = overlay([ADA], added(NONE, BASE, "bob", {"weight": 3}, NEW))
    assert tenants.settings["bob"] == TenantSettings(name="bob", weight=3.0)
    assert keys_of(tenants) == {OLD: math.inf, NEW: math.inf}


def test_set_fields_lie_over_the_configuration_and_over_earlier_ones() -> None:
    records = changed(changed(NONE, BASE, "ada", {"weight": 7}), BASE, "ada", {"admin": True})
    tenants = overlay([ADA], records)
    assert (tenants.settings["ada"].weight, tenants.settings["ada"].admin) == (7.0, True)
    assert tenants.settings["ada"].burst_j == ADA.burst_j
    assert keys_of(tenants) == {OLD: math.inf}


def test_rotation_ends_the_keys_of_the_configuration_too() -> None:
    records = rotated(NONE, BASE, "ada", NEW, now_s=NOW_S, old_until_s=NOW_S + 60.0)
    assert keys_of(overlay([ADA], records)) == {OLD: NOW_S + 60.0, NEW: math.inf}


def test_second_rotation_gives_an_old_key_no_more_time() -> None:
    first = rotated(NONE, BASE, "ada", NEW, now_s=NOW_S, old_until_s=NOW_S + 60.0)
    second = rotated(first, BASE, "ada", OTHER, now_s=NOW_S + 1.0, old_until_s=NOW_S + 900.0)
    assert keys_of(overlay([ADA], second)) == {OLD: NOW_S + 60.0, NEW: NOW_S + 900.0, OTHER: math.inf}
    third = rotated(second, BASE, "ada", "01" * 32, now_s=NOW_S + 2.0, old_until_s=NOW_S + 2.0)
    assert third.by_name["ada"].keys == (KeyRecord("01" * 32),), "closed keys are forgotten"


def test_key_that_the_configuration_gets_later_is_closed_with_the_others() -> None:
    records = rotated(NONE, BASE, "ada", NEW, now_s=NOW_S, old_until_s=NOW_S)
    later = ADA.model_copy(update={"api_key_sha256": (OLD, OTHER)})
    assert keys_of(overlay([later], records)) == {OLD: NOW_S, OTHER: NOW_S, NEW: math.inf}


def test_removed_tenant_is_gone_and_added_again_has_its_new_key_only() -> None:
    gone = removed(NONE, BASE, "ada")
    assert (overlay([ADA], gone).settings, overlay([ADA], gone).keys) == ({}, ())
    back = overlay([ADA], added(gone, BASE, "ada", {}, NEW))
    assert [key for key, until_s in keys_of(back).items() if until_s > NOW_S] == [NEW]
    assert back.settings["ada"].weight == ADA.weight


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda: added(NONE, BASE, "ada", {}, NEW), "exists"),
        (lambda: added(NONE, BASE, "No Name", {}, NEW), "name"),
        (lambda: added(NONE, BASE, "bob", {"weight": 0}, NEW), "weight"),
        (lambda: added(NONE, BASE, "bob", {"wait": 1}, NEW), "no field 'wait'.*weight"),
        (lambda: changed(NONE, BASE, "ada", {"name": "eve"}), "no field 'name'"),
        (lambda: changed(NONE, BASE, "ada", {"api_key_sha256": [NEW]}), "no field 'api_key_sha256'"),
        (lambda: changed(NONE, BASE, "ada", {"admin": "yes"}), "admin"),
        (lambda: changed(NONE, BASE, "ada", {"burst_j": math.nan}), "burst_j"),
        (lambda: changed(NONE, BASE, "bob", {"weight": 2}), "no tenant is called 'bob'; there are: ada"),
        (lambda: rotated(NONE, BASE, "bob", NEW, now_s=0.0, old_until_s=0.0), "no tenant"),
        (lambda: removed(removed(NONE, BASE, "ada"), BASE, "ada"), "no tenant"),
        (lambda: removed(NONE, BASE, "local"), "without keys"),
    ],
)
def test_change_that_cannot_be_is_refused_by_name(change: Callable[[], Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        change()


def test_number_of_changed_tenants_is_bounded() -> None:
    full = TenantRecords(by_name={f"t{number}": TenantRecord() for number in range(MAX_RECORDS)})
    with pytest.raises(ValueError, match="10000"):
        added(full, BASE, "bob", {}, NEW)


def test_whoever_has_no_key_may_be_given_limits() -> None:
    assert overlay([], changed(NONE, {}, "local", {"burst_j": 3})).settings["local"].burst_j == 3.0


def test_field_of_a_later_release_is_passed_over() -> None:
    later = TenantRecords(by_name={"ada": TenantRecord(fields={"colour": "red", "weight": 4})})
    assert overlay([ADA], later).settings["ada"].weight == 4.0


def test_record_that_is_no_tenant_closes_that_one_and_the_others_count() -> None:
    eve = TenantSettings(name="eve", api_key_sha256=(OTHER,))
    records = removed(added(NONE, {}, "bob", {"weight": 3}, NEW), {"eve": Known.of(eve)}, "eve")
    broken = TenantRecord(fields={"weight": -1}, keys=(KeyRecord("01" * 32),))
    tenants = overlay([ADA, eve], TenantRecords(by_name={**records.by_name, "ada": broken}))
    assert list(tenants.settings) == ["bob"]
    assert keys_of(tenants) == {NEW: math.inf}
    assert list(tenants.unusable) == ["ada"]
    assert "weight" in tenants.unusable["ada"]


@pytest.mark.parametrize(
    ("records", "needs_key"),
    [
        (NONE, False),
        (changed(NONE, {}, "local", {"burst_j": 3}), False),
        (added(NONE, {}, "bob", {}, NEW), True),
        (removed(added(NONE, {}, "bob", {}, NEW), {}, "bob"), True),
        (TenantRecords(by_name={"bob": TenantRecord(fields={"weight": -1}, keys=(KeyRecord(NEW),))}), True),
        (TenantRecords(by_name={"local": TenantRecord(fields={"weight": -1})}), True),
    ],
)
def test_where_there_ever_was_a_key_everybody_needs_one(records: TenantRecords, needs_key: bool) -> None:
    assert overlay([], records).needs_key is needs_key


def test_removing_the_last_tenant_lets_nobody_in() -> None:
    live = LiveTenants()
    authenticator = build_authenticator(resolve(from_mapping({})), live)
    assert authenticator.authenticate(None, None, "127.0.0.1") == "local"
    live.replace(overlay([], removed(added(NONE, {}, "bob", {}, NEW), {}, "bob")))
    with pytest.raises(Unauthenticated):
        authenticator.authenticate(None, None, "127.0.0.1")
    assert not authenticator.is_admin("local")


def test_views_follow_the_snapshot() -> None:
    live = LiveTenants([ADA])
    bursts, weights = live.view(lambda tenant: tenant.burst_j), live.weights
    assert (dict(bursts), weights["ada"], weights.get("bob", 1.0)) == ({"ada": 5.0}, 2.0, 1.0)
    live.replace(overlay([ADA], added(removed(NONE, BASE, "ada"), BASE, "bob", {"weight": 9}, NEW)))
    assert (list(bursts), weights["bob"], weights.get("ada")) == (["bob"], 9.0, None)


def test_who_listens_hears_of_now_and_of_later() -> None:
    live, heard = LiveTenants([ADA]), list[list[str]]()
    live.each(lambda tenants: heard.append(list(tenants.settings)))
    live.replace(overlay([ADA], removed(NONE, BASE, "ada")))
    assert heard == [["ada"], []]


def test_new_weight_counts_in_queues_that_a_tenant_never_leaves() -> None:
    live = LiveTenants([ADA])
    queue: FairQueue[Any] = FairQueue(live.weights)
    slots: SharedSlots[Turn] = SharedSlots(100, live.weights)
    for number in range(4):
        queue.add(Queued("ada", number))
        slots.add(Turn("ada", 0, 1.0))
    live.replace(overlay([ADA], changed(NONE, BASE, "ada", {"weight": 20})))
    for number in range(4, 44):
        queue.add(Queued("ada", number))
        queue.add(Queued("bob", 100 + number))
        slots.add(Turn("ada", 0, 1.0))
        slots.add(Turn("bob", 0, 1.0))
    taken, _ = queue.take(42)
    assert [unit.tenant for unit in taken].count("bob") <= 3
    turns = [slots.take() for _ in range(42)]
    assert [turn.tenant for turn in turns if turn is not None].count("bob") <= 3


def test_authenticator_counts_only_what_it_was_given_last() -> None:
    now_s = NOW_S
    digest = hashlib.sha256(b"key").hexdigest()
    authenticator = Authenticator({"ada": digest}, False, clock=lambda: now_s)
    assert authenticator.authenticate(None, "key", None) == "ada"
    authenticator.use(Credentials((("ada", digest, NOW_S + 10.0),), admins=frozenset({"ada"})))
    assert authenticator.authenticate(None, "key", None) == "ada"
    assert authenticator.is_admin("ada")
    now_s += 10.0
    with pytest.raises(Unauthenticated, match="unknown"):
        authenticator.authenticate(None, "key", "127.0.0.1")
