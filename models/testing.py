"""What every family has to keep, as checks that run on any of them, in Vireo's tests and in a family's own.

``checks_of(family)`` gives those that apply to its shape. In the tests of another distribution:

    @pytest.mark.parametrize("check", checks_of(FAMILY), ids=str)
    def test_family_keeps_the_contract(check):
        check()

A check raises AssertionError, with what it saw. Nothing is downloaded: a variant without weights gets random ones.
"""

from __future__ import annotations

import gc
import io
import math
import pickle
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models import stream_checks
from models.card import family_card
from models.contract import Family, Job, JobState, LazyRef, Point, SettingError, Staged, Unary, Variant, Work
from models.io import ClipIO, ClipRequest, PictureIO

RELATIVE, ABSOLUTE = 1e-3, 1e-6
"""How far outputs may be apart when only the batch around a row differs: kernels for other sizes round otherwise."""
COUNTED = 0.1
"""How far declared multiply-accumulates may be from counted ones, as a share."""
_SIZES = ((40, 60), (64, 64), (75, 31))

Outputs: TypeAlias = Mapping[str, Tensor]


class Subject:
    """One variant of a family, resolved and built when first asked for. ``name``: a listed variant, or an example."""

    def __init__(self, family: Family, name: str) -> None:
        self.family = family
        self.name = name

    @cached_property
    def variant(self) -> Variant:
        """The variant."""
        for variant in self.family.variants:
            if variant.id == self.name:
                return variant
        assert self.family.resolve is not None, f"{self.family.name} has no variant {self.name}"
        resolved: Variant = self.family.resolve.load()(self.name, None)
        return resolved

    @cached_property
    def runner(self) -> Any:
        """The runner."""
        return _make_runner(self.family, self.variant)

    def work(self, point: Point) -> Work:
        """What is declared for one example at a point."""
        assert self.family.work is not None, f"{self.family.name} declares no work"
        request = example_request(self) if self.family.shape == "job" else None
        declared: Work = self.family.work.load()(self.variant, request, point)
        return declared


@dataclass(frozen=True)
class Check:
    """One check on one subject; call it. ``str(check)`` names both."""

    run: Callable[[Subject], None]
    subject: Subject

    def __call__(self) -> None:
        """Run it. Raises: AssertionError: the family breaks the contract."""
        self.run(self.subject)

    def __str__(self) -> str:
        return f"{self.subject.name}-{self.run.__name__}"


def checks_of(family: Family) -> list[Check]:
    """Every check that applies: to the family once, and to each variant that can run here."""
    runnable = [variant.id for variant in family.variants if variant.weights is not None] or list(family.examples)
    found = [Check(run, Subject(family, family.name)) for run in OF_A_FAMILY]
    for subject in [Subject(family, name) for name in runnable]:
        found += [Check(run, subject) for run in OF_A_SHAPE[family.shape]]
    return found


def _make_runner(family: Family, variant: Variant) -> Any:
    assert family.build is not None, f"{family.name} has nothing that builds it"
    assert family.runner is not None, f"{family.name} has nothing that runs it"
    network = family.build.load()(variant, "cpu", random_weights=variant.weights is None)
    return family.runner.load()(network, variant)


# -- of the description ----------------------------------------------------------------------------------------------


def card_is_complete(subject: Subject) -> None:
    """Everything that users are told is there: summaries, licences, labels, what a knob is for."""
    family = subject.family
    assert family.summary, "the family has no summary"
    assert family.name == family.name.lower(), f"{family.name} is not in lower case"
    for knob in family.knobs:
        assert knob.summary.endswith("."), f"knob {knob.name} is not described in a sentence"
    for variant in family.variants:
        assert variant.summary, f"{variant.id} has no summary"
        assert variant.io is not None, f"{variant.id} does not say what goes in and comes out"
        assert variant.source.licence, f"{variant.id} names no licence; write 'none' where nothing is granted"
        assert variant.weights is None or variant.weights.is_dir(), f"{variant.id}: no folder {variant.weights}"
    text = family_card(family)
    missing = [v.id for v in family.variants if v.id not in text] + [k.name for k in family.knobs if k.name not in text]
    assert not missing, f"the card leaves out {', '.join(missing)}"


