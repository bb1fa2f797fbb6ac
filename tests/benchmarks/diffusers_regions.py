"""How far region-adaptive sampling on a tiny Wan with random weights is from running all tokens, by their share.

    python -m tests.benchmarks.diffusers_regions

Random weights say nothing of quality: this shows that the deviation falls to nothing as the share rises, and what is
left of the time.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch import Tensor

from models.contract import JobState
from models.families.diffusers.family import FAMILY
from models.io import ClipRequest
from models.testing.subject import Subject

_SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
_STEPS, _SEEDS = 20, 4


def main() -> None:
    """A row for each share: relative deviation of latents and time of the steps, means over seeds."""
    torch.set_num_threads(1)
    subject = Subject(FAMILY, "wan-t2v")
    request = subject.variant.io.settled(ClipRequest(prompt="a red circle", width=128, height=128, num_frames=17))
    tokens = subject.variant.io.num_tokens(request.num_frames, (128, 128))
    whole = [_run(subject, request, "dense", seed) for seed in range(_SEEDS)]
    whole_s = sum(seconds for _, seconds in whole)
    print(f"{tokens} tokens, {_STEPS} steps, {_SEEDS} seeds")
    for share in _SHARES:
        found = [_run(subject, request, f"ras:{share}", seed) for seed in range(_SEEDS)]
        far = [float((one - all_).norm() / all_.norm()) for (one, _), (all_, _) in zip(found, whole, strict=True)]
        seconds = sum(seconds for _, seconds in found)
        print(f"| {share} | {sum(far) / _SEEDS:.4f} | {max(far):.4f} | {seconds / whole_s:.2f} |")


def _run(subject: Subject, request: ClipRequest, attention: str, seed: int) -> tuple[Tensor, float]:
    """Latents, and processor seconds of the steps."""
    point = subject.family.check_point({"num_inference_steps": _STEPS, "attention": attention})
    state: JobState = subject.runner.open(replace(request), point, seed)
    subject.runner.step([state])
    started_s = time.process_time()
    while subject.runner.remaining(state).get("denoise"):
        subject.runner.step([state])
    return state.kept["latents"], time.process_time() - started_s


if __name__ == "__main__":
    main()
