"""Wan 2.1 and 2.2: clips from a prompt, or from a prompt and a first frame.

Of 2.2 there are two kinds: with an expert for each half of the steps, and TI2V-5B, whose first frame is optional.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from models.contract import Knob, Point
from models.families.diffusers.architecture import (
    Architecture,
    Configs,
    Prompted,
    Transformer,
    guidance_knob,
    steps_knob,
)
from models.families.diffusers.pipelines.clips import clip_inputs, latents_of_clips
from models.families.diffusers.tiny import CLIP_VISION, T5
from models.io import ClipIO, ClipRequest, SamplerRange

_TEXT_TOKENS = 512
_SCHEDULERS = ("UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler")
_COMPONENTS = {
    "transformer": ("WanTransformer3DModel",),
    "vae": ("AutoencoderKLWan",),
    "text_encoder": ("UMT5EncoderModel", "T5EncoderModel"),
    "tokenizer": ("T5TokenizerFast", "T5Tokenizer"),
}
_SEES = {
    "image_encoder": ("CLIPVisionModel", "CLIPVisionModelWithProjection"),
    "image_processor": ("CLIPImageProcessor", "CLIPImageProcessorFast"),
}


def _has_token_times(configs: Configs) -> bool:
    return bool(configs["index"].get("expand_timesteps"))


def _has_two_experts(configs: Configs) -> bool:
    return configs["index"].get("boundary_ratio") is not None and not _has_token_times(configs)


def _has_one(configs: Configs) -> bool:
    return not (_has_two_experts(configs) or _has_token_times(configs))


def _refusal(configs: Configs) -> str:
    if configs["vae"].get("patch_size"):
        return "its autoencoder packs pixels, which is known here of Wan 2.2 TI2V-5B alone (expand_timesteps)"
    first = configs["transformer"]
    if configs.get("transformer_2", first).get("in_channels", 16) != first.get("in_channels", 16):
        return "transformer and transformer_2 take latents of different channels"
    if _has_two_experts(configs) and not _is_share(boundary := configs["index"]["boundary_ratio"]):
        return (
            f"boundary_ratio is {boundary!r}; it is the share of the noise below which transformer_2 takes over, 0 to 1"
        )
    return ""


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _refusal_of_ti2v(configs: Configs) -> str:
    if configs["index"].get("boundary_ratio") is not None:
        return "expand_timesteps and two experts (boundary_ratio) are not known together"
    transformer, channels = configs["transformer"], configs["vae"].get("z_dim", 16)
    if transformer.get("in_channels", 16) != channels or transformer.get("image_dim"):
        return "expand_timesteps is known of transformers that take latents alone"
    if list(transformer.get("patch_size", (1, 2, 2))) != [1, 2, 2]:
        return "expand_timesteps is known of patches of 1x2x2"
    return ""


def _strides(configs: Configs) -> tuple[int, int, int]:
    in_time = configs["vae"].get("temperal_downsample", (False, True, True))
    in_space = 2 ** len(in_time) * int(configs["vae"].get("patch_size") or 1)
    return 2 ** sum(map(bool, in_time)), in_space, in_space


def _io(configs: Configs, *, takes_picture: bool) -> ClipIO:
    transformer, strides = configs["transformer"], _strides(configs)
    patch: tuple[int, int, int] = tuple(transformer.get("patch_size", (1, 2, 2)))
    return ClipIO(
        takes_picture=takes_picture,
        width=832,
        height=480,
        min_side=strides[1] * patch[1] * 8,
        max_side=1280,
        multiple=strides[1] * patch[1],
        max_pixels=1280 * 720,
        frame_counts=(81,),
        max_frames=81,
        fps=16,
        samplers=MappingProxyType(
            {"steps": SamplerRange(weights="transformer", min_steps=1, max_steps=100, default_steps=50)}
        ),
        default_guidance=5.0,
        max_text_tokens=_TEXT_TOKENS,
        latent_channels=configs["vae"].get("z_dim", 16),
        vae_stride=strides,
        patch=patch,
    )


def _from_prompt(configs: Configs) -> ClipIO:
    return _io(configs, takes_picture=False)


def _from_picture(configs: Configs) -> ClipIO:
    return _io(configs, takes_picture=True)


def _from_either(configs: Configs) -> ClipIO:
    """Sizes and length of TI2V-5B."""
    return replace(
        _io(configs, takes_picture=True),
        picture_is_optional=True,
        width=1280,
        height=704,
        max_pixels=1280 * 704,
        frame_counts=(121,),
        max_frames=121,
        fps=24,
    )


def _inputs(request: ClipRequest, point: Point) -> Mapping[str, Any]:
    return {**clip_inputs(request, point), "max_sequence_length": _TEXT_TOKENS}


def _transformer(configs: Configs) -> Transformer:
    config = configs["transformer"]
    return Transformer(
        layers=config.get("num_layers", 40),
        width=config.get("num_attention_heads", 40) * config.get("attention_head_dim", 128),
        feed_forward=config.get("ffn_dim", 13824),
        text_tokens=_TEXT_TOKENS,
    )


def _held(configs: Configs, io: ClipIO, request: ClipRequest) -> int:
    text = 2 * _TEXT_TOKENS * configs["transformer"].get("text_dim", 4096)
    if not io.takes_picture:
        return int(text)
    channels, *grid = latents_of_clips(configs, io, request)
    seen = (configs.get("image_encoder", {}).get("image_size", 224) // 14 + 1) ** 2
    size = configs.get("image_encoder", {}).get("image_size", 0) // max(
        1, configs.get("image_encoder", {}).get("patch_size", 1)
    )
    picture = max(seen, size**2 + 1) * configs.get("image_encoder", {}).get("hidden_size", 0)
    return int(text + picture + (2 * channels + io.vae_stride[0]) * grid[0] * grid[1] * grid[2])


_TRANSFORMER = {
    "_class_name": "WanTransformer3DModel",
    "patch_size": [1, 2, 2],
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 32,
    "freq_dim": 32,
    "ffn_dim": 32,
    "num_layers": 2,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 32,
}
_MINIATURE: dict[str, dict[str, Any]] = {
    "transformer": _TRANSFORMER,
    "vae": {
        "_class_name": "AutoencoderKLWan",
        "base_dim": 3,
        "z_dim": 16,
        "dim_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True, True],
    },
    "scheduler": {
        "_class_name": "UniPCMultistepScheduler",
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": 3.0,
    },
    **T5,
}
_MINIATURE_IO = {"width": 32, "height": 32, "min_side": 16, "frame_counts": (9,), "max_frames": 17}
_SECOND: dict[str, dict[str, Any]] = {"transformer_2": _TRANSFORMER, "index": {"boundary_ratio": 0.875}}
_WITH_PICTURE = {"in_channels": 36}


_PACKING = {
    "z_dim": 8,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "is_residual": True,
    "latents_mean": [0.1 * channel for channel in range(8)],
    "latents_std": [1.0 + 0.1 * channel for channel in range(8)],
}


def _wan(
    name: str,
    summary: str,
    pipeline: str,
    modular: str,
    blocks: str,
    *,
    is_for: Callable[[Configs], bool],
    miniature: Configs,
    refusal: Callable[[Configs], str] = _refusal,
    miniature_io: Mapping[str, Any] = _MINIATURE_IO,
    **more: Any,
) -> Architecture:
    two = "transformer_2" in miniature
    first = guidance_knob(
        4.0 if two else 5.0,
        summary="How much the prompt counts while there is much noise; at 1 these steps take one pass." if two else "",
    )
    second = guidance_knob(
        3.0, "guidance_scale_2", "How much the prompt counts in the last steps; at 1 these take one pass."
    )
    knobs: tuple[Knob, ...] = (steps_knob(40 if two else 50), first, *((second,) if two else ()))
    return Architecture(
        name=name,
        summary=summary,
        task="videos",
        pipeline=pipeline,
        is_for=is_for,
        modular=modular,
        blocks=blocks,
        denoisers=("transformer", "transformer_2") if two else ("transformer",),
        components={
            **_COMPONENTS,
            **({"transformer_2": _COMPONENTS["transformer"]} if two else {}),
            **({name: kinds for name, kinds in _SEES.items() if name in miniature}),
        },
        schedulers=_SCHEDULERS,
        refusal=refusal,
        knobs=knobs,
        guiders=MappingProxyType({"guidance_scale": "guider", **({"guidance_scale_2": "guider_2"} if two else {})}),
        inputs=_inputs,
        prompted=Prompted("tokenizer", _TEXT_TOKENS),
        latents=latents_of_clips,
        stride=_strides,
        in_float32=("vae", "image_encoder"),
        always_negative=True,
        transformer=_transformer,
        held_numbers=_held,
        miniature=miniature,
        miniature_io=miniature_io,
        **more,
    )


ARCHITECTURES = (
    _wan(
        "wan-t2v",
        "Wan 2.1, clips from prompts",
        "WanPipeline",
        "WanModularPipeline",
        "WanBlocks",
        is_for=_has_one,
        io=_from_prompt,
        miniature=_MINIATURE,
    ),
    _wan(
        "wan22-t2v",
        "Wan 2.2 with two experts, clips from prompts",
        "WanPipeline",
        "Wan22ModularPipeline",
        "Wan22Blocks",
        is_for=_has_two_experts,
        io=_from_prompt,
        miniature={**_MINIATURE, **_SECOND},
    ),
    _wan(
        "wan-i2v",
        "Wan 2.1, clips from a prompt and a first frame",
        "WanImageToVideoPipeline",
        "WanImage2VideoModularPipeline",
        "WanImage2VideoAutoBlocks",
        is_for=_has_one,
        io=_from_picture,
        miniature={**_MINIATURE, **CLIP_VISION, "transformer": {**_TRANSFORMER, **_WITH_PICTURE, "image_dim": 4}},
    ),
    _wan(
        "wan22-i2v",
        "Wan 2.2 with two experts, clips from a prompt and a first frame",
        "WanImageToVideoPipeline",
        "Wan22Image2VideoModularPipeline",
        "Wan22Image2VideoBlocks",
        is_for=_has_two_experts,
        io=_from_picture,
        miniature={
            **_MINIATURE,
            **_SECOND,
            "transformer": {**_TRANSFORMER, **_WITH_PICTURE},
            "transformer_2": {**_TRANSFORMER, **_WITH_PICTURE},
        },
    ),
    _wan(
        "wan22-ti2v",
        "Wan 2.2 TI2V-5B, clips from a prompt, or from a prompt and a first frame",
        "WanPipeline",
        "models.families.diffusers.blocks.wan_ti2v:WanTextImageModularPipeline",
        "models.families.diffusers.blocks.wan_ti2v:TextImageToVideoBlocks",
        pipeline_with_picture="WanImageToVideoPipeline",
        is_for=_has_token_times,
        refusal=_refusal_of_ti2v,
        io=_from_either,
        miniature={
            **_MINIATURE,
            "transformer": {**_TRANSFORMER, "in_channels": 8, "out_channels": 8},
            "vae": {**_MINIATURE["vae"], **_PACKING},
            "index": {"expand_timesteps": True},
        },
        miniature_io={**_MINIATURE_IO, "width": 64, "height": 64, "min_side": 32},
    ),
)
