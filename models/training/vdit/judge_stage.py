"""The judge learns to name what clips show, from rendered ones that were made as bad as generated ones may be.

    python -m models.training.vdit.judge_stage --out .cache/vdit-nano --minutes 5

It sees all combinations of words, also those that the video model is never shown: it has to know them when it sees
them. Blur in space and time, noise, coarse pixels, faded and tinted colours.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from models.training.log import TrainingLog
from models.training.products import fast_products
from models.training.stages import stage_parser
from models.training.vdit.clips import SHORT_CLIP, render
from models.training.vdit.judge import EVERY, Judge, JudgeNet, as_frames, judge_loss, targets
from models.training.vdit.scenes import BACKGROUNDS, SPEEDS, Scene, sample_scene

TWO = 0.35
HELD_OUT_SEED = 77


class Batch(NamedTuple):
    """``frames`` (B, 8, 3, H, W) in 0..1, and what they show."""

    frames: Tensor
    wanted: Tensor
    speeds: Tensor
    backgrounds: Tensor


class JudgeClips(IterableDataset[Batch]):
    """Batches without end; three scenes in ten have a held-out combination in them."""

    def __init__(self, batch: int, seed: int, two: float = TWO) -> None:
        self._batch, self._seed, self._two = batch, seed, two

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        rng = np.random.default_rng(self._seed)
        while True:
            yield self._make(rng)

    def _make(self, rng: np.random.Generator) -> Batch:
        scenes = [sample_scene(rng, two=self._two, held_out=bool(rng.random() < 0.3)) for _ in range(self._batch)]
        frames = [worsen(as_frames(render(scene, SHORT_CLIP, rng, every=EVERY)), rng) for scene in scenes]
        return Batch(
            torch.stack(frames),
            torch.stack([targets(scene) for scene in scenes]),
            torch.tensor([_speed(scene) for scene in scenes]),
            torch.tensor([BACKGROUNDS.index(scene.background) for scene in scenes]),
        )


def _speed(scene: Scene) -> int:
    """Class number; -100 where two objects may differ."""
    return SPEEDS.index(scene.movers[0].speed) if len(scene.movers) == 1 else -100


def worsen(frames: Tensor, rng: np.random.Generator) -> Tensor:
    """What an autoencoder or a denoiser may do to frames (8, 3, H, W)."""
    if rng.random() < 0.5:
        frames = _blur(frames, rng.uniform(0.5, 2.2))
    if rng.random() < 0.3:
        small = F.avg_pool2d(frames, int(rng.integers(2, 4)), ceil_mode=True)
        frames = F.interpolate(small, size=frames.shape[-2:], mode="bilinear")
    if rng.random() < 0.5:
        frames = _ghosts(frames, rng)
    if rng.random() < 0.3:
        share = rng.uniform(0.05, 0.3)
        frames = (1 - share) * frames + share * 0.5 * (frames.roll(1, 0) + frames.roll(-1, 0))
    if rng.random() < 0.7:
        shape = (3, 1, 1)
        gain = torch.from_numpy(rng.uniform(0.85, 1.15, shape)).float()
        shift = torch.from_numpy(rng.uniform(-0.06, 0.06, shape)).float()
        mean = frames.mean()
        frames = (frames - mean) * gain + mean + shift
    if rng.random() < 0.6:
        side = int(rng.choice([8, 16, 64]))
        noise = torch.from_numpy(rng.normal(0, rng.uniform(0.01, 0.1), (len(frames), 3, side, side))).float()
        frames = frames + F.interpolate(noise, size=frames.shape[-2:], mode="bilinear")
    return frames.clamp(0, 1)


def _ghosts(frames: Tensor, rng: np.random.Generator) -> Tensor:
    """Tinted traces of where things were and will be, and rings round edges, as decoders of moving things leave."""
    soft = _blur(frames, rng.uniform(0.8, 2.5))
    for shift in (1, -1):
        tint = torch.from_numpy(rng.uniform(-0.2, 0.2, (3, 1, 1))).float()
        frames = frames + tint * (soft.roll(shift, 0) - soft)
    ring = torch.from_numpy(rng.uniform(-0.3, 0.6, (3, 1, 1))).float()
    return frames + ring * (frames - soft)


def _blur(frames: Tensor, sigma: float) -> Tensor:
    x = torch.arange(-5, 6, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    padded = F.pad(frames, (5, 5, 5, 5), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3)


def main() -> None:
    """Command line."""
    parser = stage_parser(__doc__, minutes=5.0, lr=3e-3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--resume", action="store_true", help="go on from the judge that is there")
    train(parser.parse_args())


def train(args: argparse.Namespace) -> None:
    """Train for ``minutes`` with one cycle of the learning rate."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    net = Judge.load(args.out / "judge").net.train().requires_grad_(True) if args.resume else JudgeNet()
    optimizer = torch.optim.AdamW(net.parameters(), lr=args.lr, weight_decay=1e-2)
    batches = iter(DataLoader(JudgeClips(args.batch, args.seed), batch_size=None, num_workers=1, prefetch_factor=8))
    log, started_s, step, recent = TrainingLog(args.out / "judge_log.jsonl"), time.monotonic(), 0, list[float]()
    while (progress := (time.monotonic() - started_s) / 60 / args.minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(progress / 0.1, (1 - progress) / 0.9 + 0.01)
        recent.append(take_step(net, optimizer, next(batches)))
        step += 1
        if step % 50 == 0:
            log.write(step=step, loss=sum(recent) / len(recent))
            recent.clear()
        if step % 400 == 0:
            Judge(net).save(args.out / "judge")
            net.train().requires_grad_(True)
    judge = Judge(net)
    judge.save(args.out / "judge")
    log.write(step=step, **{f"right_{two}_objects": accuracy(judge, two) for two in (1, 2)})


def take_step(net: JudgeNet, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
    """One update. Returns the loss."""
    with fast_products():
        logits = net(batch.frames)
    floats = type(logits)(*(part.float() for part in logits))
    loss = judge_loss(floats, batch.wanted, batch.speeds, batch.backgrounds)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def accuracy(judge: Judge, num_objects: int, count: int = 400) -> float:
    """Share of clean clips, of a seed that training never uses, in which exactly the right objects are seen."""
    rng = np.random.default_rng(HELD_OUT_SEED + num_objects)
    right = 0
    for _ in range(count // 20):
        scenes = [sample_scene(rng, two=num_objects - 1, held_out=bool(i % 2)) for i in range(20)]
        clips = [render(scene, SHORT_CLIP, rng) for scene in scenes]
        right += sum(verdict.is_right for verdict in judge.verdicts(clips, scenes))
    return right / count


if __name__ == "__main__":
    main()
