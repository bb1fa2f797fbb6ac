"""Every vision-language model that vLLM itself knows, from a folder. Free of torch: vLLM is asked in another process.

Its pictures go to vLLM's own processor as they are, so how many tokens one becomes is not known here. Where that
depends on its size, ``PictureCounter`` asks.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.contract import Family, Grid, LazyRef, Source, Variant
from models.families.vllm.asking import VllmProcess
from models.files import licence_of
from models.folder import architectures_of, pipeline_of
from models.io import ChatIO

_HERE = "models.families.vllm"
Pixels = NDArray[np.uint8]


def resolve(name: str, folder: Path | None = None) -> Variant:
    """The variant behind ``vllm:name``, which is what ``folder`` holds; the name is the user's to choose.

    Raises: ValueError: there is no folder, or vLLM cannot serve it here; the message says why.
    """
    if folder is None:
        raise ValueError(f"vllm:{name} needs the folder of a model (--model vllm:{name}=FOLDER, or checkpoint_dir)")
    try:
        facts = _facts(folder.resolve())
    except ValueError as error:
        raise ValueError(f"vllm:{name} cannot be served here: {error}") from None
    largest = min(facts["largest_image"], facts["max_model_len"] - 1)
    return Variant(
        id=f"vllm:{name}",
        summary=f"{facts['config']['architecture']}, by vLLM's own code",
        io=ChatIO(
            tile_size=0,
            max_tiles=1,
            max_tiles_side=1,
            tokens_per_tile=largest,
            max_model_len=facts["max_model_len"],
            kv_values_per_token=facts["kv_values_per_token"],
        ),
        config=facts["config"],
        source=Source(licence=licence_of(folder)),
        weights=folder,
    )


def recognise(folder: Path) -> str | None:
    """The architecture of a folder of transformers that writes text. Whether vLLM runs it here, ``resolve`` says."""
    names = architectures_of(folder)
    writes = len(names) == 1 and re.search("For(ConditionalGeneration|CausalLM)$|Chat|VL", names[0])
    return names[0] if writes and pipeline_of(folder) is None else None


@cache
def _facts(folder: Path) -> dict[str, Any]:
    process = VllmProcess(folder)
    try:
        return process.facts()
    finally:
        process.stop()


def whole_picture(variant: Variant) -> Callable[[Pixels], tuple[Pixels, Grid]]:
    """Pictures as they are, each one tile of any size, with the number of its tokens where that is always the same."""
    grid = (1, variant.config["image_tokens"] or 1)
    return lambda rgb: (rgb[None], grid)


def to_pillow(tiles: Pixels, grid: Grid) -> Image.Image:
    """What vLLM's processors take."""
    return Image.fromarray(tiles[0])


def one_tile(variant: Variant, width: int, height: int) -> int:
    """Nothing is cut here."""
    return 1


FAMILY = Family(
    name="vllm",
    summary="any vision-language folder that vLLM knows: Qwen-VL, InternVL, LLaVA, Gemma, Idefics3, ...",
    tasks=("chat",),
    shape="stream",
    resolve=LazyRef(f"{_HERE}.family:resolve"),
    prepare=LazyRef(f"{_HERE}.family:whole_picture"),
    work=LazyRef("models.io:chat_work"),
    parts={
        "recognise": LazyRef(f"{_HERE}.family:recognise"),
        "prompts": LazyRef(f"{_HERE}.prompts:read_prompts"),
        "tiles": LazyRef(f"{_HERE}.family:one_tile"),
        "grids": LazyRef(f"{_HERE}.asking:count_pictures"),
        "vllm_image": LazyRef(f"{_HERE}.family:to_pillow"),
    },
)
