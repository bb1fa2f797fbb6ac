"""What a clip is said to hold at most, beside what lives at every operation."""

from __future__ import annotations

from dataclasses import replace

import pytest

from models.families.exvideo.family import FAMILY
from models.testing.subject import Subject, example_request
from tests.support.live_bytes import LiveBytes

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("exvideo-nano", *(variant.id for variant in FAMILY.miniatures))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("name", NAMES)
def test_no_more_lives_than_was_said_and_not_much_less(name: str, guidance: float) -> None:
    subject = Subject(FAMILY, name)
    io = subject.variant.io
    point = subject.family.check_point({"num_inference_steps": 2, "guidance_scale": guidance})
    for frames in {io.frame_counts[0], io.frame_counts[-1]}:
        request = replace(io.settled(example_request(subject)), num_frames=frames)
        state, peak = subject.runner.open(request, point, 0), 0
        while subject.runner.remaining(state):
            with LiveBytes() as live:
                subject.runner.step([state])
            peak = max(peak, live.peak)
        assert FAMILY.work is not None
        said = FAMILY.work.load()(subject.variant, request, point).bytes_held
        assert peak <= said <= 2.5 * peak, (frames, peak, said)
