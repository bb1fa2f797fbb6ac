"""Fourth and fifth stage: SVD's UNet learns clips of 8 frames; extended, its temporal blocks alone learn 40.

As SVD: EDM's preconditioning for v-prediction, log-normal noise levels, the first frame's latents beside the noisy ones
of every frame, its embedding by cross-attention, and time ids (frames a second, motion bucket, noise augmentation).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPVisionModelWithProjection

from models.training.autoencoder import encode
from models.training.average import follow
from models.training.exvideo.autoencoder import to_pixels
from models.training.exvideo.image_encoder import inputs
from models.training.exvideo.scenes import Scene, draw
from models.training.products import fast_products
from models.training.stages import log_of, save_state, saved_state
from models.training.vdit.conv_muon import ConvMuon

CONFIG: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 8,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlockSpatioTemporal",) * 2,
    "up_block_types": ("CrossAttnUpBlockSpatioTemporal",) * 2,
    "block_out_channels": (64, 64),
    "addition_time_embed_dim": 32,
    "projection_class_embeddings_input_dim": 96,
    "layers_per_block": 1,
    "cross_attention_dim": 64,
    "num_attention_heads": (2, 2),
    "num_frames": 8,
}
SIGMA_DEVIATION = 1.5
"""Of the noise level's logarithm; SVD has 1.6 about a mean of 0.7."""
SIGMA_MIN, SIGMA_MAX = 0.002, 700.0
EVEN = 0.1
"""Share of clips whose noise level is even in the logarithm over the whole schedule: its first steps are so far out
that they would hardly be seen otherwise."""
DROPPED = 0.15
"""Share of clips without first frame and embedding, for guidance."""
USUAL_AUGMENTATION = 0.02
FPS_IDS = (5, 30)
"""Frames a second are of playback alone: any are named, and change nothing."""


def fresh() -> UNetSpatioTemporalConditionModel:
    """Predicts nothing at first."""
    unet = UNetSpatioTemporalConditionModel(**CONFIG)
    nn.init.zeros_(unet.conv_out.weight)
    return unet


@dataclass(frozen=True, slots=True)
class Batch:
    """Clips (B, F, 4, 8, 8) scaled, their first frames' latents (B, 4, 8, 8) unscaled, embeddings and ids."""

    clips: Tensor
    first: Tensor
    embeds: Tensor
    ids: Tensor


class Windows:
    """Batches of pieces of the stored clips, with freshly encoded first frames.

    Pieces begin anywhere and run forwards or backwards; ``is_long``: they are the clips' beginnings, as long clips set
    out in a way that only their first frames follow.
    """

    def __init__(
        self,
        latents: Tensor,
        scenes: list[Scene],
        vae: AutoencoderKLTemporalDecoder,
        encoder: CLIPVisionModelWithProjection,
        *,
        is_long: bool = False,
    ) -> None:
        self._is_long = is_long
        self.scale = float(vae.config.scaling_factor)
        self._latents, self._scenes, self._vae, self._encoder = latents, scenes, vae, encoder
        self._places = [scene.places(latents.shape[1]) for scene in scenes]

    def draw(self, batch: int, frames: int, rng: np.random.Generator) -> Batch:
        """A random one, with what is to be dropped dropped."""
        rows = rng.integers(0, len(self._scenes), batch)
        starts = rng.integers(0, 1 if self._is_long else self._latents.shape[1] - frames + 1, batch)
        reversed_ = rng.random(batch) < (0.0 if self._is_long else 0.5)
        clips, pixels = [], []
        for row, start, is_reversed in zip(rows, starts, reversed_, strict=True):
            piece = self._latents[row, start : start + frames]
            clips.append(piece.flip(0) if is_reversed else piece)
            place = self._places[row][start + frames - 1 if is_reversed else start]
            pixels.append(draw(self._scenes[row].colour, self._scenes[row].shape, place[None]))
        augmentation = np.where(rng.random(batch) < 0.5, USUAL_AUGMENTATION, np.exp(rng.normal(-3.0, 0.5, batch)))
        buckets = [self._scenes[row].motion_bucket_id for row in rows]
        fps = rng.integers(FPS_IDS[0], FPS_IDS[1] + 1, batch)
        first, embeds = self.condition(torch.from_numpy(np.concatenate(pixels)), torch.from_numpy(augmentation).float())
        ids = torch.tensor(np.stack([fps, buckets, augmentation], 1), dtype=torch.float32)
        kept = torch.from_numpy(rng.random(batch) >= DROPPED).float()
        return Batch(
            torch.stack(clips) * self.scale, first * kept[:, None, None, None], embeds * kept[:, None, None], ids
        )

    @torch.no_grad()
    def condition(self, frames: Tensor, augmentation: Tensor) -> tuple[Tensor, Tensor]:
        """Latents of noised frames, uint8 (B, H, W, 3), and embeddings (B, 1, C) of clean ones."""
        pixels = to_pixels(frames)
        embeds = self._encoder(inputs(pixels)).image_embeds[:, None]
        return encode(self._vae, pixels + augmentation[:, None, None, None] * torch.randn_like(pixels)), embeds


def sample_sigmas(count: int, mean: float) -> Tensor:
    """Noise levels, of that mean logarithm."""
    usual = mean + SIGMA_DEVIATION * torch.randn(count)
    even = math.log(SIGMA_MIN) + (math.log(SIGMA_MAX) - math.log(SIGMA_MIN)) * torch.rand(count)
    return torch.where(torch.rand(count) < EVEN, even, usual).exp()


