"""Clips of 29 and 61 frames in one denoising step: one batch for each length, one padded to the longest, one packed.

Padding is as it is usually done: latents are filled up, and a mask keeps tokens from seeing what is none. The limit of
packing over padding is the operations of both: nothing that a token does is saved, but that of tokens that are none. A
step's limit is its operations over the fastest matrix product of the run. Sides take turns, another begins each time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models.families.vdit.config import OpenSoraConfig
from models.families.vdit.transformer import OpenSoraT2V
from models.methods.attention.dense import DENSE
from models.methods.attention.thinned import ModelCall
from models.methods.packing.forward import packed_forward
from tests.benchmarks.common import markdown_table
from tests.benchmarks.video_clips import MID, MID_SIDE, NANO, load

Mix = tuple[tuple[int, int], ...]
"""Frames and rows of each length."""

MIXES: tuple[Mix, ...] = (((29, 1), (61, 1)), ((29, 3), (61, 1)), ((29, 2), (61, 2)))
ROUNDS, MID_ROUNDS = 40, 4
STEPS = 20
TEXT_TOKENS = 8
_MATRIX = 1024


def measure(name: str, *, quick: bool) -> dict[str, Any]:
    """Rows of the nano model and of the larger one."""
    nano = load(NANO)
    transformer: OpenSoraT2V = nano.runner._networks.transformers["teacher"]  # type: ignore[attr-defined]
    measured = {"nano": [_row(transformer, 8, mix, 2 if quick else ROUNDS) for mix in MIXES]}
    if not quick:
        torch.manual_seed(0)
        mid = OpenSoraT2V(MID).eval().requires_grad_(False)
        measured["mid"] = [_row(mid, MID_SIDE // 8, mix, MID_ROUNDS) for mix in MIXES[:1]]
    return measured


def lines(document: dict[str, Any]) -> list[str]:
    """Tables."""
    titles = {
        "nano": f"{NANO}, 64x64: 128 and 256 tokens",
        "mid": f"random weights, width {MID.width}, {MID_SIDE}x{MID_SIDE}: 2,048 and 4,096 tokens",
    }
    found: list[str] = []
    for key, title in titles.items():
        if key in document:
            table = document[key]
            found += [*([""] if found else []), f"**{title}**", ""]
            found.append(markdown_table(list(table[0]), [list(row.values()) for row in table]))
    return found


@torch.inference_mode()
def _row(model: OpenSoraT2V, side: int, mix: Mix, rounds: int) -> dict[str, Any]:
    calls = [_call(model, side, frames, rows) for frames, rows in mix]
    sides: dict[str, Callable[[], list[Tensor]]] = {
        "separate": lambda: [call.run(DENSE) for call in calls],
        "padded": _padded(model, calls),
        "packed": lambda: packed_forward(model, calls, [DENSE] * len(calls)),
    }
    _check(*(run() for run in sides.values()))
    taken: dict[str, list[float]] = {name: [] for name in sides}
    names, rates = list(sides), []
    for number in range(rounds):
        rates.append(_product_rate())
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            taken[name].append(_seconds(sides[name]))
    tokens = sum(_tokens(call) * len(call.latents) for call in calls)
    clips = sum(rows for _, rows in mix)
    best = {name: min(values) for name, values in taken.items()}
    return {
        "rows": " + ".join(f"{rows} of {frames}" for frames, rows in mix),
        **{f"{name} ms": round(1e3 * statistics.median(taken[name]), 2) for name in names},
        "limit ms": round(1e3 * 2 * _macs(model.config, calls) / max(rates), 2),
        "tokens/s packed": round(tokens / best["packed"]),
        f"clips/s of {STEPS} steps packed": round(clips / best["packed"] / STEPS, 3),
        "x over separate": _ratio(taken["separate"], taken["packed"]),
        "x over padded": _ratio(taken["padded"], taken["packed"]),
        "x over padded, limit": round(_padded_macs(model.config, calls) / _macs(model.config, calls), 2),
    }


def _call(model: OpenSoraT2V, side: int, frames: int, rows: int) -> ModelCall:
    generator, config = torch.Generator().manual_seed(frames), model.config
    return ModelCall(
        transformer=model,
        latents=torch.randn(rows, config.in_channels, (frames - 1) // 4 + 1, side, side, generator=generator),
        timestep=torch.full((rows,), 500),
        text=torch.randn(rows, TEXT_TOKENS, config.caption_channels, generator=generator),
        text_mask=torch.ones(rows, TEXT_TOKENS, dtype=torch.bool),
        step=0,
    )


def _padded(model: OpenSoraT2V, calls: Sequence[ModelCall]) -> Callable[[], list[Tensor]]:
    """All rows as long as the longest; the mask is made once, the padding in every step."""
    longest = max(call.latents.shape[2] for call in calls)
    per_frame = _tokens(calls[0]) // calls[0].latents.shape[2]
    lengths = torch.tensor([_tokens(call) for call in calls for _ in call.latents])
    mask = (torch.arange(longest * per_frame) < lengths[:, None])[:, None, None]
    text, text_mask = (torch.cat([getattr(call, name) for call in calls]) for name in ("text", "text_mask"))
    timestep = torch.cat([call.timestep for call in calls])

    class Masked:
        def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, layer: int) -> Tensor:
            q, k, v = (part.transpose(1, 2) for part in (q, k, v))
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)

    def run() -> list[Tensor]:
        latents = torch.cat([F.pad(one.latents, (0, 0, 0, 0, 0, longest - one.latents.shape[2])) for one in calls])
        output = model(latents, timestep, text, text_mask, attention=Masked())
        parts = torch.split(output, [len(call.latents) for call in calls])
        return [part[:, :, : call.latents.shape[2]] for part, call in zip(parts, calls, strict=True)]

    return run


def _check(separate: list[Tensor], *others: list[Tensor]) -> None:
    """All sides make the same, within rounding."""
    for other in others:
        for one, same in zip(separate, other, strict=True):
            assert (one - same).abs().max() <= 1e-4 * one.abs().max()


def _tokens(call: ModelCall) -> int:
    frames, height, width = call.latents.shape[2:]
    return int(frames * height * width) // call.transformer.config.patch_size**2


def _macs(config: OpenSoraConfig, calls: Sequence[ModelCall]) -> float:
    return sum(len(call.latents) * _row_macs(config, _tokens(call)) for call in calls)


def _padded_macs(config: OpenSoraConfig, calls: Sequence[ModelCall]) -> float:
    return sum(len(call.latents) for call in calls) * _row_macs(config, max(_tokens(call) for call in calls))


def _row_macs(config: OpenSoraConfig, tokens: int) -> float:
    """As ``models.families.vdit.work`` counts them."""
    return float(config.num_layers * tokens * (20 * config.width**2 + 2 * tokens * config.width))


def _product_rate() -> float:
    """Operations a second of a square matrix product."""
    one, other = torch.randn(2, _MATRIX, _MATRIX)
    return 2 * _MATRIX**3 / min(_seconds(lambda: one @ other) for _ in range(3))


def _seconds(run: Callable[[], Any]) -> float:
    started_s = time.perf_counter()
    run()
    return time.perf_counter() - started_s


def _ratio(one: Sequence[float], other: Sequence[float]) -> float:
    """Median over rounds."""
    return round(statistics.median(a / b for a, b in zip(one, other, strict=True)), 2)
