"""Checks of jobs: seeds, neighbours, snapshots, slices, bytes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch.utils.flop_counter import FlopCounterMode

from models.contract import ExpertFacts, Experts, Job, JobState, Phase, Point, Previews
from models.testing.subject import (
    Outputs,
    Subject,
    can,
    example_points,
    example_request,
    expect_close,
    expect_same,
    written_and_read,
)


def _short_point(subject: Subject) -> dict[str, Any]:
    """The defaults, with as few steps as possible."""
    family = subject.family
    settings: dict[str, Any] = {}
    for knob in (knob for knob in family.knobs if knob.is_axis and knob.is_integer):
        settings |= {knob.name: knob.points[0]} if can(subject, family.check_point({knob.name: knob.points[0]})) else {}
    return family.check_point(settings)


def opened(subject: Subject, seed: int, point: Point | None = None) -> JobState:
    """An example job that has not begun, with as few steps as possible."""
    assert isinstance(subject.runner, Job), f"{type(subject.runner).__name__} is no job"
    return subject.runner.open(example_request(subject, seed), point or _short_point(subject), seed)


def _left(subject: Subject, state: JobState) -> int:
    return sum(subject.runner.remaining(state).values())


def _slice(subject: Subject, states: Sequence[JobState]) -> None:
    """One slice for each job that has any left; jobs with the same key share it."""
    groups: dict[Any, list[JobState]] = {}
    for state in states:
        if _left(subject, state):
            groups.setdefault(subject.runner.group_key(state), []).append(state)
    for group in groups.values():
        figures = subject.runner.step(group)
        assert len(figures) == len(group), f"{len(figures)} figures for {len(group)} states"
        assert all(each is not None for each in figures), "a slice came to nothing"


def finished(subject: Subject, states: Sequence[JobState]) -> list[Outputs]:
    """The outputs of all jobs, run to the end with shared slices."""
    for _ in range(10_000):
        if not any(_left(subject, state) for state in states):
            return [
                {name: torch.as_tensor(value) for name, value in subject.runner.close(state).items()}
                for state in states
            ]
        _slice(subject, states)
    raise AssertionError("it does not end")


def job_is_what_its_seed_says(subject: Subject) -> None:
    """The same seed gives the same bits, and another seed gives something else."""
    (first,), (again,) = finished(subject, [opened(subject, 0)]), finished(subject, [opened(subject, 0)])
    expect_same(first, again, "the same seed")
    point = _short_point(subject)
    other = subject.runner.open(example_request(subject, 0), point, 1)
    (different,) = finished(subject, [other])
    assert any(not torch.equal(first[name], different[name]) for name in first), "the seed changes nothing"


def job_does_not_depend_on_its_company(subject: Subject) -> None:
    """Two jobs that share their slices give what each gives alone; two that take turns do so to the bit."""
    alone = [finished(subject, [opened(subject, seed)])[0] for seed in (0, 1)]
    for seed, outputs in enumerate(finished(subject, [opened(subject, seed) for seed in (0, 1)])):
        expect_close(outputs, alone[seed], f"job {seed} in company")
    states = [opened(subject, seed) for seed in (0, 1)]
    while any(_left(subject, state) for state in states):
        for state in states:
            _slice(subject, [state])
    for seed, outputs in enumerate(finished(subject, states)):
        expect_same(outputs, alone[seed], f"job {seed} by turns")


def padding_changes_nothing(subject: Subject) -> None:
    """Beside a longer request, a short one gives what it gives alone, and so does the longer one."""
    alone = [finished(subject, [opened(subject, seed)])[0] for seed in (0, 2)]
    for seed, outputs, expected in zip(
        (0, 2), finished(subject, [opened(subject, s) for s in (0, 2)]), alone, strict=True
    ):
        expect_close(outputs, expected, f"request {seed} beside one of another length")


def job_goes_on_from_what_is_kept(subject: Subject) -> None:
    """What a job keeps after a slice can be written out and read back, and is all that a later attempt needs."""
    (expected,) = finished(subject, [opened(subject, 0)])
    state, before = opened(subject, 0), ""
    while _left(subject, state):
        _slice(subject, [state])
        if _left(subject, state) and (now := str(state.kept)) != before:
            before, kept = now, written_and_read(dict(state.kept))
            state = JobState(request=state.request, point=state.point, seed=state.seed, kept=kept)
    (outputs,) = finished(subject, [state])
    expect_close(outputs, expected, "resumed after every slice")


def slices_are_counted_by_phase(subject: Subject) -> None:
    """Each slice counts down the first phase that is left by one, and no other."""
    state = opened(subject, 0)
    while left := dict(subject.runner.remaining(state)):
        assert list(left) == [phase for phase in get_args(Phase) if phase in left], f"phases are {list(left)}"
        assert min(left.values()) > 0, f"phases that are over are counted: {left}"
        first = next(iter(left))
        _slice(subject, [state])
        expected = {phase: count - (phase == first) for phase, count in left.items() if count - (phase == first)}
        after = dict(subject.runner.remaining(state))
        assert after == expected, f"{left} were left, and {after} after one more slice"


def network_runs_in_slices_only(subject: Subject) -> None:
    """Neither ``open`` nor ``close`` runs the network: a host calls them between the slices of other jobs."""
    counter = FlopCounterMode(display=False)
    with counter:
        state = opened(subject, 0)
    assert not counter.get_total_flops(), f"opening takes {counter.get_total_flops()} operations"
    while _left(subject, state):
        _slice(subject, [state])
    with counter:
        subject.runner.close(state)
    assert not counter.get_total_flops(), f"closing takes {counter.get_total_flops()} operations"


def preview_is_a_small_picture(subject: Subject) -> None:
    """If a job has previews: before every slice it gives one RGB picture of bytes, no larger than the outputs, and
    looking at it changes nothing."""
    if not isinstance(subject.runner, Previews):
        return
    (expected,) = finished(subject, [opened(subject, 0)])
    state = opened(subject, 0)
    while _left(subject, state):
        picture = torch.as_tensor(subject.runner.preview(state))
        shape = tuple(picture.shape)
        assert picture.dtype == torch.uint8, f"a preview is {picture.dtype}, not bytes"
        assert len(shape) == 4, f"a preview has shape {shape}, not (1, height, width, 3)"
        assert (shape[0], shape[3]) == (1, 3), f"a preview has shape {shape}, not (1, height, width, 3)"
        largest = max(tensor.numel() for tensor in expected.values())
        assert picture.numel() <= largest, f"a preview has {picture.numel()} numbers, the outputs {largest}"
        _slice(subject, [state])
    expect_same(finished(subject, [state])[0], expected, "with previews")


def tokens_of_experts_are_counted(subject: Subject) -> None:
    """If a job has experts: after every denoising slice it says, for each state, what each expert was sent. All layers
    are sent the same number of tokens, the same as of a state alone, and the card has as many layers and experts."""
    if not isinstance(subject.runner, Experts):
        return
    facts, shape = subject.family.part("experts")(subject.variant), subject.runner.expert_shape
    assert isinstance(facts, ExpertFacts), f"the part experts gives {type(facts).__name__}"
    assert (facts.layers, facts.experts) == shape, f"the card has {facts.layers}x{facts.experts}, the runner {shape}"
    alone = sum(_loads(subject, [opened(subject, 0)]))
    together = _loads(subject, [opened(subject, seed) for seed in (0, 1)])
    first = sum(together[::2])
    assert int(first.sum()) == int(alone.sum()), f"{first.sum()} tokens in company, {alone.sum()} alone"
    assert int(abs(first - alone).sum()) <= 0.02 * int(alone.sum()), "a state is counted what another's tokens chose"


def _loads(subject: Subject, states: Sequence[JobState]) -> list[Any]:
    """All loads of states that step together to the end."""
    found: list[Any] = []
    while left := subject.runner.remaining(states[0]):
        _slice(subject, states)
        if next(iter(left)) != "denoise":
            continue
        loads = subject.runner.take_loads()
        assert len(loads) == len(states), f"{len(loads)} loads of {len(states)} states"
        for each in loads:
            assert (str(each.dtype), each.shape) == ("int64", subject.runner.expert_shape), f"{each.dtype} {each.shape}"
            assert each.min() >= 0, "fewer tokens than none"
            assert len(set(each.sum(axis=1).tolist())) == 1, f"layers are sent {each.sum(axis=1)} tokens"
            assert each.sum() > 0, "no tokens"
        found += loads
    return found


def job_frees_what_it_held(subject: Subject) -> None:
    """A job that is dropped halfway leaves nothing behind: only its state refers to what it holds."""
    state = opened(subject, 0)
    for _ in range(2):
        _slice(subject, [state])
    watched = [weakref.ref(array) for array in state.arrays()]
    assert watched, "a job in the middle holds nothing"
    del state
    gc.collect()
    assert not [ref for ref in watched if ref() is not None], "something is held after the job was dropped"


def job_holds_no_more_than_declared(subject: Subject) -> None:
    """After every slice, the tensors of its state take no more bytes than declared."""
    state = opened(subject, 0)
    declared = subject.work(state.point).bytes_held
    while _left(subject, state):
        _slice(subject, [state])
        assert state.bytes_held <= declared, f"it holds {state.bytes_held} bytes; {declared} are declared"


def every_point_of_a_job_starts(subject: Subject) -> None:
    """Every value of every knob that this variant supports runs until the job has kept something."""
    for point in filter(lambda point: can(subject, point), example_points(subject.family)):
        state = opened(subject, 0, point)
        before = str(state.kept)
        while str(state.kept) == before and _left(subject, state):
            _slice(subject, [state])
