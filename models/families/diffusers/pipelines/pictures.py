"""What pipelines that make pictures from prompts have in common. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.contract import Point
from models.families.diffusers.architecture import Configs, Grid
from models.io import ImageIO, ImageRequest
from models.layers.miniatures import AUTOENCODER

FLOW = ("FlowMatchEulerDiscreteScheduler",)
CLIP_TOKENS = 77
"""Of a prompt, with the marks at its ends: all that CLIP has places for."""
CLIP_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")


def image_io(
    side: int, multiple: int, *, most: int = 0, max_prompt_chars: int = 2000, takes_negative_prompt: bool = True
) -> ImageIO:
    """Square pictures of a side, and others with sides from half of it to twice it. ``most``: the longest side that the
    network has positions for."""
    return ImageIO(
        takes_prompt=True,
        takes_negative_prompt=takes_negative_prompt,
        is_seeded=True,
        size=(side, side),
        min_side=-(-side // 2 // multiple) * multiple,
        max_side=min(2 * side, most or 2 * side) // multiple * multiple,
        multiple=multiple,
        max_prompt_chars=max_prompt_chars,
    )


def grid_of_picture(io: ImageIO, request: ImageRequest) -> Grid:
    """One frame, rows and columns of patches."""
    return 1, request.height // io.multiple, request.width // io.multiple


def stride_of(configs: Configs) -> Grid:
    """Of ``AutoencoderKL``."""
    side = 2 ** (len(configs["vae"].get("block_out_channels", (64,))) - 1)
    return 1, side, side


def as_clip(latents: Any, grid: Grid) -> Any:
    """(1, C, h, w) as a clip of one frame."""
    return latents.unsqueeze(2)


def from_clip(latents: Any) -> Any:
    """A clip of one frame as (1, C, h, w)."""
    return latents.squeeze(2)


def unpacked(latents: Any, grid: Grid) -> Any:
    """(1, h/2 * w/2, 4 C), a patch of four latent pixels in each place, as a clip of one frame."""
    patches = latents.unflatten(1, grid[1:]).unflatten(-1, (-1, 2, 2))
    return patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3).unsqueeze(2)


def packed(latents: Any) -> Any:
    """The other way round."""
    patches = latents.squeeze(2).unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def packed_shape(configs: Configs, io: ImageIO, request: ImageRequest) -> tuple[int, ...]:
    """Of latents that are packed."""
    _, height, width = grid_of_picture(io, request)
    return height * width, configs["transformer"].get("in_channels", 64)


def given(request: ImageRequest, point: Point) -> dict[str, Any]:
    """What every pipeline is given."""
    return {
        "prompt": request.prompt,
        "height": request.height,
        "width": request.width,
        "num_images_per_prompt": request.count,
        "num_inference_steps": int(point["num_inference_steps"]),
    }


_CLIP_TEXT: Mapping[str, Any] = {
    "vocab_size": 514,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": CLIP_TOKENS,
    "bos_token_id": 512,
    "eos_token_id": 513,
}


def clip_text(width: int, kind: str) -> dict[str, Any]:
    """A text encoder of CLIP in miniature."""
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "projection_dim": width}
    return {"_class_name": kind, **_CLIP_TEXT, **sizes}


VAE: Mapping[str, Any] = {
    **AUTOENCODER,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
"""An autoencoder in miniature: four channels, half as many pixels a side."""
CLIP_TOKENIZER = {"_class_name": "CLIPTokenizer"}
