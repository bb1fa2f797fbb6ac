"""The parts of ``bench_gpu_check``: each yields plain rows as it measures them. On a CPU all shapes are small."""

from __future__ import annotations

import json
import os
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.families.dyn_perceiver.family import FAMILY as DYN_PERCEIVER
from models.families.dyn_perceiver.model import DynPerceiver
from models.families.dyn_perceiver.runner import DynPerceiverRunner
from models.families.vdit.config import OpenSoraConfig
from models.methods.attention.adaspa_config import num_blocks
from models.methods.attention.adaspa_search import plain_block_mass
from models.methods.attention.block_layout import BlockLayout
from models.methods.attention.block_sparse import block_sparse_attention
from models.methods.attention.partial import attention_with_lse
from models.methods.attention.triton_block_mass import triton_block_mass
from models.training.log import LOG_FILE
from tests.benchmarks import bench_attention, gpu_steps
from tests.benchmarks.common import ROOT
from tests.benchmarks.moe_kernel import Layer

Row = dict[str, Any]
_HEADS = 2
_SPARSITY = 0.8
_REGNETY = "dyn-perceiver-regnety-800mf"


def is_small(device: str) -> bool:
    """Whether this only tries the script."""
    return device == "cpu"


# -- kernels ---------------------------------------------------------------------------------------------------------


def kernels(device: str) -> Iterator[Row]:
    """Largest difference of each kernel from its plain twin, which computes in float32 from the same bfloat16."""
    shapes = [(grid[0] * grid[1] * grid[2], dim) for grid, _, dim, _ in bench_attention.GPU_SHAPES.values()]
    for num_tokens, dim in [(150, 24), (96, 128)] if is_small(device) else shapes:
        for block in (16,) if is_small(device) else (64, 128):
            yield from _compared(num_tokens, dim, block, device)


@torch.inference_mode()
def _compared(num_tokens: int, dim: int, block: int, device: str) -> Iterator[Row]:
    # Triton's interpreter computes products of bfloat16 by NumPy, which has none.
    dtype = torch.float32 if is_small(device) else torch.bfloat16
    generator = torch.Generator(device).manual_seed(num_tokens)
    shape = (1, num_tokens, _HEADS, dim)
    q, k, v = (torch.randn(shape, generator=generator, device=device).to(dtype) for _ in range(3))
    blocks = num_blocks(num_tokens, block)
    mask = torch.rand((1, _HEADS, blocks, blocks), generator=generator, device=device) >= _SPARSITY
    layout = BlockLayout(mask=mask, block_tokens=block, num_tokens=num_tokens)
    case = {"tokens": num_tokens, "dim": dim, "block": block}
    ours = block_sparse_attention(q, k, v, layout, backend="triton")
    plain = block_sparse_attention(q.float(), k.float(), v.float(), layout, backend="cpu")
    yield {**case, "kernel": "attention", **_difference(ours, plain, dtype)}
    _, lse = attention_with_lse(q, k, v)
    lse = lse.transpose(1, 2).contiguous()
    mass = triton_block_mass(q, k, lse, block)
    yield {**case, "kernel": "block mass", **_difference(mass, plain_block_mass(q, k, lse, block), dtype)}


def _difference(ours: Tensor, plain: Tensor, dtype: torch.dtype) -> Row:
    """Right within two roundings of the largest value, as outputs and weights are rounded once each."""
    largest = float(plain.abs().max())
    error = float((ours.float() - plain.float()).abs().max())
    limit = largest * (1e-5 if dtype is torch.float32 else 2 * torch.finfo(dtype).eps)
    return {"largest": round(largest, 5), "error": error, "limit": limit, "ok": error <= limit}


# -- attention, steps ------------------------------------------------------------------------------------------------


@torch.inference_mode()
def attention(device: str) -> Iterator[Row]:
    """Ours against the fastest dense SDPA. FlexAttention is left out: it takes minutes to compile."""
    if is_small(device):
        options = Namespace(device=device, rounds=1, tokens=[1024], quick=True)
        yield from bench_attention.cpu_rows(options, None)  # type: ignore[arg-type]
        return
    options = Namespace(device=device, rounds=3, tokens=[], quick=False)
    yield from bench_attention.gpu_rows(options, None)  # type: ignore[arg-type]


def steps(device: str) -> Iterator[Row]:
    """Open-Sora-Plan v1.2 at 29x720p: dense, a tile mask, AdaSpa."""
    config, latent = OpenSoraConfig(), gpu_steps.OSP_LATENT
    if is_small(device):
        config = OpenSoraConfig(
            num_layers=2, num_attention_heads=2, attention_head_dim=24, cross_attention_dim=48, caption_channels=32
        )
        latent = (8, 8, 8)
    network = gpu_steps.osp(config, latent, torch.device(device))
    for kind in ("dense", "tile:2:6", "adaspa:0.8"):
        yield gpu_steps.row(network, kind, 4 if is_small(device) else 10)


