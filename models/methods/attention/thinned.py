"""How self-attention is thinned out for one request, and what that keeps between its steps.

Legend: B rows of the batch (R of each request, in order), L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from models.methods.attention.adaspa import AdaSpaAttention
from models.methods.attention.base import SelfAttention
from models.methods.attention.dense import DENSE
from models.methods.attention.memory import adaspa_config
from models.methods.attention.setting import AttentionKind, AttentionSetting
from models.methods.attention.tile_attention import TileAttention
from models.methods.attention.tile_mask import TileMask
from models.methods.ras.config import RasConfig
from models.methods.ras.forward import ras_forward
from models.methods.ras.state import RasState
from models.parallel.forward import VideoTransformer


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCall:
    """One call of the transformer. ``latents`` (B, C, t, h, w), ``timestep`` (B,), ``text`` (B, S, C), mask (B, S).

    ``step`` is that of all requests where the attention has a schedule.
    """

    transformer: VideoTransformer
    latents: Tensor
    timestep: Tensor
    text: Tensor
    text_mask: Tensor
    step: int

    def run(self, attention: SelfAttention) -> Tensor:
        """The whole forward pass, (B, out channels, t, h, w)."""
        model = self.transformer
        grid = model.config.grid(*self.latents.shape[2:])
        tokens, positions = model.patchify(self.latents), model.positions(grid, self.latents.device)
        conditioning = model.conditioning(self.timestep, self.text)
        tokens = model.run_blocks(tokens, positions, conditioning, self.text_mask, attention)
        return model.unpatchify(model.project(tokens, conditioning), grid)

    def split(self, num_requests: int) -> list[ModelCall]:
        """One call for each request."""
        rows = len(self.latents) // num_requests
        return [
            replace(
                self,
                latents=self.latents[start : start + rows],
                timestep=self.timestep[start : start + rows],
                text=self.text[start : start + rows],
                text_mask=self.text_mask[start : start + rows],
            )
            for start in range(0, len(self.latents), rows)
        ]


class AttentionState(Protocol):
    """``is_warm``: what it keeps was made; then its steps may be sparse. ``sparsity`` and ``search_s`` are those of the
    last step."""

    setting: AttentionSetting
    sparsity: float
    search_s: float

    @property
    def is_warm(self) -> bool:
        """See the class."""
        ...

    def tensors(self) -> list[Tensor]:
        """All that is held now."""
        ...

    def forward(self, call: ModelCall, peers: Sequence[AttentionState]) -> Tensor:
        """Run the model for all ``peers``, of which this is the first, in their next step."""
        ...


def make_attention(
    setting: AttentionSetting,
    *,
    num_steps: int,
    guidance_scale: float,
    num_layers: int,
    grid: tuple[int, int, int],
    ras: RasConfig,
) -> AttentionState:
    """Attention of one request of ``grid`` tokens; it holds nothing before the first step. ``ras``: all but its share,
    which the setting says."""
    match setting.kind:
        case AttentionKind.DENSE:
            return StatelessAttention(setting, DENSE)
        case AttentionKind.TILE:
            mask = TileMask(num_frames=grid[0], references=setting.references)
            return StatelessAttention(setting, TileAttention([mask] * num_layers, grid), mask.sparsity)
        case AttentionKind.ADASPA:
            config = adaspa_config(setting, num_steps, grid[0] * grid[1] * grid[2])
            return AdaSpaAttentionState(setting, AdaSpaAttention(config))
        case AttentionKind.RAS:
            state = RasState(replace(ras, share=setting.amount), num_steps=num_steps, guidance_scale=guidance_scale)
            return RasAttentionState(setting, state, DENSE)


class StatelessAttention:
    """Dense, or a fixed mask: any steps go together."""

    is_warm = True
    search_s = 0.0

    def __init__(self, setting: AttentionSetting, attention: SelfAttention, sparsity: float = 0.0) -> None:
        self.setting = setting
        self.sparsity = sparsity
        self.attention = attention

    def forward(self, call: ModelCall, peers: Sequence[AttentionState]) -> Tensor:
        """One batch."""
        return call.run(self.attention)

    def tensors(self) -> list[Tensor]:
        """Nothing is held."""
        return []


class AdaSpaAttentionState:
    """Blocks that are searched for while denoising: requests at the same step have one phase, and run one after the
    other, for each has blocks of its own."""

    def __init__(self, setting: AttentionSetting, attention: AdaSpaAttention) -> None:
        self.setting = setting
        self.sparsity = self.search_s = 0.0
        self._attention = attention

    @property
    def is_warm(self) -> bool:
        """Whether blocks were chosen. Otherwise the first step that may be sparse is dense and searches."""
        return self._attention.is_warm

    def tensors(self) -> list[Tensor]:
        """Softmax denominators and chosen blocks."""
        return self._attention.tensors()

    def forward(self, call: ModelCall, peers: Sequence[AttentionState]) -> Tensor:
        """One pass for each request."""
        states = [peer for peer in peers if isinstance(peer, AdaSpaAttentionState)]
        calls = call.split(len(states))
        return torch.cat([state._run(one) for state, one in zip(states, calls, strict=True)])

    def _run(self, call: ModelCall) -> Tensor:
        before_s = self._attention.search_seconds
        self._attention.begin_step(call.step)
        output = call.run(self._attention)
        self.sparsity = self._attention.achieved_sparsity
        self.search_s = self._attention.search_seconds - before_s
        return output


class RasAttentionState:
    """Region-adaptive sampling: requests at the same step go together, each with its own choice of tokens."""

    search_s = 0.0

    def __init__(self, setting: AttentionSetting, state: RasState, inner: SelfAttention) -> None:
        self.setting = setting
        self.sparsity = 0.0
        self.state = state
        self._inner = inner

    @property
    def is_warm(self) -> bool:
        """Whether a dense step came before."""
        return self.state.state_bytes > 0

    def tensors(self) -> list[Tensor]:
        """Keys, values and outputs."""
        return self.state.tensors()

    def forward(self, call: ModelCall, peers: Sequence[AttentionState]) -> Tensor:
        """One batch, whose rows have equally many tokens: the phase says so."""
        states = [peer.state for peer in peers if isinstance(peer, RasAttentionState)]
        active = [state.choose(call.step) for state in states]
        output = ras_forward(
            call.transformer, call.latents, call.timestep, call.text, call.text_mask,
            states=states, step=call.step, inner=self._inner,
        )  # fmt: skip
        for peer, chosen in zip(peers, active, strict=True):
            peer.sparsity = 0.0 if chosen is None else 1 - self.setting.amount
        return output
