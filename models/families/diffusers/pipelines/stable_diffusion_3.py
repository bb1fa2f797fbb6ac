"""Stable Diffusion 3 and 3.5, with the T5 text encoder, which reads the longest prompts and takes most memory, or
without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.contract import Point
from models.families.diffusers.architecture import (
    Architecture,
    Configs,
    Prompted,
    Transformer,
    guidance_knob,
    steps_knob,
)
from models.families.diffusers.pipelines.pictures import (
    CLIP_TOKENIZER,
    CLIP_TOKENIZERS,
    CLIP_TOKENS,
    FLOW,
    VAE,
    as_clip,
    clip_text,
    from_clip,
    given,
    grid_of_picture,
    image_io,
    stride_of,
)
from models.families.diffusers.tiny import T5
from models.io import ImageIO, ImageRequest

_T5_TOKENS = 256
_TEXT_TOKENS = CLIP_TOKENS + _T5_TOKENS
"""Without T5 as well: zeros stand for what it would say."""


def _has_t5(configs: Configs) -> bool:
    return "text_encoder_3" in configs


def _has_no_t5(configs: Configs) -> bool:
    return not _has_t5(configs)


def _io(configs: Configs) -> ImageIO:
    config, (_, stride, _) = configs["transformer"], stride_of(configs)
    multiple = stride * int(config.get("patch_size", 2))
    most = multiple * int(config.get("pos_embed_max_size", 96))
    return image_io(stride * int(config.get("sample_size", 128)), multiple, most=most)


def _inputs(request: ImageRequest, point: Point) -> Mapping[str, Any]:
    """With a negative prompt, be it empty: without one, the blocks subtract the prompt from itself."""
    return {**given(request, point), "negative_prompt": request.negative_prompt, "max_sequence_length": _T5_TOKENS}


def _latents(configs: Configs, io: ImageIO, request: ImageRequest) -> tuple[int, ...]:
    _, stride, _ = stride_of(configs)
    return configs["transformer"].get("in_channels", 16), request.height // stride, request.width // stride


def _transformer(configs: Configs) -> Transformer:
    config = configs["transformer"]
    width = config.get("num_attention_heads", 18) * config.get("attention_head_dim", 64)
    return Transformer(
        layers=config.get("num_layers", 18), width=width, feed_forward=4 * width, text_tokens=_TEXT_TOKENS, joint=True
    )


def _held(configs: Configs, io: ImageIO, request: ImageRequest) -> int:
    config = configs["transformer"]
    text = _TEXT_TOKENS * config.get("joint_attention_dim", 4096) + config.get("pooled_projection_dim", 2048)
    return 2 * int(text)


def _sd3(name: str, summary: str, components: Mapping[str, tuple[str, ...]], **more: Any) -> Architecture:
    return Architecture(
        name=name,
        summary=summary,
        task="images",
        pipeline="StableDiffusion3Pipeline",
        modular="StableDiffusion3ModularPipeline",
        blocks="StableDiffusion3AutoBlocks",
        components={
            "transformer": ("SD3Transformer2DModel",),
            "vae": ("AutoencoderKL",),
            "text_encoder": ("CLIPTextModelWithProjection",),
            "tokenizer": CLIP_TOKENIZERS,
            "text_encoder_2": ("CLIPTextModelWithProjection",),
            "tokenizer_2": CLIP_TOKENIZERS,
            **components,
        },
        schedulers=FLOW,
        io=_io,
        knobs=(steps_knob(28), guidance_knob(7.0)),
        inputs=_inputs,
        output="images",
        latents=_latents,
        stride=stride_of,
        grid=grid_of_picture,
        unpacked=as_clip,
        packed=from_clip,
        latents_in_float32=False,
        times_by_row=True,
        classic_tolerance=1e-5,
        transformer=_transformer,
        held_numbers=_held,
        miniature_io={},
        **more,
    )


_MINIATURE: dict[str, Mapping[str, Any]] = {
    "transformer": {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": 16,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "caption_projection_dim": 32,
        "joint_attention_dim": 48,
        "pooled_projection_dim": 40,
        "pos_embed_max_size": 12,
    },
    "vae": VAE,
    "text_encoder": clip_text(16, "CLIPTextModelWithProjection"),
    "tokenizer": CLIP_TOKENIZER,
    "text_encoder_2": clip_text(24, "CLIPTextModelWithProjection"),
    "tokenizer_2": CLIP_TOKENIZER,
    "scheduler": {"_class_name": FLOW[0], "shift": 3.0},
}

ARCHITECTURES = (
    _sd3(
        "sd3",
        "Stable Diffusion 3, pictures from prompts",
        {"text_encoder_3": ("T5EncoderModel",), "tokenizer_3": ("T5TokenizerFast", "T5Tokenizer")},
        is_for=_has_t5,
        prompted=Prompted("tokenizer_3", _T5_TOKENS),
        miniature={
            **_MINIATURE,
            "text_encoder_3": {**T5["text_encoder"], "d_model": 48},
            "tokenizer_3": T5["tokenizer"],
        },
    ),
    _sd3(
        "sd3-clip",
        "Stable Diffusion 3 without T5, pictures from short prompts",
        {},
        is_for=_has_no_t5,
        prompted=Prompted("tokenizer", CLIP_TOKENS),
        miniature=_MINIATURE,
    ),
)
