"""Bytes of activations, before there are any: of text, of a pass of the denoiser, and of pictures. Free of torch.

Each is a bound on what lives at a time, in tensors of a network's widths; how many, was counted at every operation of
the installed classes (a test measures the miniatures again: it is at most about twice as much). What a kernel takes for
itself is not counted, such as the scores of attention where a device has no kernel that does without.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from models.families.diffusers.architecture import IO, Architecture, Configs, Transformer
from models.io import ClipIO
from models.methods.attention.memory import FLOAT_BYTES

Config = Mapping[str, Any]
_CLIP_TOKENS, _GLYPH_TOKENS = 77, 256
_TEMPLATE_TOKENS = 128
"""Of a chat template around a prompt, at most."""


class Activations(NamedTuple):
    """Most bytes in each phase of a request, besides those of ``Work`` that are held throughout."""

    condition: int
    denoise: int
    decode: int

    @property
    def peak(self) -> int:
        """Of the phase that takes most."""
        return max(self)


class Block(NamedTuple):
    """Of a denoiser, for each token: ``copies`` of its width, besides twice the feed-forward layer's, and at ``least``
    so many; ``with_times``: more of them where each token has a time of its own, as beside a first frame.
    ``pair_bytes``: of a mask over all pairs of tokens."""

    copies: float
    least: float
    with_times: float = 0.0
    pair_bytes: float = 0.0


_BLOCKS: Mapping[str, Block] = MappingProxyType(
    {
        "WanTransformer3DModel": Block(copies=6, least=10),
        "LTXVideoTransformer3DModel": Block(copies=8, least=12, with_times=16),
        "HunyuanVideo15Transformer3DModel": Block(copies=6.5, least=13.5, pair_bytes=2.2),
        "FluxTransformer2DModel": Block(copies=9.5, least=15),
        "SD3Transformer2DModel": Block(copies=7, least=13.5),
        "QwenImageTransformer2DModel": Block(copies=9.5, least=15),
    }
)
_TEXT_COPIES = 8
"""Likewise of a text that is looked at by cross-attention."""
_PLACES = 4
"""Likewise of a head's width for each token: cosines and sines of where it is."""
_LATENT_COPIES = 6
"""Of the latents: as they are, with guidance's branches, and as the scheduler has them."""


def activations(
    architecture: Architecture, configs: Configs, io: IO, request: Any, itemsize: int = FLOAT_BYTES
) -> Activations:
    """Of one request alone, of a settled size. ``itemsize``: of a number, where a network does not insist on four."""
    frames, pixels = getattr(request, "num_frames", 1), request.height * request.width
    rows, vae = int(getattr(request, "count", 1)), configs["vae"]
    of_vae = FLOAT_BYTES if "vae" in architecture.in_float32 else itemsize
    texts = max(_text(architecture, configs, name) for name in configs if name.startswith("text_encoder"))
    seen = _seen(vae, frames, pixels) if isinstance(io, ClipIO) and io.takes_picture else 0
    held = architecture.held_numbers(configs, io, request)
    latents = rows * math.prod(architecture.latents(configs, io, request))
    decoded = _DECODERS[vae["_class_name"]](vae, frames, pixels) * of_vae + 2 * 3 * frames * pixels * FLOAT_BYTES
    denoiser = _denoiser(architecture, configs, io, request, itemsize)
    return Activations(
        condition=int(max(texts * itemsize, seen * of_vae) + FLOAT_BYTES * ((rows + 1) * held + 2 * latents)),
        denoise=int(rows * (denoiser + itemsize * held) + FLOAT_BYTES * _LATENT_COPIES * latents),
        decode=int(decoded),
    )


def _denoiser(architecture: Architecture, configs: Configs, io: IO, request: Any, itemsize: int) -> float:
    """Bytes of one row and branch."""
    config = configs[architecture.denoisers[0]]
    grid = architecture.grid(io, request)
    if config["_class_name"] == "UNet2DConditionModel":
        return itemsize * _unet(config, math.prod(grid))
    block, made = _BLOCKS[config["_class_name"]], architecture.transformer(configs)
    assert isinstance(made, Transformer)
    tokens = math.prod(grid) + (made.text_tokens if made.joint else 0)
    a_token = max(block.least * made.width, block.copies * made.width + 2 * made.feed_forward)
    a_token += block.with_times * made.width if isinstance(io, ClipIO) and io.takes_picture else 0
    text = 0 if made.joint else _TEXT_COPIES * made.text_tokens * made.width
    places = FLOAT_BYTES * _PLACES * config.get("attention_head_dim", 128) * tokens
    return float(itemsize * (tokens * a_token + text) + places + block.pair_bytes * tokens**2)


