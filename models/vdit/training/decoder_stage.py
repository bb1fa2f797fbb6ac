"""Beside the later stages: the decoder goes on learning from whole clips, while latents stay what they are.

    python -m models.vdit.training.decoder_stage --out .cache/vdit-nano --minutes 30

The encoder is frozen, so that the transformer's data do not change. Latents get a little noise, as denoised ones have.
Writes vae_tuned.safetensors, which the export prefers, and decoder_log.jsonl.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader

from models.opensora.causal_vae import CausalVae
from models.training.log import TrainingLog
from models.vdit.clips import SIZE
from models.vdit.nano import FRAMES
from models.vdit.training.latents_stage import load_vae
from models.vdit.training.vae_stage import Crops, Optimizers, moving, psnr

NOISE = 0.08
"""Of latents with unit variance."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=5)
    train(parser.parse_args())


def train(args: argparse.Namespace) -> None:
    """Train for ``minutes``."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    vae = load_vae(args.out)
    for part in (vae.decoder, vae.post_quant_conv):
        part.requires_grad_(True)
    optimizers = Optimizers(vae, args.lr)
    clips = iter(DataLoader(Crops(1, FRAMES, SIZE, args.seed), batch_size=None, num_workers=1))
    held_out = next(iter(Crops(8, FRAMES, SIZE, 999, held_out=True)))
    log, started_s, step, recent = TrainingLog(args.out / "decoder_log.jsonl"), time.monotonic(), 0, list[float]()
    while (progress := (time.monotonic() - started_s) / 60 / args.minutes) < 1:
        recent.append(take_step(vae, next(clips)))
        optimizers.step(progress, step)
        step += 1
        if step % 20 == 0:
            log.write(step=step, loss=sum(recent) / len(recent))
            recent.clear()
        if step % 60 == 0:
            log.write(step=step, psnr=psnr(vae, held_out))
            save(vae, args.out)
    log.write(step=step, psnr=psnr(vae, held_out))
    save(vae, args.out)


def take_step(vae: CausalVae, pixels: Tensor) -> float:
    """Forward and backward on a clip (1, 3, T, H, W). Returns the loss."""
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            latents = vae.encode(pixels).mode().float()
        decoded = vae.decode(latents + torch.randn_like(latents) * (NOISE / vae.config.scale_factor))
    error = decoded.float() - pixels
    loss = (moving(pixels) * (error.abs() + 2.0 * error.square())).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())


def save(vae: CausalVae, folder: Path) -> None:
    """Weights under a name of their own; first as a draft, so that nobody reads half a file."""
    draft = folder / "vae_tuned.draft"
    save_file({name: tensor.detach().contiguous() for name, tensor in vae.state_dict().items()}, draft)
    draft.rename(folder / "vae_tuned.safetensors")


if __name__ == "__main__":
    main()
