"""A smaller decoder for an autoencoder that has learnt: its encoder, and so all latents, stay as they are.

    python -m models.training.vdit.decoder_stage --out .cache/vdit-nano --minutes 25

The small decoder begins with those layers of the present one that fit, and learns to draw the rendered clips from
latents drawn as the present one had them. It is taught by the clips and not by the present decoder: they are what that
one was taught with, and cost nothing. The folder's vae.safetensors and vae.json are replaced once it has learnt; until
then they are kept in the folder ``decoder`` below it, from where an interrupted run goes on. decoder_log.jsonl is the
log.
"""

from __future__ import annotations

import argparse
import copy
import shutil
import time

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from models.families.vdit.causal_vae import CausalVae
from models.training.average import follow
from models.training.log import TrainingLog
from models.training.stages import stage_parser
from models.training.vdit.clips import SIZE
from models.training.vdit.latents_stage import load_vae
from models.training.vdit.nano import FRAMES, with_small_decoder
from models.training.vdit.vae_stage import EMA, Crops, Optimizers, judged, picture_loss, psnr, save

DECODING = ("decoder", "post_quant_conv")


def main() -> None:
    """Command line."""
    parser = stage_parser(__doc__, minutes=25.0, lr=5e-3, seed=5)
    train(parser.parse_args())


def train(args: argparse.Namespace) -> None:
    """Train for ``minutes``."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    part = args.out / "decoder"
    part.mkdir(exist_ok=True)
    vae = with_decoder_of(load_vae(part if (part / "vae.safetensors").exists() else args.out))
    optimizers, average = Optimizers(vae, args.lr), copy.deepcopy(vae).requires_grad_(False)
    clips = iter(DataLoader(Crops(1, FRAMES, SIZE, args.seed), batch_size=None, num_workers=1))
    held_out = next(iter(Crops(8, FRAMES, SIZE, 999, held_out=True)))
    log, started_s, step = TrainingLog(args.out / "decoder_log.jsonl"), time.monotonic(), 0
    recent: list[float] = []
    while (progress := (time.monotonic() - started_s) / 60 / args.minutes) < 1:
        recent.append(take_step(vae, next(clips)))
        optimizers.step(progress, step)
        follow(average, vae, min(EMA, (step + 1) / (step + 10)))
        step += 1
        if step % 50 == 0:
            log.write(step=step, loss=sum(recent) / len(recent))
            recent.clear()
        if step % 500 == 0:
            log.write(step=step, psnr=psnr(average, held_out))
            save(average, part)
    log.write(step=step, psnr=psnr(average, held_out), **judged(average, args.out / "judge"))
    save(average, args.out)
    shutil.rmtree(part)


def with_decoder_of(vae: CausalVae) -> CausalVae:
    """The same encoder, frozen, and a small decoder that begins with what fits of the present one.

    Kernels of other widths take over the channels that both have.
    """
    small = CausalVae(with_small_decoder(vae.config))
    state, old = small.state_dict(), vae.state_dict()
    for name, new in state.items():
        if name in old and old[name].ndim == new.ndim:
            take_over(new, old[name])
    small.load_state_dict(state)
    for name, part in small.named_children():
        part.requires_grad_(name in DECODING)
    return small


@torch.no_grad()
def take_over(new: Tensor, old: Tensor) -> None:
    """Write the common channels (and taps, where there are as many) of a layer into another."""
    if new.shape[2:] != old.shape[2:]:
        return
    common = tuple(slice(min(pair)) for pair in zip(new.shape[:2], old.shape[:2], strict=True))
    new[common] = old[common]


def take_step(vae: CausalVae, pixels: Tensor) -> float:
    """Forward and backward of the decoder on (B, 3, T, H, W). Returns the loss."""
    with torch.no_grad():
        latents = vae.encode(pixels).sample()
    loss = picture_loss(vae.decode(latents), pixels)
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())


if __name__ == "__main__":
    main()
