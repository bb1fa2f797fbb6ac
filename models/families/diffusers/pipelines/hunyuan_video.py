"""HunyuanVideo 1.5: clips from a prompt, or from a prompt and a first frame."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from models.contract import Value
from models.families.diffusers.architecture import (
    Architecture,
    Configs,
    Grid,
    Prompted,
    Transformer,
    guidance_knob,
    steps_knob,
)
from models.families.diffusers.pipelines.clips import clip_inputs, latents_of_clips
from models.families.diffusers.tiny import T5
from models.io import ClipIO, ClipRequest, SamplerRange

_TEXT_TOKENS, _GLYPH_TOKENS = 1000, 256
_AROUND = 5
"""Tokens that end a prompt in the chat template; those before it are not counted."""
_SEEN_TOKENS = 729
"""Of a first frame as published; as many zeros where there is none."""
_SIZES = {640: (848, 480), 960: (1280, 720)}
"""The pipeline's usual width and height by the size that the transformer was trained for."""
_COMPONENTS = {
    "transformer": ("HunyuanVideo15Transformer3DModel",),
    "vae": ("AutoencoderKLHunyuanVideo15",),
    "text_encoder": ("Qwen2_5_VLTextModel",),
    "tokenizer": ("Qwen2Tokenizer", "Qwen2TokenizerFast"),
    "text_encoder_2": ("T5EncoderModel",),
    "tokenizer_2": ("ByT5Tokenizer",),
    "guider": ("ClassifierFreeGuidance",),
}
_SEES = {
    "image_encoder": ("SiglipVisionModel",),
    "feature_extractor": ("SiglipImageProcessor", "SiglipImageProcessorFast"),
}


def _refusal(configs: Configs) -> str:
    guider = configs["guider"]
    if (guider.get("start", 0.0), guider.get("stop", 1.0), guider.get("enabled", True)) != (0.0, 1.0, True):
        return "its guider guides some of the steps only"
    return ""


def _stride(configs: Configs) -> Grid:
    vae = configs["vae"]
    space = int(vae.get("spatial_compression_ratio", 16))
    return int(vae.get("temporal_compression_ratio", 4)), space, space


def _io(configs: Configs, *, takes_picture: bool) -> ClipIO:
    transformer, stride = configs["transformer"], _stride(configs)
    side = int(transformer.get("target_size", 640))
    width, height = _SIZES.get(side, (side, side))
    patch = int(transformer.get("patch_size", 1))
    return ClipIO(
        takes_picture=takes_picture,
        width=width,
        height=height,
        min_side=stride[1] * patch,
        max_side=side * 2,
        multiple=stride[1] * patch,
        max_pixels=max(width * height, side * side),
        frame_counts=(121,),
        max_frames=121,
        fps=24,
        samplers=MappingProxyType(
            {"steps": SamplerRange(weights="transformer", min_steps=1, max_steps=100, default_steps=50)}
        ),
        default_guidance=6.0,
        max_text_tokens=_TEXT_TOKENS,
        latent_channels=configs["vae"].get("latent_channels", 32),
        vae_stride=stride,
        patch=(int(transformer.get("patch_size_t", 1)), patch, patch),
    )


def _from_prompt(configs: Configs) -> ClipIO:
    return _io(configs, takes_picture=False)


def _from_picture(configs: Configs) -> ClipIO:
    return _io(configs, takes_picture=True)


def _defaults(configs: Configs) -> Mapping[str, Value]:
    return {"guidance_scale": float(configs["guider"].get("guidance_scale", 7.5))}


