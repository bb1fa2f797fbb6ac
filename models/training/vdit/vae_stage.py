"""First stage: the autoencoder learns to compress rendered clips 4x8x8.

    python -m models.training.vdit.vae_stage --out .cache/vdit-nano --minutes 20

Single frames first, then crops of clips, then whole clips, short ones first. With ``--resume`` whole clips only: this
is how latents get more channels (models/training/vdit/widen.py). The folder gets vae.safetensors, vae.json (the config,
with the factor that gives latents unit variance) and vae_log.jsonl.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from models.families.vdit.causal_vae import CausalVae
from models.families.vdit.vae_layers import TimeDownsampleRes2x, TimeUpsampleRes2x
from models.training.average import follow
from models.training.log import TrainingLog
from models.training.products import fast_products
from models.training.stages import stage_parser
from models.training.vdit.clips import SIZE, Clip, render
from models.training.vdit.conv_muon import ConvMuon
from models.training.vdit.judge import Judge
from models.training.vdit.nano import FRAMES, LATENT_CHANNELS, nano_vae
from models.training.vdit.scenes import BACKGROUNDS, Scene, sample_scene
from models.training.vdit.widen import load_narrower

KL_WEIGHT = 1e-4
SMEAR = 4.0
"""How much more the error of pixels that move counts than that of a still background."""
CROP = 32
CROP_FRAMES = 9
MIDDLE_FRAMES = 17
CLIPS_FROM, WHOLE_FROM, LONG_FROM = 0.1, 0.5, 0.75
"""Shares of the time. Few single frames: what only they taught, moving objects smear."""
CROWDED = 0.6
"""Share of clips with three to six objects, all over the picture: more moving edges for the same work."""
EMA = 0.99
JUDGED = 40
"""Held-out scenes, half with two objects, in whose reconstructions the judge has to find what was rendered."""


class Crops(IterableDataset[Tensor]):
    """Batches (B, 3, T, H, W) in -1..1, without end."""

    def __init__(
        self, batch: int, frames: int, side: int, seed: int, *, held_out: bool = False, crowded: float = CROWDED
    ) -> None:
        self._batch, self._frames, self._side, self._seed = batch, frames, side, seed
        self._held_out, self._crowded = held_out, 0.0 if held_out else crowded

    def __iter__(self) -> Iterator[Tensor]:
        rng = np.random.default_rng(self._seed)
        while True:
            yield torch.stack([self._crop(rng) for _ in range(self._batch)])

    def _crop(self, rng: np.random.Generator) -> Tensor:
        """Mostly of places where something is."""
        while True:
            piece = self._any_crop(rng)
            if piece.std() > 8 or rng.random() < 0.15:
                return to_pixels(torch.from_numpy(piece.copy()))

    def _any_crop(self, rng: np.random.Generator) -> Clip:
        if rng.random() < self._crowded:
            clip = render(sample_crowd(rng), self._frames, rng)
        else:
            clip = render(sample_scene(rng, two=0.4, held_out=self._held_out), self._frames, rng)
        top, left = (int(rng.integers(0, SIZE - self._side + 1)) for _ in range(2))
        return clip[:, top : top + self._side, left : left + self._side]


def sample_crowd(rng: np.random.Generator) -> Scene:
    """Three to six objects of training's combinations."""
    movers = [sample_scene(rng, two=0.0).movers[0] for _ in range(int(rng.integers(3, 7)))]
    return Scene(tuple(movers), str(rng.choice(BACKGROUNDS)))


def to_pixels(clip: Tensor) -> Tensor:
    """uint8 (T, H, W, 3) to float (3, T, H, W) in -1..1."""
    return clip.permute(3, 0, 1, 2).float() / 127.5 - 1.0


