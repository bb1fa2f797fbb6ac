"""What a served checkpoint can do, and the refusal of everything else. Free of torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from models.contract import Family, Point, Value, Variant, Work
from models.io import ClipIO, ClipRequest, SamplerRange
from serving.errors import PromptTooLong, UnsupportedVideo
from serving.refusals import refused

SAMPLER, STEPS, GUIDANCE = "sampler", "num_inference_steps", "guidance_scale"
"""Knobs whose bounds a checkpoint narrows, where its family has them."""
_MAX_FPS = 60


@dataclass(frozen=True, kw_only=True)
class ClipLimits:
    """``family``: as it is for ``variant``, which is as its folder has it. ``ranks``: that share a step."""

    family: Family
    variant: Variant
    ranks: int = 1

    @property
    def io(self) -> ClipIO:
        """Sizes, lengths and samplers."""
        made: ClipIO = self.variant.io
        return made

    @property
    def samplers(self) -> Mapping[str, SamplerRange]:
        """By name, the default first."""
        return self.io.samplers

    def point(self, **wanted: Value) -> dict[str, Value]:
        """A complete point with those of the settings that the family has. Raises: SettingError."""
        names = {knob.name for knob in self.family.knobs if knob.scope == "request"}
        return self.family.check_point({name: value for name, value in wanted.items() if name in names})

    def sampler_of(self, point: Mapping[str, Value]) -> tuple[str, SamplerRange | None]:
        """Name of the sampler of a point, and what it was made for; None: this checkpoint has no such sampler."""
        name = str(point[SAMPLER]) if SAMPLER in point else next(iter(self.samplers))
        return name, self.samplers.get(name)

    def check(self, clip: ClipRequest, point: Mapping[str, Value]) -> dict[str, Value]:
        """Pass a settled clip, or say what is wrong with the first thing that cannot be done. Returns the whole point.

        Raises: UnsupportedVideo, PromptTooLong.
        """
        name, made = self.sampler_of(point)
        if made is None:
            raise UnsupportedVideo(f"sampler is {name}; this model does {', '.join(self.samplers)}", param=SAMPLER)
        with refused(self.io):
            self.io.check_size(clip.width, clip.height)
            self.io.check_frames(clip.num_frames)
        _within("fps", clip.fps, 1, _MAX_FPS)
        if GUIDANCE in point:
            _within(GUIDANCE, float(point[GUIDANCE]), 1, self.io.max_guidance)
        for field, text in (("prompt", clip.prompt), ("negative_prompt", clip.negative_prompt)):
            if len(text) > self.io.max_prompt_chars:
                raise PromptTooLong(
                    f"{field} has {len(text)} characters; limit is {self.io.max_prompt_chars}; shorten it", param=field
                )
        with refused(self.io):
            if STEPS in point:
                self.io.check_sampler(name, int(point[STEPS]))
            whole = self.family.check_point(point)
            self.check_allowed(clip, whole)
        return whole

    def check_allowed(self, clip: ClipRequest, point: Point) -> None:
        """Pass a clip at a complete point. Raises: SettingError."""
        if self.family.allowed is not None:
            self.family.allowed.load()(self.variant, clip, point)
        if self.ranks > 1 and "check_spread" in self.family.parts:
            self.family.part("check_spread")(point)

    def work(self, clip: ClipRequest, point: Point) -> Work:
        """What a settled clip takes at a complete point."""
        assert self.family.work is not None, "a family of jobs counts its work"
        counted: Work = self.family.work.load()(self.variant, clip, point)
        return counted


def _within(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise UnsupportedVideo(f"{name} is {value}; this model does {low} to {high}", param=name)
