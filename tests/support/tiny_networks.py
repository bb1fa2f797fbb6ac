"""diffusers' transformers in miniature, with random weights and inputs: what methods by interface are tested on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

GRID = (4, 4, 8)
PICTURE = (1, 8, 16)
TEXT = 6


@dataclass(frozen=True, kw_only=True)
class TinyNetwork:
    """``call``: (network, step, prompt) -> output; ``prompt`` picks the text, and its length where masks allow."""

    kind: str
    grid: tuple[int, int, int]
    config: dict[str, Any]
    call: Callable[[nn.Module, int, int], Tensor]

    def build(self) -> nn.Module:
        """The same weights each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network: nn.Module = getattr(diffusers, self.kind)(**self.config).eval().requires_grad_(False)
            for parameter in network.parameters():  # some layers begin as zeros, which hides what comes before them
                if not parameter.any():
                    parameter.normal_(std=0.2)
        return network


def random(seed: int, *shape: int) -> Tensor:
    """Normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _time(step: int) -> Tensor:
    return torch.tensor([900.0 - 40 * step])


def _latents(step: int, *shape: int) -> Tensor:
    return random(1, *shape) + 0.02 * step * random(2, *shape)


def _wan(network: Any, step: int, prompt: int) -> Tensor:
    t, h, w = GRID
    return network(  # type: ignore[no-any-return]
        hidden_states=_latents(step, 1, 4, t, 2 * h, 2 * w),
        timestep=_time(step),
        encoder_hidden_states=random(10 + prompt, 1, TEXT, 16),
        return_dict=False,
    )[0]


def _ltx(network: Any, step: int, prompt: int) -> Tensor:
    t, h, w = GRID
    return network(  # type: ignore[no-any-return]
        hidden_states=_latents(step, 1, t * h * w, 4),
        timestep=_time(step),
        encoder_hidden_states=random(10 + prompt, 1, TEXT, 16),
        encoder_attention_mask=torch.ones(1, TEXT),
        num_frames=t,
        height=h,
        width=w,
        return_dict=False,
    )[0]


def _hunyuan(network: Any, step: int, prompt: int) -> Tensor:
    """The second prompt is shorter than its padding."""
    mask = torch.ones(1, TEXT)
    mask[:, TEXT - prompt :] = 0
    return network(  # type: ignore[no-any-return]
        hidden_states=_latents(step, 1, 4, *GRID),
        timestep=_time(step),
        encoder_hidden_states=random(10 + prompt, 1, TEXT, 16),
        encoder_attention_mask=mask,
        encoder_hidden_states_2=random(20 + prompt, 1, 3, 8),
        encoder_attention_mask_2=torch.ones(1, 3),
        image_embeds=torch.zeros(1, 2, 12),
        return_dict=False,
    )[0]


def _flux(network: Any, step: int, prompt: int) -> Tensor:
    _, h, w = PICTURE
    ids = torch.cartesian_prod(torch.zeros(1), torch.arange(h).float(), torch.arange(w).float())
    return network(  # type: ignore[no-any-return]
        hidden_states=_latents(step, 1, h * w, 4),
        timestep=_time(step) / 1000,
        encoder_hidden_states=random(10 + prompt, 1, TEXT, 16),
        pooled_projections=random(20 + prompt, 1, 16),
        img_ids=ids,
        txt_ids=torch.zeros(TEXT, 3),
        return_dict=False,
    )[0]


def _sd3(network: Any, step: int, prompt: int) -> Tensor:
    _, h, w = PICTURE
    return network(  # type: ignore[no-any-return]
        hidden_states=_latents(step, 1, 4, h, w),
        timestep=_time(step),
        encoder_hidden_states=random(10 + prompt, 1, TEXT, 16),
        pooled_projections=random(20 + prompt, 1, 16),
        return_dict=False,
    )[0]


def _qwen(network: Any, step: int, prompt: int) -> Tensor:
    _, h, w = PICTURE
    mask = torch.ones(1, TEXT, dtype=torch.bool)
    mask[:, TEXT - prompt :] = False
    return network(  # type: ignore[no-any-return]
        hidden_states=_latents(step, 1, h * w, 16),
        timestep=_time(step) / 1000,
        encoder_hidden_states=random(10 + prompt, 1, TEXT, 16),
        encoder_hidden_states_mask=mask,
        img_shapes=[[(1, h, w)]],
        return_dict=False,
    )[0]


TINY = {
    "wan": TinyNetwork(
        kind="WanTransformer3DModel",
        grid=GRID,
        config={
            "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4,
            "out_channels": 4, "text_dim": 16, "freq_dim": 32, "ffn_dim": 32, "num_layers": 3, "cross_attn_norm": True,
            "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 32,
        },
        call=_wan,
    ),
    "ltx": TinyNetwork(
        kind="LTXVideoTransformer3DModel",
        grid=GRID,
        config={
            "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 12,
            "cross_attention_dim": 24, "num_layers": 3, "caption_channels": 16,
        },
        call=_ltx,
    ),
    "hunyuan": TinyNetwork(
        kind="HunyuanVideo15Transformer3DModel",
        grid=GRID,
        config={
            "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 3,
            "num_refiner_layers": 1, "mlp_ratio": 2.0, "patch_size": 1, "patch_size_t": 1, "text_embed_dim": 16,
            "text_embed_2_dim": 8, "image_embed_dim": 12, "rope_axes_dim": (4, 6, 6), "task_type": "t2v",
        },
        call=_hunyuan,
    ),
    "flux": TinyNetwork(
        kind="FluxTransformer2DModel",
        grid=PICTURE,
        config={
            "patch_size": 1, "in_channels": 4, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16,
            "num_attention_heads": 2, "joint_attention_dim": 16, "pooled_projection_dim": 16, "guidance_embeds": False,
            "axes_dims_rope": (4, 4, 8),
        },
        call=_flux,
    ),
    "sd3": TinyNetwork(
        kind="SD3Transformer2DModel",
        grid=PICTURE,
        config={
            "sample_size": 16, "patch_size": 1, "in_channels": 4, "num_layers": 3, "attention_head_dim": 16,
            "num_attention_heads": 2, "joint_attention_dim": 16, "caption_projection_dim": 32,
            "pooled_projection_dim": 16, "out_channels": 4, "pos_embed_max_size": 16, "dual_attention_layers": (0,),
            "qk_norm": "rms_norm",
        },
        call=_sd3,
    ),
    "qwen": TinyNetwork(
        kind="QwenImageTransformer2DModel",
        grid=PICTURE,
        config={
            "patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 3, "attention_head_dim": 16,
            "num_attention_heads": 2, "joint_attention_dim": 16, "axes_dims_rope": (4, 4, 8),
        },
        call=_qwen,
    ),
}  # fmt: skip
