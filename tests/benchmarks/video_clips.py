"""What bench_video's parts share: whole clips of any family's runner, on several sides by turns, and rows of them."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.contract import Family, Job, JobState, Variant
from models.families.vdit.config import OpenSoraConfig
from models.families.vdit.networks import Networks
from models.families.vdit.runner import VditRunner
from models.families.vdit.transformer import OpenSoraT2V
from models.registry import find
from tests.benchmarks.parts import Missing
from tests.support.clip_limits import clip_limits

NANO = "vdit-nano"
MID = OpenSoraConfig(
    num_attention_heads=4, attention_head_dim=96, num_layers=4, cross_attention_dim=384, caption_channels=64,
    sample_size=(32, 32), sample_size_t=8, interpolation_scale_thw=(1.0, 1.0, 1.0),
)  # fmt: skip
MID_SIDE = 256
MID_TITLE = f"random weights, width {MID.width}, 29 frames of {MID_SIDE}x{MID_SIDE}, 2,048 tokens"


@dataclass(frozen=True)
class Model:
    """A variant and its runner, in this process."""

    family: Family
    variant: Variant
    runner: Job

    def open(self, request: Any, settings: Mapping[str, Any], seed: int) -> JobState:
        """At a complete point. Raises: SettingError: the variant cannot do this."""
        point = self.family.check_point(settings)
        if self.family.allowed is not None:
            self.family.allowed.load()(self.variant, request, point)
        return self.runner.open(request, point, seed)


def load(name: str, folder: Path | None = None) -> Model:
    """A registered variant, with random weights where a miniature has none of its own. Raises: Missing."""
    try:
        family, variant = find(name, folder)
    except ValueError as error:
        raise Missing(str(error)) from None
    assert family.build is not None, "a family of jobs has networks"
    assert family.runner is not None, "and something that runs them"
    networks = family.build.load()(variant, "cpu", random_weights=variant.weights is None)
    return Model(family, variant, family.runner.load()(networks, variant))


def mid_model() -> Model:
    """A larger transformer of vdit with random weights, of 29 or 61 frames; it decodes to nothing."""
    torch.manual_seed(0)
    networks = Networks(
        transformers={"teacher": OpenSoraT2V(MID).eval().requires_grad_(False)},
        encode_text=lambda prompts: (torch.zeros(len(prompts), 8, 64), torch.ones(len(prompts), 8, dtype=torch.bool)),
        count_tokens=lambda prompt: 1,
        decode=lambda latents: np.zeros((1, 8, 8, 3), np.uint8),
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    config = {"num_layers": MID.num_layers, "num_heads": MID.num_attention_heads, "head_dim": MID.attention_head_dim}
    bounds = clip_limits(
        config, width=MID_SIDE, height=MID_SIDE, latent_channels=MID.in_channels, frame_counts=(29, 61)
    )
    return Model(bounds.family, bounds.variant, VditRunner(networks, bounds.variant))


@dataclass(frozen=True)
class Side:
    """One way to make a clip. ``settings``: of the family's knobs, where they are not the defaults."""

    name: str
    model: Model
    settings: Mapping[str, Any]


@dataclass
class Taken:
    """What a side took, clip by clip."""

    denoise_s: list[float] = field(default_factory=list)
    decode_s: list[float] = field(default_factory=list)
    held_bytes: list[int] = field(default_factory=list)
    figures: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Sums over all steps."""
    num_steps: int = 0
    outputs: list[Any] = field(default_factory=list)


def by_turns(
    sides: Sequence[Side], requests: Sequence[Any], settings: Sequence[Mapping[str, Any]] | None = None
) -> dict[str, Taken]:
    """Every request, with ``settings`` of its own, on every side; another one begins each time. A step of each before
    them, to warm up."""
    taken = {side.name: Taken() for side in sides}
    own = settings or [{}] * len(requests)
    for side in sides:
        _make(side, requests[0], own[0], 0, Taken(), most_steps=1)
    for seed, (request, point) in enumerate(zip(requests, own, strict=True)):
        first = seed % len(sides)
        for side in (*sides[first:], *sides[:first]):
            _make(side, request, point, seed, taken[side.name])
    return taken


def _make(side: Side, request: Any, own: Mapping[str, Any], seed: int, taken: Taken, most_steps: int = 0) -> None:
    runner = side.model.runner
    state = side.model.open(request, {**side.settings, **own}, seed)
    took_s, held, num_steps = defaultdict[str, float](float), 0, 0
    while left := runner.remaining(state):
        phase, started_s = next(iter(left)), time.perf_counter()
        (figures,) = runner.step([state])
        took_s[phase] += time.perf_counter() - started_s
        assert figures is not None, f"{side.name}: a step came to nothing"
        if phase == "denoise":
            num_steps, held = num_steps + 1, max(held, state.bytes_held)
            for name, value in figures.items():
                taken.figures[name] += value
            if num_steps == most_steps:
                return
    taken.outputs.append(next(iter(runner.close(state).values())))
    taken.num_steps += num_steps
    taken.denoise_s.append(took_s["denoise"])
    taken.decode_s.append(took_s["decode"])
    taken.held_bytes.append(held)


def rows(sides: Sequence[Side], taken: Mapping[str, Taken]) -> list[dict[str, Any]]:
    """Medians; how many times faster than the first side, as the median of the ratios of the same request."""
    base, found = taken[sides[0].name].denoise_s, []
    for side in sides:
        one = taken[side.name]
        found.append(
            {
                "side": side.name,
                "denoise s": round(statistics.median(one.denoise_s), 3),
                "decode s": round(statistics.median(one.decode_s), 3),
                "x faster": round(statistics.median(b / o for b, o in zip(base, one.denoise_s, strict=True)), 2),
                "skipped": round(one.figures["sparsity"] / one.num_steps, 3),
                "search share": round(one.figures["search_s"] / sum(one.denoise_s), 3),
                "KiB held": round(max(one.held_bytes) / 1024),
            }
        )
    return found
