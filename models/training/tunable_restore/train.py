"""Train the nano variant: one command, seeded, resumable, minutes of one core.

As the paper's abstract has it, strengths are drawn at random for each step, and mix both the kernels and the loss. The
saved weights are an exponential moving average, in half precision.

Determinism: what a step draws depends on the seed and its number alone, so a run that was interrupted ends with the
same weights as one that was not, on the same torch build and kind of processor.
"""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.checkpoint import save_weights
from models.contract import OnProgress, Variant
from models.families.tunable_restore.network import random_network
from models.training.average import follow
from models.training.products import fast_products
from models.training.stages import save_state, saved_state
from models.training.tunable_restore.degrade import as_bytes, blurred, multi_loss, objectives, weights
from models.training.tunable_restore.pictures import TRAIN, TRAIN_FONTS, VALIDATION, Pixels, pages, photographs

STATE_FILE = "training_state.pt"
MAX_NOISE = 55 / 255
_SCALES = (1.0, 0.7, 0.5)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """``text_share`` of a batch is drawn text. The last ``decay_share`` of the steps lowers the rate to nothing, and
    draws full strengths and strong noise more often. All but the last ``precise_share`` run in bfloat16 where that is
    faster."""

    steps: int = 3000
    batch_size: int = 16
    side: int = 64
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    decay_share: float = 0.3
    precise_share: float = 0.05
    average_decay: float = 0.998
    text_share: float = 0.25
    seed: int = 0
    num_threads: int = 1
    evaluate_every: int = 200
    save_every: int = 100


@dataclass(frozen=True)
class Batch:
    """Clean pictures, the same after a blur or not, the same with noise, and the strengths of all of them."""

    sharp: Tensor
    soft: Tensor
    given: Tensor
    denoise: float
    sharpen: float


def train_variant(
    variant: Variant,
    out_dir: Path,
    *,
    steps: int | None = None,
    seed: int = 0,
    on_progress: OnProgress = lambda what, done, total: None,
) -> list[str]:
    """What ``vireo train`` does. Returns: lines about the result. Raises: ValueError: as ``train``."""
    return train(TrainConfig(seed=seed, steps=steps or TrainConfig.steps), variant, out_dir, on_progress)