def _unet(config: Config, pixels: float) -> float:
    """Skip connections of all levels, beside the widest layer."""
    widths, layers = config["block_out_channels"], config["layers_per_block"] + 2
    depths = config.get("transformer_layers_per_block", (1,) * len(widths))
    skipped = sum(layers * width * pixels / 4**level for level, width in enumerate(widths))
    wide = max(
        (14 if depths[level] and "CrossAttn" in kind else 9) * width * pixels / 4**level
        for level, (width, kind) in enumerate(zip(widths, config["down_block_types"], strict=True))
    )
    text = _CLIP_TOKENS * (2 * config["cross_attention_dim"] + 4 * max(widths))
    return float(skipped + wide + text)


# -- text ------------------------------------------------------------------------------------------------------------


def _text(architecture: Architecture, configs: Configs, name: str) -> float:
    """Numbers while an encoder reads the longest prompt."""
    config = configs[name]
    kind = config["_class_name"]
    limit = architecture.prompted.limit
    if kind.startswith("CLIP"):
        return _attended(
            config, _CLIP_TOKENS, 6 * config.get("hidden_size", 512) + 2.5 * config.get("intermediate_size", 2048)
        )
    if "T5" in kind:
        own = configs.get(name.replace("text_encoder", "tokenizer"), {}).get("_class_name")
        tokens = _GLYPH_TOKENS if own == "ByT5Tokenizer" else limit
        linear = tokens * (8 * config.get("d_model", 512) + 3 * config.get("d_ff", 2048))
        return float(linear + 4 * config.get("num_heads", 8) * tokens**2)
    tokens, config = limit + _TEMPLATE_TOKENS, config.get("text_config", config)
    layers = config.get("num_hidden_layers", 80) + 8
    words = config.get("vocab_size", 152064) if "Generation" in kind else 0
    return float(
        tokens * (layers * config.get("hidden_size", 8192) + 3 * config.get("intermediate_size", 29568) + words)
        + tokens**2 / FLOAT_BYTES
    )


def _attended(config: Config, tokens: int, a_token: float) -> float:
    return float(tokens * a_token + config.get("num_attention_heads", 8) * tokens**2)


# -- pictures --------------------------------------------------------------------------------------------------------


def _seen(vae: Config, frames: int, pixels: int) -> float:
    """Numbers while a first frame is encoded. Wan's autoencoder is given a clip whose other frames are grey."""
    if vae["_class_name"] == "AutoencoderKLWan":
        return _chunked(vae, 4, pixels) + 3.0 * 3 * frames * pixels
    return 1.5 * _DECODERS[vae["_class_name"]](vae, 1, pixels) + 3.0 * 3 * pixels


def _picture(config: Config, frames: int, pixels: int) -> float:
    """AutoencoderKL: the last block has the most pixels, and comes from the wider one before it."""
    widths = config["block_out_channels"]
    return float(frames * pixels * 3 * (widths[0] + widths[min(1, len(widths) - 1)]))


def _by_frames(config: Config, frames: int, pixels: int) -> float:
    """Wan's and Qwen-Image's: four frames at a time, and two of each layer from the time before."""
    return _chunked(config, min(frames, 4), pixels)


def _chunked(config: Config, frames: int, pixels: int) -> float:
    width = config.get("base_dim", 96) * config.get("dim_mult", (1, 2, 4, 4))[0]
    return float((frames + 2) * pixels * 5.5 * width)


def _ltx(config: Config, frames: int, pixels: int) -> float:
    """The whole clip at once, a patch of pixels in each place."""
    width = config.get("decoder_block_out_channels", config["block_out_channels"])[0]
    patch = int(config.get("patch_size", 4)) ** 2 * int(config.get("patch_size_t", 1))
    return float(frames * pixels / patch * 6 * width)


def _hunyuan(config: Config, frames: int, pixels: int) -> float:
    """The whole clip at once."""
    return float(frames * pixels * 5 * config["block_out_channels"][0])


_DECODERS: Mapping[str, Callable[[Config, int, int], float]] = MappingProxyType(
    {
        "AutoencoderKL": _picture,
        "AutoencoderKLWan": _by_frames,
        "AutoencoderKLQwenImage": _by_frames,
        "AutoencoderKLLTXVideo": _ltx,
        "AutoencoderKLHunyuanVideo15": _hunyuan,
    }
)