def everything_named_is_there(subject: Subject) -> None:
    """Each lazy reference leads somewhere."""
    family = subject.family
    for name, value in [*vars(family).items(), *family.parts.items()]:
        if isinstance(value, LazyRef):
            assert value.load() is not None, f"{name} of {family.name} names nothing: {value.target}"
    for name in () if family.shape == "stream" else ("build", "runner", "work"):
        assert getattr(family, name) is not None, f"a family of shape {family.shape} needs {name}"


def variant_is_plain_data(subject: Subject) -> None:
    """Variants cross processes: they are made of numbers, texts, paths and records of them, and of no code."""
    _check_plain(subject.variant, subject.name)
    if subject.family.prepare is not None:  # for decode workers
        assert pickle.loads(pickle.dumps(subject.variant)) == subject.variant, f"{subject.name} changes on the way"


def _check_plain(value: Any, where: str) -> None:
    if is_dataclass(value) and not isinstance(value, type):
        for each in fields(value):
            _check_plain(getattr(value, each.name), f"{where}.{each.name}")
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            _check_plain(inner, f"{where}[{key!r}]")
    elif isinstance(value, tuple | list):
        for index, inner in enumerate(value):
            _check_plain(inner, f"{where}[{index}]")
    else:
        is_plain = value is None or isinstance(value, bool | int | float | str | Path)
        assert is_plain, f"{where} is a {type(value).__name__}, which is no plain data"


def torch_is_not_loaded(subject: Subject) -> None:
    """Gateways and decode workers read the card, prepare inputs and count work, and never load torch."""
    family = subject.family
    refs = [ref.target for ref in (family.work, family.allowed, family.prepare) if ref is not None]
    code = (
        "import sys\n"
        "from models.contract import LazyRef\n"
        f"for target in {refs!r}: LazyRef(target).load()\n"
        "sys.exit('torch is loaded' if 'torch' in sys.modules else 0)"
    )
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def cost_rises_along_every_axis(subject: Subject) -> None:
    """From the cheapest to the best value of a knob no unit of work falls, and some unit rises."""
    family = subject.family
    for knob in (knob for knob in family.knobs if knob.is_axis):
        points = [point for value in knob.points if _can(subject, point := family.check_point({knob.name: value}))]
        works = [subject.work(point) for point in points]
        for name in {name for work in works for name in work.units}:
            amounts = [work.units.get(name, 0.0) for work in works]
            assert amounts == sorted(amounts), f"{name} falls along {knob.name}: {amounts}"
        assert works[0].units != works[-1].units, f"{knob.name} trades {knob.trades} for no work at all"


# -- of rows: unary and staged ---------------------------------------------------------------------------------------


def example_inputs(subject: Subject, count: int, seed: int = 0) -> Tensor:
    """Prepared inputs, stacked: noise of several sizes for a family that takes pictures, else its part ``example``."""
    family, variant = subject.family, subject.variant
    random = np.random.default_rng(seed)
    if "example" in family.parts:
        rows = [family.part("example")(variant, random) for _ in range(count)]
    else:
        assert isinstance(variant.io, PictureIO), f"{family.name} needs a part 'example': (variant, rng) -> input"
        assert family.prepare is not None, f"{family.name} prepares nothing"
        prepare = family.prepare.load()(variant)
        shapes = [(*_SIZES[index % len(_SIZES)], 3) for index in range(count)]
        rows = [prepare(random.integers(0, 256, shape, np.uint8)) for shape in shapes]
    return torch.from_numpy(np.stack(rows))


def example_points(family: Family) -> list[dict[str, Any]]:
    """The default point, and each knob of a request at each of its points."""
    found = [family.check_point({})]
    for knob in (knob for knob in family.knobs if knob.scope == "request"):
        found += [point for value in knob.points if (point := family.check_point({knob.name: value})) not in found]
    return found


