"""Flux: [dev], which has guidance built in and reads how much, and [schnell], which has none and takes four steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.contract import Knob, Point
from models.families.diffusers.architecture import Architecture, Configs, Prompted, Transformer, steps_knob
from models.families.diffusers.pipelines.pictures import (
    CLIP_TOKENIZER,
    CLIP_TOKENIZERS,
    FLOW,
    VAE,
    clip_text,
    given,
    grid_of_picture,
    image_io,
    packed,
    packed_shape,
    stride_of,
    unpacked,
)
from models.families.diffusers.tiny import T5
from models.io import ImageIO, ImageRequest

_LATENT_PIXELS = 128
_PATCH = 2
_DEV_TOKENS, _SCHNELL_TOKENS = 512, 256


def _io(configs: Configs) -> ImageIO:
    _, stride, _ = stride_of(configs)
    return image_io(_LATENT_PIXELS * stride, _PATCH * stride, max_prompt_chars=4000, takes_negative_prompt=False)


def _is_guided(configs: Configs) -> bool:
    return bool(configs.get("transformer", {}).get("guidance_embeds", False))


def _is_not_guided(configs: Configs) -> bool:
    return not _is_guided(configs)


def _refusal(configs: Configs) -> str:
    channels = configs["transformer"].get("in_channels", 64)
    needed = _PATCH**2 * configs["vae"].get("latent_channels", 4)
    return "" if channels == needed else f"its transformer takes {channels} channels; pictures alone have {needed}"


def _dev_inputs(request: ImageRequest, point: Point) -> Mapping[str, Any]:
    settings = {"max_sequence_length": _DEV_TOKENS, "guidance_scale": float(point["guidance_scale"])}
    return {**given(request, point), **settings}


def _schnell_inputs(request: ImageRequest, point: Point) -> Mapping[str, Any]:
    return {**given(request, point), "max_sequence_length": _SCHNELL_TOKENS}


def _flux(name: str, summary: str, text_tokens: int, **more: Any) -> Architecture:
    def transformer(configs: Configs) -> Transformer:
        config = configs["transformer"]
        width = config.get("num_attention_heads", 24) * config.get("attention_head_dim", 128)
        layers = config.get("num_layers", 19) + config.get("num_single_layers", 38)
        return Transformer(layers=layers, width=width, feed_forward=4 * width, text_tokens=text_tokens, joint=True)

    def held(configs: Configs, io: ImageIO, request: ImageRequest) -> int:
        config = configs["transformer"]
        text = text_tokens * config.get("joint_attention_dim", 4096) + config.get("pooled_projection_dim", 768) + 1
        places = text_tokens + packed_shape(configs, io, request)[0]
        return int(text + 3 * places)

    return Architecture(
        name=name,
        summary=summary,
        task="images",
        pipeline="FluxPipeline",
        modular="FluxModularPipeline",
        blocks="FluxAutoBlocks",
        components={
            "transformer": ("FluxTransformer2DModel",),
            "vae": ("AutoencoderKL",),
            "text_encoder": ("CLIPTextModel",),
            "tokenizer": CLIP_TOKENIZERS,
            "text_encoder_2": ("T5EncoderModel",),
            "tokenizer_2": ("T5TokenizerFast", "T5Tokenizer"),
        },
        schedulers=FLOW,
        refusal=_refusal,
        io=_io,
        guiders={},
        output="images",
        prompted=Prompted("tokenizer_2", text_tokens),
        latents=packed_shape,
        stride=stride_of,
        grid=grid_of_picture,
        unpacked=unpacked,
        packed=packed,
        latents_in_float32=False,
        times_by_row=True,
        alone=("timesteps", "sigmas", "txt_ids", "img_ids"),
        transformer=transformer,
        held_numbers=held,
        miniature_io={"size": (32, 32), "min_side": 16, "max_side": 48},
        **more,
    )


_TRANSFORMER = {
    "_class_name": "FluxTransformer2DModel",
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 16,
    "axes_dims_rope": [4, 4, 8],
}
_MINIATURE: dict[str, Mapping[str, Any]] = {
    "transformer": {**_TRANSFORMER, "guidance_embeds": True},
    "vae": VAE,
    "text_encoder": clip_text(16, "CLIPTextModel"),
    "tokenizer": CLIP_TOKENIZER,
    "text_encoder_2": T5["text_encoder"],
    "tokenizer_2": T5["tokenizer"],
    "scheduler": {"_class_name": FLOW[0], "shift": 3.0, "use_dynamic_shifting": True},
}
_UNGUIDED = {
    "transformer": {**_TRANSFORMER, "guidance_embeds": False},
    "scheduler": {"_class_name": FLOW[0], "shift": 1.0},
}

ARCHITECTURES = (
    _flux(
        "flux-dev",
        "Flux with guidance built in, pictures from prompts",
        _DEV_TOKENS,
        is_for=_is_guided,
        knobs=(
            steps_knob(28),
            Knob(
                name="guidance_scale",
                default=3.5,
                low=0.0,
                high=20.0,
                grid=(3.5,),
                summary="How much the prompt counts. The network reads it; it costs nothing.",
            ),
        ),
        inputs=_dev_inputs,
        miniature=_MINIATURE,
    ),
    _flux(
        "flux-schnell",
        "Flux distilled to a few steps without guidance, pictures from prompts",
        _SCHNELL_TOKENS,
        is_for=_is_not_guided,
        knobs=(steps_knob(4),),
        inputs=_schnell_inputs,
        miniature={**_MINIATURE, **_UNGUIDED},
    ),
)
