"""The guard against tenants whose tokens pile up on few experts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedulers.experts.placement import in_order
from schedulers.experts.skew import Loads, LoadSkew
from schedulers.lab.hot_experts import p99_s, replay, trace
from schedulers.policies.denoising import DenoisingConfig, DenoisingWork, Routed, denoising
from schedulers.types import RunSlice, SliceFinished, SliceResult, UnitArrived

LAYERS, EXPERTS, RANKS = 2, 8, 4
PLACEMENT = in_order(LAYERS, EXPERTS, RANKS)
EVEN: Loads = [[10] * EXPERTS] * LAYERS
PILED: Loads = [[80, 0, 0, 0, 0, 0, 0, 0]] * LAYERS
OTHER_RANK: Loads = [[0, 0, 0, 0, 0, 0, 0, 80]] * LAYERS

loads = st.lists(st.lists(st.integers(0, 50), min_size=EXPERTS, max_size=EXPERTS), min_size=LAYERS, max_size=LAYERS)
rows = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 99).map(float)), min_size=1, max_size=6)


def skew(**tenants: Loads) -> LoadSkew:
    guard = LoadSkew(lambda: PLACEMENT)
    for tenant, sent in tenants.items():
        guard.took(tenant, sent)
    return guard


def test_imbalance_is_the_fullest_rank_over_the_mean() -> None:
    guard = skew(even=EVEN, piled=PILED, other=OTHER_RANK)
    assert guard.imbalance([("even", 80.0)]) == 0.0
    assert guard.imbalance([("piled", 80.0)]) == pytest.approx(RANKS - 1)
    assert guard.imbalance([("piled", 80.0), ("other", 80.0)]) == pytest.approx(1.0)
    assert guard.imbalance([("stranger", 80.0)]) == 0.0


def test_whoever_piles_up_pays_for_the_whole_delay_and_the_others_for_none() -> None:
    guard = skew(even=EVEN, piled=PILED)
    slice_rows = [("even", 80.0), ("piled", 80.0)]
    delay = guard.slowdown(slice_rows) - 1.0
    even, piled = guard.shares(slice_rows, [0.5, 0.5], surcharge=1.0)
    assert even * (1.0 + delay) == pytest.approx(0.5), "as if there were no delay"
    assert piled * (1.0 + delay) == pytest.approx(0.5 + delay)
    dear = guard.shares(slice_rows, [0.5, 0.5])[1]
    assert dear * (1.0 + delay) == pytest.approx(0.5 + 2 * delay)


def test_a_tenant_joins_no_slice_that_it_delays_and_others_join_its_slices() -> None:
    guard = skew(even=EVEN, piled=PILED)
    assert guard.delays([("even", 80.0)], ("piled", 80.0))
    assert not guard.delays([("piled", 80.0)], ("even", 80.0))
    assert not guard.delays([("even", 80.0)], ("even", 80.0))


def test_nobody_is_slow_on_one_rank() -> None:
    guard = LoadSkew(lambda: in_order(LAYERS, EXPERTS, 1))
    guard.took("piled", PILED)
    assert guard.slowdown([("piled", 80.0)]) == 1.0
    assert guard.shares([("piled", 1.0), ("even", 1.0)], [0.5, 0.5]) == [0.5, 0.5]


def test_profiles_begin_anew_when_experts_move() -> None:
    places = [PLACEMENT]
    guard = LoadSkew(lambda: places[0])
    guard.took("piled", PILED)
    places[0] = in_order(LAYERS, EXPERTS, RANKS)
    guard.took("even", EVEN)
    assert guard.imbalance([("piled", 80.0)]) == 0.0


def test_the_part_of_experts_in_a_slice_is_learnt() -> None:
    guard = skew(even=EVEN, piled=PILED)
    for _ in range(100):
        for name in ("even", "piled"):
            guard.observe([(name, 1.0)], 1.0 + 0.8 * guard.imbalance([(name, 1.0)]))
    assert guard.weight == pytest.approx(0.8, abs=0.05)


@given(st.lists(st.tuples(st.sampled_from("abc"), loads), max_size=8), rows)
def test_payments_add_up_and_no_even_tenant_pays_more_than_alone(
    history: list[tuple[str, Loads]], slice_rows: list[tuple[str, float]]
) -> None:
    guard = skew()
    for tenant, sent in history:
        guard.took(tenant, sent)
    parts = [1.0 / len(slice_rows)] * len(slice_rows)
    paid = guard.shares(slice_rows, parts, surcharge=1.0)
    assert sum(paid) == pytest.approx(1.0)
    assert min(paid) >= 0.0
    assert guard.slowdown(slice_rows) >= 1.0
    assert 0.0 <= guard.weight <= 1.0


@given(st.integers(1, 300))
def test_memory_is_bounded_however_many_tenants_come(number: int) -> None:
    guard = skew()
    for tenant in range(number):
        guard.took(str(tenant), EVEN)
        guard.imbalance([(str(tenant), 1.0), (str(tenant - 1), 1.0)])
    assert len(guard._profiles) <= 64
    assert len(guard._memo) <= 256


def test_a_slice_is_charged_to_the_tenant_that_made_it_slow() -> None:
    guard = skew(even=EVEN, piled=PILED)
    kernel = denoising(DenoisingConfig(max_batch=1), skew=guard)
    work = DenoisingWork(steps_left=40, seconds_per_step=1.0, tokens=80)
    arrivals = [UnitArrived(unit_id=name, work=work, tenant=name) for name in ("even", "piled")]
    steps = {"even": 0, "piled": 0}
    decisions = kernel.handle(0.0, *arrivals)
    now_s = 0.0
    for _ in range(30):
        (run,) = [one for one in decisions if isinstance(one, RunSlice)]
        (name,) = run.unit_ids
        steps[name] += 1
        elapsed_s = 1.0 if name == "even" else 2.5
        now_s += elapsed_s
        report = Routed((), EVEN if name == "even" else PILED)
        ended = SliceFinished(
            slice_id=run.slice_id, results=(SliceResult(unit_id=name, report=report),), elapsed_s=elapsed_s
        )
        decisions = kernel.handle(now_s, ended)
        kernel.check_invariants()
    assert steps["even"] >= 3 * steps["piled"], "2.5 s and a surcharge of 1.5 s against 1 s"


def test_piled_inputs_leave_the_others_within_a_third_of_an_even_flood() -> None:
    def p99(inputs: str, *, is_guarded: bool) -> float:
        units = trace(inputs, honest=0.4, flood=0.2, num_units=250)  # type: ignore[arg-type]
        return p99_s(replay(units, is_guarded=is_guarded))

    even = p99("spread", is_guarded=True)
    assert p99("piled", is_guarded=True) <= 1.3 * even
    assert p99("piled", is_guarded=False) > 2.0 * even
