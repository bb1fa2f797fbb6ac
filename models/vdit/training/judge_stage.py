"""The judge learns from rendered clips, spoilt as an autoencoder and a diffusion model would: blur, noise, wrong tints.

    python -m models.vdit.training.judge_stage --out .cache/vdit-nano --minutes 6

It is shown all combinations, those that are held out from the generator as well: it must know them to judge them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from models.texthawk2.training.log import TrainingLog
from models.vdit.clips import render
from models.vdit.judge import HEADS, Judge, prepare
from models.vdit.nano import FRAMES
from models.vdit.scenes import sample_scene

Labels = dict[str, Tensor]


class JudgedClips(IterableDataset[tuple[Tensor, Labels]]):
    """Batches of prepared clips of one object, with the index of each right word."""

    def __init__(self, batch: int, seed: int, *, spoils: bool = True) -> None:
        self._batch, self._seed, self._spoils = batch, seed, spoils

    def __iter__(self) -> Iterator[tuple[Tensor, Labels]]:
        rng = np.random.default_rng(self._seed)
        while True:
            scenes = [sample_scene(rng, two=0.0, held_out=bool(rng.random() < 0.13)) for _ in range(self._batch)]
            clips = prepare(torch.from_numpy(np.stack([render(scene, FRAMES, rng) for scene in scenes])))
            labels = {
                name: torch.tensor([words.index(getattr(scene.movers[0], name)) for scene in scenes])
                for name, words in HEADS.items()
            }
            yield (spoilt(clips, rng) if self._spoils else clips), labels


def spoilt(clips: Tensor, rng: np.random.Generator) -> Tensor:
    """Some blurred, some noisy, some tinted, some with other contrast."""
    out = []
    for clip in clips:
        if rng.random() < 0.4:
            small = F.interpolate(clip.transpose(0, 1), scale_factor=0.5, mode="bilinear")
            clip = F.interpolate(small, size=clip.shape[-2:], mode="bilinear").transpose(0, 1)
        noise = torch.from_numpy(rng.standard_normal(clip.shape).astype(np.float32))
        clip = clip * float(rng.uniform(0.8, 1.1)) + float(rng.uniform(0, 0.12)) * noise
        out.append(clip + torch.from_numpy(rng.uniform(-0.08, 0.08, (3, 1, 1, 1)).astype(np.float32)))
    return torch.stack(out)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()
    torch.manual_seed(1)
    torch.set_num_threads(1)
    judge, log, started_s, step = Judge(), TrainingLog(args.out / "judge_log.jsonl"), time.monotonic(), 0
    optimizer = torch.optim.AdamW(judge.parameters(), lr=args.lr, weight_decay=1e-2)
    batches = iter(DataLoader(JudgedClips(args.batch, 5), batch_size=None, num_workers=1))
    while (progress := (time.monotonic() - started_s) / 60 / args.minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1.0, (step + 1) / 30) * (1 - progress)
        clips, labels = next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            logits = judge(clips)
        loss = sum((F.cross_entropy(logits[name].float(), labels[name]) for name in HEADS), torch.zeros(()))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 100 == 0:
            log.write(step=step, loss=float(loss.detach()), **accuracy(judge, 4))
            save(judge, args.out)
    log.write(step=step, **accuracy(judge, 32))
    save(judge, args.out)


def save(judge: Judge, folder: Path) -> None:
    """Write half-precision weights."""
    halves = {name: tensor.half() for name, tensor in judge.state_dict().items()}
    save_file(halves, folder / "judge.safetensors")


@torch.no_grad()
def accuracy(judge: Judge, num_batches: int) -> dict[str, float]:
    """On clips rendered from other seeds, clean and spoilt: share right in each part, and in all."""
    found: dict[str, float] = {}
    for kind, spoils in (("clean", False), ("spoilt", True)):
        rights = []
        for (clips, labels), _ in zip(JudgedClips(32, 777, spoils=spoils), range(num_batches), strict=False):
            logits = judge(clips)
            rights.append(torch.stack([logits[name].argmax(1) == labels[name] for name in HEADS]))
        right = torch.cat(rights, dim=1)
        found |= {f"{kind}_{name}": float(right[i].float().mean()) for i, name in enumerate(HEADS)}
        found[f"{kind}_all"] = float(right.all(0).float().mean())
    return found


if __name__ == "__main__":
    main()