# -- early exit ------------------------------------------------------------------------------------------------------


def exits(device: str) -> Iterator[Row]:
    """Milliseconds of each stage, and of all in one call, by batch."""
    wanted = "dyn-perceiver-nano" if is_small(device) else _REGNETY
    variant = next(one for one in DYN_PERCEIVER.variants if one.id == wanted)
    runner = DynPerceiverRunner(DynPerceiver(variant.config["network"]).to(device), variant)
    side, count = variant.io.input_size, runner.num_stages
    for batch in (1, 4) if is_small(device) else (1, 8, 32, 128, 512):
        pictures = torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8)
        stages = [_least_ms(partial(_through, runner, pictures, n), device) for n in range(1, count + 1)]
        yield {"batch": batch, **{f"to exit {n + 1}, ms": round(ms, 3) for n, ms in enumerate(stages)},
               "exit 1 of all": round(stages[0] / stages[-1], 3)}  # fmt: skip


def _through(runner: DynPerceiverRunner, pictures: Tensor, num_stages: int) -> None:
    """One stage after the other, as a host runs them."""
    state = runner.begin(pictures)
    for stage in range(num_stages):
        state, _, _ = runner.run(state, stage, 1)


# -- experts ---------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def experts(device: str) -> Iterator[Row]:
    """One layer of DiT-MoE, shared experts included."""
    sizes = {"nano": (32, 4)} if is_small(device) else {"S, 8 experts": (384, 8), "B, 8 experts": (768, 8)}
    dtype = torch.float32 if is_small(device) else torch.bfloat16
    for name, size in sizes.items():
        with torch.device(device):
            torch.manual_seed(0)
            layer = Layer(*size, dtype)
        for tokens in (64,) if is_small(device) else (256, 1024, 4096, 16384):
            with torch.device(device):
                x, routing = layer.inputs(tokens)
            sides = {side: layer.side(side) for side in ("loop", "grouped", "dense")}
            taken = {side: _least_ms(partial(run, x, routing), device) for side, run in sides.items()}
            shown = {f"{side}, ms": round(ms, 3) for side, ms in taken.items()}
            same = _difference(sides["grouped"](x, routing), sides["loop"](x, routing).float(), dtype)
            yield {"size": name, "tokens": tokens, **shown,
                   "times as fast as the loop": round(taken["loop"] / taken["grouped"], 2), **same}  # fmt: skip


def _least_ms(run: Callable[[], object], device: str, rounds: int = 10) -> float:
    """After three calls to warm up."""
    for _ in range(3):
        run()
    taken = []
    for _ in range(rounds):
        _wait(device)
        began_s = time.perf_counter()
        run()
        _wait(device)
        taken.append(time.perf_counter() - began_s)
    return min(taken) * 1e3


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


# -- training --------------------------------------------------------------------------------------------------------

_STARTING_S = 40.0
"""Of the time, for imports, measuring and saving."""


def training(device: str, seconds: float, folder: Path) -> Iterator[Row]:
    """What ``texthawk2-nano`` answers right, by teacher forcing, before and after the rest of the time."""
    try:
        from models.training.texthawk2 import language_stage
        from models.training.texthawk2.synth.fonts import default_fonts

        default_fonts()
    except (ModuleNotFoundError, ValueError) as lacking:
        yield {"left out": str(lacking)}
        return
    small = is_small(device)
    source, run = ROOT / "models" / "checkpoints" / "texthawk2-nano", folder / "reader"
    began_s, workers = time.monotonic(), 1 if small else max(1, ((os.cpu_count() or 2) - 2) // 2)

    def train(start: Path, share: float, options: str) -> None:
        left_s = max(seconds - _STARTING_S - (time.monotonic() - began_s), 1.0)
        same = f"--minutes {share * left_s / 60} --workers {workers} --device {device}"
        places = ["--from", str(start), "--out", str(run)]
        language_stage.train(language_stage.build_parser().parse_args([*places, *same.split(), *options.split()]))

    # Shipped weights have no heads of the training: taught alone at first, these disturb nothing.
    heads = "--dense-tiles 4 --steps 2" if small else "--dense-tiles 64 --steps 300"
    train(source, 0.2, f"--freeze model --tiles 0 --lr 5e-3 --shows 1 {heads}")
    all_of_it = "--tiles 8 --dense-tiles 4 --steps 2" if small else "--tiles 160 --dense-tiles 40 --steps 100000"
    train(run, 1.0, f"--lr 6e-4 --tower-lr 3e-4 {all_of_it}")
    lines = [json.loads(line) for line in (run / LOG_FILE).read_text().splitlines()]
    first = max(place for place, line in enumerate(lines) if line["step"] == 0)
    yield from (line for line in lines[first:] if "tokens_latin" in line)


PARTS: dict[str, Callable[[str], Iterator[Row]]] = {
    "kernels": kernels,
    "attention": attention,
    "steps": steps,
    "exits": exits,
    "experts": experts,
}
