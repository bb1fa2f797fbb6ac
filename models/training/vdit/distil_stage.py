"""Last stage: a student that takes few steps, by multi-step consistency distillation, then sparse.

    python -m models.training.vdit.distil_stage --out .cache/vdit-nano --minutes 12

Source: Heek et al., arXiv 2403.06807 (segments); Efficient-vDiT, arXiv:2502.06155, Sec. 3 (a student of few steps, then
knowledge distillation of tile masks). The training timesteps are cut into ``SEGMENTS`` parts. From any point of a part
the student jumps to its beginning; it is taught to land where it would from a point a little nearer, to which the
teacher goes by a step of DDIM. Guidance is the teacher's: the student runs without it. From a third of the time on
every other batch attends through a tile mask or to the heaviest blocks alone, towards the same targets, so that one
student does all.
"""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_model, save_file
from torch import Tensor

from models.families.vdit.loading import load_transformer
from models.families.vdit.transformer import OpenSoraT2V
from models.methods.attention.base import SelfAttention
from models.methods.attention.dense import DENSE
from models.methods.attention.tile_attention import TileAttention
from models.methods.attention.tile_mask import TileMask
from models.methods.samplers.schedule import NoiseSchedule
from models.training.average import follow
from models.training.log import TrainingLog
from models.training.optimizer import Optimizers
from models.training.stages import stage_parser
from models.training.vdit.dit_stage import HELD_BACK, SPARSE, TextToLatents, error_weights
from models.training.vdit.latents_stage import read_shards
from models.training.vdit.nano import FRAMES, MAX_WORDS, nano_transformer

SEGMENTS = 4
JUMPS = 8
"""Teacher's steps in each segment."""
TARGET_EMA = 0.95
EMA = 0.99
SPARSE_FROM = 0.3
"""Share of the time after which every other batch is sparse."""
TILE_MASKS = ("2:6", "3:5", "4:4")


@dataclass(frozen=True, kw_only=True)
class Text:
    """What the transformer reads of prompts, and of nothing."""

    prompts: Tensor
    mask: Tensor
    nothing: Tensor
    nothing_mask: Tensor


