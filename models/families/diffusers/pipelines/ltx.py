"""LTX-Video: clips from a prompt, or from a prompt and a first frame. Its loop has latents as tokens."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
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
from models.families.diffusers.pipelines.clips import clip_inputs, latents_of_clips
from models.families.diffusers.tiny import T5
from models.io import ClipIO, ClipRequest, SamplerRange

_TEXT_TOKENS = 128
_DECODE_TIME, _DECODE_NOISE = 0.05, 0.025
"""As published for autoencoders that take a time (0.9.1 and later); the others ignore it."""
_COMPONENTS = {
    "transformer": ("LTXVideoTransformer3DModel",),
    "vae": ("AutoencoderKLLTXVideo",),
    "text_encoder": ("T5EncoderModel",),
    "tokenizer": ("T5TokenizerFast", "T5Tokenizer"),
}


def _refusal(configs: Configs) -> str:
    transformer = configs["transformer"]
    if (transformer.get("patch_size", 1), transformer.get("patch_size_t", 1)) != (1, 1):
        return "a transformer that packs latents into patches is not known to diffusers' modular LTX pipeline"
    return ""


def _stride(configs: Configs) -> Grid:
    vae = configs["vae"]
    halvings = sum(bool(each) for each in vae.get("spatio_temporal_scaling", (True, True, True, False)))
    space = int(vae.get("patch_size", 4)) * 2**halvings
    space = int(vae.get("spatial_compression_ratio") or space)
    time = int(vae.get("temporal_compression_ratio") or int(vae.get("patch_size_t", 1)) * 2**halvings)
    return time, space, space


def _io(configs: Configs, *, takes_picture: bool) -> ClipIO:
    stride = _stride(configs)
    return ClipIO(
        takes_picture=takes_picture,
        width=704,
        height=512,
        min_side=stride[1] * 4,
        max_side=1280,
        multiple=stride[1],
        max_pixels=1280 * 720,
        frame_counts=(161,),
        max_frames=257,
        fps=25,
        samplers=MappingProxyType(
            {"steps": SamplerRange(weights="transformer", min_steps=1, max_steps=100, default_steps=50)}
        ),
        default_guidance=3.0,
        max_text_tokens=_TEXT_TOKENS,
        latent_channels=configs["transformer"].get("in_channels", 128),
        vae_stride=stride,
        patch=(1, 1, 1),
    )


def _from_prompt(configs: Configs) -> ClipIO:
    return _io(configs, takes_picture=False)


def _from_picture(configs: Configs) -> ClipIO:
    return _io(configs, takes_picture=True)


def _inputs(request: ClipRequest, point: Point) -> Mapping[str, Any]:
    return {
        **clip_inputs(request, point),
        "frame_rate": request.fps,
        "max_sequence_length": _TEXT_TOKENS,
        "decode_timestep": _DECODE_TIME,
        "decode_noise_scale": _DECODE_NOISE,
    }


def _latents(configs: Configs, io: ClipIO, request: ClipRequest) -> tuple[int, ...]:
    channels, frames, height, width = latents_of_clips(configs, io, request)
    return frames * height * width, channels


def _unpacked(latents: Any, grid: Grid) -> Any:
    return latents.unflatten(1, grid).permute(0, 4, 1, 2, 3)


def _packed(latents: Any) -> Any:
    return latents.permute(0, 2, 3, 4, 1).flatten(1, 3)


def _transformer(configs: Configs) -> Transformer:
    config = configs["transformer"]
    width = config.get("num_attention_heads", 32) * config.get("attention_head_dim", 64)
    return Transformer(config.get("num_layers", 28), width, 4 * width, _TEXT_TOKENS)


def _held(configs: Configs, io: ClipIO, request: ClipRequest) -> int:
    """Text and its masks; of a first frame, its latents and the mask over all tokens."""
    text = 2 * _TEXT_TOKENS * (configs["transformer"].get("caption_channels", 4096) + 2)
    channels, frames, height, width = latents_of_clips(configs, io, request)
    return int(text + io.takes_picture * (channels + frames) * height * width)


_MINIATURE: dict[str, dict[str, Any]] = {
    "transformer": {
        "_class_name": "LTXVideoTransformer3DModel",
        "in_channels": 8,
        "out_channels": 8,
        "patch_size": 1,
        "patch_size_t": 1,
        "num_attention_heads": 4,
        "attention_head_dim": 8,
        "cross_attention_dim": 32,
        "num_layers": 2,
        "caption_channels": 32,
    },
    "vae": {
        "_class_name": "AutoencoderKLLTXVideo",
        "latent_channels": 8,
        "block_out_channels": [8, 8, 8, 8],
        "decoder_block_out_channels": [8, 8, 8, 8],
        "layers_per_block": [1, 1, 1, 1, 1],
        "decoder_layers_per_block": [1, 1, 1, 1, 1],
        "spatio_temporal_scaling": [True, True, False, False],
        "decoder_spatio_temporal_scaling": [True, True, False, False],
        "decoder_inject_noise": [False, False, False, False, False],
        "upsample_residual": [False, False, False, False],
        "upsample_factor": [1, 1, 1, 1],
        "timestep_conditioning": False,
        "patch_size": 1,
        "patch_size_t": 1,
        "encoder_causal": True,
        "decoder_causal": False,
    },
    "scheduler": {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "use_dynamic_shifting": True,
        "base_shift": 0.95,
        "max_shift": 2.05,
        "base_image_seq_len": 1024,
        "max_image_seq_len": 4096,
        "shift_terminal": 0.1,
    },
    **T5,
}


def _ltx(name: str, summary: str, pipeline: str, **more: Any) -> Architecture:
    return Architecture(
        name=name,
        summary=summary,
        task="videos",
        pipeline=pipeline,
        modular="LTXModularPipeline",
        blocks="LTXAutoBlocks",
        components=_COMPONENTS,
        schedulers=("FlowMatchEulerDiscreteScheduler",),
        refusal=_refusal,
        knobs=(steps_knob(50), guidance_knob(3.0)),
        inputs=_inputs,
        prompted=Prompted("tokenizer", _TEXT_TOKENS),
        latents=_latents,
        stride=_stride,
        unpacked=_unpacked,
        packed=_packed,
        classic_tolerance=1e-5,
        transformer=_transformer,
        held_numbers=_held,
        miniature=_MINIATURE,
        miniature_io={"width": 32, "height": 32, "min_side": 16, "frame_counts": (9,), "max_frames": 17},
        **more,
    )


ARCHITECTURES = (
    _ltx("ltx-t2v", "LTX-Video, clips from prompts", "LTXPipeline", io=_from_prompt),
    _ltx("ltx-i2v", "LTX-Video, clips from a prompt and a first frame", "LTXImageToVideoPipeline", io=_from_picture),
)
