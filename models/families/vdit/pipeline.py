"""From a prompt to a clip in one plain loop: the twin that the serving engine is compared with, and what tools use.

A checkpoint folder holds one folder per network, each as published: ``teacher`` (and ``student``) for the transformer,
``vae``, ``text_encoder`` with its tokenizer. The published layout with ``transformer`` instead of ``teacher`` is read,
too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.contract import Variant
from models.families.vdit.causal_vae import CausalVae
from models.families.vdit.loading import load_transformer, load_vae
from models.families.vdit.text import TextEncoder
from models.families.vdit.transformer import OpenSoraT2V
from models.methods.attention.adaspa import AdaSpaAttention
from models.methods.attention.base import SelfAttention
from models.methods.attention.dense import DENSE
from models.methods.samplers.base import Sampler, step_generator
from models.methods.samplers.make import make_sampler

Frames = npt.NDArray[np.uint8]
"""uint8 RGB, (T, H, W, 3)."""


@dataclass(frozen=True, kw_only=True)
class VideoPipeline:
    """The networks of one variant of a checkpoint."""

    variant: Variant
    transformer: OpenSoraT2V
    vae: CausalVae
    text: TextEncoder

    @classmethod
    def load(cls, variant: Variant, weights: str = "teacher", dtype: torch.dtype = torch.float32) -> VideoPipeline:
        """Read the folder of ``variant``. ``weights``: of the transformer.

        Raises: ValueError: it has none, or it does not fit the variant.
        """
        folder = variant.weights
        if folder is None:
            raise ValueError(f"{variant.id} has no weights here; set checkpoint_dir to a folder with them")
        name = weights if (folder / weights).is_dir() or weights != "teacher" else "transformer"
        pipeline = cls(
            variant=variant,
            transformer=load_transformer(folder / name, dtype),
            vae=load_vae(folder / "vae", dtype),
            text=TextEncoder.load(folder / "text_encoder", variant.io.max_text_tokens, dtype),
        )
        pipeline._check()
        return pipeline

    def _check(self) -> None:
        """The registry pins what a checkpoint needs to be sampled right; one that differs is another model."""
        name, io, config = self.variant.id, self.variant.io, self.transformer.config
        found = (config.num_layers, config.num_attention_heads, config.attention_head_dim, config.in_channels)
        pinned = (*(self.variant.config[key] for key in ("num_layers", "num_heads", "head_dim")), io.latent_channels)
        if found != pinned:
            raise ValueError(f"{name}: layers, heads, head dim, channels are {found}; the registry says {pinned}")
        if config.interpolation_scale_thw != io.interpolation_scales:
            raise ValueError(
                f"{name}: interpolation scales are {config.interpolation_scale_thw}; the registry says "
                f"{io.interpolation_scales}"
            )
        vae = self.vae.config
        if (vae.time_stride, vae.space_stride, vae.space_stride) != io.vae_stride:
            raise ValueError(f"{name}: the VAE's strides are not {io.vae_stride}")
        if io.scale_factor is not None and abs(vae.scale_factor - io.scale_factor) > 1e-6:
            raise ValueError(f"{name}: the VAE's scale is {vae.scale_factor}; the registry says {io.scale_factor}")

    def latent_shape(self, frames: int) -> tuple[int, int, int, int]:
        """Channels, frames, rows, columns of a clip's latents. Raises: ValueError: not a length of this checkpoint."""
        t, _, _ = self.variant.io.grid(frames)
        _, h, w = self.variant.io.vae_stride
        return self.variant.io.latent_channels, t, self.variant.io.height // h, self.variant.io.width // w

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Frames:
        """Latents (1, C, t, h, w), scaled as the transformer has them, to frames."""
        pixels = self.vae.decode(latents / self.vae.config.scale_factor)[0]
        return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[str],
        *,
        frames: int,
        sampler: str,
        num_steps: int,
        guidance: float,
        seeds: Sequence[int],
        attention: SelfAttention = DENSE,
    ) -> Tensor:
        """Latents (B, C, t, h, w), one clip for each prompt and seed.

        Raises: ValueError: a setting that the variant does not allow, or a prompt that is too long.
        """
        steps = self.variant.io.check_sampler(sampler, num_steps)
        rule = make_sampler(sampler, num_steps, segments=steps.multiple)
        text, mask = self._text(prompts, guidance)
        noise = [torch.randn(self.latent_shape(frames), generator=step_generator(seed, -1)) for seed in seeds]
        latents = rule.initial(torch.stack(noise))
        for step in range(num_steps):
            if isinstance(attention, AdaSpaAttention):
                attention.begin_step(step)
            output = self._predict(rule, latents, text, mask, step, guidance, attention)
            latents = torch.cat(
                [
                    rule.step(one[None], out[None], step, step_generator(seed, step))
                    for one, out, seed in zip(latents, output, seeds, strict=True)
                ]
            )
        return latents

    def _text(self, prompts: Sequence[str], guidance: float) -> tuple[Tensor, Tensor]:
        """Embeddings of the prompts, behind those of nothing where there is guidance."""
        return self.text.encode([*([""] * len(prompts) if guidance > 1 else []), *prompts])

    def _predict(
        self,
        rule: Sampler,
        latents: Tensor,
        text: Tensor,
        mask: Tensor,
        step: int,
        guidance: float,
        attention: SelfAttention,
    ) -> Tensor:
        shown = rule.scale_input(latents, step)
        shown = torch.cat([shown, shown]) if guidance > 1 else shown
        timestep = torch.full((len(shown),), rule.timestep(step))
        output: Tensor = self.transformer(shown, timestep, text, mask, attention=attention)
        if guidance <= 1:
            return output
        without, with_text = output.chunk(2)
        return without + guidance * (with_text - without)
