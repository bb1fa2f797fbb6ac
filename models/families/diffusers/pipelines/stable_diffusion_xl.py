"""Stable Diffusion XL, and SDXL-Turbo, whose folder differs by its scheduler alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from models.contract import Knob, Point
from models.families.diffusers.architecture import Architecture, Configs, Prompted, guidance_knob, steps_knob
from models.families.diffusers.pipelines.pictures import (
    CLIP_TOKENIZER,
    CLIP_TOKENIZERS,
    CLIP_TOKENS,
    VAE,
    as_clip,
    clip_text,
    from_clip,
    given,
    grid_of_picture,
    image_io,
    stride_of,
)
from models.io import ImageIO, ImageRequest
from models.layers.miniatures import SDXL_SCALING, SDXL_UNET

_ANCESTRAL = "EulerAncestralDiscreteScheduler"
_SCHEDULERS = ("EulerDiscreteScheduler", _ANCESTRAL, "DPMSolverMultistepScheduler", "UniPCMultistepScheduler")


class UNet(NamedTuple):
    """What a pass of the UNet is made of, to count it."""

    config: Mapping[str, Any]
    text_tokens: int = CLIP_TOKENS
    joint: bool = False

    def macs(self, tokens: int, kept_pairs: float = 1.0) -> float:
        """Multiply-accumulates of one pass over so many latent pixels, embeddings left out. No method drops pairs."""
        config, pixels = self.config, float(tokens)
        widths, deepest = config["block_out_channels"], len(config["block_out_channels"]) - 1
        depths, num_layers = list(config["transformer_layers_per_block"]), config["layers_per_block"]
        total: float = 9 * pixels * (config["in_channels"] + config["out_channels"]) * widths[0]
        width, skipped = widths[0], [widths[0]]
        for level, kind in enumerate(config["down_block_types"]):
            for _ in range(num_layers):
                total += _resnet(width, widths[level], pixels)
                width = widths[level]
                total += self._attention(width, pixels, depths[level]) if "CrossAttn" in kind else 0
                skipped.append(width)
            if level < deepest:
                pixels /= 4
                total += 9 * pixels * width**2
                skipped.append(width)
        total += 2 * _resnet(width, width, pixels) + self._attention(width, pixels, depths[-1])
        for level, kind in zip(range(deepest, -1, -1), config["up_block_types"], strict=True):
            for _ in range(num_layers + 1):
                total += _resnet(width + skipped.pop(), widths[level], pixels)
                width = widths[level]
                total += self._attention(width, pixels, depths[level]) if "CrossAttn" in kind else 0
            if level:
                pixels *= 4
                total += 9 * pixels * width**2
        return total

    def _attention(self, width: int, pixels: float, num_layers: int) -> float:
        text: float = 2 * CLIP_TOKENS * width * (self.config["cross_attention_dim"] + pixels)
        each = 18 * pixels * width**2 + 2 * pixels**2 * width + text
        return num_layers * each + 2 * pixels * width**2


def _resnet(before: int, after: int, pixels: float) -> float:
    return pixels * after * (9 * (before + after) + (before if before != after else 0))


def _is_turbo(configs: Configs) -> bool:
    """SDXL-Turbo's scheduler: nothing else in its folder says what it was distilled to."""
    scheduler = configs.get("scheduler", {})
    return scheduler.get("_class_name") == _ANCESTRAL and scheduler.get("timestep_spacing") == "trailing"


def _is_not_turbo(configs: Configs) -> bool:
    return not _is_turbo(configs)


def _refusal(configs: Configs) -> str:
    unet, channels = configs["unet"], configs["vae"].get("latent_channels", 4)
    if unet.get("in_channels", 4) != channels:
        return f"its UNet takes {unet.get('in_channels')} channels; pictures alone have {channels}"
    if unet.get("time_cond_proj_dim"):
        return "its UNet reads guidance (time_cond_proj_dim), where diffusers' modular pipeline adds its own"
    if unet.get("addition_embed_type") != "text_time":
        return f"its UNet's addition_embed_type is {unet.get('addition_embed_type')}, not text_time"
    return ""