@torch.inference_mode()
def forward(runner: Any, inputs: Tensor, points: Sequence[Point]) -> Outputs:
    """All outputs of a whole run; those of a staged family by exit."""
    if not isinstance(runner, Staged):
        assert isinstance(runner, Unary), f"{type(runner).__name__} is neither unary nor staged"
        return runner.forward(inputs, points)
    state = runner.begin(inputs, points)
    _, passed, confidence = runner.run(state, 0, runner.num_stages)
    named = {f"{name} of exit {k + 1}": tensor for k, outputs in enumerate(passed) for name, tensor in outputs.items()}
    return {**named, "confidence": confidence}


def _close(found: Outputs, expected: Outputs, what: str) -> None:
    assert found.keys() == expected.keys(), f"{what}: outputs are {sorted(found)}, not {sorted(expected)}"
    for name, tensor in found.items():
        worst = (tensor.double() - expected[name].double()).abs() - RELATIVE * expected[name].double().abs()
        allowed = ABSOLUTE if tensor.is_floating_point() else 1  # a pixel may be rounded the other way
        assert float(worst.max()) <= allowed, f"{what}: {name} is off by {float(worst.max()):.2g}"


def _picked(outputs: Outputs, rows: Sequence[int]) -> Outputs:
    return {name: tensor[list(rows)] for name, tensor in outputs.items()}


def every_point_runs(subject: Subject) -> None:
    """Each value of each knob gives finite outputs, one row for each that went in."""
    inputs = example_inputs(subject, 2)
    for point in example_points(subject.family):
        outputs = forward(subject.runner, inputs, [point] * 2)
        assert outputs, f"nothing comes out at {point}"
        for name, tensor in outputs.items():
            assert len(tensor) == 2, f"{name} has {len(tensor)} rows for 2 at {point}"
            assert bool(torch.isfinite(tensor.float()).all()), f"{name} is not finite at {point}"
            if name.startswith("probabilities"):
                _check_probabilities(name, tensor, subject.variant.io)


def _check_probabilities(name: str, tensor: Tensor, picture: Any) -> None:
    assert tensor.dtype == torch.float32, f"{name} is {tensor.dtype}, not float32"
    assert tensor.shape[1:] == (picture.num_classes,), f"{name} has shape {tuple(tensor.shape)}"
    assert float((tensor.sum(1) - 1).abs().max()) < 1e-4, f"{name} does not add up to 1"


def row_does_not_depend_on_its_batch(subject: Subject) -> None:
    """A row gives what it gives alone, wherever it lies in a batch, and whatever point its neighbours have."""
    inputs, points = example_inputs(subject, 5), example_points(subject.family)
    mixed = [points[index % len(points)] for index in range(5)]
    whole = forward(subject.runner, inputs, mixed)
    for row in range(5):
        alone = forward(subject.runner, inputs[row : row + 1], mixed[row : row + 1])
        _close(alone, _picked(whole, [row]), f"row {row} alone and in a batch")
    order = [3, 0, 4, 2, 1]
    shuffled = forward(subject.runner, inputs[order], [mixed[row] for row in order])
    _close(shuffled, _picked(whole, order), "the batch in another order")


def run_leaves_nothing_behind(subject: Subject) -> None:
    """The same again, with another batch between, gives the same bits: nothing is drawn, nothing is remembered."""
    point = subject.family.check_point({})
    inputs, others = example_inputs(subject, 3), example_inputs(subject, 2, seed=1)
    before = {name: t.clone() for name, t in forward(subject.runner, inputs, [point] * 3).items()}
    forward(subject.runner, others, [point] * 2)
    after = forward(subject.runner, inputs, [point] * 3)
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), f"{name} is another one after a batch of others"


