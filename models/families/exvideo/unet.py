"""ExVideo's UNet: that of SVD, whose temporal blocks have a table of positions and a 3-D convolution of their own.

Only the temporal branch differs. Where SVD adds a computed sinusoid of the frame number, an extended block adds a row
of a trained table, and convolves the sum over frames, rows and columns before its attention. As ``extend`` leaves them,
the table holds the same sinusoids and the convolution passes everything: clips no longer than the base was trained on
come out exactly as from SVD.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.models.transformers.transformer_temporal import (
    TransformerSpatioTemporalModel,
    TransformerTemporalModelOutput,
)
from torch import Tensor, nn

SHORTEST = 2
"""Frames, and latent rows and columns at every level: reflection at the borders needs a neighbour."""


class ExtendedTransformer(TransformerSpatioTemporalModel):  # type: ignore[misc]
    """A spatio-temporal transformer of SVD, extended: ``pos_table`` [positions, C] and ``pos_conv``, C to C.

    Raises: ValueError: a transformer of several layers, which ExVideo does not say how to extend.
    """

    def __init__(self, plain: TransformerSpatioTemporalModel, num_positions: int, base_frames: int) -> None:
        if len(plain.transformer_blocks) != 1:
            raise ValueError(f"a transformer has {len(plain.transformer_blocks)} layers; only one can be extended")
        with torch.device("meta"):
            super().__init__(plain.num_attention_heads, plain.attention_head_dim, plain.in_channels, plain.out_channels)
        for name, child in plain.named_children():
            setattr(self, name, child)
        like, width = plain.proj_in.weight, plain.inner_dim
        with torch.device(like.device):
            ids = torch.tensor([position_id(frame, base_frames) for frame in range(num_positions)])
            self.pos_table = nn.Parameter(plain.time_proj(ids).to(like.dtype))
            self.pos_conv = nn.Conv3d(width, width, 3, padding=1, padding_mode="reflect", dtype=like.dtype)
        nn.init.dirac_(self.pos_conv.weight)
        assert self.pos_conv.bias is not None
        nn.init.zeros_(self.pos_conv.bias)
        self.train(plain.training)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        image_only_indicator: Tensor,
        return_dict: bool = True,
    ) -> TransformerTemporalModelOutput | tuple[Tensor]:
        """As of the class that it extends: B clips of F frames, one after another, (B F, C, h, w).

        Raises: ValueError: more frames than there are positions, or too few for the convolution's borders.
        """
        frames = image_only_indicator.shape[-1]
        rows, _, height, width = hidden_states.shape
        self._check(frames, height, width)
        places = height * width
        time_context = encoder_hidden_states[::frames, None].expand(-1, places, -1, -1).flatten(0, 1)

        spatial = self.proj_in(self.norm(hidden_states).flatten(2).transpose(1, 2))
        spatial = self.transformer_blocks[0](spatial, encoder_hidden_states=encoder_hidden_states)

        positions = self.pos_table[:frames].to(spatial.dtype).repeat(rows // frames, 1)
        temporal = (spatial + self.time_pos_embed(positions)[:, None]).unflatten(0, (-1, frames))
        temporal = temporal.permute(0, 3, 1, 2).reshape(-1, self.inner_dim, frames, height, width)
        temporal = self.pos_conv(temporal).flatten(3).permute(0, 2, 3, 1).flatten(0, 1).contiguous()
        temporal = self.temporal_transformer_blocks[0](temporal, num_frames=frames, encoder_hidden_states=time_context)
        mixed = self.time_mixer(x_spatial=spatial, x_temporal=temporal, image_only_indicator=image_only_indicator)

        output = self.proj_out(mixed).transpose(1, 2).contiguous().view(rows, -1, height, width) + hidden_states
        return TransformerTemporalModelOutput(sample=output) if return_dict else (output,)

    def _check(self, frames: int, height: int, width: int) -> None:
        if frames > (limit := len(self.pos_table)):
            raise ValueError(f"{frames} frames; this network has positions for {limit}")
        if min(frames, height, width) < SHORTEST:
            raise ValueError(
                f"{frames} frames of {height}x{width} somewhere in the network; extended blocks need {SHORTEST} of each"
            )


def position_id(frame: int, base_frames: int) -> int:
    """Whose sinusoid a frame begins with: its own as long as the base was trained on it, then back and forth over the
    last four fifths. ExVideo has this for 25 frames (0 to 24, then 23 to 4, 5 to 24, and so on); for other bases four
    fifths is our reading of its 20 of 25.
    """
    if frame < base_frames:
        return frame
    reach = base_frames * 4 // 5
    past = (frame - base_frames) % (2 * reach) + 1
    return base_frames - 1 - (past if past <= reach else 2 * reach - past)


def extend(
    unet: UNetSpatioTemporalConditionModel, num_positions: int, base_frames: int | None = None
) -> UNetSpatioTemporalConditionModel:
    """Turn every temporal transformer of an SVD UNet into an extended one, in place; the same UNet is returned.

    ``base_frames``: length of the clips that it was trained on; None: as its configuration says.

    Raises: ValueError: it has none that can be extended, or no room for two positions.
    """
    base = unet.config.num_frames if base_frames is None else base_frames
    if min(num_positions, base) < SHORTEST:
        raise ValueError(f"{num_positions} positions over a base of {base} frames; give at least {SHORTEST}")
    found = list(_parents(unet))
    if not found:
        raise ValueError("this UNet has no temporal transformers to extend")
    for parent, name, plain in found:
        setattr(parent, name, ExtendedTransformer(plain, num_positions, base))
    return unet


def extended_transformers(unet: UNetSpatioTemporalConditionModel) -> dict[str, ExtendedTransformer]:
    """By their paths, in the order of the forward pass: down, mid, up. Empty: it is not extended."""
    named = {name: module for name, module in unet.named_modules() if isinstance(module, ExtendedTransformer)}
    order = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    return dict(sorted(named.items(), key=lambda item: order[item[0].partition(".")[0]]))


def _parents(unet: nn.Module) -> Iterator[tuple[nn.Module, str, TransformerSpatioTemporalModel]]:
    for parent in unet.modules():
        for name, child in parent.named_children():
            if type(child) is TransformerSpatioTemporalModel:
                yield parent, name, child
