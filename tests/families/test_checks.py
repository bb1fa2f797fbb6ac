"""The checks themselves: a family that keeps the contract passes all of them, and one that breaks it is caught."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from models.contract import Family
from models.testing import Check, checks_of
from tests.families import toy_cards, toys
from tests.families.toy_cards import JOB, STAGED, STREAM, UNARY, mutant


@pytest.mark.parametrize("check", [*checks_of(UNARY), *checks_of(STAGED), *checks_of(JOB), *checks_of(STREAM)], ids=str)
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
        (JOB, "runner", toys.JobOfTheCompany, "job_does_not_depend_on_its_company"),
        # -- state that leaks
        (UNARY, "runner", toys.UnaryThatRemembers, "run_leaves_nothing_behind"),
        (STAGED, "runner", toys.StagedThatRemembers, "rows_leave_and_meet_between_stages"),
        (STAGED, "runner", toys.StagedThatCounts, "run_leaves_nothing_behind"),
        (STAGED, "runner", toys.StagedWithObjects, "stages_one_by_one_are_all_at_once"),
        (JOB, "runner", toys.JobThatRemembers, "job_does_not_depend_on_its_company"),
        (JOB, "runner", toys.JobThatForgets, "job_goes_on_from_what_is_kept"),
        (JOB, "runner", toys.JobWithoutSeed, "job_is_what_its_seed_says"),
        (STREAM, "prompts", toys.talk_that_remembers, "tokens_are_counted_before_they_are_made"),
        # -- cost
        (STREAM, "prompts", toys.talk_of_one_more, "tokens_are_counted_before_they_are_made"),
        (STREAM, "prompts", toys.talk_upside_down, "image_costs_more_with_more_tiles"),
        (STREAM, "tiles", toy_cards.too_few_tiles, "tiles_are_counted_before_they_are_cut"),
        (JOB, "work", toy_cards.job_cost_upside_down, "cost_rises_along_every_axis"),
        (JOB, "work", toy_cards.job_of_no_bytes, "job_holds_no_more_than_declared"),
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
