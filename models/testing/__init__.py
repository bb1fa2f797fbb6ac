"""The contract that every family has to keep, as checks that run in Vireo's tests and in a family's own.

``checks_of(family)`` returns those that apply to its shape. In the tests of another distribution:

    @pytest.mark.parametrize("check", checks_of(FAMILY), ids=str)
    def test_family_keeps_the_contract(check):
        check()

or ``python -m models.testing NAME``. A check that fails raises AssertionError, with what it saw. Nothing is downloaded:
a variant without weights gets random ones. If a family names an oracle, its networks are compared with that too
(``models.testing.parity``); ``python -m models.testing NAME --oracle FOLDER`` compares them with the official code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from models.contract import Family
from models.testing import description, jobs, rows, streams
from models.testing.parity import outputs_are_those_of_the_oracle
from models.testing.subject import Subject
from models.testing.weights import weights_fit_exactly

Run: TypeAlias = Callable[[Subject], None]


@dataclass(frozen=True)
class Check:
    """One check of one subject; call it to run it. ``str(check)`` names both."""

    run: Run
    subject: Subject

    def __call__(self) -> None:
        """Run it. Raises: AssertionError: the family breaks the contract."""
        self.run(self.subject)

    def __str__(self) -> str:
        return f"{self.subject.name}-{self.run.__name__}"


def checks_of(family: Family) -> list[Check]:
    """Every check that applies: once to the family, and to each variant that can run here."""
    runnable = [variant.id for variant in family.variants if variant.weights is not None] or list(family.examples)
    runnable += [variant.id for variant in family.miniatures]
    found = [Check(run, Subject(family, family.name)) for run in OF_A_FAMILY]
    for subject in [Subject(family, name) for name in runnable]:
        found += [Check(run, subject) for run in OF_A_SHAPE[family.shape] if _applies(run, subject)]
    return [check for check in found if check.run.__name__ not in family.exempt]


def _applies(run: Run, subject: Subject) -> bool:
    family = subject.family
    if run is outputs_are_those_of_the_oracle:
        return family.oracle is not None
    if family.shape == "stream" and run in _OF_A_CHAT_NETWORK and family.build is None:
        return False
    return family.shape != "stream" or run not in _OF_A_FOLDER or subject.variant.weights is not None


OF_A_FAMILY: tuple[Run, ...] = (
    description.card_is_complete,
    description.everything_named_is_there,
    description.torch_is_not_loaded,
)
_OF_ALL: tuple[Run, ...] = (
    description.variant_is_plain_data,
    description.cost_rises_along_every_axis,
    outputs_are_those_of_the_oracle,
)
_OF_ROWS: tuple[Run, ...] = (
    *_OF_ALL,
    rows.every_point_runs,
    rows.row_does_not_depend_on_its_batch,
    rows.run_leaves_nothing_behind,
    rows.work_is_what_is_counted,
    rows.no_more_is_held_than_declared,
    weights_fit_exactly,
)
_OF_A_CHAT_NETWORK: tuple[Run, ...] = (
    streams.image_is_as_many_tokens_as_counted,
    streams.images_do_not_depend_on_their_company,
    streams.cache_holds_what_is_declared,
    weights_fit_exactly,
)
_OF_A_FOLDER: tuple[Run, ...] = (streams.no_text_becomes_a_control_token, weights_fit_exactly)
OF_A_SHAPE: Mapping[str, tuple[Run, ...]] = {
    "unary": _OF_ROWS,
    "staged": (*_OF_ROWS, rows.stages_one_by_one_are_all_at_once, rows.rows_leave_and_meet_between_stages),
    "job": (
        *_OF_ALL,
        jobs.job_is_what_its_seed_says,
        jobs.job_does_not_depend_on_its_company,
        jobs.padding_changes_nothing,
        jobs.job_goes_on_from_what_is_kept,
        jobs.slices_are_counted_by_phase,
        jobs.network_runs_in_slices_only,
        jobs.preview_is_a_small_picture,
        jobs.tokens_of_experts_are_counted,
        jobs.job_holds_no_more_than_declared,
        jobs.job_frees_what_it_held,
        jobs.every_point_of_a_job_starts,
        weights_fit_exactly,
    ),
    "stream": (
        *_OF_ALL,
        streams.tokens_are_counted_before_they_are_made,
        streams.image_costs_more_with_more_tiles,
        streams.tiles_are_counted_before_they_are_cut,
        streams.work_is_that_of_the_tokens,
        streams.no_text_becomes_a_control_token,
        *_OF_A_CHAT_NETWORK,
    ),
}
