"""What a served checkpoint can do, and the refusal of everything else. Free of torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from models.contract import Family, Point, SettingError, Value, Variant, Work
from models.io import ClipIO, ClipRequest, SamplerRange
from serving.errors import PromptTooLong, UnsupportedVideo

_MAX_FPS = 60


@dataclass(frozen=True, kw_only=True)
class ClipLimits:
    """``variant``: as its folder has it."""

    family: Family
    variant: Variant

    @property
    def io(self) -> ClipIO:
        """Sizes, lengths and samplers."""
        made: ClipIO = self.variant.io
        return made

    @property
    def samplers(self) -> Mapping[str, SamplerRange]:
        """By name, the default first."""
        return self.io.samplers

    def check(self, clip: ClipRequest, point: Mapping[str, Value], *, size: tuple[int, int], fps: int) -> Point:
        """Pass a clip, or say what is wrong with the first thing that cannot be done. Returns the whole point.

        Raises: UnsupportedVideo, PromptTooLong.
        """
        _one_of("sampler", point["sampler"], self.samplers)
        _one_of("size", "{}x{}".format(*size), [f"{self.io.width}x{self.io.height}"])
        _within("fps", fps, 1, _MAX_FPS)
        _within("guidance_scale", float(point["guidance_scale"]), 1, self.io.max_guidance)
        for name, text in (("prompt", clip.prompt), ("negative_prompt", clip.negative_prompt)):
            if len(text) > self.io.max_prompt_chars:
                raise PromptTooLong(
                    f"{name} has {len(text)} characters; limit is {self.io.max_prompt_chars}; shorten it", param=name
                )
        with refused():
            self.io.check_sampler(str(point["sampler"]), int(point["num_inference_steps"]))
            whole = self.family.check_point(point)
            self.check_allowed(clip, whole)
        return whole

    def check_allowed(self, clip: ClipRequest, point: Mapping[str, Value]) -> None:
        """Pass a clip at a complete point. Raises: SettingError."""
        if self.family.allowed is not None:
            self.family.allowed.load()(self.variant, clip, point)

    def work(self, clip: ClipRequest, point: Mapping[str, Value]) -> Work:
        """What a clip takes at a complete point."""
        assert self.family.work is not None, "a family of jobs counts its work"
        counted: Work = self.family.work.load()(self.variant, clip, point)
        return counted


@contextmanager
def refused() -> Iterator[None]:
    """What a family refuses, as our own refusal. Raises: UnsupportedVideo, PromptTooLong."""
    try:
        yield
    except SettingError as error:
        kind = PromptTooLong if error.name in ("prompt", "negative_prompt") else UnsupportedVideo
        raise kind(str(error), param=error.name) from None


def _one_of(name: str, value: object, allowed: Iterable[object]) -> None:
    choices = list(allowed)
    if value not in choices:
        raise UnsupportedVideo(f"{name} is {value}; this model does {', '.join(map(str, choices))}", param=name)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise UnsupportedVideo(f"{name} is {value}; this model does {low} to {high}", param=name)
