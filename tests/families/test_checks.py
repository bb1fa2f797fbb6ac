"""The checks themselves: a family that keeps the contract passes all of them, and one that breaks it is caught."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from models.contract import Family
from models.testing import Check, checks_of
from tests.families import toy_cards, toys
from tests.families.toy_cards import STAGED, UNARY, mutant


@pytest.mark.parametrize("check", [*checks_of(UNARY), *checks_of(STAGED)], ids=str)
def test_family_that_keeps_the_contract_passes(check: Check) -> None:
    check()


@pytest.mark.parametrize(
    ("family", "part", "replacement", "caught_by"),
    [
        # -- batch invariance
        (UNARY, "runner", toys.UnaryOfTheBatch, "row_does_not_depend_on_its_batch"),
        (UNARY, "runner", toys.UnaryOfTheFirstPoint, "row_does_not_depend_on_its_batch"),
        (UNARY, "runner", toys.UnaryOfTheRowBefore, "row_does_not_depend_on_its_batch"),
        (STAGED, "runner", toys.StagedOfTheBatch, "rows_leave_and_meet_between_stages"),
        # -- state that leaks
        (UNARY, "runner", toys.UnaryThatRemembers, "run_leaves_nothing_behind"),
        (STAGED, "runner", toys.StagedThatRemembers, "rows_leave_and_meet_between_stages"),
        (STAGED, "runner", toys.StagedThatCounts, "run_leaves_nothing_behind"),
        (STAGED, "runner", toys.StagedWithObjects, "stages_one_by_one_are_all_at_once"),
        # -- cost
        (UNARY, "work", toy_cards.cost_upside_down, "cost_rises_along_every_axis"),
        (UNARY, "work", toy_cards.cost_that_is_flat, "cost_rises_along_every_axis"),
        (UNARY, "work", toy_cards.cost_of_nothing, "work_is_what_is_counted"),
        (STAGED, "work", toy_cards.cost_of_nothing, "work_is_what_is_counted"),
        (STAGED, "work", toy_cards.no_bytes_at_all, "no_more_is_held_than_declared"),
        # -- weights
        (UNARY, "build", toys.build_that_ignores_weights, "weights_fit_exactly"),
    ],
)
def test_family_that_breaks_the_contract_is_caught(
    family: Family, part: str, replacement: Callable[..., Any], caught_by: str
) -> None:
    broken = {check.run.__name__: check for check in checks_of(mutant(family, part, replacement))}
    with pytest.raises(Exception, match=r"\w") as caught:
        broken[caught_by]()
    assert not isinstance(caught.value, ImportError | AttributeError | NameError)