def train(config: TrainConfig, variant: Variant, out_dir: Path, on_progress: OnProgress) -> list[str]:
    """Train, or go on with an interrupted run in ``out_dir``; writes weights and log there.

    Returns: lines about the result.

    Raises: ValueError: a package with pictures is missing, or the interrupted run has another configuration.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(config.num_threads)
    try:
        run = _Run(config, variant, out_dir)
        run.resume()
        run.to_the_end(on_progress)
        return run.finish()
    finally:
        torch.set_num_threads(threads_before)


class _Run:
    """Everything that a training run has to remember."""

    def __init__(self, config: TrainConfig, variant: Variant, out_dir: Path) -> None:
        self.config, self.variant, self.out_dir = config, variant, out_dir
        self.model = random_network(variant, config.seed)
        self.average = random_network(variant, config.seed).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.learning_rate, weight_decay=1e-4)
        self.photographs = [small for one in photographs(TRAIN).values() for small in _scaled(one)]
        self.pages = pages(TRAIN_FONTS, 90, config.seed)
        self.validation = _validation()
        self.step = 0
        self.seconds = 0.0
        self.history: list[dict[str, Any]] = []

    def to_the_end(self, on_progress: OnProgress) -> None:
        started_s = time.monotonic()
        while self.step < self.config.steps:
            loss = self._one_step()
            self.step += 1
            if self.step == self.config.steps or self.step % self.config.evaluate_every == 0:
                self.history.append({"step": self.step, "loss": loss, "psnr": self._evaluate()})
            now_s = time.monotonic()
            self.seconds, started_s = self.seconds + now_s - started_s, now_s
            if self.step % self.config.save_every == 0:
                self._save()
            on_progress("training", self.step, self.config.steps)

    @property
    def _left(self) -> float:
        """Share of the steps that are to come."""
        return (self.config.steps - self.step) / self.config.steps

    def _one_step(self) -> float:
        for group in self.optimizer.param_groups:
            rise = min(1.0, (self.step + 1) / self.config.warmup_steps)
            group["lr"] = self.config.learning_rate * rise * min(1.0, self._left / self.config.decay_share)
        batch = self._batch()
        given = batch.given.contiguous(memory_format=torch.channels_last)
        with fast_products() if self._left > self.config.precise_share else nullcontext():
            made = self.model(given, torch.tensor([[batch.denoise, batch.sharpen]]))
        targets = objectives(batch.sharp, batch.soft, batch.given)
        loss = multi_loss(made.float(), targets, weights(batch.denoise, batch.sharpen))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        follow(self.average, self.model, min(self.config.average_decay, (self.step + 1) / (self.step + 10)))
        return loss.item()

    def _batch(self) -> Batch:
        random = np.random.default_rng((self.config.seed, self.step))
        num_pages = round(self.config.text_share * self.config.batch_size)
        crops = [
            _crop(self.pages if row < num_pages else self.photographs, self.config.side, random)
            for row in range(self.config.batch_size)
        ]
        sharp = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255
        is_late = self._left <= self.config.decay_share
        chances = ([0.15, 0.75, 0.1], [0.5, 0.4, 0.1]) if is_late else ([0.15, 0.45, 0.4], [0.4, 0.35, 0.25])
        denoise, sharpen = (float(random.choice([0.0, 1.0, random.random()], p=p)) for p in chances)
        if denoise == sharpen == 0:  # where nothing is learnt: the picture comes back whatever the kernels say
            denoise = 1.0
        # Only detail that was lost can be put back: what is to be sharpened has been blurred.
        soft = blurred(sharp) if sharpen > 0 or random.random() < 0.3 else sharp
        noisy = random.random(len(sharp)) < (0.9 if sharpen == 0 else 0.5)
        sigma = MAX_NOISE * random.random(len(sharp)) ** (0.5 if is_late else 1.0) * noisy
        noise = random.standard_normal(sharp.shape, np.float32) * sigma[:, None, None, None]
        return Batch(sharp, soft, as_bytes(soft + torch.from_numpy(noise.astype(np.float32))), denoise, sharpen)

    @torch.inference_mode()
    def _evaluate(self) -> dict[str, float]:
        found = {}
        for name, (given, wanted, strengths) in self.validation.items():
            made = as_bytes(self.average(given, torch.tensor([strengths])))
            found[name] = round(-10 * float((made - wanted).square().mean().log10()), 3)
        return found

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
        }
        save_state(self.out_dir / STATE_FILE, asdict(self.config), state)

    def resume(self) -> None:
        state = saved_state(self.out_dir / STATE_FILE, asdict(self.config))
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]

    def finish(self) -> list[str]:
        half = {name: tensor.half() for name, tensor in self.average.state_dict().items()}
        save_weights(half, self.out_dir, {"model": self.variant.id, "seed": str(self.config.seed)})
        log = {
            "config": asdict(self.config),
            "torch": torch.__version__,
            "training_s": round(self.seconds, 1),
            "history": self.history,
        }
        (self.out_dir / "training_log.json").write_text(json.dumps(log, indent=1, allow_nan=False) + "\n")
        (self.out_dir / STATE_FILE).unlink(missing_ok=True)
        return [f"{name}: {value:.2f} dB on the validation picture" for name, value in self.history[-1]["psnr"].items()]


def _scaled(picture: Pixels) -> list[Pixels]:
    """The picture and smaller copies of it, which are sharper to the pixel."""
    height, width = picture.shape[:2]
    sizes = [(int(width * scale), int(height * scale)) for scale in _SCALES]
    image = Image.fromarray(picture)
    return [np.asarray(image.resize(size, Image.Resampling.LANCZOS)) for size in sizes if min(size) >= 128]


def _crop(pictures: list[Pixels], side: int, random: np.random.Generator) -> Pixels:
    """A square of one of the pictures, turned and mirrored, its colours exchanged, sometimes in grey."""
    picture = pictures[int(random.integers(len(pictures)))]
    top, left = (int(random.integers(length - side + 1)) for length in picture.shape[:2])
    square = np.rot90(picture[top : top + side, left : left + side], int(random.integers(4)))
    square = square[:, ::-1] if random.random() < 0.5 else square
    if random.random() < 0.2:
        return np.repeat(square.mean(2, keepdims=True).round().astype(np.uint8), 3, axis=2)
    return np.ascontiguousarray(square[..., random.permutation(3)])


def _validation() -> dict[str, tuple[Tensor, Tensor, tuple[float, float]]]:
    """What is given, what is wanted and the strengths, by name: a square of one photograph."""
    (picture,) = photographs(VALIDATION).values()
    height, width = (length // 2 - 96 for length in picture.shape[:2])
    sharp = torch.from_numpy(picture[height : height + 192, width : width + 192].copy()).permute(2, 0, 1)[None] / 255
    noise = torch.randn(sharp.shape, generator=torch.Generator().manual_seed(1))
    noisy = {f"noise {sigma}": (as_bytes(sharp + noise * sigma / 255), sharp, (1.0, 0.0)) for sigma in (10, 25, 50)}
    return {**noisy, "blur": (as_bytes(blurred(sharp)), sharp, (0.0, 1.0))}
