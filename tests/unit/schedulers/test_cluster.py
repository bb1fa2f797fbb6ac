"""A whole system on the virtual clock, with models whose costs can be checked by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

import pytest

from schedulers.admission import BucketLimits
from schedulers.lab.cluster import POLICIES, System, Tenant, busy_s_per_s, simulate_system
from schedulers.lab.outcomes import Outcome, max_min, summarise
from schedulers.lab.served import IMAGE, OUTPUT, PROMPT, PointNumbers, Seconds, ServedModel
from schedulers.lab.traces import Request, Tokens
from schedulers.types import Priority

ROWS = ServedModel(
    id="rows",
    tasks=("classify", "infer"),
    shape="rows",
    points=(PointNumbers(name="whole", quality=0.9), PointNumbers(name="early", quality=0.7, exit_shares=(0.8, 0.2))),
    watts=2.0,
    max_batch=4,
    stage_s=(Seconds({1: 0.1, 4: 0.16}), Seconds({1: 0.2, 4: 0.32})),
)
STEPS = ServedModel(
    id="steps",
    tasks=("images", "videos"),
    shape="steps",
    points=(
        PointNumbers(name="ten", quality=0.9, step_s=Seconds({1: 0.1, 4: 0.2}), num_steps=10, decode_s=0.05),
        PointNumbers(name="two", quality=0.6, step_s=Seconds({1: 0.1, 4: 0.2}), num_steps=2, decode_s=0.05),
    ),
    watts=10.0,
    max_batch=4,
)
SLOTS = ServedModel(
    id="slots",
    tasks=("chat",),
    shape="slots",
    points=(
        PointNumbers(
            name="long",
            quality=0.8,
            token_s={IMAGE: Seconds({1: 0.001}), PROMPT: Seconds({1: 0.001}), OUTPUT: Seconds({1: 0.01, 4: 0.02})},
        ),
        PointNumbers(
            name="short",
            quality=0.5,
            token_s={IMAGE: Seconds({1: 0.001}), PROMPT: Seconds({1: 0.001}), OUTPUT: Seconds({1: 0.01, 4: 0.02})},
            caps={OUTPUT: 10.0, IMAGE: 50.0},
        ),
    ),
    usual_tokens={IMAGE: 100.0, PROMPT: 20.0, OUTPUT: 50.0},
    watts=5.0,
    max_batch=4,
)
SYSTEM = System(models=(ROWS, STEPS, SLOTS), checks=True)
ALONE_S = {"classify": 0.3, "images": 10 * 0.1 + 0.05, "chat": 100 * 0.001 + 120 * 0.001 + 50 * 0.01}


def mixture(count: int, seed: int = 0, rate_per_s: float = 8.0) -> list[Request]:
    rng, now_s, requests = Random(seed), 0.0, []
    for _ in range(count):
        now_s += rng.expovariate(rate_per_s)
        task = rng.choice(("classify", "infer", "images", "videos", "chat"))
        requests.append(
            Request(
                arrived_s=now_s,
                task=task,
                tenant=rng.choice("aab"),
                priority=rng.choice(list(Priority)),
                latency_s=rng.choice((None, 1.5, 4.0)),
                energy_j=rng.choice((None, None, 8.0)),
                size=rng.choice((1.0, 2.0)),
                tokens=Tokens(rng.randint(0, 2), 30, rng.randint(1, 90)) if task == "chat" else None,
            )
        )
    return requests


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("task", ALONE_S)
def test_one_request_takes_just_what_was_planned(policy: str, task: str) -> None:
    (only,) = simulate_system(SYSTEM, [Request(arrived_s=3.0, task=task)], policy)
    assert only.state == "answered"
    assert only.latency_s == pytest.approx(ALONE_S[task])
    model = SYSTEM.model_for(only.request)
    assert only.latency_s == pytest.approx(model.alone_s(model.points[0]))
    assert only.joules == pytest.approx(ALONE_S[task] * model.watts)
    assert not only.degraded


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(3))
def test_every_request_ends_once_and_the_seed_decides_all(policy: str, seed: int) -> None:
    requests = mixture(300, seed)
    system = replace(SYSTEM, replicas={"rows": 2, "steps": 3}, noise=0.2)
    outcomes = simulate_system(system, requests, policy, seed=seed)
    assert [one.number for one in outcomes] == list(range(300))
    assert [one.request for one in outcomes] == requests
    assert all(one.done_s >= one.request.arrived_s for one in outcomes)
    assert Counter(one.state for one in outcomes)["answered"] > 100
    assert outcomes == simulate_system(system, requests, policy, seed=seed)
    assert outcomes != simulate_system(system, requests, policy, seed=seed + 1)


def test_first_come_is_first_served_and_the_nearest_deadline_goes_first() -> None:
    waits = [Request(arrived_s=0.0, task="images")]  # holds the only replica meanwhile
    waits += [Request(arrived_s=0.1 * n, task="images", size=1.0 + n, latency_s=100.0 - 9 * n) for n in range(1, 6)]
    by_policy = {
        policy: [one.number for one in sorted(simulate_system(SYSTEM, waits, policy), key=lambda one: one.done_s)]
        for policy in ("fcfs", "edf")
    }
    assert by_policy == {"fcfs": [0, 1, 2, 3, 4, 5], "edf": [0, 5, 4, 3, 2, 1]}


def test_the_fewest_requests_decide_where_one_goes() -> None:
    """Three of a second each on three replicas do not wait for each other."""
    system = replace(SYSTEM, replicas={"steps": 3})
    requests = [Request(arrived_s=0.01 * n, task="images", size=1.0 + n) for n in range(3)]
    outcomes = simulate_system(system, requests, "least_loaded")
    assert [one.latency_s for one in outcomes] == pytest.approx([1.05, 2.10, 3.15])


def test_who_cannot_be_in_time_expires_and_what_fits_nothing_is_rejected() -> None:
    busy = [Request(arrived_s=0.0, task="images", size=3.0), Request(arrived_s=0.1, task="images", latency_s=1.5)]
    _, late = simulate_system(SYSTEM, busy, "fcfs")
    assert (late.state, late.reason) == ("expired", "deadline_unreachable")
    assert late.done_s == pytest.approx(1.6 - 1.05)
    (hopeless,) = simulate_system(SYSTEM, [Request(arrived_s=0.0, task="images", latency_s=0.01)], "vireo")
    assert (hopeless.state, hopeless.reason) == ("rejected", "infeasible: latency")


def test_a_job_that_is_late_before_it_begins_is_not_made() -> None:
    """Eight jobs fill the replica's room; what is claimed after its deadline has ended by then."""
    long = [Request(arrived_s=0.0, task="images", size=3.0) for _ in range(8)]
    hasty = [Request(arrived_s=0.01, task="images", tenant="b", latency_s=2.0) for _ in range(3)]
    outcomes = simulate_system(SYSTEM, [*long, *hasty], "vireo")
    assert {one.state for one in outcomes[:8]} == {"answered"}
    assert {(one.state, one.reason, one.joules) for one in outcomes[8:]} == {("expired", "deadline_passed", 0.0)}