def _io(configs: Configs) -> ImageIO:
    _, stride, _ = stride_of(configs)
    return image_io(stride * int(configs["unet"].get("sample_size", 128)), stride)


def _latents(configs: Configs, io: ImageIO, request: ImageRequest) -> tuple[int, ...]:
    _, height, width = grid_of_picture(io, request)
    return configs["vae"].get("latent_channels", 4), height, width


def _inputs(request: ImageRequest, point: Point) -> Mapping[str, Any]:
    """Without a negative prompt where it is empty: the folder says whether zeros stand for its text."""
    return {**given(request, point), "negative_prompt": request.negative_prompt or None}


def _unet(configs: Configs) -> UNet:
    return UNet(configs["unet"])


def _held(configs: Configs, io: ImageIO, request: ImageRequest) -> int:
    text = CLIP_TOKENS * configs["unet"]["cross_attention_dim"] + configs["text_encoder_2"].get("projection_dim", 1280)
    return 2 * int(text + 6)


def _sdxl(name: str, summary: str, **more: Any) -> Architecture:
    return Architecture(
        name=name,
        summary=summary,
        task="images",
        pipeline="StableDiffusionXLPipeline",
        modular="StableDiffusionXLModularPipeline",
        blocks="StableDiffusionXLAutoBlocks",
        denoisers=("unet",),
        components={
            "unet": ("UNet2DConditionModel",),
            "vae": ("AutoencoderKL",),
            "text_encoder": ("CLIPTextModel",),
            "tokenizer": CLIP_TOKENIZERS,
            "text_encoder_2": ("CLIPTextModelWithProjection",),
            "tokenizer_2": CLIP_TOKENIZERS,
        },
        schedulers=_SCHEDULERS,
        refusal=_refusal,
        io=_io,
        inputs=_inputs,
        output="images",
        prompted=Prompted("tokenizer", CLIP_TOKENS),
        latents=_latents,
        stride=stride_of,
        grid=grid_of_picture,
        unpacked=as_clip,
        packed=from_clip,
        in_float32=("vae",),
        latents_in_float32=False,
        times_by_row=True,
        classic_tolerance=1e-4,
        transformer=_unet,
        held_numbers=_held,
        miniature_io={},
        **more,
    )


_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
_MINIATURE: dict[str, Mapping[str, Any]] = {
    "index": {"force_zeros_for_empty_prompt": True},
    "unet": dict(SDXL_UNET),
    "vae": {
        **VAE,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
        "scaling_factor": SDXL_SCALING,
        "shift_factor": None,
    },
    "text_encoder": clip_text(16, "CLIPTextModel"),
    "tokenizer": CLIP_TOKENIZER,
    "text_encoder_2": clip_text(24, "CLIPTextModelWithProjection"),
    "tokenizer_2": CLIP_TOKENIZER,
    "scheduler": {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", **_NOISE},
}
_KNOBS: tuple[Knob, ...] = (steps_knob(50), guidance_knob(5.0))
_TURBO_KNOBS: tuple[Knob, ...] = (steps_knob(1), guidance_knob(1.0))

ARCHITECTURES = (
    _sdxl(
        "sdxl",
        "Stable Diffusion XL, pictures from prompts",
        is_for=_is_not_turbo,
        knobs=_KNOBS,
        miniature=_MINIATURE,
    ),
    _sdxl(
        "sdxl-turbo",
        "Stable Diffusion XL distilled to a few steps without guidance, pictures from prompts",
        is_for=_is_turbo,
        knobs=_TURBO_KNOBS,
        miniature={
            **_MINIATURE,
            "scheduler": {"_class_name": _ANCESTRAL, "timestep_spacing": "trailing", **_NOISE},
        },
    ),
)
