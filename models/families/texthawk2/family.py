"""TextHawk2, which reads documents with sixteen times fewer image tokens: its card. Free of torch."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from models.contract import Family, Knob, LazyRef, Source, Variant
from models.identity import CHECKPOINTS
from models.io import MAX_TILES, ChatIO

_HERE = "models.families.texthawk2"
_PAPER = {"paper": "arXiv:2410.05261", "url": "https://arxiv.org/abs/2410.05261"}  # no official code, no weights

NANO = Variant(
    id="texthawk2-nano",
    summary="reads words, finds shapes in rendered pictures; weights included",
    io=ChatIO(
        tile_size=224,
        max_tiles=12,
        max_tiles_side=6,
        tokens_per_tile=16,
        max_model_len=2048,
        kv_values_per_token=2 * 4 * 2 * 64,  # keys and values, layers, heads, width of a head
    ),
    source=Source(**_PAPER, licence="Apache-2.0"),  # trained here
    weights=CHECKPOINTS / "texthawk2-nano",
    is_nano=True,
    is_default=True,
)
VERBOSE = Variant(
    id="texthawk2-nano-verbose",
    summary="answers at length about rendered pictures, for attacks on the length of answers; weights included",
    io=replace(NANO.io, kv_values_per_token=2 * 3 * 2 * 64),  # a layer less
    source=NANO.source,
    weights=CHECKPOINTS / "texthawk2-nano-verbose",
    is_nano=True,
)
SEVEN_B = Variant(
    id="texthawk2-7b",
    summary="SigLIP-SO400M and Qwen2-7B, as published",
    io=ChatIO(
        tile_size=224,
        max_tiles=72,
        max_tiles_side=12,
        tokens_per_tile=16,
        max_model_len=8192,
        kv_values_per_token=2 * 28 * 4 * 128,
    ),
    source=Source(**_PAPER, licence="Apache-2.0"),  # that of the two parts, of which `vireo convert` makes a folder
    published=MappingProxyType(
        {"OCRBench": 78.4, "ChartQA": 81.4, "DocVQA": 89.6, "InfoVQA": 67.8, "TextVQA": 75.1, "RefCOCOg test": 88.1}
    ),
)

FAMILY = Family(
    name="texthawk2",
    summary="Reads documents and finds things in pictures, 16 tokens a tile.",
    tasks=("chat",),
    shape="stream",
    variants=(NANO, VERBOSE, SEVEN_B),
    prepare=LazyRef(f"{_HERE}.image_processor:tile_cutter"),
    build=LazyRef(f"{_HERE}.modeling:build"),
    work=LazyRef("models.io:chat_work"),
    knobs=(
        Knob(
            name=MAX_TILES,
            summary="Most tiles that a picture is cut into, its thumbnail aside.",
            default=72,
            low=1,
            high=72,
            grid=(1, 2, 4, 6, 12, 24, 36, 72),
            is_integer=True,
            trades="detail of pictures for time",
        ),
    ),
    parts=MappingProxyType(
        {
            "convert": LazyRef(f"{_HERE}.convert:convert"),
            "prompts": LazyRef(f"{_HERE}.prompt:read_prompts"),
            "tiles": LazyRef(f"{_HERE}.tiling:count_tiles"),
            "boxes": LazyRef(f"{_HERE}.coordinates:boxes_in"),
            "calibrate": LazyRef("models.training.texthawk2.calibrate:calibrate"),
            "vllm": LazyRef(f"{_HERE}.vllm_plugin:register"),
        }
    ),
)
