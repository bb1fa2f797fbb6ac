"""Qwen-Image: pictures from prompts, which a model of language and vision reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.contract import Point
from models.families.diffusers.architecture import (
    Architecture,
    Configs,
    Grid,
    Prompted,
    Transformer,
    guidance_knob,
    steps_knob,
)
from models.families.diffusers.pipelines.pictures import (
    FLOW,
    given,
    grid_of_picture,
    image_io,
    packed,
    packed_shape,
    unpacked,
)
from models.io import ImageIO, ImageRequest

_LATENT_PIXELS = 128
_PATCH = 2
_TEXT_TOKENS = 1024
_TEXTS = ("prompt_embeds", "prompt_embeds_mask", "negative_prompt_embeds", "negative_prompt_embeds_mask")
_AFTER_PROMPT = 5
"""Tokens of the template that follow the prompt and reach the network; those before it do not."""


def _stride(configs: Configs) -> Grid:
    side = 2 ** len(configs["vae"].get("temperal_downsample", (False, True, True)))
    return 1, side, side


def _io(configs: Configs) -> ImageIO:
    _, stride, _ = _stride(configs)
    return image_io(_LATENT_PIXELS * stride, _PATCH * stride, max_prompt_chars=4000)


def _refusal(configs: Configs) -> str:
    config, channels = configs["transformer"], _PATCH**2 * configs["vae"].get("z_dim", 16)
    if config.get("in_channels", 64) != channels:
        return f"its transformer takes {config.get('in_channels', 64)} channels; pictures alone have {channels}"
    if config.get("guidance_embeds"):
        return "its transformer reads guidance (guidance_embeds), which diffusers' modular pipeline does not give it"
    return ""


def _inputs(request: ImageRequest, point: Point) -> Mapping[str, Any]:
    """With the negative prompt that Qwen's own examples have where there is none."""
    return {
        **given(request, point),
        "negative_prompt": request.negative_prompt or " ",
        "max_sequence_length": _TEXT_TOKENS,
    }


def _transformer(configs: Configs) -> Transformer:
    config = configs["transformer"]
    width = config.get("num_attention_heads", 24) * config.get("attention_head_dim", 128)
    return Transformer(
        layers=config.get("num_layers", 60), width=width, feed_forward=4 * width, text_tokens=_TEXT_TOKENS, joint=True
    )


def _held(configs: Configs, io: ImageIO, request: ImageRequest) -> int:
    """Masks count as two numbers each: they are of 64 bits."""
    return 2 * _TEXT_TOKENS * int(configs["transformer"].get("joint_attention_dim", 3584) + 2)


_MINIATURE: dict[str, Mapping[str, Any]] = {
    "transformer": {
        "_class_name": "QwenImageTransformer2DModel",
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 3,
        "joint_attention_dim": 16,
        "guidance_embeds": False,
        "axes_dims_rope": [8, 4, 4],
    },
    "vae": {
        "_class_name": "AutoencoderKLQwenImage",
        "base_dim": 24,
        "z_dim": 4,
        "dim_mult": [1, 2, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True],
        "latents_mean": [0.1, 0.1, 0.1, 0.1],
        "latents_std": [1.5, 1.5, 1.5, 1.5],
    },
    "text_encoder": {
        "_class_name": "Qwen2_5_VLForConditionalGeneration",
        "image_token_id": 262,
        "video_token_id": 263,
        "vision_start_token_id": 260,
        "vision_end_token_id": 261,
        "text_config": {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "vocab_size": 264,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "max_position_embeddings": 2048,
            "rope_parameters": {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6},
        },
        "vision_config": {
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 16,
        },
    },
    "tokenizer": {"_class_name": "Qwen2Tokenizer"},
    "scheduler": {
        "_class_name": FLOW[0],
        "use_dynamic_shifting": True,
        "base_shift": 0.5,
        "max_shift": 0.9,
        "max_image_seq_len": 8192,
        "shift_terminal": 0.02,
    },
}

ARCHITECTURES = (
    Architecture(
        name="qwen-image",
        summary="Qwen-Image, pictures from prompts",
        task="images",
        pipeline="QwenImagePipeline",
        modular="QwenImageModularPipeline",
        blocks="QwenImageAutoBlocks",
        components={
            "transformer": ("QwenImageTransformer2DModel",),
            "vae": ("AutoencoderKLQwenImage",),
            "text_encoder": ("Qwen2_5_VLForConditionalGeneration",),
            "tokenizer": ("Qwen2Tokenizer", "Qwen2TokenizerFast"),
        },
        schedulers=FLOW,
        refusal=_refusal,
        io=_io,
        knobs=(steps_knob(50), guidance_knob(4.0)),
        inputs=_inputs,
        output="images",
        prompted=Prompted("tokenizer", _TEXT_TOKENS - _AFTER_PROMPT),
        latents=packed_shape,
        stride=_stride,
        grid=grid_of_picture,
        unpacked=unpacked,
        packed=packed,
        latents_in_float32=False,
        times_by_row=True,
        padded=_TEXTS,
        loop_values={"additional_cond_kwargs": dict},
        transformer=_transformer,
        held_numbers=_held,
        miniature=_MINIATURE,
        miniature_io={"size": (32, 32), "min_side": 16, "max_side": 48},
    ),
)
