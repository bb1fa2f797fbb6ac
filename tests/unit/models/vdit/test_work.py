"""What a clip is said to hold at most, beside what lives at every operation."""

from __future__ import annotations

import pytest

from models.families.vdit.family import FAMILY
from models.families.vdit.networks import load
from models.families.vdit.runner import VditRunner
from models.io import ClipRequest
from models.registry import find
from tests.support.live_bytes import LiveBytes

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("frames", [29, 61])
def test_no_more_lives_than_was_said_and_not_much_less(frames: int) -> None:
    variant = FAMILY.part("found")(find("vdit-nano")[1])
    runner = VditRunner(load(variant), variant)
    point = FAMILY.check_point({"sampler": "ddim", "num_inference_steps": 20, "guidance_scale": 3.0})
    request = ClipRequest(prompt="a red circle moves right", num_frames=frames)
    state, peak = runner.open(request, point, 0), 0
    while runner.remaining(state):
        with LiveBytes() as live:
            runner.step([state])
        peak = max(peak, live.peak)
    assert FAMILY.work is not None
    said = FAMILY.work.load()(variant, request, point).bytes_held
    assert peak <= said <= 2.5 * peak