def work_is_what_is_counted(subject: Subject) -> None:
    """Declared multiply-accumulates are those of a run, or an upper bound where rows may leave early."""
    for point in example_points(subject.family):
        declared = subject.work(point).units.get("macs")
        if declared is None:
            return
        counter = FlopCounterMode(display=False)
        with sdpa_kernel(SDPBackend.MATH), counter:  # the fused kernels of a CPU are not counted
            _run_to_last(subject, example_inputs(subject, 1), point)
        counted = counter.get_total_flops() / 2
        assert counted <= (1 + COUNTED) * declared, f"{counted:.4g} MACs at {point}; {declared:.4g} are declared"
        if not isinstance(subject.runner, Staged):
            assert counted >= (1 - COUNTED) * declared, f"{counted:.4g} MACs at {point}; {declared:.4g} are declared"


@torch.inference_mode()
def _run_to_last(subject: Subject, inputs: Tensor, point: Point) -> None:
    """As the host would: a staged network leaves at the first exit that is sure enough, if its card says how."""
    runner = subject.runner
    if not isinstance(runner, Staged):
        runner.forward(inputs, [point])
        return
    state = runner.begin(inputs, [point])
    for stage in range(runner.num_stages):
        state, _, confidence = runner.run(state, stage, 1)
        if float(confidence[0]) >= float(point.get(f"exit_{stage + 1}", math.inf)):
            return


def no_more_is_held_than_declared(subject: Subject) -> None:
    """Between two slices a row holds its input or its state, and its outputs so far."""
    point = subject.family.check_point({})
    inputs = example_inputs(subject, 1)
    declared = subject.work(point).bytes_held
    for held in _held_bytes(subject.runner, inputs, point):
        assert held <= declared, f"one row holds {held} bytes; {declared} are declared"


@torch.inference_mode()
def _held_bytes(runner: Any, inputs: Tensor, point: Point) -> Iterator[int]:
    if not isinstance(runner, Staged):
        yield inputs.nbytes + sum(t.nbytes for t in runner.forward(inputs, [point]).values())
        return
    state, kept = runner.begin(inputs, [point]), 0
    for stage in range(runner.num_stages):
        state, passed, _ = runner.run(state, stage, 1)
        kept += sum(tensor.nbytes for outputs in passed for tensor in outputs.values())
        yield kept + sum(tensor.untyped_storage().nbytes() for tensor in _leaves(state))


def weights_fit_exactly(subject: Subject) -> None:
    """What is saved loads and gives the same; a tensor that is missing, unknown or of another shape is refused."""
    family, variant = subject.family, subject.variant
    assert family.build is not None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "weights"
        if variant.weights is not None:
            shutil.copytree(variant.weights, folder)
        else:
            folder.mkdir()
            save_file(
                family.build.load()(variant, "cpu", random_weights=True).state_dict(), folder / "model.safetensors"
            )
        copy = variant.with_weights(folder)
        inputs, point = example_inputs(subject, 2), family.check_point({})
        again = forward(_make_runner(family, copy), inputs, [point] * 2)
        _close(again, forward(subject.runner, inputs, [point] * 2), "loaded again")
        file = max(folder.rglob("*.safetensors"), key=lambda path: path.stat().st_size)
        for what, tensors in _spoilt(load_file(file)):
            save_file(tensors, file)
            assert _is_refused(family, copy), f"weights with a tensor {what} are loaded all the same"


