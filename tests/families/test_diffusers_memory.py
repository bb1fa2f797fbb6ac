"""What activations are said to take, beside what lives at every operation of the miniatures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from models.families.diffusers import pipelines
from models.families.diffusers.example import example
from models.families.diffusers.family import FAMILY, activation_bytes, facts, resolve, work
from models.families.diffusers.memory import Activations, activations
from models.io import ClipIO
from models.testing.subject import Subject
from tests.support.live_bytes import LiveBytes

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.timeout(300)]


def _requests(subject: Subject) -> list[Any]:
    """With the longest prompt, in two sizes if they fit. Words in quotes: HunyuanVideo reads these a second time."""
    io = subject.variant.io
    limit = pipelines.of(subject.variant).prompted.limit
    usual = replace(example(subject.variant, np.random.default_rng(0)), prompt='"a" ' * min(limit // 4 - 2, 990))
    if isinstance(io, ClipIO):
        side = 2 * usual.width
        return [usual, *([replace(usual, width=side, height=side)] if side**2 <= io.max_pixels else [])]
    return [usual, replace(usual, width=io.max_side, height=io.size[1], count=2)]


def _measured(subject: Subject, request: Any) -> dict[str, int]:
    """Bytes that live at a time in a slice of each phase."""
    point = subject.family.check_point({"num_inference_steps": 2})
    state = subject.runner.open(request, point, 0)
    found: dict[str, int] = {}
    while left := subject.runner.remaining(state):
        phase = next(iter(left))
        with LiveBytes() as live:
            subject.runner.step([state])
        found[phase] = max(found.get(phase, 0), live.peak)
    return found


@pytest.mark.parametrize("name", FAMILY.examples)
def test_activations_take_no_more_than_was_said_and_not_much_less(name: str) -> None:
    subject = Subject(FAMILY, name)
    components = subject.variant.config["components"]
    for request in _requests(subject):
        said = activations(pipelines.of(subject.variant), components, subject.variant.io, request)
        measured = Activations(**_measured(subject, request))
        assert all(lived <= most for lived, most in zip(measured, said, strict=True)), (measured, said)
        assert said.peak <= 2.2 * measured.peak, (measured, said)
        assert all(most <= 3 * lived for lived, most in zip(measured, said, strict=True)), (measured, said)


def test_they_are_part_of_what_a_request_needs_and_shown() -> None:
    variant = resolve("wan-t2v")
    request = example(variant, np.random.default_rng(0))
    point = FAMILY.of(variant).check_point({})
    whole, half = (activation_bytes(variant, request, itemsize) for itemsize in (4, 2))
    assert whole / 2 <= half < whole < work(variant, request, point).bytes_held
    shown = facts(variant)["activations of a usual request in float32"]
    assert [text.partition(" at most ")[0] for text in shown] == ["condition", "denoise", "decode"]
