"""Signatures of requests, what separates them, and the router that goes by them."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedulers.affinity import BOUND, load_limit_s
from schedulers.experts.affinity import Affinity
from schedulers.experts.separability import OFF, ON, Switch, expected_saving, separability, table_saving
from schedulers.experts.signature import (
    SIZE,
    Signature,
    Signed,
    StepTable,
    mean_sketch,
    prompt_shares,
    similarity,
    sketch_of,
)
from schedulers.routing import ReplicaLoad, rank

LAYERS, EXPERTS, CHOSEN = 4, 32, 4


class Domains:
    """Prompts of a few domains: gates prefer other experts in each, by ``s`` in logits."""

    def __init__(self, s: float, number: int = 3, seed: int = 0) -> None:
        self._rng = Random(seed)
        self._preferred = [
            [[self._rng.gauss(0.0, s) for _ in range(EXPERTS)] for _ in range(LAYERS)] for _ in range(number)
        ]

    def prompt(self, domain: int, tokens: int = 24) -> Signature:
        counts = [[0] * EXPERTS for _ in range(LAYERS)]
        for layer, preferred in enumerate(self._preferred[domain]):
            for _ in range(tokens):
                noisy = [logit - math.log(self._rng.expovariate(1.0)) for logit in preferred]
                for expert in sorted(range(EXPERTS), key=noisy.__getitem__)[-CHOSEN:]:
                    counts[layer][expert] += 1
        return prompt_shares(counts)

    def any(self) -> tuple[int, Signature]:
        domain = self._rng.randrange(len(self._preferred))
        return domain, self.prompt(domain)


def idle(number: int) -> list[ReplicaLoad]:
    return [ReplicaLoad(replica_id=str(name), queued_s=0.0) for name in range(number)]


def test_a_sketch_keeps_what_is_alike() -> None:
    domains = Domains(1.5)
    sketches = [[sketch_of(domains.prompt(domain)) for _ in range(3)] for domain in range(3)]
    usual = mean_sketch([one for group in sketches for one in group])
    same = min(similarity(group[0], other, usual) for group in sketches for other in group[1:])
    different = max(similarity(sketches[0][0], other, usual) for group in sketches[1:] for other in group)
    assert same > 0.5 > 0.2 > different


@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=2, max_size=5))
def test_a_sketch_is_linear_and_of_fixed_size(signature: list[list[float]]) -> None:
    sketch = sketch_of(signature)
    half = sketch_of([[share / 2 for share in layer] for layer in signature])
    assert len(sketch) == SIZE
    assert half == pytest.approx([number / 2 for number in sketch])


def test_images_and_texts_of_a_prompt_weigh_the_same() -> None:
    image, text = [[300, 100, 0, 0]], [[0, 0, 1, 3]]
    assert prompt_shares(image, text) == [[0.375, 0.125, 0.125, 0.375]]
    assert prompt_shares(image, [[0, 0, 0, 0]]) == [[0.75, 0.25, 0.0, 0.0]]


@given(st.floats(-1, 2), st.integers(1, 9))
def test_a_table_has_a_signature_for_every_step(done: float, buckets: int) -> None:
    shares = [[[float(expert == bucket) for expert in range(buckets)]] for bucket in range(buckets)]
    table: Signed = StepTable(shares)
    assert table.sketch(done) == sketch_of(shares[min(buckets - 1, max(0, math.floor(done * buckets)))])


# -- separability ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("s", [0.0, 0.5, 1.0, 1.5])
def test_separability_is_that_of_the_gates(s: float) -> None:
    found = []
    for seed in range(4):
        domains = Domains(s, number=4, seed=seed)
        groups = [[sketch_of(domains.prompt(domain)) for _ in range(12)] for domain in range(4)]
        means = [mean_sketch(group) for group in groups]
        noise = sum(
            sum((a - b) ** 2 for one in group for a, b in zip(one, mean, strict=True)) / 11 / 12
            for group, mean in zip(groups, means, strict=True)
        )
        found.append(separability(means, CHOSEN / EXPERTS, noise / 4))
    assert sum(found) / 4 == pytest.approx(s, abs=0.25)


@given(st.floats(0, 3), st.floats(0, 3), st.integers(2, 8))
def test_more_separable_traffic_saves_more(one: float, other: float, groups: int) -> None:
    less, more = sorted((one, other))
    assert expected_saving(less, 16, 1 / 16, groups) <= expected_saving(more, 16, 1 / 16, groups) + 1e-3
    assert 0.0 <= expected_saving(more, 16, 1 / 16, groups) < 1.0


def test_nothing_is_saved_where_every_slice_wakes_all_experts() -> None:
    assert expected_saving(1.0, 16, 1 / 16, 4) > ON
    assert expected_saving(1.0, 4096, 1 / 4, 4) < OFF
    assert expected_saving(1.0, 16, 1 / 16, 1) == 0.0


def test_the_saving_of_a_table_is_exact() -> None:
    by_phase = [[[1.0, 0.0]], [[0.0, 1.0]]]  # two experts, one after the other, as in Wan2.2
    assert table_saving(by_phase, 1024) == pytest.approx(0.5)
    assert table_saving([[[0.7, 0.3]], [[0.3, 0.7]]], 128) < 1e-6  # and a picture that wakes both at any time


def test_separability_of_one_group_or_of_a_model_that_asks_all_experts_is_none() -> None:
    assert separability([sketch_of([[0.5, 0.5]])], 0.5) == 0.0
    assert separability([sketch_of([[0.5, 0.5]])] * 2, 1.0) == 0.0


@given(st.lists(st.floats(0, 1), max_size=30))
def test_the_switch_has_hysteresis(savings: list[float]) -> None:
    switch = Switch()
    for saving in savings:
        before = switch.is_on
        assert switch.measure(saving) == (saving >= ON or (before and saving >= OFF))


def test_a_switch_that_goes_off_later_than_on_is_refused() -> None:
    with pytest.raises(ValueError, match="off is"):
        Switch(on=0.1, off=0.2)


# -- affinity --------------------------------------------------------------------------------------------------------


def served(affinity: Affinity, domains: Domains, number: int, replicas: int = 3) -> list[tuple[int, str]]:
    """Domains of requests, and the replicas that they went to, all of which are idle."""
    found = []
    for _ in range(number):
        domain, signature = domains.any()
        found.append((domain, affinity.route(idle(replicas), sketch_of(signature), 0.1)[0].replica_id))
    return found


def test_requests_alike_meet_where_they_are_separable() -> None:
    affinity = Affinity(tokens=8, chosen=CHOSEN / EXPERTS)
    domains = Domains(1.5)
    served(affinity, domains, 192)
    assert affinity.is_on
    assert affinity.separability > 1.0
    assert affinity.saving > ON
    homes = served(affinity, domains, 60)
    for domain in range(3):
        own = [replica for name, replica in homes if name == domain]
        assert max(map(own.count, own)) >= 0.8 * len(own)
    assert len({replica for _, replica in homes}) == 3, "each replica has its own"
    assert affinity.num_alike == affinity.num_routed > 0, "all were idle"


def test_affinity_is_off_where_requests_are_not_separable_and_comes_back_when_they_are() -> None:
    affinity = Affinity(tokens=8, chosen=CHOSEN / EXPERTS)
    served(affinity, Domains(0.0), 192)
    assert not affinity.is_on
    assert affinity.saving < OFF
    loads = [ReplicaLoad(replica_id=str(name), queued_s=float(name)) for name in range(3)]
    sketch = sketch_of(Domains(0.0).prompt(0))
    assert affinity.route(loads, sketch, 0.1) == rank(loads)
    served(affinity, Domains(1.5), 256)
    assert affinity.is_on
    served(affinity, Domains(0.0), 256)
    assert not affinity.is_on


@pytest.fixture(scope="module")
def separable() -> Affinity:
    affinity = Affinity(tokens=8, chosen=CHOSEN / EXPERTS)
    served(affinity, Domains(1.5), 192)
    assert affinity.is_on
    return affinity


@settings(max_examples=60)
@given(loads=st.lists(st.floats(0, 100), min_size=3, max_size=3), added_s=st.floats(0, 10), domain=st.integers(0, 2))
def test_the_bound_on_load_comes_before_affinity(
    separable: Affinity, loads: list[float], added_s: float, domain: int
) -> None:
    replicas = [ReplicaLoad(replica_id=str(name), queued_s=load) for name, load in enumerate(loads)]
    ranked = separable.route(replicas, sketch_of(Domains(1.5).prompt(domain)), added_s)
    limit_s = load_limit_s(loads, added_s, BOUND)
    over = [replica.queued_s + added_s > limit_s for replica in ranked]
    assert over == sorted(over), "whoever is over the bound comes last"
    assert sorted(replica.replica_id for replica in ranked) == ["0", "1", "2"]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_replicas_come_and_go_and_memory_is_bounded(numbers: list[int]) -> None:
    affinity, domains = Affinity(tokens=8, chosen=CHOSEN / EXPERTS), Domains(1.0)
    sketch = sketch_of(domains.prompt(0))
    for number in numbers:
        for _ in range(70):
            assert len(affinity.route(idle(number), sketch, 0.1)) == number
    assert len(affinity._window) <= 128
    assert len(affinity._groups) <= numbers[-1]