def test_a_bucket_that_is_empty_rejects_under_ours_alone() -> None:
    limits = BucketLimits(joules_per_s=1.0, joules_burst=8.0, seconds_per_s=9.0, seconds_burst=99.0)
    system = replace(SYSTEM, tenants={"poor": Tenant(limits=limits)})
    requests = [
        Request(arrived_s=0.1 * n, task="images", tenant=tenant) for n, tenant in enumerate(["poor", "poor", "a"])
    ]
    assert [one.reason for one in simulate_system(system, requests, "vireo")] == ["", "quota", ""]
    assert {one.reason for one in simulate_system(system, requests, "fcfs")} == {""}


def test_load_makes_ours_pick_a_cheaper_point() -> None:
    requests = [Request(arrived_s=0.05 * n, task="images", latency_s=3.0) for n in range(40)]
    ours = simulate_system(SYSTEM, requests, "vireo")
    assert {one.point for one in ours if one.state == "answered"} == {"ten", "two"}
    assert all(one.degraded == (one.point == "two") for one in ours if one.state == "answered")
    good = {policy: sum(one.is_good for one in simulate_system(SYSTEM, requests, policy)) for policy in POLICIES}
    assert good["vireo"] >= max(good.values())


def test_quality_bends_while_work_waits_even_if_nobody_has_a_deadline() -> None:
    requests = [Request(arrived_s=0.02 * n, task="classify") for n in range(600)]
    ours, plain = (simulate_system(replace(SYSTEM, checks=False), requests, policy) for policy in ("vireo", "fcfs"))
    assert {one.point for one in plain} == {"whole"}
    assert {one.point for one in ours[:10]} == {"whole"}
    assert {one.point for one in ours[-300:]} == {"early"}
    assert max(one.latency_s for one in ours) < max(one.latency_s for one in plain)


