"""Checks of families that run rows: unary ones, and staged ones, whose rows may leave and join between stages."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.contract import Point, Staged
from models.io import ImageIO
from models.testing.subject import (
    Subject,
    example_inputs,
    example_points,
    example_size,
    expect_close,
    forward,
    leaves,
    mapped,
    picked,
    written_and_read,
)

COUNTED = 0.1
"""How far counted multiply-accumulates may be from declared ones, as a share."""


def every_point_runs(subject: Subject) -> None:
    """Every value of every knob gives finite outputs, one row for each row that went in."""
    inputs = example_inputs(subject, 2)
    for point in example_points(subject.family):
        outputs = forward(subject.runner, inputs, [point] * 2)
        assert outputs, f"nothing comes out at {point}"
        for name, tensor in outputs.items():
            assert len(tensor) == 2, f"{name} has {len(tensor)} rows for 2 at {point}"
            assert bool(torch.isfinite(tensor.float()).all()), f"{name} is not finite at {point}"
            if name.startswith("probabilities"):
                _check_probabilities(name, tensor, subject.variant.io)
        if isinstance(subject.variant.io, ImageIO):
            _check_image(outputs["image"], subject.variant.io)


def _check_image(image: Tensor, picture: ImageIO) -> None:
    assert image.dtype == torch.uint8, f"image is {image.dtype}, not uint8"
    size, scale = example_size(picture), picture.scale if picture.takes_picture else 1
    expected = (size.height * scale, size.width * scale, 3)
    assert image.shape[1:] == expected, f"image has shape {tuple(image.shape[1:])}, not {expected}"


def _check_probabilities(name: str, tensor: Tensor, picture: Any) -> None:
    assert tensor.dtype == torch.float32, f"{name} is {tensor.dtype}, not float32"
    assert tensor.shape[1:] == (picture.num_classes,), f"{name} has shape {tuple(tensor.shape)}"
    assert float((tensor.sum(1) - 1).abs().max()) < 1e-4, f"{name} does not add up to 1"


def row_does_not_depend_on_its_batch(subject: Subject) -> None:
    """A row gives what it gives alone, wherever it is in a batch and whatever point its neighbours have."""
    inputs, points = example_inputs(subject, 5), example_points(subject.family)
    mixed = [points[index % len(points)] for index in range(5)]
    whole = forward(subject.runner, inputs, mixed)
    for row in range(5):
        alone = forward(subject.runner, picked(inputs, [row]), mixed[row : row + 1])
        expect_close(alone, picked(whole, [row]), f"row {row} alone and in a batch")
    order = [3, 0, 4, 2, 1]
    shuffled = forward(subject.runner, picked(inputs, order), [mixed[row] for row in order])
    expect_close(shuffled, picked(whole, order), "the batch in another order")


def run_leaves_nothing_behind(subject: Subject) -> None:
    """A batch that is run again, after another one, gives the same bits: nothing is drawn or remembered."""
    point = subject.family.check_point({})
    inputs, others = example_inputs(subject, 3), example_inputs(subject, 2, seed=1)
    before = {name: t.clone() for name, t in forward(subject.runner, inputs, [point] * 3).items()}
    forward(subject.runner, others, [point] * 2)
    after = forward(subject.runner, inputs, [point] * 3)
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), f"{name} is another one after a batch of others"


def work_is_what_is_counted(subject: Subject) -> None:
    """Declared multiply-accumulates match those of a run, or are an upper bound where rows may leave early."""
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
def _run_to_last(subject: Subject, inputs: Any, point: Point) -> None:
    """Run as the host would: a row of a staged network leaves at the first exit that is sure enough."""
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
    """A row holds no more than declared: its input or its state, and its outputs so far."""
    point = subject.family.check_point({})
    inputs = example_inputs(subject, 1)
    declared = subject.work(point).bytes_held
    for held in _held_bytes(subject.runner, inputs, point):
        assert held <= declared, f"one row holds {held} bytes; {declared} are declared"


@torch.inference_mode()
def _held_bytes(runner: Any, inputs: Any, point: Point) -> Iterator[int]:
    if not isinstance(runner, Staged):
        yield sum(t.nbytes for t in leaves(inputs)) + sum(t.nbytes for t in runner.forward(inputs, [point]).values())
        return
    state, kept = runner.begin(inputs, [point]), 0
    for stage in range(runner.num_stages):
        state, passed, _ = runner.run(state, stage, 1)
        kept += sum(tensor.nbytes for outputs in passed for tensor in outputs.values())
        yield kept + sum(tensor.untyped_storage().nbytes() for tensor in leaves(state))


# -- of a staged family ----------------------------------------------------------------------------------------------


@torch.inference_mode()
def stages_one_by_one_are_all_at_once(subject: Subject) -> None:
    """Running one stage at a time, with the state written out and read back in between, changes nothing."""
    runner, inputs, points = _staged(subject)
    _, together, _ = runner.run(runner.begin(inputs, points), 0, runner.num_stages)
    state = runner.begin(inputs, points)
    for stage in range(runner.num_stages):
        state, passed, _ = runner.run(state, stage, 1)
        expect_close(passed[0], together[stage], f"stage {stage + 1} by itself")
        if stage + 1 < runner.num_stages:
            state = written_and_read(state)


@torch.inference_mode()
def rows_leave_and_meet_between_stages(subject: Subject) -> None:
    """Rows that go on beside others after a stage give what they would have given."""
    runner, inputs, points = _staged(subject)
    _, expected, _ = runner.run(runner.begin(inputs, points), 0, runner.num_stages)
    left, _, _ = runner.run(runner.begin(picked(inputs, [0, 1, 2]), points[:3]), 0, 1)
    right, _, _ = runner.run(runner.begin(picked(inputs, [3, 4]), points[3:]), 0, 1)
    rows = [4, 0, 2]
    met = mapped(lambda a, b: torch.cat([a, b])[rows], left, right)
    _, passed, _ = runner.run(met, 1, runner.num_stages - 1)
    for stage, outputs in enumerate(passed, start=1):
        expect_close(outputs, picked(expected[stage], rows), f"stage {stage + 1} in other company")


def _staged(subject: Subject) -> tuple[Staged, Any, list[dict[str, Any]]]:
    assert isinstance(subject.runner, Staged), f"{type(subject.runner).__name__} is not staged"
    return subject.runner, example_inputs(subject, 5), [subject.family.check_point({})] * 5