def main() -> None:
    """Command line."""
    parser = stage_parser(__doc__, minutes=12.0, lr=6e-4, seed=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--two", type=float, default=0.3, help="share of lessons with two objects")
    parser.add_argument("--begin-from", type=Path, help="checkpoint with a student, which the teacher went on from")
    train(parser.parse_args())


def train(args: argparse.Namespace) -> None:
    """Train for ``minutes``."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    whole, schedule = TextToLatents(), NoiseSchedule()
    load_model(whole, args.out / "teacher.safetensors")
    whole.eval().requires_grad_(False)
    teacher = whole.transformer
    student = copy.deepcopy(teacher)
    if args.begin_from:
        student.load_state_dict(moved_along(args.begin_from, teacher))
    student.requires_grad_(True)
    target, average = (copy.deepcopy(student).requires_grad_(False) for _ in range(2))
    optimizers = Optimizers([student], muon_lr=args.lr, adam_lr=args.lr, warmup=20, final=0.05)
    latents, prompts = read_shards(args.out, FRAMES)
    chances = row_chances(prompts, args.two)
    log, started_s, step, recent = TrainingLog(args.out / "student_log.jsonl"), time.monotonic(), 0, list[float]()
    while (progress := (time.monotonic() - started_s) / 60 / args.minutes) < 1:
        rows = torch.multinomial(chances, args.batch, replacement=True)
        text = read_text(whole, [prompts[row] for row in rows.tolist()])
        attention = sparse_attention(step) if progress > SPARSE_FROM and step % 2 else DENSE
        z, timesteps, wanted = lesson(teacher, target, schedule, latents[rows].float(), text, args.guidance)
        loss = lesson_loss(student, schedule, z, timesteps, wanted, text, attention)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizers.step(progress, step)
        follow(target, student, TARGET_EMA)
        follow(average, student, min(EMA, (step + 1) / (step + 10)))
        recent.append(float(loss.detach()))
        step += 1
        if step % 25 == 0:
            log.write(step=step, loss=sum(recent) / len(recent))
            recent.clear()
        if step % 100 == 0:
            save_file(average.state_dict(), args.out / "student.safetensors")
    save_file(average.state_dict(), args.out / "student.safetensors")


def row_chances(prompts: list[str], two: float) -> Tensor:
    """Chances of clips to be drawn, so that ``two`` of them have two objects; those held back are never drawn."""
    is_two = torch.tensor([" and " in prompt for prompt in prompts])
    chances = torch.zeros(len(prompts))
    for kind, share in ((is_two, two), (~is_two, 1 - two)):
        kind[:HELD_BACK] = False
        chances += share * kind / kind.sum().clamp(min=1)
    return chances


def moved_along(checkpoint: Path, teacher: OpenSoraT2V) -> dict[str, Tensor]:
    """A checkpoint's student, moved as far as ``teacher`` has moved from the checkpoint's own.

    Both began as the same weights, and what each learnt adds up (task arithmetic, Ilharco et al., arXiv 2212.04089).
    Raises: ValueError, OSError: networks that are missing, or of another model.
    """
    student, before = (load_transformer(checkpoint / name).state_dict() for name in ("student", "teacher"))
    return {name: student[name] + now - before[name] for name, now in teacher.state_dict().items()}


def sparse_attention(step: int) -> SelfAttention:
    """The tile masks and the heaviest blocks in turn."""
    turn = step // 2 % (len(TILE_MASKS) + 1)
    if turn == len(TILE_MASKS):
        return SPARSE
    mask = TileMask.parse(TILE_MASKS[turn])
    return TileAttention([mask] * nano_transformer().num_layers, (mask.num_frames, 4, 4))


@torch.no_grad()
def read_text(whole: TextToLatents, prompts: list[str]) -> Text:
    """Embed prompts and as many of nothing."""
    words = whole.tokenizer([*prompts, ""], padding="max_length", max_length=MAX_WORDS, return_tensors="pt")
    ids, mask = words["input_ids"], words["attention_mask"].bool()
    text = whole.text(input_ids=ids, attention_mask=mask).last_hidden_state
    many = (len(prompts), -1)
    return Text(
        prompts=text[:-1], mask=mask[:-1], nothing=text[-1:].expand(*many, -1), nothing_mask=mask[-1:].expand(*many)
    )


@torch.no_grad()
def lesson(
    teacher: OpenSoraT2V, target: OpenSoraT2V, schedule: NoiseSchedule, x0: Tensor, text: Text, guidance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents, their timesteps, and the noise that the student should see in them."""
    width = schedule.num_train_steps // SEGMENTS
    begin = torch.randint(0, SEGMENTS, (len(x0),)) * width - 1  # -1: nothing is noise
    jump = torch.randint(1, JUMPS + 1, (len(x0),))
    now, then = begin + jump * width // JUMPS, begin + (jump - 1) * width // JUMPS
    z = schedule.add_noise(x0, torch.randn_like(x0), now)
    both = teacher(
        torch.cat([z, z]),
        torch.cat([now, now]),
        torch.cat([text.nothing, text.prompts]),
        torch.cat([text.nothing_mask, text.mask]),
    )
    without, with_text = both.chunk(2)
    nearer = move(schedule, z, without + guidance * (with_text - without), now, then)
    seen = target(nearer, then.clamp(min=0), text.prompts, text.mask)
    landed = torch.where((then == begin)[:, None, None, None, None], nearer, move(schedule, nearer, seen, then, begin))
    return z, now, noise_between(schedule, z, landed, now, begin)


def lesson_loss(
    student: OpenSoraT2V,
    schedule: NoiseSchedule,
    z: Tensor,
    timesteps: Tensor,
    wanted: Tensor,
    text: Text,
    attention: SelfAttention,
) -> Tensor:
    """Error of the noise, weighted as the teacher's was."""
    seen = student(z, timesteps, text.prompts, text.mask, attention=attention)
    errors: Tensor = (seen - wanted).square().flatten(1).mean(1)
    return (error_weights(schedule, timesteps) * errors).mean()


def move(schedule: NoiseSchedule, z: Tensor, noise: Tensor, now: Tensor, then: Tensor) -> Tensor:
    """A step of DDIM between timesteps (B,); -1 is where nothing is noise."""
    (alpha, sigma), (alpha_then, sigma_then) = levels(schedule, now, z), levels(schedule, then, z)
    return alpha_then * (z - sigma * noise) / alpha + sigma_then * noise


def noise_between(schedule: NoiseSchedule, z: Tensor, landed: Tensor, now: Tensor, then: Tensor) -> Tensor:
    """The noise with which ``move`` goes from ``z`` to ``landed``."""
    (alpha, sigma), (alpha_then, sigma_then) = levels(schedule, now, z), levels(schedule, then, z)
    return (landed - alpha_then / alpha * z) / (sigma_then - alpha_then * sigma / alpha)


def levels(schedule: NoiseSchedule, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma (B, 1, ...) at timesteps from -1 on."""
    squared = torch.cat([schedule.alphas_cumprod, torch.ones(1, dtype=torch.float64)])[timesteps]  # -1: the last
    squared = squared.reshape(-1, *[1] * (like.ndim - 1))
    return squared.sqrt().to(like.dtype), (1 - squared).sqrt().to(like.dtype)


if __name__ == "__main__":
    main()
