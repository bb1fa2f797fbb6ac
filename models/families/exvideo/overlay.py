"""ExVideo's published file, and ours of the same form: the temporal blocks alone, by DiffSynth's names.

Every name that follows from the UNet's configuration must be there and no other: DiffSynth itself loads what it knows
and leaves out the rest, so that a short file gives a clip, and a bad one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from diffusers import UNetSpatioTemporalConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from models.families.exvideo.shapes import OVERLAY_FILES, overlay_blocks
from models.families.exvideo.unet import extended_transformers

_BLOCK = "temporal_transformer_blocks.0"
_MODULES = {
    "positional_embedding_proj.0": "time_pos_embed.linear_1",
    "positional_embedding_proj.2": "time_pos_embed.linear_2",
    "positional_conv": "pos_conv",
    "norm_in": f"{_BLOCK}.norm_in",
    "norm1": f"{_BLOCK}.norm1",
    "norm2": f"{_BLOCK}.norm2",
    "norm_out": f"{_BLOCK}.norm3",
    "act_fn_in.proj": f"{_BLOCK}.ff_in.net.0.proj",
    "ff_in": f"{_BLOCK}.ff_in.net.2",
    "act_fn_out.proj": f"{_BLOCK}.ff.net.0.proj",
    "ff_out": f"{_BLOCK}.ff.net.2",
    **{
        f"{attention}.{theirs}": f"{_BLOCK}.{attention}.{ours}"
        for attention in ("attn1", "attn2")
        for theirs, ours in (("to_q", "to_q"), ("to_k", "to_k"), ("to_v", "to_v"), ("to_out", "to_out.0"))
    },
}
_TABLE = ("positional_embedding.embeddings", "pos_table")
_SHOWN = 6


def overlay_file(folder: Path) -> Path | None:
    """The file in a folder of SVD, or None: it holds SVD alone."""
    return next((folder / name for name in OVERLAY_FILES if (folder / name).is_file()), None)


def names(unet: UNetSpatioTemporalConditionModel) -> dict[str, str]:
    """Published names to those of an extended UNet."""
    found: dict[str, str] = {}
    blocks, ours = overlay_blocks(unet.config), extended_transformers(unet)
    for path, transformer in ours.items():
        state = transformer.state_dict()
        found[f"blocks.{blocks[path]}.{_TABLE[0]}"] = f"{path}.{_TABLE[1]}"
        for theirs, module in _MODULES.items():
            for kind in ("weight", "bias"):
                if f"{module}.{kind}" in state:
                    found[f"blocks.{blocks[path]}.{theirs}.{kind}"] = f"{path}.{module}.{kind}"
    return found


def overlay_of(unet: UNetSpatioTemporalConditionModel) -> dict[str, Tensor]:
    """The tensors of an extended UNet that the file holds, by their published names."""
    state = unet.state_dict()
    return {theirs: state[ours].detach().cpu().contiguous() for theirs, ours in names(unet).items()}


def read_overlay(path: Path, unet: UNetSpatioTemporalConditionModel) -> dict[str, Tensor]:
    """The file's tensors by the names of an extended UNet, which may be on the meta device.

    Raises: ValueError: it is damaged, or its names or shapes are not exactly those that follow from the UNet.
    """
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    state = unet.state_dict()
    check_overlay(path, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, unet)
    return {ours: tensors[theirs].to(state[ours].dtype) for theirs, ours in names(unet).items()}


def check_overlay(path: Path, given: Mapping[str, tuple[int, ...]], unet: UNetSpatioTemporalConditionModel) -> None:
    """Pass names and shapes of a file. Raises: ValueError: listing what is missing, unknown or of another shape."""
    state = unet.state_dict()
    expected = {theirs: tuple(state[ours].shape) for theirs, ours in names(unet).items()}
    shared = expected.keys() & given.keys()
    problems = {
        "misses": sorted(expected.keys() - given.keys()),
        "has, and this model does not,": sorted(given.keys() - expected.keys()),
        "has other shapes:": [
            f"{name} {given[name]}, not {expected[name]}" for name in sorted(shared) if given[name] != expected[name]
        ],
    }
    for what, found in problems.items():
        if found:
            more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            raise ValueError(
                f"{path.name} {what} {', '.join(found[:_SHOWN])}{more}; it must have {len(expected)} tensors"
            )
