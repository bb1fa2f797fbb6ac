"""Third stage: the transformer and its text encoder learn to predict the noise in latents.

    torchrun --nproc-per-node 2 -m models.training.vdit.dit_stage --out .cache/vdit-nano --minutes 45

or ``python -m``, for one rank.

Epsilon prediction on the published noise schedule, capped SNR weights (Hang et al., arXiv 2303.09556), one caption in
ten dropped for guidance, weights averaged over steps. ``--resume`` goes on; interrupted at will.
"""

from __future__ import annotations

import argparse
import copy
import re
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from models.families.vdit.transformer import Block, OpenSoraT2V
from models.methods.attention.adaspa_config import AdaSpaConfig
from models.methods.attention.base import SelfAttention
from models.methods.attention.dense import DENSE
from models.methods.samplers.schedule import NoiseSchedule
from models.training.average import follow
from models.training.log import TrainingLog
from models.training.optimizer import Optimizers
from models.training.stages import stage_parser
from models.training.vdit.binding import Binding
from models.training.vdit.latents_stage import read_shards
from models.training.vdit.nano import FRAMES, LONG_FRAMES, MAX_WORDS, nano_transformer
from models.training.vdit.searched import SearchedAttention
from models.training.vdit.words import small_encoder, word_tokenizer

DROPPED = 0.1
SHORTENED = 0.2
SNR_CAP, SNR_FLOOR = 5.0, 0.015
NOISY_FROM, NOISY = 0.65, 0.2
"""Timesteps from this share of the schedule on are one in five."""
EMA = 0.99
RELOAD_EVERY = 100
LENGTHS = (FRAMES, LONG_FRAMES)
LONG_EVERY = 12
"""One step in so many is of long clips, half as many of them."""
BINDING = 0.05
"""Weight of the loss that teaches the text encoder which words belong together."""
SPARSE_EVERY = 4
"""One step in so many attends to the heaviest blocks alone, so that AdaSpa costs little later."""
SPARSE = SearchedAttention(AdaSpaConfig(sparsity=0.7, block_tokens=8))
HELD_BACK = 64
"""Clips of the first shard that are for measuring alone."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """``text`` (B, S, C), token ``ids`` (B, S), and ``mask`` (B, S), True = a token."""

    text: Tensor
    ids: Tensor
    mask: Tensor


class TextToLatents(nn.Module):
    """Text encoder and transformer, trained together."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = word_tokenizer()
        self.text = small_encoder(len(self.tokenizer))
        self.transformer = OpenSoraT2V(nano_transformer())
        start_quiet(self.transformer)

    def read(self, prompts: list[str]) -> Reading:
        """What the transformer sees of prompts."""
        words = self.tokenizer(prompts, padding="max_length", max_length=MAX_WORDS, return_tensors="pt")
        ids, mask = words["input_ids"], words["attention_mask"]
        text = self.text(input_ids=ids, attention_mask=mask).last_hidden_state
        return Reading(text=text, ids=ids, mask=mask.bool())

    def forward(self, latents: Tensor, timesteps: Tensor, read: Reading, attention: SelfAttention = DENSE) -> Tensor:
        """Predict the noise in (B, 8, t, h, w)."""
        return self.transformer(latents, timesteps, read.text, read.mask, attention=attention)  # type: ignore[no-any-return]


def start_quiet(transformer: OpenSoraT2V) -> None:
    """Blocks begin as the identity, the output as nothing (DiT, adaLN-zero)."""
    with torch.no_grad():
        transformer.adaln_single.linear.weight.zero_()
        transformer.adaln_single.linear.bias.zero_()
        transformer.proj_out.weight.zero_()
        transformer.proj_out.bias.zero_()
        for block in transformer.transformer_blocks:
            if not isinstance(block, Block):
                raise TypeError(type(block).__name__)
            block.scale_shift_table.mul_(0.1)
            block.scale_shift_table[[2, 5]] = 0.2  # gates
            next(block.attn2.to_out.parameters()).mul_(0.3)  # the weight