def _seen_tokens(configs: Configs) -> int:
    """That the transformer is given of a first frame."""
    seen = configs.get("image_encoder")
    return _SEEN_TOKENS if seen is None else int(seen.get("image_size", 224) // seen.get("patch_size", 16)) ** 2


def _transformer(configs: Configs) -> Transformer:
    config = configs["transformer"]
    width = config.get("num_attention_heads", 16) * config.get("attention_head_dim", 128)
    text = _TEXT_TOKENS + _GLYPH_TOKENS + _seen_tokens(configs)
    feed_forward = int(width * config.get("mlp_ratio", 4.0))
    return Transformer(config.get("num_layers", 54), width, feed_forward, text, joint=True)


def _held(configs: Configs, io: ClipIO, request: ClipRequest) -> int:
    """Embeddings and masks of both encoders; the first frame, or zeros for what it would be."""
    config = configs["transformer"]
    text = _TEXT_TOKENS * (config.get("text_embed_dim", 3584) + 1)
    glyphs = _GLYPH_TOKENS * (config.get("text_embed_2_dim", 1472) + 1)
    channels, frames, height, width = latents_of_clips(configs, io, request)
    grid = (frames * (channels + 1) + channels) * height * width
    return int(2 * (text + glyphs) + _seen_tokens(configs) * config.get("image_embed_dim", 1152) + grid)


_QWEN = {
    "_class_name": "Qwen2_5_VLTextModel",
    "vocab_size": 259,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rope_parameters": {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1000000.0},
}
_MINIATURE: dict[str, dict[str, Any]] = {
    "transformer": {
        "_class_name": "HunyuanVideo15Transformer3DModel",
        "in_channels": 9,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 2,
        "num_refiner_layers": 1,
        "mlp_ratio": 2.0,
        "patch_size": 1,
        "patch_size_t": 1,
        "text_embed_dim": 16,
        "text_embed_2_dim": 32,
        "image_embed_dim": 12,
        "rope_axes_dim": [2, 2, 4],
        "target_size": 64,
        "task_type": "t2v",
    },
    "vae": {
        "_class_name": "AutoencoderKLHunyuanVideo15",
        "latent_channels": 4,
        "block_out_channels": [16, 16],
        "layers_per_block": 1,
        "spatial_compression_ratio": 4,
        "temporal_compression_ratio": 2,
        "downsample_match_channel": False,
        "upsample_match_channel": False,
    },
    "scheduler": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 7.0},
    "text_encoder": _QWEN,
    "tokenizer": {"_class_name": "Qwen2Tokenizer"},
    "text_encoder_2": {**T5["text_encoder"], "vocab_size": 384},
    "tokenizer_2": {"_class_name": "ByT5Tokenizer"},
    "guider": {"_class_name": "ClassifierFreeGuidance", "guidance_scale": 6.0},
}


_SIGLIP: dict[str, dict[str, Any]] = {
    "image_encoder": {
        "_class_name": "SiglipVisionModel",
        "hidden_size": 12,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 24,
        "patch_size": 8,
    },
    "feature_extractor": {"_class_name": "SiglipImageProcessor", "size": {"height": 24, "width": 24}},
}
_SMALL = {"target_size": 32, "task_type": "i2v", "use_meanflow": True}
"""The classic pipeline takes no size: it has the one of ``target_size`` that is nearest in shape to the picture."""


def _hunyuan(name: str, summary: str, pipeline: str, *, miniature: Configs, **more: Any) -> Architecture:
    return Architecture(
        name=name,
        summary=summary,
        task="videos",
        pipeline=pipeline,
        modular="HunyuanVideo15ModularPipeline",
        components={**_COMPONENTS, **{name: kinds for name, kinds in _SEES.items() if name in miniature}},
        schedulers=("FlowMatchEulerDiscreteScheduler",),
        refusal=_refusal,
        knobs=(steps_knob(50), guidance_knob(6.0)),
        defaults=_defaults,
        inputs=clip_inputs,
        prompted=Prompted("tokenizer", _TEXT_TOKENS - _AROUND),
        latents=latents_of_clips,
        stride=_stride,
        latents_in_float32=False,
        always_negative=True,
        transformer=_transformer,
        held_numbers=_held,
        miniature=miniature,
        miniature_io={"width": 32, "height": 32, "frame_counts": (5,), "max_frames": 9},
        **more,
    )


ARCHITECTURES = (
    _hunyuan(
        "hunyuan15-t2v",
        "HunyuanVideo 1.5, clips from prompts",
        "HunyuanVideo15Pipeline",
        blocks="HunyuanVideo15AutoBlocks",
        io=_from_prompt,
        miniature=_MINIATURE,
    ),
    _hunyuan(
        "hunyuan15-i2v",
        "HunyuanVideo 1.5, clips from a prompt and a first frame",
        "HunyuanVideo15ImageToVideoPipeline",
        blocks="models.families.diffusers.blocks.hunyuan_video:ImageToVideoBlocks",
        io=_from_picture,
        miniature={**_MINIATURE, **_SIGLIP, "transformer": {**_MINIATURE["transformer"], **_SMALL}},
    ),
)
