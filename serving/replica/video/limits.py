"""What a video checkpoint can do, and the refusal of everything else. Free of torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from models.families.vdit.spec import SamplerRange, VideoModelSpec
from serving.errors import PromptTooLong, UnsupportedVideo
from serving.replica.video.attention_setting import AttentionSetting, parse_attention
from serving.tasks.videos.domain import AttentionKind, VideoSettings

BASE_VARIANT = "teacher"
FRAME_STRIDE = 4
"""Frames of the clip for each latent frame after the first."""


def _default_samplers() -> Mapping[str, SamplerRange]:
    return {
        "euler_ancestral": SamplerRange(variant="teacher", min_steps=1, max_steps=100, default_steps=50),
        "ddim": SamplerRange(variant="teacher", min_steps=1, max_steps=100, default_steps=20),
        "consistency": SamplerRange(variant="student", min_steps=4, max_steps=8, default_steps=4, multiple=4),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoLimits:
    """``sizes`` are (width, height). ``samplers`` by name, with the variant and the steps that each was made for;
    ``num_frames`` are what the checkpoint was trained on: others give noise. ``max_prompt_characters`` bounds the work
    of the tokenizer; tokens are counted by it."""

    sizes: tuple[tuple[int, int], ...] = ((64, 64),)
    num_frames: tuple[int, ...] = (29, 93)
    samplers: Mapping[str, SamplerRange] = field(default_factory=_default_samplers)
    max_guidance_scale: float = 20.0
    fps: tuple[int, int] = (1, 60)
    attention: tuple[AttentionKind, ...] = tuple(AttentionKind)
    max_prompt_characters: int = 4096

    @classmethod
    def of_model(cls, spec: VideoModelSpec) -> VideoLimits:
        """What a checkpoint was made for."""
        return cls(
            sizes=((spec.width, spec.height),),
            num_frames=spec.frame_counts,
            samplers=dict(spec.samplers),  # a plain one travels to other processes
            max_guidance_scale=spec.max_guidance,
            max_prompt_characters=spec.max_prompt_chars,
        )

    @classmethod
    def of_checkpoint(cls, spec: VideoModelSpec) -> VideoLimits:
        """What a checkpoint was made for, less the variants that are not in its folder."""
        present = present_variants(spec)
        samplers = {name: made for name, made in spec.samplers.items() if made.variant in present}
        return replace(cls.of_model(spec), samplers=samplers)

    def check(self, settings: VideoSettings) -> AttentionSetting:
        """Pass the settings, or say what is wrong with the first that cannot be done.

        Raises: UnsupportedVideo, PromptTooLong.
        """
        self._check_sampler(settings)
        sizes = [f"{width}x{height}" for width, height in self.sizes]
        _one_of("size", f"{settings.width}x{settings.height}", sizes)
        _one_of("num_frames", settings.num_frames, self.num_frames)
        _within("fps", settings.fps, *self.fps)
        _within("guidance_scale", settings.guidance_scale, 1, self.max_guidance_scale)
        _within("seed", settings.seed, 0, 2**63 - 1)
        self._check_prompts(settings)
        return self._check_attention(settings)

    def _check_sampler(self, settings: VideoSettings) -> None:
        _one_of("variant", settings.variant, sorted({made.variant for made in self.samplers.values()}))
        names = [name for name, made in self.samplers.items() if made.variant == settings.variant]
        _one_of("sampler", settings.sampler, names)
        steps = self.samplers[settings.sampler]
        _within("num_inference_steps", settings.num_steps, steps.min_steps, steps.max_steps)
        if settings.guidance_scale > 1 and not steps.is_guided:
            raise UnsupportedVideo(
                f"guidance_scale is {settings.guidance_scale:g}; {settings.sampler} has its guidance in its weights: "
                "use 1, or leave it out",
                param="guidance_scale",
            )
        if settings.num_steps % steps.multiple:
            raise UnsupportedVideo(
                f"num_inference_steps is {settings.num_steps}; {settings.sampler} takes multiples of {steps.multiple}",
                param="num_inference_steps",
            )

    def _check_prompts(self, settings: VideoSettings) -> None:
        for name, text in (("prompt", settings.prompt), ("negative_prompt", settings.negative_prompt)):
            if len(text) > self.max_prompt_characters:
                raise PromptTooLong(
                    f"{name} has {len(text)} characters; limit is {self.max_prompt_characters}; shorten it", param=name
                )

    def _check_attention(self, settings: VideoSettings) -> AttentionSetting:
        setting = parse_attention(settings.attention)
        _one_of("attention", setting.kind.value, [kind.value for kind in self.attention])
        frames = latent_frames(settings.num_frames)
        if not setting.fits(frames):
            raise UnsupportedVideo(
                f"attention is {settings.attention!r}, of {setting.references + setting.others} latent frames; "
                f"{settings.num_frames} frames make {frames}: use tile:K:{frames}-K, e.g. tile:2:{max(0, frames - 2)}",
                param="attention",
            )
        return setting


def present_variants(spec: VideoModelSpec) -> tuple[str, ...]:
    """Those of the registry whose weights are in the folder. The teacher's must be: without them nothing loads."""
    folder = spec.checkpoint_dir
    known = sorted({made.variant for made in spec.samplers.values()})
    return tuple(name for name in known if name == BASE_VARIANT or (folder is not None and (folder / name).is_dir()))


def latent_frames(num_frames: int) -> int:
    """Latent frames of a clip: one for the first frame, one for each four after it."""
    return 1 + (num_frames - 1) // FRAME_STRIDE


def _one_of(name: str, value: object, allowed: Iterable[object]) -> None:
    choices = list(allowed)
    if value not in choices:
        raise UnsupportedVideo(f"{name} is {value}; this model does {', '.join(map(str, choices))}", param=name)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise UnsupportedVideo(f"{name} is {value}; this model does {low} to {high}", param=name)
