"""Products in whichever of float32 and bfloat16 is faster here."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import nn


def fast_products(device: str = "cpu") -> AbstractContextManager[None]:
    """Autocast to bfloat16 on a GPU, and on a processor whose products are faster in it; else nothing.

    On AMD's EPYC bfloat16 took half the time of float32. On an Intel Xeon without AMX it takes 1.7 times as long.
    ``device``: type of the device of what is multiplied, as ``tensor.device.type``.
    """
    wanted = _is_bfloat16_faster() if device == "cpu" else torch.amp.is_autocast_available(device)
    return torch.autocast(device, torch.bfloat16) if wanted else nullcontext()


@cache
def _is_bfloat16_faster() -> bool:
    """By the fastest of products that take turns, so that other work on the machine meets both alike."""
    times = [(_product_s(torch.float32), _product_s(torch.bfloat16)) for _ in range(20)]
    return min(half for _, half in times) < min(single for single, _ in times)


def _product_s(dtype: torch.dtype) -> float:
    """Seconds of a product of the nano models' size."""
    rows, weight = torch.ones(4096, 192, dtype=dtype), torch.ones(768, 192, dtype=dtype)
    started_s = time.perf_counter()
    nn.functional.linear(rows, weight)
    return time.perf_counter() - started_s
