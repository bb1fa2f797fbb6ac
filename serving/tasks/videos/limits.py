"""What a served checkpoint can do, and the refusal of everything else. Free of torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from models.contract import Family, SettingError, Value, Variant, Work
from models.io import ClipIO, ClipRequest, SamplerRange
from serving.errors import PromptTooLong, UnsupportedVideo
from serving.tasks.videos.domain import VideoSettings

_MAX_FPS = 60
_MAX_SEED = 2**63 - 1


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

    def check(self, settings: VideoSettings) -> dict[str, Value]:
        """Pass the settings, or say what is wrong with the first that cannot be done. Returns the point of the family.

        Raises: UnsupportedVideo, PromptTooLong.
        """
        _one_of("variant", settings.variant, sorted({made.weights for made in self.samplers.values()}))
        names = [name for name, made in self.samplers.items() if made.weights == settings.variant]
        _one_of("sampler", settings.sampler, names)
        _one_of("size", f"{settings.width}x{settings.height}", [f"{self.io.width}x{self.io.height}"])
        _within("fps", settings.fps, 1, _MAX_FPS)
        _within("guidance_scale", settings.guidance_scale, 1, self.io.max_guidance)
        _within("seed", settings.seed, 0, _MAX_SEED)
        self._check_prompts(settings)
        with refused():
            self.io.check_sampler(settings.sampler, settings.num_steps)
            point = self.family.check_point(settings.point)
            self.check_allowed(settings.clip, point)
        return point

    def check_allowed(self, clip: ClipRequest, point: Mapping[str, Value]) -> None:
        """Pass a clip at a complete point. Raises: SettingError."""
        if self.family.allowed is not None:
            self.family.allowed.load()(self.variant, clip, point)

    def work(self, clip: ClipRequest, point: Mapping[str, Value]) -> Work:
        """What a clip takes at a complete point."""
        assert self.family.work is not None, "a family of jobs counts its work"
        counted: Work = self.family.work.load()(self.variant, clip, point)
        return counted

    def _check_prompts(self, settings: VideoSettings) -> None:
        for name, text in (("prompt", settings.prompt), ("negative_prompt", settings.negative_prompt)):
            if len(text) > self.io.max_prompt_chars:
                raise PromptTooLong(
                    f"{name} has {len(text)} characters; limit is {self.io.max_prompt_chars}; shorten it", param=name
                )


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
