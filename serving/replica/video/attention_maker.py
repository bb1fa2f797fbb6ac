"""From the setting ``attention`` of a request to the attention that its steps run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from models.families.vdit.config import OpenSoraConfig
from models.methods.attention.adaspa import AdaSpaAttention
from models.methods.attention.adaspa_config import AdaSpaConfig, searches_for
from models.methods.attention.dense import DENSE
from models.methods.attention.setting import AttentionKind, AttentionSetting
from models.methods.attention.tile_attention import TileAttention
from models.methods.attention.tile_mask import TileMask
from models.methods.ras.config import RasConfig
from models.methods.ras.state import RasState, predicted_bytes
from serving.replica.video.attention_state import (
    AdaSpaAttentionState,
    AttentionState,
    RasAttentionState,
    StatelessAttention,
)
from serving.replica.video.memory import FLOAT_BYTES, RequestShape
from serving.tasks.videos.domain import VideoSettings

_GATHERED_BYTES = 16 << 20
"""Most keys that tile masks put side by side in one call, if more than one frame's."""

_GATHERED_BLOCK_BYTES = 1 << 20
"""Most keys of chosen blocks that are put side by side in one call, where no kernel reads them in place."""

_SCORE_BYTES = 128 << 20
"""Most scores that AdaSpa's search holds at a time, on a GPU without its kernel."""

_BYTES_PER_PAIR = 64
"""Of a pair of blocks while it is weighed, sorted and chosen."""

_MIN_BLOCK, _MAX_BLOCK = 8, 64


@dataclass(frozen=True, kw_only=True)
class AttentionMaker:
    """``ras``: all but its share, which the request says."""

    ras: RasConfig = field(default_factory=RasConfig)

    def make(
        self, setting: AttentionSetting, settings: VideoSettings, config: OpenSoraConfig, shape: RequestShape
    ) -> AttentionState:
        """Attention of one request; it holds nothing before the first step."""
        match setting.kind:
            case AttentionKind.DENSE:
                return StatelessAttention(setting, DENSE)
            case AttentionKind.TILE:
                grid = config.grid(*shape.latents[2:])
                mask = TileMask(num_frames=grid[0], references=setting.references)
                return StatelessAttention(setting, TileAttention([mask] * config.num_layers, grid), mask.sparsity)
            case AttentionKind.ADASPA:
                return AdaSpaAttentionState(
                    setting, AdaSpaAttention(_adaspa(setting, settings.num_steps, config, shape))
                )
            case AttentionKind.RAS:
                ras = replace(self.ras, share=setting.amount)
                state = RasState(ras, num_steps=settings.num_steps, guidance_scale=settings.guidance_scale)
                return RasAttentionState(setting, state, DENSE)

    def predicted_bytes(
        self, setting: AttentionSetting, settings: VideoSettings, config: OpenSoraConfig, shape: RequestShape
    ) -> int:
        """Most that the attention will hold."""
        if setting.kind is AttentionKind.ADASPA:
            return AdaSpaAttention.predicted_bytes(
                _adaspa(setting, settings.num_steps, config, shape),
                config.num_layers,
                shape.num_tokens(config),
                config.num_attention_heads,
                shape.rows,
            )
        if setting.kind is AttentionKind.RAS:
            return predicted_bytes(
                num_layers=config.num_layers,
                num_tokens=shape.num_tokens(config),
                width=config.width,
                patch_values=config.patch_size**2 * config.out_channels,
                rows=shape.rows,
                itemsize=shape.dtype.itemsize,
            )
        return 0

    def step_bytes(self, setting: AttentionSetting, config: OpenSoraConfig, shape: RequestShape) -> int:
        """Most that a step takes on top of a dense one's activations."""
        if setting.kind is AttentionKind.ADASPA:
            return _search_bytes(setting, config, shape)
        if setting.kind is not AttentionKind.TILE:
            return 0
        frames = setting.references + setting.others
        frame = shape.rows * shape.num_tokens(config) * config.width * shape.dtype.itemsize // frames
        gathered = frame * (setting.references + 1)
        return 2 * min(setting.others * gathered, max(gathered, _GATHERED_BYTES))


def _adaspa(setting: AttentionSetting, num_steps: int, config: OpenSoraConfig, shape: RequestShape) -> AdaSpaConfig:
    """The paper's searches, scaled to the number of steps."""
    return AdaSpaConfig(
        sparsity=setting.amount,
        search_steps=searches_for(num_steps),
        block_tokens=block_tokens(shape.num_tokens(config)),
    )


def block_tokens(num_tokens: int) -> int:
    """64, as published, where that makes at least 16 blocks; of shorter clips a sixteenth, as a power of two."""
    return max(_MIN_BLOCK, min(_MAX_BLOCK, 1 << max(0, (num_tokens // 16).bit_length() - 1)))


def _search_bytes(setting: AttentionSetting, config: OpenSoraConfig, shape: RequestShape) -> int:
    """Scores of a few rows, the mass of all pairs of blocks with their order, and keys put side by side."""
    tokens = shape.num_tokens(config)
    blocks = -(-tokens // block_tokens(tokens))
    heads = shape.rows * config.num_attention_heads
    scores = min(_SCORE_BYTES, FLOAT_BYTES * tokens * tokens)
    one_row = math.ceil((1 - setting.amount) * tokens) * config.attention_head_dim * shape.dtype.itemsize
    gathered = min(heads * blocks * one_row, max(one_row, _GATHERED_BLOCK_BYTES))
    return 3 * scores + heads * blocks * blocks * _BYTES_PER_PAIR + 2 * gathered
