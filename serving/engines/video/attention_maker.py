"""From the setting ``attention`` of a request to the attention that its steps run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from models.attention.dense import DENSE
from models.attention.tile_attention import TileAttention
from models.attention.tile_mask import TileMask
from models.opensora.config import OpenSoraConfig
from models.ras.config import RasConfig
from models.ras.state import RasState, predicted_bytes
from serving.engines.video.attention_setting import AttentionSetting
from serving.engines.video.attention_state import AttentionState, RasAttentionState, StatelessAttention
from serving.engines.video.memory import RequestShape
from serving.errors import UnsupportedVideo
from serving.video.domain import AttentionKind, VideoSettings

_GATHERED_BYTES = 16 << 20
"""Most keys that tile attention puts side by side in one call, if more than one frame's."""


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
            case AttentionKind.RAS:
                ras = replace(self.ras, share=setting.amount)
                state = RasState(ras, num_steps=settings.num_steps, guidance_scale=settings.guidance_scale)
                return RasAttentionState(setting, state, DENSE)
        raise UnsupportedVideo(f"attention is {settings.attention!r}; this model does dense", param="attention")

    def predicted_bytes(self, setting: AttentionSetting, config: OpenSoraConfig, shape: RequestShape) -> int:
        """Most that the attention will hold."""
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
        if setting.kind is not AttentionKind.TILE:
            return 0
        frames = setting.references + setting.others
        frame = shape.rows * shape.num_tokens(config) * config.width * shape.dtype.itemsize // frames
        gathered = frame * (setting.references + 1)
        return 2 * min(setting.others * gathered, max(gathered, _GATHERED_BYTES))
