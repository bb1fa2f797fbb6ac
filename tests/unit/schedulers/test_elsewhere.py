from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedulers.elsewhere import HALF_LIFE_S, Elsewhere

MODELS = ("chat", "video", "classify")


def test_what_one_model_served_is_told_once_to_each_of_the_others() -> None:
    elsewhere = Elsewhere(MODELS)
    elsewhere.serve("a", "video", 8.0, 0.0)
    assert elsewhere.tell("a", "chat", 0.0) == 8.0
    assert elsewhere.tell("a", "chat", 0.0) == 0.0
    assert elsewhere.tell("a", "classify", 0.0) == 8.0
    assert elsewhere.tell("a", "video", 0.0) == 0.0
    assert elsewhere.tell("b", "chat", 0.0) == 0.0


def test_it_fades() -> None:
    elsewhere = Elsewhere(MODELS)
    elsewhere.serve("a", "video", 8.0, 0.0)
    elsewhere.serve("a", "video", 1.0, HALF_LIFE_S)
    assert elsewhere.tell("a", "chat", 2 * HALF_LIFE_S) == pytest.approx(2.5)


def test_one_model_alone_has_nothing_elsewhere_and_a_free_answer_is_none() -> None:
    alone, elsewhere = Elsewhere(["chat"]), Elsewhere(MODELS)
    alone.serve("a", "chat", 8.0, 0.0)
    elsewhere.serve("a", "video", 0.0, 0.0)
    assert alone.tell("a", "chat", 0.0) == elsewhere.tell("a", "chat", 0.0) == 0.0


def test_of_too_many_tenants_those_longest_unheard_of_are_forgotten() -> None:
    elsewhere = Elsewhere(MODELS)
    for number in range(5000):
        elsewhere.serve(f"t{number}", "video", 1.0, 0.0)
    assert elsewhere.tell("t0", "chat", 0.0) == 0.0
    assert elsewhere.tell("t4999", "chat", 0.0) == 1.0


@given(st.lists(st.tuples(st.sampled_from(MODELS), st.sampled_from(MODELS), st.integers(1, 5)), max_size=40))
def test_nothing_is_told_twice_and_nothing_is_lost(steps: list[tuple[str, str, int]]) -> None:
    elsewhere, told, served = Elsewhere(MODELS), dict.fromkeys(MODELS, 0.0), dict.fromkeys(MODELS, 0.0)
    for model, asked, joules in steps:
        elsewhere.serve("a", model, joules, 0.0)
        served[model] += joules
        told[asked] += elsewhere.tell("a", asked, 0.0)
    for model in MODELS:
        told[model] += elsewhere.tell("a", model, 0.0)
        assert told[model] == sum(served.values()) - served[model]
