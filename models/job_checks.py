"""What every family of jobs has to keep, as checks that run on any of them: see ``models.testing``.

A check raises AssertionError, with what it saw. A request is the family's part ``example``, (variant, number) ->
request, or a few words where a clip comes out. Knobs that count something are at their least, the others at their
defaults, so that checks are short.
"""

from __future__ import annotations

import gc
import io
import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from models.contract import Family, Job, JobState, Knob, Point, Previews, SettingError, Value, Variant, Work
from models.io import ClipIO, ClipRequest

RELATIVE = 1e-5
"""How far a request may be from what it gives alone, of its largest number: products of other sizes round otherwise."""

Tree = Mapping[str, Any]


class Subject(Protocol):
    """One variant of a family of jobs, built."""

    family: Family

    @property
    def variant(self) -> Variant:
        """The variant."""
        ...

    @property
    def runner(self) -> Any:
        """Its runner."""
        ...


def slices_are_counted(subject: Subject) -> None:
    """Each slice is one fewer, phases come in order, and a state that has none left may be closed."""
    runner, state = _job(subject), _opened(subject)
    order = ("condition", "denoise", "decode")
    while left := runner.remaining(state):
        assert list(left) == [phase for phase in order if phase in left], f"phases are in the order {list(left)}"
        assert min(left.values()) > 0, f"a phase that is over is still there: {dict(left)}"
        hash(runner.group_key(state))
        runner.step([state])
        after = runner.remaining(state)
        assert sum(after.values()) == sum(left.values()) - 1, f"{dict(left)}, and after one slice {dict(after)}"
    _check_outputs(runner.close(state))


def every_setting_runs(subject: Subject) -> None:
    """Each value of each knob gives finite outputs, and holds no more than was declared on the way."""
    for name, point in _points(subject):
        declared, most = _work(subject, point).bytes_held, 0
        state = _opened(subject, point=point)
        for _ in _slices(_job(subject), state):
            most = max(most, state.bytes_held)
        assert 0 < most <= declared, f"{name}: {most} bytes are held; {declared} are declared"
        _check_outputs(_job(subject).close(state))


def cost_rises_along_every_axis(subject: Subject) -> None:
    """From the cheapest to the best value of a knob no unit of work falls, and some unit rises."""
    for knob in (knob for knob in subject.family.knobs if knob.is_axis):
        works = [_work(subject, subject.family.check_point({knob.name: value})).units for value in knob.points]
        for unit in works[0]:
            amounts = [units[unit] for units in works]
            assert amounts == sorted(amounts), f"{unit} falls along {knob.name}: {amounts} at {knob.points}"
        assert works[0] != works[-1], f"{knob.name} trades {knob.trades} for no work at all"


def seed_decides(subject: Subject) -> None:
    """The same again gives the same bits, whatever ran in between; another seed gives something else."""
    first, other, again = (_outputs(subject, _opened(subject, seed=seed)) for seed in (5, 6, 5))
    assert _same(first, again), "the same request came out differently"
    assert not _same(first, other), "another seed gives the same"


def request_goes_on_from_what_is_kept(subject: Subject) -> None:
    """After every slice, what is kept, written out and read back, is enough: the rest comes out to the bit.

    Of settings by default; those that lose something with their cache say so themselves.
    """
    runner, state = _job(subject), _opened(subject)
    snapshots = [_written_and_read(state.kept) for _ in _slices(runner, state)]
    expected = runner.close(state)
    for number, kept in enumerate(snapshots, start=1):
        resumed = _opened(subject)
        assert resumed.kept.keys() == kept.keys(), f"{sorted(kept)} are kept, a fresh state has {sorted(resumed.kept)}"
        resumed.kept = kept
        assert _same(_outputs(subject, resumed), expected), f"resumed after slice {number}, it came out differently"


def requests_in_turns_are_requests_alone(subject: Subject) -> None:
    """Slices of two requests by turns, and then in one batch where both may share it."""
    runner = _job(subject)
    expected = [_outputs(subject, _opened(subject, number, seed=number)) for number in (0, 1)]
    turns = [_opened(subject, number, seed=number) for number in (0, 1)]
    for _ in itertools.zip_longest(*(_slices(runner, state) for state in turns)):
        pass
    for number, state in enumerate(turns):
        assert _same(runner.close(state), expected[number]), "a request by turns with another came out differently"
    batch = [_opened(subject, number, seed=number) for number in (0, 1)]
    while any(runner.remaining(state) for state in batch):
        assert runner.group_key(batch[0]) == runner.group_key(batch[1]), "equal settings do not share a slice"
        runner.step(batch)
    for number, state in enumerate(batch):
        _check_near(runner.close(state), expected[number])


def release_frees_everything(subject: Subject) -> None:
    """Nothing but the state itself refers to what it holds, in the middle of a request."""
    runner = _job(subject)
    for _, point in _points(subject):
        state = _opened(subject, point=point)
        for _ in itertools.islice(_slices(runner, state), 3):
            pass
        watched = [weakref.ref(array) for array in state.arrays()]
        assert watched, "a request in the middle holds nothing"
        del state
        gc.collect()
        assert not [ref for ref in watched if ref() is not None], f"held after its release, at {dict(point)}"


