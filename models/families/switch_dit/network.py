"""The transformer of Switch-DiT, collapsed: published names, but one matrix a timestep and block in place of experts.

The gates see the timestep and nothing else, and the experts are linear. So what they come to is linear as well:
``mask = 1 + sum of g_e (x W_e + b_e) = 1 + x W_t + b_t``. There is nothing to dispatch. ``W_t`` is formed once for each
timestep of a batch and block, which costs the multiplications of three tokens; to keep those of all timesteps would
take gigabytes.

Legend: B pictures, N tokens of each, W width, E experts, U timesteps that differ.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.families.switch_dit.config import SwitchDitConfig
from models.layers.dit import ClassEmbed, FinalLayer, PatchEmbed, TimeEmbed, modulated, modulation


class SwitchDit(nn.Module):
    """Latents, timesteps and classes to noise and the place of its variance, twice the channels of the latents."""

    def __init__(self, config: SwitchDitConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.x_embedder = PatchEmbed(config.latent_channels, width, config.patch_size)
        self.t_embedder = TimeEmbed(width)
        self.y_embedder = ClassEmbed(config.num_classes + 1, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.num_tokens, width))
        self.routers: Any = nn.ModuleList(TimeExperts(config) for _ in range(config.depth))
        self.blocks: Any = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(width, config.patch_size, 2 * config.latent_channels)
        self._gates: Tensor | None = None

    def forward(self, latents: Tensor, timesteps: Tensor, classes: Tensor) -> Tensor:
        """``latents`` (B, C, side, side), ``timesteps`` (B,) and ``classes`` (B,) integers."""
        tokens = self.x_embedder(latents) + self.pos_embed
        differing, row_of = torch.unique(timesteps, return_inverse=True)
        condition = F.silu(self.t_embedder(differing)[row_of] + self.y_embedder(classes))
        for router, block, gates in zip(self.routers, self.blocks, self.gates[:, differing], strict=True):
            tokens = block(tokens, router.mask(tokens, gates, row_of), condition)
        return self._unpatched(self.final_layer(tokens, condition))

    @property
    def gates(self) -> Tensor:
        """Of each block, timestep and expert (depth, T, E), 0 for those that are not taken. Made once: the weights are
        those that the network is served with."""
        if self._gates is None or self._gates.device != self.pos_embed.device:
            timesteps = torch.arange(self.config.num_timesteps, device=self.pos_embed.device)
            with torch.inference_mode():
                embedded = F.silu(self.t_embedder(timesteps))
                self._gates = torch.stack([router.gates(embedded) for router in self.routers])
        return self._gates

    def _unpatched(self, patches: Tensor) -> Tensor:
        side, patch = self.config.grid_side, self.config.patch_size
        grid = patches.reshape(len(patches), side, side, patch, patch, -1).permute(0, 5, 1, 3, 2, 4)
        return grid.reshape(len(patches), -1, side * patch, side * patch)


class TimeExperts(nn.Module):
    """The linear experts of a block, chosen and weighted by the timestep."""

    def __init__(self, config: SwitchDitConfig) -> None:
        super().__init__()
        self.f_gate = nn.Sequential(nn.Identity(), nn.Linear(config.width, config.num_experts))
        self.experts = PackedLinear(config.num_experts, config.width)
        self.taken = config.taken

    def gates(self, embedded: Tensor) -> Tensor:
        """``embedded``: timesteps after their SiLU (T, W). A softmax over all experts, which is not renormalised."""
        likely = self.f_gate(embedded).softmax(dim=1)
        values, ids = likely.topk(self.taken, dim=1)
        return torch.zeros_like(likely).scatter(1, ids, values)

    def mask(self, tokens: Tensor, gates: Tensor, row_of: Tensor) -> Tensor:
        """By which ``tokens`` (B, N, W) are multiplied before the block. ``gates`` (U, E); ``row_of`` (B,): into it."""
        weight = torch.tensordot(gates, self.experts.w, dims=1)
        bias = 1 + gates @ self.experts.b
        if len(gates) == 1:
            return torch.addmm(bias, tokens.flatten(0, 1), weight[0]).view_as(tokens)
        return torch.baddbmm(bias[row_of][:, None], tokens, weight[row_of])


class PackedLinear(nn.Module):
    """``w`` (E, in, out), used as x @ w, and ``b`` (E, out)."""

    def __init__(self, num_experts: int, width: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(num_experts, width, width))
        self.b = nn.Parameter(torch.zeros(num_experts, width))


class Block(nn.Module):
    """DiT's, of which the masked tokens take part and the others go by."""

    def __init__(self, config: SwitchDitConfig) -> None:
        super().__init__()
        self.attn = Attention(config.width, config.num_heads)
        self.mlp = Mlp(config.width)
        self.adaLN_modulation = modulation(config.width, 6)

    def forward(self, tokens: Tensor, mask: Tensor, condition: Tensor) -> Tensor:
        """``condition`` (B, W): after its SiLU, which all blocks share."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.adaLN_modulation(condition)[:, None].chunk(6, dim=-1)
        routed = tokens * mask
        passed = tokens - routed
        routed = routed + gate * self.attn(modulated(routed, shift, scale))
        made: Tensor = routed + mlp_gate * self.mlp(modulated(routed, mlp_shift, mlp_scale)) + passed
        return made


class Attention(nn.Module):
    """With the names of timm."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:  # noqa: D102
        q, k, v = self.qkv(tokens).reshape(*tokens.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        attended: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return attended


class Mlp(nn.Module):
    """With the names of timm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:  # noqa: D102
        made: Tensor = self.fc2(F.gelu(self.fc1(tokens), approximate="tanh"))
        return made


def guided(network: SwitchDit, latents: Tensor, timesteps: Tensor, classes: Tensor, guidance: Tensor) -> Tensor:
    """As the network gives it, with the noise led away from that of no class: on all channels, as published. The place
    of the variance is that of the class. ``timesteps``, ``guidance`` (B,)."""
    none = torch.full_like(classes, network.config.null_class)
    both = network(latents.repeat(2, 1, 1, 1), timesteps.repeat(2), torch.cat([classes, none]))
    (noise, variance), (unled, _) = (half.chunk(2, dim=1) for half in both.chunk(2))
    return torch.cat([unled + guidance[:, None, None, None] * (noise - unled), variance], dim=1)


def rename(name: str) -> str | None:
    """Published parameter name to ours: the same, without what only training needs."""
    return None if name in ("full_time", "prior._unit_mapping") else name


def random_network(config: SwitchDitConfig, seed: int = 0) -> SwitchDit:
    """Random weights in place of the zeros with which training begins, so that every part counts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SwitchDit(config)
        for parameter in network.parameters():
            width = parameter.shape[-1] if parameter.ndim > 1 else 2500
            nn.init.normal_(parameter, std=width**-0.5)
    return network
