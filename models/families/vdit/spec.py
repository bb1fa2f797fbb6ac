"""The video models Vireo knows: what each checkpoint was made for, and the refusal of everything else.

Free of torch on purpose: gateways and the command line read it without paying for the import.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from models.registry import CHECKPOINTS


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerRange:
    """Numbers of steps that a sampler takes with one variant's weights. ``multiple``: of what they must be one.
    ``is_guided``: whether guidance is left to the caller; a student that was distilled with it has it in its weights.
    """

    variant: str
    min_steps: int
    max_steps: int
    default_steps: int
    multiple: int = 1
    is_guided: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoModelSpec:
    """What the id of a video model stands for.

    ``frame_counts``: lengths that the checkpoint was trained on; others give noise. ``samplers`` by name, the default
    first. ``scale_factor``: of latents, None where the VAE's own config says it. ``checkpoint_dir`` is None where the
    weights are the user's to bring.

    Raises: ValueError: a length or a size that the VAE cannot have.
    """

    id: str
    family: str = "vdit"
    variant: str
    checkpoint_dir: Path | None
    width: int
    height: int
    frame_counts: tuple[int, ...]
    fps: int
    samplers: Mapping[str, SamplerRange]
    default_guidance: float
    max_guidance: float = 20.0
    max_prompt_chars: int = 2000
    max_text_tokens: int = 512
    num_layers: int
    num_heads: int
    head_dim: int
    latent_channels: int = 4
    vae_stride: tuple[int, int, int] = (4, 8, 8)
    patch: tuple[int, int, int] = (1, 2, 2)
    scale_factor: float | None = None
    interpolation_scales: tuple[float, float, float] = (1.0, 1.0, 1.0)
    summary: str = ""

    def __post_init__(self) -> None:
        for frames in self.frame_counts:
            self.grid(frames)

    def grid(self, frames: int) -> tuple[int, int, int]:
        """Patches of a clip: latent frames, rows, columns.

        Raises: ValueError: not a length that this checkpoint does.
        """
        if frames not in self.frame_counts:
            allowed = ", ".join(map(str, self.frame_counts))
            raise ValueError(f"num_frames is {frames}; {self.id} was trained on {allowed}, and others give noise")
        t, h, w = self.vae_stride
        if (frames - 1) % t or self.height % (h * self.patch[1]) or self.width % (w * self.patch[2]):
            raise ValueError(f"{frames} frames of {self.width}x{self.height} do not fit strides {t}x{h}x{w}")
        return (frames - 1) // t + 1, self.height // (h * self.patch[1]), self.width // (w * self.patch[2])

    def num_tokens(self, frames: int) -> int:
        """Tokens of a clip in the transformer. Raises: ValueError: not a length that this checkpoint does."""
        t, h, w = self.grid(frames)
        return t * h * w

    def check_sampler(self, name: str, num_steps: int) -> SamplerRange:
        """Pass a sampler and its number of steps.

        Raises: ValueError: not one that this checkpoint was made for; the message names those that are.
        """
        if name not in self.samplers:
            raise ValueError(f"sampler is {name!r}; {self.id} was made for {', '.join(self.samplers)}")
        steps = self.samplers[name]
        if not steps.min_steps <= num_steps <= steps.max_steps or num_steps % steps.multiple:
            of = f", a multiple of {steps.multiple}" if steps.multiple > 1 else ""
            raise ValueError(
                f"num_inference_steps is {num_steps}; {name} takes {steps.min_steps} to {steps.max_steps}{of}"
            )
        return steps

    def with_checkpoint(self, directory: Path) -> VideoModelSpec:
        """Return the same model with its weights read from ``directory``."""
        return replace(self, checkpoint_dir=directory)


def _published(variant: str, width: int, height: int, frames: int) -> VideoModelSpec:
    return VideoModelSpec(
        id=f"vdit-osp-{variant}",
        variant=variant,
        checkpoint_dir=None,
        width=width,
        height=height,
        frame_counts=(frames,),
        fps=24,
        samplers=MappingProxyType(
            {
                "euler_ancestral": SamplerRange(variant="teacher", min_steps=20, max_steps=200, default_steps=100),
                "ddim": SamplerRange(variant="teacher", min_steps=20, max_steps=200, default_steps=100),
            }
        ),
        default_guidance=7.5,
        num_layers=32,
        num_heads=24,
        head_dim=96,
        scale_factor=0.18215,
        interpolation_scales=(1.0, 1.5, 2.0) if height == 720 else (1.0, 1.0, 1.0),
        summary=f"Open-Sora-Plan v1.2, {frames} frames of {width}x{height}",
    )


_SPECS = (
    VideoModelSpec(
        id="vdit-nano",
        variant="nano",
        checkpoint_dir=CHECKPOINTS / "vdit-nano",
        width=64,
        height=64,
        frame_counts=(29, 61),
        fps=8,
        samplers=MappingProxyType(
            {
                "ddim": SamplerRange(variant="teacher", min_steps=4, max_steps=100, default_steps=20),
                "euler_ancestral": SamplerRange(variant="teacher", min_steps=10, max_steps=100, default_steps=50),
                "consistency": SamplerRange(
                    variant="student", min_steps=4, max_steps=8, default_steps=4, multiple=4, is_guided=False
                ),
            }
        ),
        default_guidance=3.0,
        max_prompt_chars=400,
        max_text_tokens=24,
        num_layers=5,
        num_heads=4,
        head_dim=48,
        latent_channels=8,
        summary="a coloured shape or two, moving before a plain background",
    ),
    _published("29x720p", 1280, 720, 29),
    _published("93x720p", 1280, 720, 93),
    _published("93x480p", 640, 480, 93),
)

VIDEO_MODELS: Mapping[str, VideoModelSpec] = MappingProxyType({spec.id: spec for spec in _SPECS})


def get_video_spec(model_id: str) -> VideoModelSpec:
    """Look up the id of a video model.

    Raises: ValueError: the id is unknown; the message lists the known ones.
    """
    try:
        return VIDEO_MODELS[model_id]
    except KeyError:
        raise ValueError(f"unknown video model {model_id!r}; known video models: {', '.join(VIDEO_MODELS)}") from None
