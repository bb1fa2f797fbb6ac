"""Train the nano variant: one command, seeded, resumable, minutes on one core.

Loss as in the paper (arXiv 2306.11248, Sec. 3.3, and the official training command): cross-entropy at all four exits,
weighted 0.5, 0.5, 1 and 1, plus 0.5 times the KL divergence of the first three from the last (self-distillation). The
saved weights are an exponential moving average.

Determinism: the same configuration, thread count, torch build and processor type give the same weights. A run that was
interrupted continues from ``training_state.pt`` and ends with the same weights as one that was not.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from models.checkpoint import save_weights
from models.contract import Variant
from models.families.dyn_perceiver.folding import folded
from models.families.dyn_perceiver.load import random_model
from models.families.dyn_perceiver.model import DynPerceiver
from models.families.dyn_perceiver.runner import DynPerceiverRunner
from models.layers.pixels import to_input
from models.operating_points import TABLE_FILE
from models.registry import find
from models.training.classify.pictures import exit_outputs
from models.training.dyn_perceiver import augment
from models.training.dyn_perceiver.card import write_card
from models.training.dyn_perceiver.digits import TRAIN_FONTS, Glyphs, drawn, handwritten
from models.training.dyn_perceiver.evaluation import HARD_STRENGTH, SPLIT_SEED, held_out_sets
from models.training.stages import save_state, saved_state

STATE_FILE = "training_state.pt"
EXIT_WEIGHTS = (0.5, 0.5, 1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Of a batch, ``font_share`` is drawn digits; ``clean_share`` is undisturbed, ``hard_share`` disturbed as
    strongly as the hard test pictures, and the rest at random.
    """

    model: str = "dyn-perceiver-nano"
    steps: int = 8000
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_steps: int = 200
    label_smoothing: float = 0.05
    distillation: float = 0.5
    ema_decay: float = 0.999
    font_share: float = 0.2
    clean_share: float = 0.1
    hard_share: float = 0.5
    seed: int = 0
    num_threads: int = 1
    evaluate_every: int = 250
    save_every: int = 250


@dataclass(frozen=True)
class Progress:
    """Where training stands; ``accuracy``: of the four exits on the clean calibration split, when just measured."""

    step: int
    steps: int
    loss: float
    accuracy: tuple[float, ...] | None


OnProgress = Callable[[Progress], None]


def train(config: TrainConfig, out_dir: Path, on_progress: OnProgress = lambda progress: None) -> dict[str, Any]:
    """Train, or go on with an interrupted run in ``out_dir``; writes weights, config, labels and log there.

    Returns: the log, as written to ``training_log.json``.

    Raises:
        ValueError: the model is not a trainable variant, or ``out_dir`` holds an interrupted run of another config.
    """
    variant = find(config.model)[1]
    if not variant.is_nano:
        raise ValueError(f"{variant.id} cannot be trained here (needs ImageNet); trainable: dyn-perceiver-nano")
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


