"""The official code (feizc/DiT-MoE, commit bd34bbb) on same random weights; without it, plain twins and diffusers.

Official code wants timm's patches and attention, and flash attention, which a CPU does not have: they get stand-ins.
XL and G round queries and keys to half precision whatever the rest is in; so does ours here, and here alone.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from models.class_words import number_of
from models.contract import JobState, Parity, Variant
from models.families.dit_moe.config import DitMoeConfig
from models.families.dit_moe.family import FAMILY
from models.families.dit_moe.network import DitMoe
from models.families.dit_moe.networks import Networks, build
from models.families.dit_moe.runner import DitMoeRunner
from models.io import ImageRequest
from models.methods.experts.grouped import plain_swiglu
from models.methods.samplers.base import step_generator
from models.methods.samplers.ddpm import Ddpm
from models.testing.parity import stand_in

_STEPS = 5
_TOLERANCE = 1e-5
_Sample: TypeAlias = Callable[[Any, JobState, Variant], Tensor]
"""(network, request, its variant) -> latents of its pictures."""


def compare(_: Variant, official: Path | None) -> Iterator[Parity]:
    """In miniature: the network of each layout, and latents as the runner makes them beside others."""
    theirs = None if official is None else _official(official)
    for miniature in FAMILY.miniatures:
        networks = build(miniature, random_weights=True)
        config = networks.transformer.config
        network = _plain_twin(networks.transformer) if theirs is None else _theirs(theirs, networks.transformer)
        inputs = _inputs(config)
        case = f"network with {config.attention} attention"
        yield Parity(case, networks.transformer(*inputs), network(*inputs), _TOLERANCE)
        is_ddpm = miniature.config["process"] == "ddpm"
        sample: _Sample = _euler
        if theirs is None and is_ddpm:
            sample = _diffusers
        elif theirs is not None:
            sample = partial(_p_sample_loop if is_ddpm else _flow_sample, theirs)
        yield from _latents(networks, miniature, partial(sample, network))


def _latents(networks: Networks, variant: Variant, sample: Callable[[JobState, Variant], Tensor]) -> Iterator[Parity]:
    """Two requests of other classes, guidance and numbers of pictures share slices, one of them a step ahead."""
    runner, (width, height) = DitMoeRunner(networks, variant), variant.io.size
    asked = (("red square", 2, 4.0, 3), ("a blue circle", 1, 7.0, 11))
    states = [
        runner.open(
            ImageRequest(width=width, height=height, prompt=prompt, count=count),
            FAMILY.check_point({"num_inference_steps": _STEPS, "guidance_scale": guidance}),
            seed,
        )
        for prompt, count, guidance, seed in asked
    ]
    runner.step(states[:1])
    while left := [state for state in states if "denoise" in runner.remaining(state)]:
        runner.step(left)
    for state, (_, count, guidance, _) in zip(states, asked, strict=True):
        expected = sample(state, variant)
        size = expected.abs().max()  # random networks drive DDPM's latents far away
        case = (
            f"{variant.config['process']}, {_STEPS} steps, guidance {guidance:g}, {count} of a request, to {size:.0f}"
        )
        yield Parity(case, state.kept["latents"] / size, expected / size, _TOLERANCE)


def _inputs(config: DitMoeConfig) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    latents = torch.randn(3, config.latent_channels, config.latent_side, config.latent_side, generator=random)
    return latents, torch.tensor([3.0, 700.0, 0.3]), torch.tensor([1, config.null_class, 0])


def _noise(state: JobState, step: int) -> Tensor:
    shape = (1, *state.kept["latents"].shape[1:])
    return torch.cat(
        [torch.randn(shape, generator=step_generator(state.seed + row, step)) for row in range(state.request.count)]
    )


def _classes(state: JobState, variant: Variant) -> tuple[Tensor, Tensor]:
    """Of the request, and none."""
    asked = torch.full((state.request.count,), number_of(variant.config["classes"], state.request.prompt))
    return asked, torch.full_like(asked, variant.config["network"]["num_classes"])


# -- twins -----------------------------------------------------------------------------------------------------------


def _plain_twin(network: DitMoe) -> DitMoe:
    """One expert after another."""
    twin = copy.deepcopy(network)
    for block in twin.blocks:
        experts = block.moe.experts
        experts.forward = partial(one_by_one, experts)
    return twin


def one_by_one(experts: Any, tokens: Tensor, ids: Tensor, weights: Tensor, shared: nn.Module) -> Tensor:
    """``PackedExperts.forward`` by a loop."""
    mixed: Tensor = plain_swiglu(tokens, experts.gate_up, experts.down, ids, weights) + shared(tokens)
    return mixed


def _euler(network: Any, state: JobState, variant: Variant) -> Tensor:
    latents, (asked, none) = _noise(state, -1), _classes(state, variant)
    for step in range(_STEPS):
        times = torch.full((len(latents),), 1 - step / _STEPS)
        conditional, unconditional = (network(latents, times, classes) for classes in (asked, none))
        latents = latents - _guided(conditional, unconditional, state)[:, : latents.shape[1]] / _STEPS
    return latents


def _diffusers(network: Any, state: JobState, variant: Variant) -> Tensor:
    latents, (asked, none) = _noise(state, -1), _classes(state, variant)
    scheduler = DDPMScheduler(variance_type="learned_range", clip_sample=False)
    sampler = Ddpm(num_steps=_STEPS)
    scheduler.set_timesteps(timesteps=[int(sampler.timestep(step)) for step in range(_STEPS)])
    for step, timestep in enumerate(scheduler.timesteps):
        times = timestep.expand(len(latents))
        output = network(latents, times, asked)
        output[:, :3] = _guided(output[:, :3], network(latents, times, none)[:, :3], state)
        rows = [
            scheduler.step(
                output[row : row + 1], timestep, latents[row : row + 1], step_generator(state.seed + row, step)
            ).prev_sample
            for row in range(len(latents))
        ]
        latents = torch.cat(rows)
    return latents


def _guided(conditional: Tensor, unconditional: Tensor, state: JobState) -> Tensor:
    return unconditional + float(state.point["guidance_scale"]) * (conditional - unconditional)


# -- the official code ------------------------------------------------------------------------------------------------


def _official(folder: Path) -> SimpleNamespace:
    """Its modules, with stand-ins. Raises: FileNotFoundError: they are not there."""
    for name in ("timm", "timm.models"):
        stand_in(name)
    stand_in("timm.models.vision_transformer", PatchEmbed=_Patches, Attention=_Attention, Mlp=nn.Identity)
    spec = importlib.util.spec_from_file_location("dit_moe_official", folder / "models.py")
    if spec is None or spec.loader is None or not (folder / "diffusion").is_dir():
        raise FileNotFoundError(f"{folder} is no checkout of feizc/DiT-MoE")
    network = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(network)
    vars(network)["FlashSelfAttention"] = _Flash
    sys.path.append(str(folder))
    return SimpleNamespace(
        network=network,
        diffusion=importlib.import_module("diffusion"),
        flow=importlib.import_module("diffusion.rectified_flow"),
    )


def _theirs(official: SimpleNamespace, ours: DitMoe) -> Any:
    """Their network with the weights of ours."""
    config, is_normed = ours.config, ours.config.attention == "normed"
    network = official.network.DiT(
        input_size=config.latent_side,
        hidden_size=config.width,
        depth=config.depth,
        num_heads=config.num_heads,
        num_classes=config.num_classes,
        num_experts=config.num_experts,
        pretraining_tp=1 if is_normed else 2,
        use_flash_attn=is_normed,
    )
    network.load_state_dict(ours.state_dict(), strict=True)
    for block in ours.blocks if is_normed else ():
        for norm in (block.attn.q_norm, block.attn.k_norm):
            norm.register_forward_hook(lambda module, inputs, output: output.half().float())
    return network.eval()


def _p_sample_loop(official: SimpleNamespace, network: Any, state: JobState, variant: Variant) -> Tensor:
    """As sample.py calls it, but for what is drawn."""
    first, steps = _noise(state, -1), iter(range(_STEPS))
    drawn = SimpleNamespace(**vars(torch))
    drawn.randn_like = lambda _: torch.cat([_noise(state, next(steps))]).repeat(2, 1, 1, 1)
    vars(official.diffusion.gaussian_diffusion)["th"] = drawn
    made: Tensor = official.diffusion.create_diffusion(str(_STEPS)).p_sample_loop(
        network.forward_with_cfg,
        (2 * len(first), *first.shape[1:]),
        torch.cat([first, first]),
        clip_denoised=False,
        model_kwargs={"y": torch.cat(_classes(state, variant)), "cfg_scale": float(state.point["guidance_scale"])},
        device=first.device,
    )
    return made[: len(first)]


def _flow_sample(official: SimpleNamespace, network: Any, state: JobState, variant: Variant) -> Tensor:
    asked, none = _classes(state, variant)
    scale = float(state.point["guidance_scale"])
    flow = official.flow.RectifiedFlow(network)
    made: Tensor = flow.sample(_noise(state, -1), asked, none, sample_steps=_STEPS, cfg=scale)[-1]
    return made


class _Patches(nn.Module):
    def __init__(self, size: int, patch: int, channels: int, width: int, bias: bool) -> None:
        super().__init__()
        self.patch_size, self.num_patches = (patch, patch), (size // patch) ** 2
        self.proj = nn.Conv2d(channels, width, patch, patch, bias=bias)

    def forward(self, latents: Tensor) -> Tensor:
        projected: Tensor = self.proj(latents)
        return projected.flatten(2).transpose(1, 2)


class _Attention(nn.Module):
    def __init__(self, width: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=qkv_bias), nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        rows, count, width = tokens.shape
        q, k, v = self.qkv(tokens).view(rows, count, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1)) * (width // self.num_heads) ** -0.5
        projected: Tensor = self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(rows, count, width))
        return projected


class _Flash(nn.Module):
    def __init__(self, attention_dropout: float) -> None:
        super().__init__()

    def forward(self, qkv: Tensor) -> Tensor:
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).contiguous()