def loss_of(unet: UNetSpatioTemporalConditionModel, batch: Batch, sigmas: Tensor, noise: Tensor) -> Tensor:
    """Squared error of v of each clip, (B,)."""
    sigma = sigmas[:, None, None, None, None]
    noisy = (batch.clips + sigma * noise) / (sigma**2 + 1).sqrt()
    target = (noise - sigma * batch.clips) / (sigma**2 + 1).sqrt()
    first = batch.first[:, None].expand(-1, noisy.shape[1], -1, -1, -1)
    with fast_products(), sdpa_kernel(SDPBackend.MATH):  # of short sequences the fastest
        found = unet(torch.cat([noisy, first], 2), 0.25 * sigmas.log(), batch.embeds, batch.ids).sample
    losses: Tensor = (found.float() - target).square().mean((1, 2, 3, 4))
    return losses


class Optimizers:
    """Muon for the kernels and matrices between layers, AdamW for the rest; warm-up and cosine decay for both.

    Rows of the position table begin alike, back and forth, and have far to go; they learn ten times as fast.
    """

    BORDERS = ("conv_in", "conv_out", "time_embedding", "add_embedding", "pos_table")

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], lr: float, final: float = 0.03) -> None:
        trained = {name: parameter for name, parameter in named if parameter.requires_grad}
        inner = {
            name: one
            for name, one in trained.items()
            if one.ndim > 1 and not any(part in name for part in self.BORDERS)
        }
        tables = [one for name, one in trained.items() if "pos_table" in name]
        others = [one for name, one in trained.items() if name not in inner and "pos_table" not in name]
        self._trained, self._final, self._rates = list(trained.values()), final, (0.3 * lr, 3.0 * lr)
        self._muon = ConvMuon(inner.values(), lr)
        groups: list[dict[str, Any]] = [{"params": others}, {"params": tables, "weight_decay": 0.0}]
        self._adam = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), weight_decay=1e-3)

    def step(self, progress: float, step: int) -> None:
        """Clip, update, clear."""
        torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        decay = self._final + (1 - self._final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        factor = min(1.0, (step + 1) / 50) * decay
        for group, rate in zip(self._adam.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self._muon.step(factor)
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)


@dataclass(frozen=True, slots=True)
class Plan:
    """Of one stage."""

    name: str
    frames: int
    batch: int
    steps: int
    lr: float
    sigma_mean: float = 1.0
    average_decay: float = 0.995
    seed: int = 1
    save_every: int = 200


def train(
    out: Path,
    windows: Windows,
    unet: UNetSpatioTemporalConditionModel,
    plan: Plan,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> UNetSpatioTemporalConditionModel:
    """Train what is not frozen, or go on with an interrupted run. Returns the averaged weights; ``out`` gets the log,
    and the state to go on from. An interrupted run goes on without the momentum that it had.

    Raises: ValueError: the interrupted run was of another plan.
    """
    state_file = out / f"{plan.name}.pt"
    average, first = copy.deepcopy(unet).requires_grad_(False), 0
    if (state := saved_state(state_file, asdict(plan))) is not None:
        unet.load_state_dict(state["unet"])
        average.load_state_dict(state["average"])
        first = state["step"]
    optimizers = Optimizers(unet.named_parameters(), plan.lr)
    log, recent, began_s = log_of(out, plan.name), list[float](), time.monotonic()
    for step in range(first, plan.steps):
        torch.manual_seed(plan.seed * 1_000_003 + step)
        batch = windows.draw(plan.batch, plan.frames, np.random.default_rng((plan.seed, step)))
        loss = loss_of(unet, batch, sample_sigmas(plan.batch, plan.sigma_mean), torch.randn_like(batch.clips)).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizers.step(step / plan.steps, step - first)
        follow(average, unet, min(plan.average_decay, (step + 1) / (step + 10)))
        recent.append(float(loss.detach()))
        on_step(step + 1, plan.steps)
        if (step + 1) % 50 == 0:
            step_s, began_s = (time.monotonic() - began_s) / len(recent), time.monotonic()
            log.write(step=step + 1, loss=sum(recent) / len(recent), step_s=step_s)
            recent.clear()
        if (step + 1) % plan.save_every == 0 or step + 1 == plan.steps:
            log.write(step=step + 1, **probe(average, windows, plan.frames))
            state = {"unet": unet.state_dict(), "average": average.state_dict(), "step": step + 1}
            save_state(state_file, asdict(plan), state)
    return average


PROBED = (0.1, 0.5, 1.0, 2.0, 5.0, 20.0)


@torch.no_grad()
def probe(unet: UNetSpatioTemporalConditionModel, windows: Windows, frames: int) -> dict[str, float]:
    """Losses at some noise levels, always of the same clips and noise."""
    torch.manual_seed(0)
    batch = windows.draw(8, frames, np.random.default_rng(10**6))
    noise = torch.randn_like(batch.clips)
    return {f"at_{sigma}": float(loss_of(unet, batch, torch.full((8,), sigma), noise).mean()) for sigma in PROBED}


def temporal_parameters(unet: nn.Module) -> Iterator[nn.Parameter]:
    """What ExVideo trains: positions, their convolution and the temporal transformer; the rest stays frozen."""
    parts = ("pos_table", "pos_conv", "time_pos_embed", "temporal_transformer_blocks")
    return (parameter for name, parameter in unet.named_parameters() if any(part in name for part in parts))
