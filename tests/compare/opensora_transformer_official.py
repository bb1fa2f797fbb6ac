"""Compare the transformer and the samplers with the official code of Open-Sora-Plan v1.2.0: same weights, same noise.

Not part of the test suite, because it needs things that are not ours to ship:

    git clone --branch v1.2.0 https://github.com/PKU-YuanGroup/Open-Sora-Plan official
    pip install --no-deps einops diffusers==0.30.3
    python -m tests.compare.opensora_transformer_official official

Official modules import helpers for training, other devices and several ranks, which take no part here; empty stand-ins
take their place. The samplers are compared with diffusers, as the official pipeline uses them.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.families.vdit.config import OpenSoraConfig
from models.families.vdit.transformer import OpenSoraT2V
from models.methods.samplers.make import make_sampler
from tests.compare.dyn_perceiver_official import bare_package, commit_of, gap

BASE = "opensora.models.diffusion.opensora"
SMALL = OpenSoraConfig(
    num_attention_heads=4, attention_head_dim=48, num_layers=3, cross_attention_dim=192, caption_channels=64,
    sample_size=(16, 24), sample_size_t=8, interpolation_scale_thw=(1.0, 1.5, 2.0),
)  # fmt: skip
CASES = {
    "720p scales": SMALL,
    "no scales": dataclasses.replace(SMALL, interpolation_scale_thw=(1.0, 1.0, 1.0)),
    "head dim 96": dataclasses.replace(SMALL, num_attention_heads=2, attention_head_dim=96),
}
GRIDS = ((2, 6, 8), (5, 6, 4), (8, 10, 6), (3, 2, 14))
"""Latent frames, rows, columns. Patches differ in number along all three axes: the official cache of angles is keyed by
length and forgets the scale, so two axes of one length get the first one's angles (1.6e-2 off at 2x4x6)."""
LIMIT = 1e-4


def main() -> None:
    """Command line. Ends with 1 if anything differs by more than ``LIMIT``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("official", type=Path, help="checkout of the official repository")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    official = load_official(args.official)
    print(f"official: {commit_of(args.official)}; torch {torch.__version__}, float32, CPU\n")
    worst = max(compare_networks(official), compare_samplers())
    sys.exit(worst > LIMIT)


def load_official(checkout: Path) -> Any:
    """The official transformer's module."""
    for name in ("opensora", "opensora.utils", "opensora.models", "opensora.models.diffusion", BASE):
        bare_package(name, checkout / name.replace(".", "/"))
    stand_in(
        "opensora.utils.parallel_states",
        get_sequence_parallel_state=lambda: False,
        nccl_info=types.SimpleNamespace(world_size=1),
    )
    stand_in("opensora.utils.communications", all_to_all_SBH=None)
    stand_in(
        "opensora.utils.utils",
        to_2tuple=lambda value: tuple(value) if isinstance(value, list | tuple) else (value, value),
    )
    stand_in("diffusers.models.transformer_2d", Transformer2DModelOutput=types.SimpleNamespace)
    return importlib.import_module(f"{BASE}.modeling_opensora")


def stand_in(name: str, **members: Any) -> None:
    """A module of which only these members are needed."""
    module = types.ModuleType(name)
    vars(module).update(members)
    sys.modules[name] = module


def compare_networks(official: Any) -> float:
    """Print the largest difference for each configuration and size."""
    print("| configuration | latents | text tokens | largest output | largest difference |\n|---|---|---|---:|---:|")
    worst = 0.0
    for name, config in CASES.items():
        for grid in GRIDS:
            theirs, ours = build_pair(official, config)
            latents, timestep, text, mask = inputs(config, grid)
            with torch.inference_mode():
                expected = theirs(
                    latents, timestep, text[:, None], encoder_attention_mask=mask[:, None].float(),
                    attention_mask=torch.ones(len(latents), *grid), return_dict=False,
                )[0]  # fmt: skip
                found = ours(latents, timestep, text, mask)
            difference = gap(found, expected)
            worst = max(worst, difference)
            shape = "x".join(map(str, grid))
            print(
                f"| {name} | {shape} | {mask.sum(1).tolist()} | {float(expected.abs().max()):.2f} | {difference:.1e} |"
            )
    return worst


def build_pair(official: Any, config: OpenSoraConfig) -> tuple[nn.Module, OpenSoraT2V]:
    """Theirs with random weights, ours with the same; names must be the same, too."""
    scales = {f"interpolation_scale_{axis}": config.interpolation_scale_thw[i] for i, axis in enumerate("thw")}
    theirs = official.OpenSoraT2V(
        num_attention_heads=config.num_attention_heads, attention_head_dim=config.attention_head_dim,
        in_channels=4, out_channels=4, num_layers=config.num_layers, cross_attention_dim=config.cross_attention_dim,
        attention_bias=True, sample_size=config.sample_size, sample_size_t=config.sample_size_t, patch_size=2,
        patch_size_t=1, activation_fn="gelu-approximate", norm_type="ada_norm_single", norm_elementwise_affine=False,
        norm_eps=1e-6, caption_channels=config.caption_channels, attention_mode="math", use_rope=True, **scales,
    ).eval()  # fmt: skip
    ours = OpenSoraT2V(config).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.06)
    weights = {name: tensor for name, tensor in theirs.state_dict().items() if "pos_embed.pos" not in name}
    ours.load_state_dict(weights)
    return theirs, ours


def inputs(config: OpenSoraConfig, grid: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two samples of different timesteps and lengths of text."""
    mask = torch.arange(9)[None] < torch.tensor([[9], [4]])
    latents = torch.randn(2, 4, *grid)
    return latents, torch.tensor([17, 903]), torch.randn(2, 9, config.caption_channels), mask


def compare_samplers() -> float:
    """Print the largest difference from diffusers over whole runs with a made-up model."""
    from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler

    print("\n| sampler | steps | largest latents | largest difference |\n|---|---:|---:|---:|")
    worst = 0.0
    for steps in (5, 20, 100):
        euler, ddim = EulerAncestralDiscreteScheduler(), DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
        for name, theirs in (("euler_ancestral", euler), ("ddim", ddim)):
            theirs.set_timesteps(steps)
            expected, found = run_both(theirs, make_sampler(name, steps))
            difference = gap(found, expected)
            worst = max(worst, difference / max(1.0, float(expected.abs().max())))
            print(f"| {name} | {steps} | {float(expected.abs().max()):.2f} | {difference:.1e} |")
    return worst


def run_both(theirs: Any, ours: Any) -> tuple[Tensor, Tensor]:
    """Both from the same noise; the noise of each step is drawn from generators of the same seed."""
    noise = torch.randn(2, 4, 3, 4, 4)
    expected, found = noise * theirs.init_noise_sigma, ours.initial(noise)
    for step, timestep in enumerate(theirs.timesteps):
        shown = theirs.scale_model_input(expected, timestep)
        keywords = {"generator": torch.Generator().manual_seed(step)} if hasattr(theirs, "sigmas") else {}
        expected = theirs.step(made_up(shown, float(timestep)), timestep, expected, **keywords).prev_sample
        output = made_up(ours.scale_input(found, step), ours.timestep(step))
        found = ours.step(found, output, step, torch.Generator().manual_seed(step))
    return expected, found


def made_up(latents: Tensor, timestep: float) -> Tensor:
    """Something that depends on latents and timestep, as a model's output does."""
    return torch.tanh(latents * (0.5 + timestep / 1000)) + 0.1 * torch.sin(latents)


if __name__ == "__main__":
    main()
