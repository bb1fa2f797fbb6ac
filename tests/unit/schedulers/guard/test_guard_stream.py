"""The monitor of a stream of token ids: each detector by itself, beside a slow twin, and all among benign answers."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import cached_property

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedulers.guard.calibration import Group
from schedulers.guard.conformal import LEVEL, bound_tokens
from schedulers.guard.detectors import ON_TOKENS
from schedulers.guard.stream import (
    EOS_DRIFT,
    EOS_LIMIT,
    MIN_GRAMS,
    WINDOW,
    Statistics,
    StreamMonitor,
    StreamStatistics,
)

SPECIAL = frozenset({0, 1})
MEDIAN = (-9.0, -6.0, -2.0)


def twin(tokens: Sequence[int], ends: Sequence[float]) -> Statistics:
    """As defined, all of it for every token."""
    share, run, worst_run, cusum, worst_cusum = 1.0, 0, 0, 0.0, 0.0
    for i, token in enumerate(tokens):
        run = run + 1 if token in SPECIAL else 0
        worst_run = max(worst_run, run)
        grams = [tuple(tokens[j : j + 4]) for j in range(max(0, i - 3 - WINDOW + 1), i - 2)]
        if len(grams) >= MIN_GRAMS:
            share = min(share, len(set(grams)) / len(grams))
        step = MEDIAN[min(i, 2)] - ends[i] - EOS_DRIFT
        cusum = max(0.0, cusum + min(EOS_LIMIT, max(-EOS_LIMIT, step)))
        worst_cusum = max(worst_cusum, cusum)
    return Statistics(len(tokens), share, worst_run, worst_cusum)


@given(st.integers(0, 600), st.integers(1, 40), st.integers(0, 1 << 30), st.integers(1, 7))
def test_statistics_are_those_of_the_slow_twin_however_tokens_are_told(
    num: int, variety: int, seed: int, piece: int
) -> None:
    draw = random.Random(seed)
    tokens = [draw.randrange(variety) for _ in range(num)]
    ends = [-15.0 * draw.random() for _ in range(num)]
    fast = StreamStatistics(SPECIAL, MEDIAN)
    for i in range(0, num, piece):
        fast.push(tokens[i : i + piece], ends[i : i + piece])
    expected = twin(tokens, ends)
    assert fast.now()[:3] == expected[:3]
    assert fast.now().cusum == pytest.approx(expected.cusum)


@pytest.mark.parametrize(("period", "noise"), [(1, 0.0), (5, 0.05), (20, 0.05), (60, 0.02), (60, 0.05)])
def test_loops_are_seen_that_do_not_repeat_exactly(period: int, noise: float) -> None:
    """With the noise that the engine's own loop stop misses."""
    draw = random.Random(period)
    tokens = [100 + i % period if draw.random() > noise else draw.randrange(5000) for i in range(600)]
    statistics = StreamStatistics()
    statistics.push(tokens)
    assert statistics.now().unique_share < 0.5
    ordinary = StreamStatistics()
    ordinary.push([draw.randrange(5000) for _ in range(600)])
    assert ordinary.now().unique_share > 0.99


def test_memory_does_not_grow_with_the_answer() -> None:
    statistics = StreamStatistics()
    statistics.push(range(50_000))
    assert len(statistics._counts) == WINDOW
    assert statistics.now().num_tokens == 50_000


# -- p-values among benign answers -----------------------------------------------------------------------------------


class Benign:
    """Answers of one kind: some length, some repetition, a few special tokens, an end that becomes likely."""

    def __init__(self, seed: int) -> None:
        draw = random.Random(seed)
        self.num = max(1, int(math.exp(draw.gauss(4.0, 0.7))))
        variety = draw.choice((8, 30, 400))
        self.tokens = [draw.randrange(variety) for _ in range(self.num)]
        self.ends = [draw.gauss(MEDIAN[min(i, 2)], 2.0) for i in range(self.num)]

    @cached_property
    def statistics(self) -> Statistics:
        found = StreamStatistics(SPECIAL, MEDIAN)
        found.push(self.tokens, self.ends)
        return found.now()


