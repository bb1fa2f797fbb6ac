"""What the guard does about a tenant that asks about one picture again and again: it waits, and keeps its answers."""

from __future__ import annotations

import pytest

from schedulers.policies.guard import Action, Evidence, Mode, Rules, decide

RULES = Rules(watch_at=0.05, suspect_at=0.01)


@pytest.mark.parametrize("p", [0.9, 0.03, 0.005])
def test_a_stream_waits_whatever_else_is_seen(p: float) -> None:
    verdict = decide(Evidence(p_values={"eos": p}, is_stream=True), RULES)
    assert verdict.action is Action.DEPRIORITISED
    assert verdict.reasons[0] == "stream"
    assert verdict.score >= 0.99


def test_alone_it_never_ends_an_answer() -> None:
    """A camera that does not move sends nearly equal pictures too."""
    assert decide(Evidence(is_stream=True, is_confirmed=True), RULES).action is Action.DEPRIORITISED


def test_it_does_not_soften_what_is_confirmed_or_repeated() -> None:
    confirmed = Evidence(p_values={"eos": 0.001}, is_stream=True, is_confirmed=True)
    assert decide(confirmed, RULES).action is Action.CAPPED
    assert decide(Evidence(is_stream=True, is_replay=True), RULES).action is Action.CAPPED


def test_who_is_not_guarded_is_not_slowed() -> None:
    assert decide(Evidence(is_stream=True), Rules(mode=Mode.OFF)).action is Action.NORMAL