def _spoilt(state: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    name = next(name for name, tensor in state.items() if tensor.ndim)
    yield "missing", {key: tensor for key, tensor in state.items() if key != name}
    yield "too many", {**state, "nobody.knows.me": torch.zeros(1)}
    yield "of another shape", {**state, name: torch.zeros(*state[name].shape, 2)}


def _is_refused(family: Family, variant: Variant) -> bool:
    assert family.build is not None
    try:
        family.build.load()(variant, "cpu")
    except ValueError:
        return True
    return False


# -- of a staged family ----------------------------------------------------------------------------------------------


@torch.inference_mode()
def stages_one_by_one_are_all_at_once(subject: Subject) -> None:
    """Running stage after stage, with the state written out and read back each time, changes nothing."""
    runner, inputs, points = _staged(subject)
    _, together, _ = runner.run(runner.begin(inputs, points), 0, runner.num_stages)
    state = runner.begin(inputs, points)
    for stage in range(runner.num_stages):
        state, passed, _ = runner.run(state, stage, 1)
        _close(passed[0], together[stage], f"stage {stage + 1} by itself")
        if stage + 1 < runner.num_stages:
            state = _written_and_read(state)


@torch.inference_mode()
def rows_leave_and_meet_between_stages(subject: Subject) -> None:
    """After a stage rows go on in other company, and give what they would have given."""
    runner, inputs, points = _staged(subject)
    _, expected, _ = runner.run(runner.begin(inputs, points), 0, runner.num_stages)
    left, _, _ = runner.run(runner.begin(inputs[:3], points[:3]), 0, 1)
    right, _, _ = runner.run(runner.begin(inputs[3:], points[3:]), 0, 1)
    rows = [4, 0, 2]
    met = _mapped(lambda a, b: torch.cat([a, b])[rows], left, right)
    _, passed, _ = runner.run(met, 1, runner.num_stages - 1)
    for stage, outputs in enumerate(passed, start=1):
        _close(outputs, _picked(expected[stage], rows), f"stage {stage + 1} in other company")


def _staged(subject: Subject) -> tuple[Staged, Tensor, list[dict[str, Any]]]:
    assert isinstance(subject.runner, Staged), f"{type(subject.runner).__name__} is not staged"
    return subject.runner, example_inputs(subject, 5), [subject.family.check_point({})] * 5


def _written_and_read(state: Any) -> Any:
    """Through bytes, as a snapshot goes: tensors and plain values only."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def _leaves(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _leaves(value)
    elif isinstance(tree, tuple | list):
        for value in tree:
            yield from _leaves(value)


def _mapped(change: Callable[..., Tensor], tree: Any, *others: Any) -> Any:
    if isinstance(tree, Tensor):
        return change(tree, *others)
    if isinstance(tree, Mapping):
        return {key: _mapped(change, value, *(other[key] for other in others)) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(_mapped(change, *items) for items in zip(tree, *others, strict=True))
    return tree


# -- of a job --------------------------------------------------------------------------------------------------------


def example_request(subject: Subject, seed: int = 0) -> Any:
    """A request: a short prompt for a family that makes clips, else its part ``example``."""
    if "example" in subject.family.parts:
        return subject.family.part("example")(subject.variant, np.random.default_rng(seed))
    clip = subject.variant.io
    assert isinstance(clip, ClipIO), f"{subject.family.name} needs a part 'example': (variant, rng) -> request"
    return ClipRequest(prompt=("a red circle", "a blue square")[seed % 2], num_frames=clip.frame_counts[0])


def _can(subject: Subject, point: Point) -> bool:
    """Whether the variant can do it at all."""
    if subject.family.allowed is None:
        return True
    try:
        subject.family.allowed.load()(subject.variant, example_request(subject), point)
    except SettingError:
        return False
    return True


def _short_point(subject: Subject) -> dict[str, Any]:
    """The defaults, with as few steps as may be."""
    family = subject.family
    settings: dict[str, Any] = {}
    for knob in (knob for knob in family.knobs if knob.is_axis and knob.is_integer):
        settings |= (
            {knob.name: knob.points[0]} if _can(subject, family.check_point({knob.name: knob.points[0]})) else {}
        )
    return family.check_point(settings)


def _opened(subject: Subject, seed: int, point: Point | None = None) -> JobState:
    assert isinstance(subject.runner, Job), f"{type(subject.runner).__name__} is no job"
    return subject.runner.open(example_request(subject, seed), point or _short_point(subject), seed)


def _left(subject: Subject, state: JobState) -> int:
    return sum(subject.runner.remaining(state).values())


def _slice(subject: Subject, states: Sequence[JobState]) -> None:
    """One slice for each that has any left, those of one key together."""
    groups: dict[Any, list[JobState]] = {}
    for state in states:
        if _left(subject, state):
            groups.setdefault(subject.runner.group_key(state), []).append(state)
    for group in groups.values():
        figures = subject.runner.step(group)
        assert len(figures) == len(group), f"{len(figures)} figures for {len(group)} states"
        assert all(each is not None for each in figures), "a slice came to nothing"


def _finished(subject: Subject, states: Sequence[JobState]) -> list[Outputs]:
    for _ in range(10_000):
        if not any(_left(subject, state) for state in states):
            return [
                {name: torch.as_tensor(value) for name, value in subject.runner.close(state).items()}
                for state in states
            ]
        _slice(subject, states)
    raise AssertionError("it does not end")


def _same(found: Outputs, expected: Outputs, what: str) -> None:
    assert found.keys() == expected.keys(), f"{what}: outputs are {sorted(found)}, not {sorted(expected)}"
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), f"{what}: {name} is another one"


def job_is_what_its_seed_says(subject: Subject) -> None:
    """The same seed gives the same bits, another seed something else."""
    (first,), (again,) = _finished(subject, [_opened(subject, 0)]), _finished(subject, [_opened(subject, 0)])
    _same(first, again, "the same seed")
    point = _short_point(subject)
    other = subject.runner.open(example_request(subject, 0), point, 1)
    (different,) = _finished(subject, [other])
    assert any(not torch.equal(first[name], different[name]) for name in first), "the seed changes nothing"


def job_does_not_depend_on_its_company(subject: Subject) -> None:
    """Two jobs that share their slices give what each gives alone, and so do two that take turns, to the bit."""
    alone = [_finished(subject, [_opened(subject, seed)])[0] for seed in (0, 1)]
    for seed, outputs in enumerate(_finished(subject, [_opened(subject, seed) for seed in (0, 1)])):
        _close(outputs, alone[seed], f"job {seed} in company")
    states = [_opened(subject, seed) for seed in (0, 1)]
    while any(_left(subject, state) for state in states):
        for state in states:
            _slice(subject, [state])
    for seed, outputs in enumerate(_finished(subject, states)):
        _same(outputs, alone[seed], f"job {seed} by turns")


def job_goes_on_from_what_is_kept(subject: Subject) -> None:
    """After every slice what is kept is written out, read back, and all that a later attempt needs."""
    (expected,) = _finished(subject, [_opened(subject, 0)])
    state, before = _opened(subject, 0), ""
    while left := _left(subject, state):
        _slice(subject, [state])
        assert _left(subject, state) == left - 1, f"{left} slices were left, and {_left(subject, state)} after one more"
        if left > 1 and (now := str(state.kept)) != before:
            before, kept = now, _written_and_read(dict(state.kept))
            state = JobState(request=state.request, point=state.point, seed=state.seed, kept=kept)
    (outputs,) = _finished(subject, [state])
    _close(outputs, expected, "resumed after every slice")


def job_frees_what_it_held(subject: Subject) -> None:
    """A job that is dropped in the middle leaves nothing behind: only its state refers to what it holds."""
    state = _opened(subject, 0)
    for _ in range(2):
        _slice(subject, [state])
    watched = [weakref.ref(array) for array in state.arrays()]
    assert watched, "a job in the middle holds nothing"
    del state
    gc.collect()
    assert not [ref for ref in watched if ref() is not None], "something is held after the job was dropped"


def job_holds_no_more_than_declared(subject: Subject) -> None:
    """Tensors of its state, after every slice."""
    state = _opened(subject, 0)
    declared = subject.work(state.point).bytes_held
    while _left(subject, state):
        _slice(subject, [state])
        assert state.bytes_held <= declared, f"it holds {state.bytes_held} bytes; {declared} are declared"


def every_point_of_a_job_starts(subject: Subject) -> None:
    """Each value of each knob that this variant can do runs until something is kept of it."""
    for point in filter(lambda point: _can(subject, point), example_points(subject.family)):
        state = _opened(subject, 0, point)
        before = str(state.kept)
        while str(state.kept) == before and _left(subject, state):
            _slice(subject, [state])


# -- of a stream -----------------------------------------------------------------------------------------------------

_TALKS: Sequence[Sequence[tuple[str, Sequence[str | None]]]] = (
    [("user", ["What is this? ", None])],
    [("system", ["Be brief."]), ("user", [None, None, "Which is larger?"]), ("assistant", ["1"]), ("user", ["Why?"])],
)
_GRIDS = ((1, 1), (1, 2), (2, 2))


def tokens_are_counted_before_they_are_made(subject: Subject) -> None:
    """Each image is one token until it is expanded, to as many as were announced; nothing is left of other talks."""
    prompts = subject.family.part("prompts")(subject.variant)
    first = prompts.build(_TALKS[0])
    for talk in _TALKS:
        num_images = sum(part is None for _, parts in talk for part in parts)
        ids, grids = prompts.build(talk), _GRIDS[:num_images]
        assert ids.count(prompts.image_id) == num_images, (
            f"{num_images} images have {ids.count(prompts.image_id)} tokens"
        )
        counted, made = prompts.num_expanded(ids, grids), len(prompts.expand(ids, grids))
        assert made == counted, f"{made} tokens were made, and {counted} announced"
    assert prompts.build(_TALKS[0]) == first, "a talk has other tokens after another talk"


def image_costs_more_with_more_tiles(subject: Subject) -> None:
    """And never more than the card says of the largest."""
    prompts = subject.family.part("prompts")(subject.variant)
    tokens = [prompts.image_tokens(grid) for grid in _GRIDS]
    assert tokens == sorted(set(tokens)), f"grids {_GRIDS} have {tokens} tokens"
    assert tokens[-1] <= subject.variant.io.max_image_tokens, f"{tokens[-1]} tokens are above the card's limit"


def tiles_are_counted_before_they_are_cut(subject: Subject) -> None:
    """At least as many as are cut, whichever way the picture lies."""
    assert subject.family.prepare is not None
    count, cut = subject.family.part("tiles"), subject.family.prepare.load()(subject.variant)
    for height, width in _SIZES:
        tiles, _grid = cut(np.zeros((height, width, 3), np.uint8))
        counted = count(subject.variant, width, height)
        assert len(tiles) <= counted, f"{len(tiles)} tiles of {width}x{height}; {counted} were announced"
        assert counted == count(subject.variant, height, width), f"{width}x{height} has another number when turned"


OF_A_STREAM = (
    tokens_are_counted_before_they_are_made,
    image_costs_more_with_more_tiles,
    tiles_are_counted_before_they_are_cut,
)


# -- which apply to whom ---------------------------------------------------------------------------------------------

OF_A_FAMILY = (card_is_complete, everything_named_is_there, torch_is_not_loaded)
_OF_ROWS = (
    variant_is_plain_data,
    cost_rises_along_every_axis,
    every_point_runs,
    row_does_not_depend_on_its_batch,
    run_leaves_nothing_behind,
    work_is_what_is_counted,
    no_more_is_held_than_declared,
    weights_fit_exactly,
)
OF_A_SHAPE: Mapping[str, tuple[Callable[[Subject], None], ...]] = {
    "unary": _OF_ROWS,
    "staged": (*_OF_ROWS, stages_one_by_one_are_all_at_once, rows_leave_and_meet_between_stages),
    "job": (
        variant_is_plain_data,
        cost_rises_along_every_axis,
        job_is_what_its_seed_says,
        job_does_not_depend_on_its_company,
        job_goes_on_from_what_is_kept,
        job_holds_no_more_than_declared,
        job_frees_what_it_held,
        every_point_of_a_job_starts,
    ),
    "stream": (variant_is_plain_data, *OF_A_STREAM, *stream_checks.CHECKS),
}