def to_clip(pixels: Tensor) -> Clip:
    """The way back from ``to_pixels``."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).numpy()


def main() -> None:
    """Command line."""
    parser = stage_parser(__doc__, minutes=20.0, lr=5e-3)
    parser.add_argument("--channels", type=int, default=LATENT_CHANNELS, help="of the latents")
    parser.add_argument(
        "--resume", type=Path, help="weights to go on from, with as many latent channels or fewer; whole clips only"
    )
    train(parser.parse_args())


def train(args: argparse.Namespace) -> None:
    """Train for ``minutes``: single frames, from ``CLIPS_FROM`` of the time crops of clips, then whole ones."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    vae = CausalVae(nano_vae(latent_channels=args.channels))
    start_certain(vae)
    if args.resume:
        load_narrower(vae, load_file(args.resume))
    bounds = (-1.0, -1.0, LONG_FROM) if args.resume else (CLIPS_FROM, WHOLE_FROM, LONG_FROM)
    if not args.resume:
        open_time(vae)
    optimizers, average = Optimizers(vae, args.lr), copy.deepcopy(vae).requires_grad_(False)
    kinds = (
        Crops(16, 1, CROP, args.seed),
        Crops(4, CROP_FRAMES, CROP, args.seed + 1),
        Crops(1, MIDDLE_FRAMES, SIZE, args.seed + 2),
        Crops(1, FRAMES, SIZE, args.seed + 3),
    )
    sources = [iter(DataLoader(kind, batch_size=None, num_workers=1)) for kind in kinds]
    held_out = next(iter(Crops(8, FRAMES, SIZE, 999, held_out=True)))
    log, started_s, step = TrainingLog(args.out / "vae_log.jsonl"), time.monotonic(), 0
    recent: list[float] = []
    while (progress := (time.monotonic() - started_s) / 60 / args.minutes) < 1:
        kind = sum(progress > bound for bound in bounds)
        recent.append(take_step(vae, next(sources[kind])))
        optimizers.step(progress, step)
        follow(average, vae, min(EMA, (step + 1) / (step + 10)))
        step += 1
        if step % 50 == 0:
            log.write(step=step, kind=kind, loss=sum(recent) / len(recent))
            recent.clear()
        if step % 300 == 0:
            log.write(step=step, psnr=psnr(average, held_out), **judged(average, args.out / "judge"))
            save(scaled(average, held_out), args.out)
    whiten(average, next(iter(Crops(24, FRAMES, SIZE, args.seed + 4))))
    log.write(step=step, psnr=psnr(average, held_out), **judged(average, args.out / "judge"))
    save(scaled(average, held_out), args.out)


class Optimizers:
    """Muon for the kernels between layers, AdamW for the rest; warm-up and cosine decay for both."""

    def __init__(self, vae: CausalVae, lr: float) -> None:
        learning = {name: p for name, p in vae.named_parameters() if p.requires_grad}
        kernels = {name: p for name, p in learning.items() if p.ndim >= 4 and not _is_border(name)}
        others = [p for name, p in learning.items() if name not in kernels]
        self._muon, self._lr = ConvMuon(kernels.values(), lr), lr
        self._adam = torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=1e-3)
        self._parameters = list(learning.values())

    def step(self, progress: float, step: int) -> None:
        """Clip, update, clear."""
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        factor = min(1.0, (step + 1) / 50) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in self._adam.param_groups:
            group["lr"] = 0.5 * self._lr * factor
        self._muon.step(factor)
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)


def _is_border(name: str) -> bool:
    """Layers between pixels or latents and the inside."""
    return any(part in name for part in ("conv_in", "conv_out", "quant_conv"))


def start_certain(vae: CausalVae) -> None:
    """Latents begin with a standard deviation of 0.05: with one of 1, the first minutes are spent on unlearning it."""
    conv, half = vae.quant_conv.conv, vae.config.embed_dim
    with torch.no_grad():
        conv.weight[half:].zero_()
        bias_of(conv)[half:].fill_(-6.0)


@torch.no_grad()
def open_time(vae: CausalVae, openness: float = 0.5) -> None:
    """Give the convolutions over time ``openness`` of the say (published start: 0.12); what they compute stays.

    Averages over frames show no motion; at the published start, learning it takes most of the time.
    """
    for layer in vae.modules():
        if isinstance(layer, TimeDownsampleRes2x | TimeUpsampleRes2x):
            conv = layer.conv if isinstance(layer, TimeDownsampleRes2x) else layer.conv.conv
            plain = torch.zeros_like(conv.weight)  # the average, or the identity, as a kernel
            index = torch.arange(len(plain))
            if isinstance(layer, TimeDownsampleRes2x):
                plain[index, index, :, 1, 1] = 1 / 3
            else:
                plain[index, index, 2, 1, 1] = 1.0
            alpha = float(torch.sigmoid(layer.mix_factor))
            conv.weight.copy_(((1 - alpha) * conv.weight + (alpha - (1 - openness)) * plain) / openness)
            bias_of(conv).mul_((1 - alpha) / openness)
            layer.mix_factor.fill_(math.log((1 - openness) / openness))


