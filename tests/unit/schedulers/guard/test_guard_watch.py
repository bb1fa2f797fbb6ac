"""One answer under guard: suspects are looked at twice, and only what a purified copy cuts short is ended."""

from __future__ import annotations

import math
import random

import pytest

from schedulers.guard.calibration import Group
from schedulers.guard.conformal import LEVEL, bound_tokens
from schedulers.guard.stream import StreamMonitor
from schedulers.guard.watch import LONGER, LONGER_BY, Next, Watch
from schedulers.policies.guard import Action, Mode, Rules

CAP = 40
GROUP = Group(num=500, p95_tokens=CAP, residuals=tuple(i / 500 - 0.5 for i in range(500)))
BOUND = bound_tokens(3.0, GROUP.residual_at(LEVEL))


def watch(mode: Mode = Mode.ENFORCE, **options: object) -> Watch:
    defaults: dict[str, object] = {"p_values": {}, "monitor": StreamMonitor(GROUP, BOUND), "can_confirm": True}
    return Watch(Rules(mode=mode), CAP, **(defaults | options))  # type: ignore[arg-type]


def push(one: Watch, num: int) -> list[Next]:
    return [one.push((token,)) for token in range(num)]


def test_ordinary_answer_is_left_alone() -> None:
    one = watch()
    assert set(push(one, 20)) == {Next.GO_ON}
    assert one.push((1,), is_last=True) is Next.GO_ON
    assert one.verdict().action is Action.NORMAL
    assert one.is_confirmed is None


def test_suspect_is_looked_at_twice_until_somebody_has() -> None:
    one = watch()
    said = push(one, 2 * BOUND)
    first = said.index(Next.LOOK_TWICE)
    assert BOUND <= first < BOUND + 10
    assert set(said[first:]) == {Next.LOOK_TWICE}
    assert one.verdict().action is Action.DEPRIORITISED
    assert one.verdict().reasons == ("length",)


def test_what_a_purified_copy_cuts_short_is_ended_at_once_if_it_is_over_the_cap() -> None:
    one = watch()
    push(one, 2 * BOUND)
    one.looked(True, 12)
    assert one.push((1,)) is Next.END
    verdict = one.verdict()
    assert (verdict.action, one.is_confirmed, one.num_probe_tokens) == (Action.CAPPED, True, 12)
    assert verdict.reasons == ("length", "confirmed")


def test_what_is_found_early_goes_on_to_the_cap_and_is_no_attack_if_it_ends_before() -> None:
    early = {"screen": 0.0001}
    one = watch(p_values=early)
    assert push(one, 8)[-1] is Next.LOOK_TWICE
    one.looked(True, CAP)
    said = push(one, CAP - 8)
    assert said[-1] is Next.END
    assert set(said[:-1]) == {Next.GO_ON}
    assert one.num_tokens == CAP
    short = watch(p_values=early)
    push(short, 8)
    short.looked(True, 5)
    short.push((1,), is_last=True)
    assert (short.is_confirmed, short.verdict().action) == (None, Action.DEPRIORITISED)


def test_what_is_long_without_its_perturbation_too_runs_on() -> None:
    one = watch()
    push(one, 2 * BOUND)
    one.looked(False, CAP)
    assert set(push(one, 10 * CAP)) == {Next.GO_ON}
    assert (one.is_confirmed, one.verdict().action) == (False, Action.DEPRIORITISED)


def test_second_look_that_was_broken_off_may_be_taken_again() -> None:
    one = watch()
    push(one, 2 * BOUND)
    one.gave_up(3)
    assert one.push((1,)) is Next.LOOK_TWICE
    one.looked(True, 4)
    assert (one.push((1,)), one.num_probe_tokens) == (Next.END, 7)


def test_picture_that_was_confirmed_before_ends_at_the_cap() -> None:
    one = watch(is_replay=True, monitor=None)
    said = push(one, CAP)
    assert said == [Next.GO_ON] * (CAP - 1) + [Next.END]
    assert one.verdict().reasons == ("replay",)


@pytest.mark.parametrize("mode", [Mode.OBSERVE, Mode.OFF])
def test_observing_changes_nothing_and_looks_once(mode: Mode) -> None:
    for options in ({}, {"is_replay": True}):
        one = watch(mode, **options)
        assert set(push(one, 20 * CAP)) == {Next.GO_ON}
    said = watch(mode)
    push(said, 20 * CAP)
    assert said.verdict().action is (Action.DEPRIORITISED if mode is Mode.OBSERVE else Action.NORMAL)