def preview_is_a_small_picture(subject: Subject) -> None:
    """Where there is one, at any time after the first slice."""
    runner, state = _job(subject), _opened(subject)
    if not isinstance(runner, Previews):
        return
    for _ in _slices(_job(subject), state):
        picture = runner.preview(state)
        assert picture.dtype == np.uint8, f"a preview of {picture.dtype}"
        assert picture.shape[0] == 1, f"a preview of shape {picture.shape}"
        assert picture.shape[-1] == 3, f"a preview of shape {picture.shape}"


# -- helpers ---------------------------------------------------------------------------------------------------------


def _job(subject: Subject) -> Job:
    assert isinstance(subject.runner, Job), f"{type(subject.runner).__name__} is no job"
    return subject.runner


def _request(subject: Subject, number: int = 0) -> Any:
    if "example" in subject.family.parts:
        return subject.family.part("example")(subject.variant, number)
    made = subject.variant.io
    assert isinstance(made, ClipIO), f"{subject.family.name} needs a part 'example': (variant, number) -> request"
    words = ("a red circle moves left fast", "a blue cross moves up slowly on a gray background")
    return ClipRequest(prompt=words[number % 2], num_frames=made.frame_counts[0])


def _points(subject: Subject) -> list[tuple[str, Point]]:
    """A short point for each value of each knob; where others do not go with it, with what does."""
    knobs = [knob for knob in subject.family.knobs if knob.scope == "request"]
    found: list[tuple[str, Point]] = []
    for knob in knobs:
        for value in knob.points:
            choices = [[(one.name, some) for some in (_short(one), *one.points)] for one in knobs if one is not knob]
            candidates = ({knob.name: value, **dict(others)} for others in itertools.product(*choices))
            allowed = next((point for point in candidates if _is_allowed(subject, point)), None)
            assert allowed is not None, f"{knob.name}={value} goes with nothing"
            found.append((f"{knob.name}={value}", subject.family.check_point(allowed)))
    return found


def _short(knob: Knob) -> Value:
    return knob.points[0] if knob.is_integer else knob.default


def _short_point(subject: Subject) -> Point:
    point = {knob.name: _short(knob) for knob in subject.family.knobs if knob.scope == "request"}
    return point if _is_allowed(subject, point) else subject.family.check_point({})


def _is_allowed(subject: Subject, point: Point) -> bool:
    if subject.family.allowed is None:
        return True
    try:
        subject.family.allowed.load()(subject.variant, _request(subject), point)
    except SettingError:
        return False
    return True


def _work(subject: Subject, point: Point) -> Work:
    assert subject.family.work is not None, f"{subject.family.name} declares no work"
    declared: Work = subject.family.work.load()(subject.variant, _request(subject), point)
    return declared


def _opened(subject: Subject, number: int = 0, seed: int = 0, point: Point | None = None) -> JobState:
    point = _short_point(subject) if point is None else point
    return _job(subject).open(_request(subject, number), point, seed)


def _slices(runner: Job, state: JobState) -> Iterator[None]:
    while runner.remaining(state):
        assert runner.step([state])[0] is not None, f"nothing came of a slice at {dict(state.point)}"
        yield


def _outputs(subject: Subject, state: JobState) -> Tree:
    for _ in _slices(_job(subject), state):
        pass
    return _job(subject).close(state)


def _check_outputs(outputs: Tree) -> None:
    assert outputs, "nothing comes out"
    for name, array in outputs.items():
        assert np.isfinite(_numbers(array)).all(), f"{name} is not finite"


def _same(one: Tree, other: Tree) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(_numbers(one[key]), _numbers(other[key])) for key in one)


def _check_near(found: Tree, expected: Tree) -> None:
    """Whole numbers may be rounded to the next one."""
    for name, array in found.items():
        ours, alone = _numbers(array), _numbers(expected[name])
        allowed = 1 if np.issubdtype(np.asarray(array).dtype, np.integer) else RELATIVE * np.abs(alone).max()
        worst = np.abs(ours - alone).max()
        assert worst <= allowed, f"{name} in a batch is off by {worst:.3g} from what it is alone"


def _numbers(array: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray(array.cpu() if isinstance(array, torch.Tensor) else array).astype(np.float64)


def _written_and_read(kept: Tree) -> dict[str, Any]:
    """Through bytes, as a snapshot goes: tensors, arrays and plain values only."""
    file = io.BytesIO()
    plain = {key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for key, value in kept.items()}
    torch.save(plain, file)
    file.seek(0)
    read = torch.load(file, weights_only=True)
    return {key: value.numpy() if isinstance(kept[key], np.ndarray) else value for key, value in read.items()}


JOB_CHECKS: Sequence[Callable[[Subject], None]] = (
    slices_are_counted,
    every_setting_runs,
    cost_rises_along_every_axis,
    seed_decides,
    request_goes_on_from_what_is_kept,
    requests_in_turns_are_requests_alone,
    release_frees_everything,
    preview_is_a_small_picture,
)