@torch.no_grad()
def whiten(vae: CausalVae, pixels: Tensor) -> None:
    """Give the latents' channels mean 0, variance 1 and no correlation; what is decoded stays.

    Exact, since the layers on both sides of the latents are matrices. Without it most of the variance is that of the
    channels' means, and a denoiser of unit noise sees little of what differs between clips.
    """
    latents = (
        torch.cat([vae.encode(clip).mode() for clip in torch.split(pixels, 1)]).transpose(0, 1).flatten(1).double()
    )
    mean = latents.mean(1)
    values, vectors = torch.linalg.eigh(torch.cov(latents))
    there = (vectors * values.rsqrt()) @ vectors.T
    back = torch.linalg.inv(there)
    before, after, half = vae.quant_conv.conv, vae.post_quant_conv.conv, vae.config.embed_dim
    matrix = before.weight[:half].flatten(1).double()
    before.weight[:half] = (there @ matrix).reshape(before.weight[:half].shape).float()
    bias = bias_of(before)
    bias[:half] = (there @ (bias[:half].double() - mean)).float()
    bias[half:] += there.square().sum(1).log().float()  # of the variances, the diagonal alone
    matrix = after.weight.flatten(1).double()
    bias_of(after).add_((matrix @ mean).float())
    after.weight.copy_((matrix @ back).reshape(after.weight.shape).float())


def bias_of(conv: nn.Conv3d) -> Tensor:
    """Every convolution here has one."""
    if conv.bias is None:
        raise ValueError("a convolution without a bias; these weights are of another model")
    return conv.bias


def take_step(vae: CausalVae, pixels: Tensor) -> float:
    """Forward and backward on (B, 3, T, H, W). Returns the reconstruction loss."""
    with fast_products():
        posterior = vae.encode(pixels)
        decoded = vae.decode(posterior.sample())
    loss = picture_loss(decoded.float(), pixels)
    (loss + KL_WEIGHT * posterior.kl().float()).backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())


def picture_loss(decoded: Tensor, pixels: Tensor) -> Tensor:
    """Absolute and squared error of (B, 3, T, H, W), more where something moves."""
    error = decoded - pixels
    return (moving(pixels) * (error.abs() + 2.0 * error.square())).mean()


def moving(pixels: Tensor) -> Tensor:
    """Weight of each pixel, (B, 1, T, H, W), mean 1: more where it differs from its clip's commonest colour."""
    ground = pixels.flatten(2).median(dim=2).values[..., None, None, None]
    differs = ((pixels - ground).abs().amax(1, keepdim=True) > 0.05).float()
    weight = 1.0 + SMEAR * differs
    return weight / weight.mean()


@torch.no_grad()
def psnr(vae: CausalVae, pixels: Tensor) -> float:
    """Decibels of the likeliest reconstruction, pixels in -1..1; clip by clip, then the mean."""
    values = []
    for clip in torch.split(pixels, 1):
        error = (vae.decode(vae.encode(clip).mode()).clamp(-1, 1) - clip).square().mean()
        values.append(10 * math.log10(4.0 / float(error)))
    return sum(values) / len(values)


@torch.no_grad()
def judged(vae: CausalVae, judge: Path) -> dict[str, float]:
    """Share of reconstructions in which the judge sees what was rendered; {} where there is no judge yet.

    This, not decibels, says whether a transformer could learn shapes from the latents.
    """
    if not judge.is_dir():
        return {}
    rng = np.random.default_rng(JUDGED)
    scenes = [sample_scene(rng, two=float(i % 2), held_out=True) for i in range(JUDGED)]
    clips = [to_pixels(torch.from_numpy(render(scene, FRAMES, rng)))[None] for scene in scenes]
    again = [to_clip(vae.decode(vae.encode(clip).mode())[0]) for clip in clips]
    verdicts = Judge.load(judge).verdicts(again, scenes)
    return {f"right_{1 + two}": sum(one.is_right for one in verdicts[two::2]) / (JUDGED // 2) for two in (0, 1)}


@torch.no_grad()
def scaled(vae: CausalVae, pixels: Tensor) -> CausalVae:
    """``vae``, its config with the factor that gives the latents of ``pixels`` unit variance."""
    latents = torch.cat([vae.encode(clip).mode() for clip in torch.split(pixels, 1)])
    vae.config = dataclasses.replace(vae.config, scale_factor=float(1.0 / latents.std()))
    return vae


def save(vae: CausalVae, folder: Path) -> None:
    """Weights and config."""
    contiguous = {name: tensor.detach().contiguous() for name, tensor in vae.state_dict().items()}
    save_file(contiguous, folder / "vae.safetensors")
    (folder / "vae.json").write_text(json.dumps(dataclasses.asdict(vae.config), indent=1) + "\n")


if __name__ == "__main__":
    main()
