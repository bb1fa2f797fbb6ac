"""The checks themselves: a family that keeps the contract passes all of them, and one that breaks it is caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from models.card import family_card
from models.contract import Family
from models.testing import Check, checks_of
from tests.families import toy_cards, toys
from tests.families.toy_cards import EXPERTS, JOB, STAGED, STREAM, UNARY, mutant

WHOLE = [check for family in (UNARY, STAGED, JOB, STREAM) for check in checks_of(family)]
WHOLE += [check for check in checks_of(EXPERTS) if check.run.__name__ == "tokens_of_experts_are_counted"]


@pytest.mark.parametrize("check", WHOLE, ids=str)
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
        (JOB, "runner", toys.JobOfTheLongest, "padding_changes_nothing"),
        (STREAM, "build", toys.build_chat_of_all, "images_do_not_depend_on_their_company"),
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
        (STREAM, "work", toy_cards.chat_of_no_images, "work_is_that_of_the_tokens"),
        (STREAM, "work", toy_cards.chat_of_half_the_bytes, "cache_holds_what_is_declared"),
        (STREAM, "build", toys.build_chat_of_more, "image_is_as_many_tokens_as_counted"),
        # -- slices
        (EXPERTS, "runner", toys.JobOfMixedUpExperts, "tokens_of_experts_are_counted"),
        (EXPERTS, "runner", toys.JobOfOtherExperts, "tokens_of_experts_are_counted"),
        (JOB, "runner", toys.JobThatMiscounts, "slices_are_counted_by_phase"),
        (JOB, "runner", toys.JobThatOpensWide, "network_runs_in_slices_only"),
        (JOB, "runner", toys.JobOfFloatingPreviews, "preview_is_a_small_picture"),
        (JOB, "runner", toys.JobThatMindsBeingSeen, "preview_is_a_small_picture"),
        # -- the oracle
        (UNARY, "oracle", toys.oracle_that_disagrees, "outputs_are_those_of_the_oracle"),
        (JOB, "oracle", toys.oracle_of_nothing, "outputs_are_those_of_the_oracle"),
        # -- weights
        (JOB, "build", toys.build_that_ignores_weights, "weights_fit_exactly"),
        (STAGED, "build", toys.build_that_ignores_one_file, "weights_fit_exactly"),
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


def test_exempt_family_is_let_off_and_its_card_says_why() -> None:
    why = "it normalises over the batch"
    family = replace(UNARY, exempt={"row_does_not_depend_on_its_batch": why})
    names = {check.run.__name__ for check in checks_of(UNARY)}
    assert names - {check.run.__name__ for check in checks_of(family)} == {"row_does_not_depend_on_its_batch"}
    assert why in family_card(family)
