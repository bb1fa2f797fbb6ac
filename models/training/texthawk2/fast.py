"""What makes a step of training shorter; which of it helps depends on the processor (docs/experiments.md)."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import nn

from models.families.texthawk2.modeling import TextHawk2ForConditionalGeneration


def fast_products() -> AbstractContextManager[None]:
    """Autocast to bfloat16 on a processor whose products are faster in it, else nothing.

    On AMD's EPYC bfloat16 took half the time of float32. On an Intel Xeon without AMX it takes 1.7 times as long.
    """
    return torch.autocast("cpu", torch.bfloat16) if _is_bfloat16_faster() else nullcontext()


@cache
def _is_bfloat16_faster() -> bool:
    """By the fastest of products that take turns, so that other work on the machine meets both alike."""
    times = [(_product_s(torch.float32), _product_s(torch.bfloat16)) for _ in range(20)]
    return min(half for _, half in times) < min(single for single, _ in times)


def _product_s(dtype: torch.dtype) -> float:
    """Seconds of a product of the nano tower's size."""
    rows, weight = torch.ones(4096, 192, dtype=dtype), torch.ones(768, 192, dtype=dtype)
    started_s = time.perf_counter()
    nn.functional.linear(rows, weight)
    return time.perf_counter() - started_s


def compile_layers(model: TextHawk2ForConditionalGeneration) -> None:
    """Compile the layers in place, for a minute; names of weights stay.

    Attention is written out ("eager") so that the compiler fuses it: torch's CPU kernel for short sequences took a
    third of a step on AMD's EPYC. 1.25 times as many steps per hour there, 0.7 times on an Intel Xeon.
    """
    model.set_attn_implementation("eager")
    regions = [
        *model.vision_tower.encoder.layers,
        model.connector.query_proposal,
        *model.connector.resampler.layers,
        *model.language_model.model.layers,
    ]
    for region in regions:
        region.compile()
