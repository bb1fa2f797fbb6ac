"""Switch-DiT's official code (byeongjun-park/Switch-DiT, commit 12fa9a5, MIT) on the same random weights.

Without it: a plain twin, which asks every expert and weights what they say. What the official code imports and is not
needed has a stand-in: timm's layers, and SciPy, with which training matches its priors.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from models.contract import Parity, Variant
from models.families.switch_dit.config import SwitchDitConfig
from models.families.switch_dit.network import SwitchDit, guided, random_network, rename
from models.methods.samplers.base import step_generator
from models.methods.samplers.ddpm import Ddpm
from models.methods.samplers.schedule import NoiseSchedule
from models.testing.parity import bare_package, stand_in

_TOLERANCE = 1e-5
_GUIDANCE = 1.5


def compare(variant: Variant, official: Path | None) -> Iterator[Parity]:
    """Rows of timesteps that differ, rows of one, and with the official code a guided run of five steps."""
    config = _small(variant)
    network = random_network(config).eval()
    random = torch.Generator().manual_seed(1)
    side = config.latent_side
    latents = torch.randn(6, config.latent_channels, side, side, generator=random)
    classes = torch.tensor([0, 3, config.null_class, 1, 2, config.null_class])
    theirs = _Official(network, official) if official is not None else _Twin(network)
    for case, timesteps in (
        ("timesteps that differ", torch.tensor([999, 0, 250, 250, 731, 12])),
        ("one timestep", torch.full((6,), 404)),
    ):
        yield Parity(
            case, network(latents, timesteps, classes), theirs.forward(latents, timesteps, classes), _TOLERANCE
        )
    if isinstance(theirs, _Official):
        yield theirs.mixture()
        for curve in ("cosine", "linear"):
            yield theirs.sampled(latents[:2], classes[:2], curve)


def _small(variant: Variant) -> SwitchDitConfig:
    """Of the variant, what a comparison takes no harm from in small."""
    config = SwitchDitConfig(**variant.config["network"])
    return replace(config, width=48, depth=min(config.depth, 3), num_heads=4, latent_side=8, num_classes=10)


class _Twin:
    """Every expert on every token, as it is written in the paper."""

    def __init__(self, network: SwitchDit) -> None:
        self._network = network

    def forward(self, latents: Tensor, timesteps: Tensor, classes: Tensor) -> Tensor:
        net = self._network
        times = net.t_embedder(timesteps)
        condition = nn.functional.silu(times + net.y_embedder(classes))
        tokens = net.x_embedder(latents) + net.pos_embed
        for router, block in zip(net.routers, net.blocks, strict=True):
            likely = router.f_gate(nn.functional.silu(times)).softmax(dim=1)
            mask = torch.ones_like(tokens)
            for row, gates in enumerate(likely):
                for expert in gates.argsort(descending=True)[: net.config.taken]:
                    said = tokens[row] @ router.experts.w[expert] + router.experts.b[expert]
                    mask[row] += gates[expert] * said
            tokens = block(tokens, mask, condition)
        return net._unpatched(net.final_layer(tokens, condition))


class _Official:
    """The official network with our weights, and the official sampler."""

    def __init__(self, network: SwitchDit, folder: Path) -> None:
        self._network, config = network, network.config
        self._experts, architecture, self._create_diffusion = _imported(folder)
        routing = SimpleNamespace(
            name="DMoE",
            w_JSD=1,
            taskcount=config.num_timesteps,
            param=_Params(num_experts=config.num_experts, k=config.taken),
        )
        self._official = architecture.DiT(
            input_size=config.latent_side,
            patch_size=config.patch_size,
            in_channels=config.latent_channels,
            hidden_size=config.width,
            depth=config.depth,
            num_heads=config.num_heads,
            num_classes=config.num_classes,
            router=self._experts.TaskMoE,
            routing_config=routing,
        ).eval()
        published = self._official.state_dict()
        ours = {name: tensor for name, tensor in published.items() if rename(name) is not None}
        assert ours.keys() == network.state_dict().keys(), "names differ"
        self._official.load_state_dict({**published, **network.state_dict()})

    def forward(self, latents: Tensor, timesteps: Tensor, classes: Tensor) -> Tensor:
        made: Tensor = self._official(latents, timesteps, classes)
        return made

    def mixture(self) -> Parity:
        """The mask of one block alone, for tokens of every timestep."""
        net = self._network
        timesteps = torch.arange(net.config.num_timesteps)
        tokens = torch.randn(len(timesteps), 2, net.config.width, generator=torch.Generator().manual_seed(2))
        router = self._official.routers[0]
        router.set_active_task(timesteps)
        mask, *_ = router(tokens, self._official.t_embedder(timesteps))
        ours = net.routers[0].mask(tokens, net.gates[0], timesteps)
        return Parity("the mask of a block at all timesteps", ours, mask, _TOLERANCE)

    def sampled(self, noise: Tensor, classes: Tensor, curve: Any) -> Parity:
        """Five guided steps, each with the noise that ours draws."""
        sampler = Ddpm(num_steps=5, schedule=NoiseSchedule(curve=curve))
        latents = noise
        for step in range(sampler.num_steps):
            timesteps = torch.full((len(noise),), int(sampler.timestep(step)))
            output = guided(self._network, latents, timesteps, classes, torch.full((len(noise),), _GUIDANCE))
            latents = sampler.step(latents, output, step, step_generator(7, step))
        diffusion = self._create_diffusion("5", noise_schedule=curve)
        both = torch.cat([classes, torch.full_like(classes, self._network.config.null_class)])
        theirs = torch.cat([noise, noise])
        for step in range(5):
            drawn = torch.randn(noise.shape, generator=step_generator(7, step))
            at = torch.full((len(both),), 4 - step)
            with _noise(torch.cat([drawn, drawn])):
                theirs = diffusion.p_sample(
                    self._official.forward_with_cfg,
                    theirs,
                    at,
                    clip_denoised=False,
                    model_kwargs={"y": both, "cfg_scale": _GUIDANCE},
                )["sample"]
        scale = 1.0 / max(1.0, float(theirs.abs().max()))  # random weights make large latents
        case = f"five guided steps, {curve}, of the largest value"
        return Parity(case, latents * scale, theirs.chunk(2)[0] * scale, _TOLERANCE)


class _Params(dict[str, int]):
    """A mapping whose keys are attributes too, as the official code reads it."""

    __getattr__ = dict.__getitem__


@contextmanager
def _noise(drawn: Tensor) -> Iterator[None]:
    """The next noise is this."""
    original = torch.randn_like
    torch.randn_like = lambda _: drawn  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.randn_like = original


def _imported(folder: Path) -> tuple[Any, Any, Any]:
    """Modules of the mixture and of the network, and ``create_diffusion``. Their package is called as ours is."""
    stand_in("scipy")
    stand_in("scipy.optimize", linear_sum_assignment=None)
    stand_in("timm")
    stand_in("timm.models")
    stand_in("timm.models.vision_transformer", PatchEmbed=_PatchEmbed, Attention=_Attention, Mlp=_Mlp)
    bare_package("util", folder / "util")
    sys.path[:0] = [str(folder), str(folder / "models" / "parallel_linear")]
    try:
        create_diffusion = importlib.import_module("diffusion").create_diffusion
        return _module(folder / "models/MoE.py"), _module(folder / "models/DiT/models.py"), create_diffusion
    finally:
        del sys.path[:2]


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"switch_dit_official_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"{path} is missing")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- timm's layers, as far as they are used --------------------------------------------------------------------------


class _PatchEmbed(nn.Module):
    def __init__(self, side: int, patch: int, channels: int, width: int, bias: bool) -> None:
        super().__init__()
        self.patch_size, self.num_patches = (patch, patch), (side // patch) ** 2
        self.proj = nn.Conv2d(channels, width, patch, patch, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.proj(x)
        return projected.flatten(2).transpose(1, 2)


class _Attention(nn.Module):
    def __init__(self, width: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, width = x.shape
        qkv = self.qkv(x).reshape(rows, tokens, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        weights = (q * (width // self.num_heads) ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1)
        attended: Tensor = self.proj((weights @ v).transpose(1, 2).reshape(rows, tokens, width))
        return attended


class _Mlp(nn.Module):
    def __init__(self, in_features: int, hidden_features: int, act_layer: Any, drop: float) -> None:
        super().__init__()
        self.fc1, self.act = nn.Linear(in_features, hidden_features), act_layer()
        self.fc2 = nn.Linear(hidden_features, in_features)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.fc2(self.act(self.fc1(x)))
        return made