def main() -> None:
    """Command line."""
    parser = stage_parser(__doc__, minutes=45.0, lr=2e-3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--resume", action="store_true")
    train(parser.parse_args())


def train(args: argparse.Namespace) -> None:
    """Train for ``minutes``."""
    rank, num_ranks = join_ranks()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    model, schedule = TextToLatents(), NoiseSchedule()
    binding = Binding(model.tokenizer)
    learning = nn.ModuleList([model, binding])
    if args.resume:
        load_model(model, args.out / "teacher.safetensors")
    torch.manual_seed(args.seed + 1_000 * rank)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizers = Optimizers([model], [binding], muon_lr=args.lr, adam_lr=args.lr, warmup=50, final=0.02)
    log, started_s, step = TrainingLog(args.out / "teacher_log.jsonl") if rank == 0 else None, time.monotonic(), 0
    recent: list[float] = []
    clips = {frames: read_shards(args.out, frames) for frames in LENGTHS}
    while (progress := agreed((time.monotonic() - started_s) / 60 / args.minutes)) < 1:
        if step % RELOAD_EVERY == 0:
            clips = {frames: read_shards(args.out, frames) for frames in LENGTHS}
        is_long = step % LONG_EVERY == 0 and len(clips[LONG_FRAMES][1]) > HELD_BACK
        latents, prompts = clips[LONG_FRAMES if is_long else FRAMES]
        rows = torch.randint(HELD_BACK, len(latents), (args.batch // 2 if is_long else args.batch,))
        picked = [as_said(prompts[row]) if torch.rand(()) > DROPPED else "" for row in rows.tolist()]
        attention = SPARSE if step % SPARSE_EVERY == 1 and not is_long else DENSE
        loss, read = noise_loss(model, schedule, latents[rows].float(), picked, attention)
        (loss + BINDING * binding(read.text, read.ids)).backward()
        average_gradients(learning, num_ranks)
        optimizers.step(progress, step)
        follow(average, model, min(EMA, (step + 1) / (step + 10)))
        recent.append(float(loss.detach()))
        step += 1
        if log is None:
            continue
        if step % 50 == 0:
            log.write(step=step, progress=progress, clips=len(clips[FRAMES][1]), loss=sum(recent) / len(recent))
            recent.clear()
        if step % 250 == 0:
            log.write(step=step, held_back=held_back_loss(average, schedule, *clips[FRAMES]))
            save_model(average, str(args.out / "teacher.safetensors"))  # knows that embeddings are shared
    if log is not None:
        log.write(step=step, held_back=held_back_loss(average, schedule, *clips[FRAMES]))
        save_model(average, str(args.out / "teacher.safetensors"))  # knows that embeddings are shared


def join_ranks() -> tuple[int, int]:
    """Rank and number of ranks; more than one under torchrun, each then with a batch of its own."""
    if not dist.is_torchelastic_launched():
        return 0, 1
    dist.init_process_group("gloo")
    return dist.get_rank(), dist.get_world_size()


def agreed(progress: float) -> float:
    """The first rank's, so that all stop at the same step."""
    if not dist.is_initialized():
        return progress
    shared = torch.tensor([progress])
    dist.broadcast(shared, 0)
    return float(shared)


def average_gradients(model: nn.Module, num_ranks: int) -> None:
    """In one exchange."""
    if num_ranks == 1:
        return
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, part in zip(gradients, torch.split(flat, sizes), strict=True):
        gradient.copy_(part.view_as(gradient) / num_ranks)


def sample_timesteps(count: int, num_train_steps: int) -> Tensor:
    """Fewer of the last third than evenly: on a linear schedule all of it is nearly pure noise."""
    begin = int(NOISY_FROM * num_train_steps)
    noisy = torch.rand(count) < NOISY
    return torch.where(noisy, torch.randint(begin, num_train_steps, (count,)), torch.randint(0, begin, (count,)))


def as_said(prompt: str) -> str:
    """A sentence of ``Scene.prompt``, now and then without its background or its speeds, as users may write it."""
    if torch.rand(()) < SHORTENED:
        prompt = re.sub(r" on a \w+ background$", "", prompt)
    if torch.rand(()) < SHORTENED:
        prompt = re.sub(r" (slowly|fast)\b", "", prompt)
    return prompt


def noise_loss(
    model: TextToLatents, schedule: NoiseSchedule, x0: Tensor, prompts: list[str], attention: SelfAttention = DENSE
) -> tuple[Tensor, Reading]:
    """Weighted error of the predicted noise, and what the text encoder made of the prompts."""
    timesteps = sample_timesteps(len(x0), schedule.num_train_steps)
    noise = torch.randn_like(x0)
    read = model.read(prompts)
    predicted = model(schedule.add_noise(x0, noise, timesteps), timesteps, read, attention)
    errors: Tensor = (predicted - noise).square().flatten(1).mean(1)
    return (error_weights(schedule, timesteps) * errors).mean(), read


def error_weights(schedule: NoiseSchedule, timesteps: Tensor) -> Tensor:
    """Of squared errors of the noise, (B,).

    The weight of an error in the clip is 1 + SNR, as of v-prediction, up to ``SNR_CAP``, and less where next to nothing
    of the clip is left. Without the 1, what is decided early (colours, directions) counts for nothing: the linear
    schedule has an SNR below 0.1 from half of its timesteps on, and words are learnt last.
    """
    squared = schedule.alphas_cumprod[timesteps]
    snr = squared / (1 - squared)
    return ((1 + snr).clamp(max=SNR_CAP) / snr.clamp(min=SNR_FLOOR)).float()


@torch.no_grad()
def held_back_loss(model: TextToLatents, schedule: NoiseSchedule, latents: Tensor, prompts: list[str]) -> float:
    """The same loss on clips that are never trained on, with the same noise each time."""
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    some, said = latents[:HELD_BACK].float(), prompts[:HELD_BACK]
    losses = [float(noise_loss(model, schedule, some, said)[0]) for _ in range(2)]
    torch.random.set_rng_state(state)
    return sum(losses) / len(losses)


if __name__ == "__main__":
    main()