def group_of(answers: Sequence[Benign], log_tokens: float = 4.0) -> Group:
    all_of = [answer.statistics for answer in answers]
    return Group(
        num=len(answers),
        p95_tokens=150,
        residuals=tuple(sorted(math.log1p(one.num_tokens) - log_tokens for one in all_of)),
        repeat=tuple(sorted(one.unique_share for one in all_of)),
        special_run=tuple(sorted(one.special_run for one in all_of)),
        eos=tuple(sorted(one.cusum for one in all_of)),
        eos_median=MEDIAN,
    )


def monitored(group: Group, answer: Benign, log_tokens: float = 4.0) -> dict[str, float]:
    bound = bound_tokens(log_tokens, group.residual_at(LEVEL))
    monitor = StreamMonitor(group, bound, SPECIAL)
    monitor.push(answer.tokens, answer.ends)
    return monitor.p_values()


def test_p_values_of_benign_answers_are_super_uniform() -> None:
    """Each is taken out of 150 and compared with the rest: exact for exchangeable answers, whatever they are."""
    answers = [Benign(seed) for seed in range(150)]
    found = [monitored(group_of(answers[:i] + answers[i + 1 :]), answer) for i, answer in enumerate(answers)]
    assert {name for one in found for name in one} == set(ON_TOKENS)
    for name in ON_TOKENS:
        for level in (0.01, 0.02, 0.05, 0.1, 0.3, 0.7):
            assert sum(one[name] <= level for one in found) <= level * len(answers) + 1e-9, (name, level)


def test_p_values_only_fall_while_an_answer_grows() -> None:
    group = group_of([Benign(seed) for seed in range(150)])
    answer = Benign(1000)
    monitor = StreamMonitor(group, 400, SPECIAL)
    last = dict.fromkeys(ON_TOKENS, 1.0)
    for token, end in zip(answer.tokens, answer.ends, strict=True):
        monitor.push((token,), (end,))
        now = monitor.p_values()
        assert all(now[name] <= last[name] for name in ON_TOKENS)
        last = now


def test_answer_over_its_bound_is_rare_and_one_within_is_not_wherever_the_bound_was_moved() -> None:
    group = group_of([Benign(seed) for seed in range(150)])
    for bound in (20, 77, 300, 5000):
        monitor = StreamMonitor(group, bound, layers=("length",))
        monitor.push(range(bound))
        assert monitor.p_values()["length"] > LEVEL
        monitor.push((0,))
        assert monitor.p_values()["length"] <= LEVEL


ATTACKS = {
    "length": (list(range(2, 4002)), [0.0] * 4000),
    "repeat": ([5, 6, 7] * 40, [0.0] * 120),
    "special": ([*range(2, 22), *[0] * 30], [0.0] * 50),
    "eos": (list(range(2, 80)), [-25.0] * 78),
}


@pytest.mark.parametrize("name", ON_TOKENS)
def test_each_detector_sees_its_attack_and_is_silent_when_it_is_switched_off(name: str) -> None:
    group = group_of([Benign(seed) for seed in range(150)])
    bound = bound_tokens(4.0, group.residual_at(LEVEL))
    tokens, ends = ATTACKS[name]
    for layers in (ON_TOKENS, (name,)):
        monitor = StreamMonitor(group, bound, SPECIAL, layers=layers)
        monitor.push(tokens, ends)
        assert monitor.p_values()[name] == pytest.approx(1 / 151), layers
        assert set(monitor.p_values()) == set(layers)
    off = StreamMonitor(group, bound, SPECIAL, layers=[other for other in ON_TOKENS if other != name])
    off.push(tokens, ends)
    assert name not in off.p_values()
    assert min(off.p_values().values()) > 1 / 151, "no other detector sees it"


def test_detectors_with_nothing_to_compare_with_are_silent() -> None:
    group = group_of([Benign(seed) for seed in range(150)])
    monitor = StreamMonitor(group, 100, SPECIAL, is_structured=True)
    monitor.push([5, 6, 7] * 400)
    assert set(monitor.p_values()) == {"length", "special"}, "no repetition in a schema; an engine that tells no end"
    bare = StreamMonitor(Group(num=50, p95_tokens=9, residuals=(0.0,) * 50), 100)
    bare.push([1] * 1000)
    assert bare.p_values() == {}
