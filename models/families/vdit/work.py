"""What a clip takes, before it is made: multiplications, and bytes held. Free of torch.

Legend: R rows of the request (2 under guidance), S text tokens, L tokens, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.contract import Point, Variant, Work
from models.families.vdit.vae_config import CausalVaeConfig, VaeTiling
from models.families.vdit.vae_memory import predicted_peak_bytes
from models.io import ClipIO, ClipRequest
from models.methods.attention.memory import FLOAT_BYTES, AttentionShape, held_bytes, step_bytes
from models.methods.attention.setting import AttentionKind, AttentionSetting, parse_attention

_TOKEN_COPIES = 15
"""Most tensors of (R, L, W) that live at a time: queries, keys and values while the last of them is rotated, beside the
residual stream and its norm. Measured at every operation; the feed-forward's fourfold ones stay below it."""

_POSITION_COPIES = 6
"""Likewise of (L, head dim) in float32: angles, cosines, sines."""

VAE = "vae"
"""Of a variant's config: the VAE's own."""

_ROW_COPIES, _TEXT_COPIES, _LATENT_COPIES = 24, 2, 6
"""Likewise of (R, W): the modulation of a block; of (R, S, W): the text and its keys and values; and of latents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipMemory:
    """``activation_bytes`` are there during a step only, ``decoding_bytes`` at the end; the rest all the time."""

    latents_bytes: int
    text_bytes: int
    attention_bytes: int
    activation_bytes: int
    decoding_bytes: int

    @property
    def held_bytes(self) -> int:
        """Between steps."""
        return self.latents_bytes + self.text_bytes + self.attention_bytes

    @property
    def total_bytes(self) -> int:
        """At the peak."""
        return self.held_bytes + max(self.activation_bytes, self.decoding_bytes)


def work(variant: Variant, request: ClipRequest, point: Point) -> Work:
    """Of one clip. Bytes for the longest prompt, in float32."""
    io: ClipIO = variant.io
    steps, rows = int(point["num_inference_steps"]), rows_of(point)
    tokens = io.num_tokens(request.num_frames)
    width = variant.config["num_heads"] * variant.config["head_dim"]
    share = _shares(parse_attention(str(point["attention"])))
    # Projections and feed-forward are 20 W^2 a token, scores and their sums 2 L W.
    macs = variant.config["num_layers"] * share[0] * tokens * (20 * width**2 + share[1] * 2 * tokens * width)
    memory = predict(variant, request.num_frames, point, text_tokens=io.max_text_tokens)
    units = {
        "macs": steps * rows * macs,
        "slices": float(steps),
        "pixels": float(request.num_frames * io.height * io.width),
        "token_steps": float(steps * tokens),
    }
    return Work(units, memory.total_bytes)


def _shares(setting: AttentionSetting) -> tuple[float, float]:
    """Of tokens that are run, and of pairs that each of them attends to, in a sparse step."""
    match setting.kind:
        case AttentionKind.TILE:
            frames, others = setting.references + setting.others, setting.others
            return 1.0, 1 - max(0, others * (others - 1)) / frames**2
        case AttentionKind.ADASPA:
            return 1.0, 1 - setting.amount
        case AttentionKind.RAS:
            return setting.amount, 1.0
    return 1.0, 1.0


def rows_of(point: Point) -> int:
    """R."""
    return 1 if point["guidance_scale"] == 1 else 2


def predict(
    variant: Variant, num_frames: int, point: Point, *, text_tokens: int, itemsize: int = FLOAT_BYTES
) -> ClipMemory:
    """Bytes of one request alone; in a batch, activations add up. ``itemsize``: of weights and activations."""
    io: ClipIO = variant.io
    config, rows, tokens = variant.config, rows_of(point), io.num_tokens(num_frames)
    shape = AttentionShape(
        num_layers=config["num_layers"],
        num_heads=config["num_heads"],
        head_dim=config["head_dim"],
        tokens=tokens,
        rows=rows,
        patch_values=io.latent_channels * io.patch[1] * io.patch[2],
        itemsize=itemsize,
    )
    setting, numbers = parse_attention(str(point["attention"])), tokens * shape.patch_values
    text = rows * text_tokens
    copies = _TOKEN_COPIES * rows * tokens + _ROW_COPIES * rows + _TEXT_COPIES * text
    positions = _POSITION_COPIES * tokens * shape.head_dim * FLOAT_BYTES
    outputs = _LATENT_COPIES * rows * numbers * FLOAT_BYTES
    added = step_bytes(setting, shape)
    return ClipMemory(
        latents_bytes=2 * numbers * FLOAT_BYTES,
        text_bytes=text * (config["caption_channels"] * itemsize + 1),
        attention_bytes=held_bytes(setting, int(point["num_inference_steps"]), shape),
        activation_bytes=copies * shape.width * itemsize + positions + outputs + added,
        decoding_bytes=_decoding_bytes(variant, num_frames, itemsize),
    )


def _decoding_bytes(variant: Variant, num_frames: int, itemsize: int) -> int:
    """The frames, and the decoder's own tensors where its config was read (``family.found``)."""
    io: ClipIO = variant.io
    frames = 3 * num_frames * io.height * io.width
    if VAE not in variant.config:
        return frames
    config = CausalVaeConfig.from_dict(variant.config[VAE])
    peak = predicted_peak_bytes(config, num_frames, io.height, io.width, VaeTiling(), element_bytes=itemsize)
    return frames + peak
