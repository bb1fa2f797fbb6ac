"""The checks of jobs: every family keeps them, a runner without a model too, and one that breaks them is caught."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pytest

from models.contract import Family, Figures, JobState, LazyRef, Phase, Point, Variant, Work
from models.job_checks import JOB_CHECKS, Subject
from models.registry import families, find
from serving.replica.video.fake import FakeRunner


@dataclass
class Registered:
    """A variant with weights, as its family runs it."""

    family: Family
    variant: Variant

    @cached_property
    def runner(self) -> Any:
        assert self.family.build is not None
        assert self.family.runner is not None
        return self.family.runner.load()(self.family.build.load()(self.variant, "cpu"), self.variant)


@dataclass
class Toy:
    """vdit's card, and a runner without a model."""

    runner: Any
    family: Family = find("vdit-nano")[0]
    variant: Variant = find("vdit-nano")[1]


FAMILIES = [
    Registered(family, variant)
    for family in families().values()
    if family.shape == "job"
    for variant in family.variants
    if variant.weights is not None
]
IO = find("vdit-nano")[1].io


@pytest.mark.parametrize("check", JOB_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("subject", FAMILIES, ids=lambda subject: subject.variant.id)
def test_family_keeps_the_contract_of_jobs(subject: Registered, check: Callable[[Subject], None]) -> None:
    check(subject)


@pytest.mark.parametrize("check", JOB_CHECKS, ids=lambda check: check.__name__)
def test_runner_without_a_model_keeps_it(check: Callable[[Subject], None]) -> None:
    check(Toy(FakeRunner(IO)))


class OfTheBatch(FakeRunner):
    """Mixes the requests of a batch."""

    def step(self, states: Sequence[JobState]) -> Sequence[Figures | None]:
        figures = super().step(states)
        if len(states) > 1 and "frames" not in states[0].cache:
            states[1].kept = {**states[1].kept, "latents": states[0].kept["latents"]}
        return figures


class Remembering(FakeRunner):
    """Keeps a request's number in itself."""

    last: Any = None

    def step(self, states: Sequence[JobState]) -> Sequence[Figures | None]:
        if self.last is not None and states[0].kept["step"]:
            states[0].kept = {**states[0].kept, "latents": self.last}
        figures = super().step(states)
        self.last = states[0].kept["latents"]
        return figures


class Hiding(FakeRunner):
    """What it goes on from is in its cache."""

    def step(self, states: Sequence[JobState]) -> Sequence[Figures | None]:
        for state in states:
            state.cache["count"] = state.cache.get("count", 0) + 1
        figures = super().step(states)
        for state in states:
            if "frames" in state.cache:
                state.cache["frames"] = state.cache["frames"] + np.uint8(state.cache["count"])
        return figures


class Unseeded(FakeRunner):
    """Draws where it should not."""

    def open(self, request: Any, point: Point, seed: int) -> JobState:
        return super().open(request, point, int(np.random.default_rng().integers(1 << 30)))


class Skipping(FakeRunner):
    """Its last step is two."""

    def remaining(self, state: JobState) -> Mapping[Phase, int]:
        left = dict(super().remaining(state))
        if left.get("denoise") == 1:
            del left["denoise"]
        return left


@pytest.mark.parametrize(
    ("runner", "caught_by"),
    [
        (OfTheBatch, "requests_in_turns_are_requests_alone"),
        (Remembering, "requests_in_turns_are_requests_alone"),
        (Remembering, "release_frees_everything"),
        (Hiding, "request_goes_on_from_what_is_kept"),
        (Unseeded, "seed_decides"),
        (Skipping, "slices_are_counted"),
    ],
)
def test_runner_that_breaks_it_is_caught(runner: type[FakeRunner], caught_by: str) -> None:
    (check,) = [check for check in JOB_CHECKS if check.__name__ == caught_by]
    with pytest.raises(AssertionError, match=r"\w"):
        check(Toy(runner(IO)))


def cost_upside_down(variant: Variant, request: Any, point: Point) -> Work:
    return Work({"token_steps": 1e3 - float(point["num_inference_steps"])}, 1 << 30)


def cost_that_is_flat(variant: Variant, request: Any, point: Point) -> Work:
    return Work({"token_steps": 1.0}, 1 << 30)


def no_bytes_at_all(variant: Variant, request: Any, point: Point) -> Work:
    return Work({}, 1)


@pytest.mark.parametrize(
    ("work", "caught_by"),
    [
        (cost_upside_down, "cost_rises_along_every_axis"),
        (cost_that_is_flat, "cost_rises_along_every_axis"),
        (no_bytes_at_all, "every_setting_runs"),
    ],
)
def test_false_count_of_work_is_caught(work: Callable[..., Work], caught_by: str) -> None:
    (check,) = [check for check in JOB_CHECKS if check.__name__ == caught_by]
    toy = Toy(FakeRunner(IO))
    toy.family = replace(toy.family, work=LazyRef(f"{__name__}:{work.__name__}"))
    with pytest.raises(AssertionError, match=r"\w"):
        check(toy)