def test_a_greedy_tenant_does_not_make_others_wait_under_ours() -> None:
    flood = [Request(arrived_s=0.02 * n, task="classify", tenant="greedy", latency_s=2.0) for n in range(900)]
    honest = [Request(arrived_s=0.4 * n, task="classify", tenant="honest", latency_s=2.0) for n in range(45)]
    requests = sorted([*flood, *honest], key=lambda one: one.arrived_s)
    share = {
        policy: summarise(simulate_system(replace(SYSTEM, checks=False), requests, policy), {}).by_tenant
        for policy in ("fcfs", "vireo")
    }
    assert share["vireo"]["honest"].attainment == 1.0
    assert share["fcfs"]["honest"].attainment < 0.8


def test_a_thousand_replicas_share_the_work_evenly() -> None:
    system = replace(SYSTEM, replicas={"rows": 1000}, checks=False)
    requests = [Request(arrived_s=0.0001 * n, task="classify") for n in range(1000)]
    outcomes = simulate_system(system, requests, "vireo")
    assert max(one.latency_s for one in outcomes) == pytest.approx(0.3)


def test_unknown_policies_models_and_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match="'best' is unknown; there are fcfs"):
        simulate_system(SYSTEM, mixture(1), "best")
    with pytest.raises(LookupError, match="task 'song'; there are rows, steps, slots"):
        simulate_system(SYSTEM, [Request(arrived_s=0.0, task="song")], "fcfs")
    with pytest.raises(LookupError, match="model 'other'"):
        simulate_system(SYSTEM, [Request(arrived_s=0.0, model="other")], "fcfs")
    with pytest.raises(ValueError, match="model rows: whole: need an exit share for each stage"):
        replace(ROWS, points=(replace(ROWS.points[0], exit_shares=(1.0,)),))
    for bad in ({}, {0: 1.0}, {2: 1.0, 1: 1.0}, {1: -1.0}, {1: float("nan")}):
        with pytest.raises(ValueError, match="seconds are"):
            Seconds(bad)


def test_busy_seconds_are_those_of_full_batches() -> None:
    requests = [Request(arrived_s=float(n), task="images") for n in range(11)]
    busy = busy_s_per_s(SYSTEM, requests)
    assert busy == pytest.approx({"rows": 0.0, "slots": 0.0, "steps": 11 * (10 * 0.2 / 4 + 0.05) / 10})


def test_shares_are_max_min_fair() -> None:
    assert max_min({"a": 1.0, "b": 10.0, "c": 10.0}, {}, 9.0) == pytest.approx({"a": 1.0, "b": 4.0, "c": 4.0})
    assert max_min({"a": 9.0, "b": 9.0}, {"a": 2.0}, 9.0) == pytest.approx({"a": 6.0, "b": 3.0})
    assert max_min({"a": 1.0, "b": 1.0}, {}, 4.0) == pytest.approx({"a": 2.0, "b": 2.0})


def test_summary_counts_by_hand() -> None:
    def ended(number: int, **found: object) -> Outcome:
        request = Request(arrived_s=float(number), task="t", tenant="ab"[number % 2], latency_s=1.0)
        return Outcome(number=number, request=request, model="m", **found)  # type: ignore[arg-type]

    found = summarise(
        [
            ended(0, state="answered", done_s=0.5, joules=2.0, planned_j=3.0, wanted_j=3.0, quality=0.5),
            ended(1, state="answered", done_s=2.5, joules=1.0, planned_j=1.0, wanted_j=1.0, quality=0.7, degraded=True),
            ended(2, state="rejected", done_s=2.0, wanted_j=1.0),
            ended(3, state="expired", done_s=4.0, joules=0.5, wanted_j=1.0),
        ],
        {},
    )
    assert (found.attainment, found.degraded, found.rejected, found.expired, found.late) == (0.25,) * 5
    assert (found.joules, found.joules_per_good, found.quality) == pytest.approx((3.5, 3.5, 0.6))
    assert found.goodput_per_s == pytest.approx(1 / 3)
    assert found.worst_over_share == pytest.approx(3.0 / 2.0)  # a and b asked for 4 and 2; 4 were given
    assert found.by_tenant["a"].attainment == 0.5
    assert (found.p50_s, found.p99_s, found.mean_latency_s) == (0.5, 1.5, 1.0)