def test_without_a_picture_nobody_looks_twice_and_nothing_is_ended() -> None:
    one = watch(can_confirm=False)
    assert set(push(one, 20 * CAP)) == {Next.GO_ON}
    assert one.verdict().action is Action.DEPRIORITISED


def test_embedding_that_moves_is_a_reason_and_one_that_does_not_excuses_nobody() -> None:
    benign = [i / 1000 for i in range(500)]
    for distance, is_reason in ((0.9, True), (0.0, False)):
        one = watch(squeeze=benign)
        push(one, 2 * BOUND)
        before = one.verdict().action
        one.squeezed([distance])
        assert one.verdict().action is before is Action.DEPRIORITISED
        assert ("squeeze" in one.verdict().reasons) is is_reason
        assert one.push((1,)) is Next.LOOK_TWICE


def test_looks_do_not_add_up_to_false_alarms() -> None:
    """Lengths as those of the calibration: no more suspects than asked for, however often somebody looks."""
    draw = random.Random(3)
    suspects = 0
    for _ in range(4000):
        one = watch()
        tokens = int(math.expm1(3.0 + draw.random() - 0.5))
        suspects += Next.LOOK_TWICE in push(one, max(1, tokens))
    assert suspects / 4000 <= 0.015


BENIGN_DISTANCES = [i / 100_000 for i in range(999)]


def glanced(distance: float | None) -> Watch:
    """Rare for the pre-screen, and no suspect for that alone."""
    one = watch(p_values={"screen": 0.009}, squeeze=BENIGN_DISTANCES)
    assert one.push((1,)) is Next.LOOK_TWICE
    assert (one.is_suspect, one.wants_squeeze) == (False, True)
    one.squeezed([] if distance is None else [distance])
    return one


def test_embedding_that_moves_makes_a_suspect_before_the_answer_is_long() -> None:
    one = glanced(0.9)
    assert one.is_suspect
    assert one.push((2,)) is Next.LOOK_TWICE
    assert one.num_tokens == 2


@pytest.mark.parametrize("distance", [0.0, None])
def test_glance_that_finds_nothing_is_not_repeated_and_accuses_nobody(distance: float | None) -> None:
    one = glanced(distance)
    assert set(push(one, 10)) == {Next.GO_ON}
    assert (one.is_suspect, one.wants_squeeze) == (False, False)


def test_nobody_is_glanced_at_who_is_not_rare() -> None:
    one = watch(p_values={"screen": 0.02}, squeeze=BENIGN_DISTANCES)
    assert set(push(one, 10)) == {Next.GO_ON}


def test_what_is_clearly_longer_than_its_purified_answer_ends_before_the_cap() -> None:
    one = watch(p_values={"screen": 0.0001})
    push(one, 8)
    one.looked(True, 10)
    said = push(one, 15)
    assert said == [Next.GO_ON] * 14 + [Next.END]
    assert (one.num_tokens, one.verdict().action) == (math.ceil(LONGER * 10) + LONGER_BY, Action.CAPPED)


@pytest.mark.parametrize(("distance", "is_ended"), [(0.9, True), (0.0, False)])
def test_who_has_prepared_for_purification_is_told_by_an_embedding_that_moved(distance: float, is_ended: bool) -> None:
    """The copy's answer is as long; the answer itself is over its bound, too."""
    one = watch(squeeze=BENIGN_DISTANCES)
    push(one, 2 * BOUND)
    one.squeezed([distance])
    one.looked(False, CAP)
    assert one.push((1,)) is (Next.END if is_ended else Next.GO_ON)
    assert one.is_confirmed is is_ended
    assert one.verdict().action is (Action.CAPPED if is_ended else Action.DEPRIORITISED)


def test_embedding_that_moved_alone_ends_nothing() -> None:
    """A picture of noise: its embedding moves, and its answer is like others."""
    one = watch(p_values={"screen": 0.0001}, squeeze=BENIGN_DISTANCES)
    one.push((0,))
    one.squeezed([0.9])
    one.looked(False, CAP)
    assert set(push(one, BOUND - 1)) == {Next.GO_ON}
    assert one.is_confirmed is False