def train_variant(
    variant: Variant,
    out_dir: Path,
    *,
    steps: int | None = None,
    seed: int = 0,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[str]:
    """What ``vireo train`` does: train, and write the model card. Operating points of the old weights are removed.

    Returns: lines about the result. Raises: ValueError: as ``train``.
    """
    config = TrainConfig(model=variant.id, seed=seed, steps=steps or TrainConfig.steps)
    log = train(config, out_dir, lambda now: on_progress("training", now.step, now.steps))
    for name in (TABLE_FILE, "operating_points.png"):
        (out_dir / name).unlink(missing_ok=True)
    write_card(variant.with_weights(out_dir))
    return [
        f"{name:>6}: " + "  ".join(f"exit {k} {100 * a:.2f}%" for k, a in enumerate(accuracy, 1))
        for name, accuracy in log["test_accuracy"].items()
    ]


class _Run:
    """Everything that a training run has to remember."""

    def __init__(self, config: TrainConfig, variant: Variant, out_dir: Path) -> None:
        self.config, self.variant, self.out_dir = config, variant, out_dir
        self.model = random_model(variant, config.seed)
        self.average = random_model(variant, config.seed)
        self.optimizer = torch.optim.AdamW(_parameter_groups(self.model, config), lr=config.learning_rate, fused=True)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.handwritten = handwritten(SPLIT_SEED).train
        self.drawn = drawn(TRAIN_FONTS)
        self.clean = held_out_sets("calibration")["clean"]
        self.step = 0
        self.seconds = 0.0
        self.history: list[dict[str, Any]] = []

    def to_the_end(self, on_progress: OnProgress) -> None:
        while self.step < self.config.steps:
            started_s = time.monotonic()
            loss = self._one_step()
            self.step += 1
            is_last = self.step == self.config.steps
            accuracy = self._evaluate(loss) if is_last or self.step % self.config.evaluate_every == 0 else None
            self.seconds += time.monotonic() - started_s
            if self.step % self.config.save_every == 0:
                self._save()
            on_progress(Progress(self.step, self.config.steps, loss, accuracy))

    def _one_step(self) -> float:
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = _learning_rate(self.step, self.config)
        images, labels = _batch(self.handwritten, self.drawn, self.config, self.generator)
        loss = exit_loss(self.model(to_input(images, self.variant.io)), labels, self.config)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizer.step()
        self._update_average()
        return loss.item()

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.config.ema_decay, (self.step + 1) / (self.step + 10))
        for kept, new in zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True):
            if kept.is_floating_point():
                kept.lerp_(new, 1 - decay)
            else:
                kept.copy_(new)

    def _evaluate(self, loss: float) -> tuple[float, ...]:
        runner = DynPerceiverRunner(folded(self.average), self.variant)
        accuracy = tuple(exit_outputs(runner, self.clean).accuracy)
        self.history.append({"step": self.step, "loss": loss, "clean_accuracy": list(accuracy)})
        return accuracy

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
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
        self.generator.set_state(state["generator"])
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]

    def finish(self) -> dict[str, Any]:
        log = self._log()
        save_weights(self.average.state_dict(), self.out_dir, {"model": self.variant.id, "seed": str(self.config.seed)})
        _write_json(self.out_dir / "config.json", {"model": self.variant.id, **asdict(self.variant.config["network"])})
        _write_json(self.out_dir / "labels.json", list(self.variant.io.labels or ()))
        _write_json(self.out_dir / "training_log.json", log)
        (self.out_dir / STATE_FILE).unlink(missing_ok=True)
        return log

    def _log(self) -> dict[str, Any]:
        runner = DynPerceiverRunner(folded(self.average), self.variant)
        sets = held_out_sets("test")
        return {
            "config": asdict(self.config),
            "split_seed": SPLIT_SEED,
            "torch": torch.__version__,
            "training_s": round(self.seconds, 1),
            "test_accuracy": {name: exit_outputs(runner, pictures).accuracy for name, pictures in sets.items()},
            "test_size": {name: len(pictures) for name, pictures in sets.items()},
            "history": self.history,
        }


def exit_loss(exits: tuple[Tensor, ...], labels: Tensor, config: TrainConfig) -> Tensor:
    """Cross-entropy of all exits and distillation of the last into the others; logits (B, K) each -> scalar."""
    losses = [functional.cross_entropy(y, labels, label_smoothing=config.label_smoothing) for y in exits]
    total = sum(weight * loss for weight, loss in zip(EXIT_WEIGHTS, losses, strict=True))
    teacher = functional.softmax(exits[-1].detach(), 1)
    for student in exits[:-1]:
        divergence = functional.kl_div(functional.log_softmax(student, 1), teacher, reduction="batchmean")
        total = total + config.distillation * divergence
    return torch.as_tensor(total)


def _batch(written: Glyphs, drawn_: Glyphs, config: TrainConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """uint8 pictures (B, 32, 32, 3) and labels (B,)."""
    num_drawn = round(config.font_share * config.batch_size)
    ink, labels = zip(
        _pick(written, config.batch_size - num_drawn, generator), _pick(drawn_, num_drawn, generator), strict=True
    )
    return augment.render(augment.warp(torch.cat(ink), generator), strengths(config, generator), generator), torch.cat(
        labels
    )


def strengths(config: TrainConfig, generator: torch.Generator) -> Tensor:
    """How much each picture of a batch is disturbed, float32 (B,)."""
    kind = torch.rand(config.batch_size, generator=generator)
    strength = torch.rand(config.batch_size, generator=generator)
    low, high = HARD_STRENGTH
    strength = torch.where(kind >= 1 - config.hard_share, low + (high - low) * strength, strength)
    return strength * (kind >= config.clean_share)


def _pick(glyphs: Glyphs, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    rows = torch.randint(len(glyphs), (count,), generator=generator)
    return glyphs.ink[rows], glyphs.labels[rows]


def _parameter_groups(model: DynPerceiver, config: TrainConfig) -> list[dict[str, Any]]:
    """Weight decay on matrices and kernels only."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]


def _learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine down to 1%."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
