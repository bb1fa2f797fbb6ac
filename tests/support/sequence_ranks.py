"""What runs inside each rank in the tests of sequence parallelism; every function returns plain values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from models.families.vdit.config import OpenSoraConfig
from models.families.vdit.transformer import OpenSoraT2V
from models.methods.attention.adaspa import AdaSpaAttention
from models.methods.attention.adaspa_config import AdaSpaConfig
from models.methods.attention.base import SelfAttention
from models.methods.attention.dense import DenseAttention, reference
from models.methods.attention.tile_attention import TileAttention
from models.methods.attention.tile_mask import TileMask
from models.methods.ras.config import RasConfig
from models.methods.ras.forward import ras_forward
from models.methods.ras.state import RasState
from models.parallel.branches import all_rows, own_rows
from models.parallel.choose import sequence_parallel
from models.parallel.degrees import ParallelDegrees
from models.parallel.forward import ShardedTransformer, parallel_forward
from models.parallel.groups import SequenceGroups, make_groups
from models.parallel.layout import gather, shard, split
from models.parallel.ring import RingAttention
from models.parallel.tile_blocks import TileBlocks


def qkv(num_tokens: int, *, heads: int = 4, head_dim: int = 8, batch: int = 2, seed: int = 0) -> list[Tensor]:
    """The same on every rank."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, num_tokens, heads, head_dim, generator=generator) for _ in range(3)]


def on_shards(attention: SelfAttention, tensors: list[Tensor], groups: SequenceGroups, layer: int = 0) -> Tensor:
    """``attention`` of all ranks together, gathered."""
    num_tokens = tensors[0].shape[1]
    parallel = sequence_parallel(attention, groups, num_tokens)
    return gather(parallel(*(shard(x, groups) for x in tensors), layer=layer), groups, num_tokens=num_tokens)


def worst(a: Tensor, b: Tensor) -> float:
    """Largest difference, infinite where shapes differ."""
    return (a - b).abs().max().item() if a.shape == b.shape else float("inf")


def dense_error(degrees: ParallelDegrees, num_tokens: int) -> float:
    """Against one rank."""
    groups, tensors = make_groups(degrees), qkv(num_tokens)
    error = worst(on_shards(DenseAttention(), tensors, groups), DenseAttention()(*tensors, layer=0))
    groups.close()
    return error


def tile_ring_error(references: list[int], num_frames: int, tokens_per_frame: int) -> float:
    """Tile mask round a ring of all ranks, against the mask as a whole."""
    groups = make_groups(ParallelDegrees(ring=torch.distributed.get_world_size()))
    frames = torch.eye(num_frames, dtype=torch.bool)
    frames[references] = True
    frames[:, references] = True
    tensors = qkv(num_frames * tokens_per_frame)
    lengths = split(num_frames * tokens_per_frame, groups).lengths
    ring = RingAttention(groups.ring, lengths=lengths, kind=TileBlocks([None, frames], tokens_per_frame))
    out = gather(ring(*(shard(x, groups) for x in tensors), layer=1), groups)
    mask = frames.repeat_interleave(tokens_per_frame, 0).repeat_interleave(tokens_per_frame, 1)
    groups.close()
    return worst(out, reference(*tensors, mask))


def seen_by_inner(degrees: ParallelDegrees, num_tokens: int) -> list[tuple[int, ...]]:
    """Shapes of q that the attention inside Ulysses is given."""
    shapes: list[tuple[int, ...]] = []

    class Recording:
        def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, layer: int) -> Tensor:
            shapes.append(tuple(q.shape))
            return q

    groups = make_groups(degrees)
    on_shards(Recording(), qkv(num_tokens), groups)
    groups.close()
    return shapes


def traffic(degrees: ParallelDegrees, num_tokens: int) -> dict[str, int]:
    """Bytes by collective of one call of dense attention."""
    groups = make_groups(degrees)
    parallel = sequence_parallel(DenseAttention(), groups, num_tokens)
    parallel(*(shard(x, groups) for x in qkv(num_tokens)), layer=0)
    sent = {name: one.sent_bytes for name, one in groups.meter.by_collective.items()}
    groups.close()
    return sent


def uneven_gather(lengths_by_rank: list[int]) -> list[float]:
    """Rank r brings ``lengths_by_rank[r]`` tokens with value r; what all then have."""
    groups = make_groups(ParallelDegrees(ulysses=len(lengths_by_rank)))
    mine = torch.full((1, lengths_by_rank[groups.sequence.rank], 1), float(groups.sequence.rank))
    values: list[float] = gather(mine, groups).flatten().tolist()
    groups.close()
    return values


def rows_there_and_back(num_rows: int) -> tuple[list[int], list[int]]:
    """Rows of this rank of the guidance axis, and all of them gathered again."""
    groups = make_groups(ParallelDegrees(cfg=2))
    own = own_rows(torch.arange(num_rows)[:, None], groups.cfg)
    back = all_rows(own, groups.cfg)
    groups.close()
    return own.flatten().tolist(), back.flatten().tolist()


def refusal(degrees: ParallelDegrees, num_tokens: int, heads: int) -> str:
    """The message with which dense attention refuses, or nothing."""
    groups = make_groups(degrees)
    try:
        on_shards(DenseAttention(), qkv(num_tokens, heads=heads), groups)
    except ValueError as error:
        return str(error)
    finally:
        groups.close()
    return ""


def with_gradient(degrees: ParallelDegrees) -> str:
    """The message for tensors that want a gradient."""
    groups = make_groups(degrees)
    try:
        on_shards(DenseAttention(), [x.requires_grad_() for x in qkv(8)], groups)
    except ValueError as error:
        return str(error)
    finally:
        groups.close()
    return ""


def fail_on(rank: int) -> int:
    """Raises on one rank while the others wait for it."""
    groups = make_groups(ParallelDegrees(ulysses=torch.distributed.get_world_size()))
    if torch.distributed.get_rank() == rank:
        raise ValueError("this rank has had enough")
    gather(torch.zeros(1, 1, 1), groups)
    return rank


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_model() -> OpenSoraT2V:
    """Random, the same on every rank."""
    torch.manual_seed(5)
    config = OpenSoraConfig(
        num_attention_heads=4, attention_head_dim=12, num_layers=3, cross_attention_dim=48, caption_channels=20
    )
    return OpenSoraT2V(config).eval()


def model_inputs(grid: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents, timesteps, text, mask of the text; batch 2."""
    frames, rows, columns = grid
    generator = _seeded(6)
    latents = torch.randn(2, 4, frames, 2 * rows, 2 * columns, generator=generator)
    text = torch.randn(2, 7, 20, generator=generator)
    mask = torch.arange(7) < torch.tensor([[7], [3]])
    return latents, torch.tensor([900.0, 40.0]), text, mask


@torch.inference_mode()
def model_error(degrees: ParallelDegrees, grid: tuple[int, int, int]) -> tuple[float, tuple[int, ...]]:
    """Whole model against ``OpenSoraT2V.forward``, and the shape of q in each layer inside Ulysses."""
    shapes = set()

    class Recording(DenseAttention):
        def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, layer: int = 0) -> Tensor:
            shapes.add(tuple(q.shape))
            return super().__call__(q, k, v, layer=layer)

    groups, model, inputs = make_groups(degrees), small_model(), model_inputs(grid)
    error = worst(parallel_forward(model, *inputs, groups, Recording()), model(*inputs))
    groups.close()
    return error, max(shapes, default=())


@torch.inference_mode()
def ras_errors(degrees: ParallelDegrees, grid: tuple[int, int, int]) -> tuple[list[float], list[int], float]:
    """Six steps of region-adaptive sampling against one rank.

    Errors by step, tokens run by step, and the share of the one rank's state that this rank keeps.
    """
    groups, model, inputs = make_groups(degrees), small_model(), model_inputs(grid)
    config = RasConfig(share=0.5, num_warmup_steps=2, resets=(0.5,))
    ours, theirs = (RasState(config, num_steps=6, guidance_scale=3.0) for _ in range(2))
    sharded, latents, errors, run = ShardedTransformer(model, groups), inputs[0], [], []
    for step in range(6):
        chosen = theirs.choose(step)
        run.append(latents[0, 0].numel() // 4 if chosen is None else len(chosen))
        out, wanted = (
            ras_forward(one, latents, *inputs[1:], states=[state], step=step, inner=DenseAttention())
            for one, state in ((sharded, ours), (model, theirs))
        )
        errors.append(worst(out, wanted))
        latents = latents - 0.2 * wanted
    share = ours.state_bytes / theirs.state_bytes
    groups.close()
    return errors, run, share


@torch.inference_mode()
def tile_model_error(degrees: ParallelDegrees, grid: tuple[int, int, int], references: list[int | None]) -> float:
    """Whole model under tile masks, one number of reference frames for each layer, against one rank."""
    groups, model, inputs = make_groups(degrees), small_model(), model_inputs(grid)
    masks = [None if one is None else TileMask(num_frames=grid[0], references=one) for one in references]
    attention = TileAttention(masks, grid)
    error = worst(parallel_forward(model, *inputs, groups, attention), model(*inputs, attention=attention))
    groups.close()
    return error


class CountPairs(TorchFunctionMode):
    """Adds up batch x heads x queries x keys of every call of torch's attention; FLOPs are 4 D times that."""

    pairs = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "attention" in str(func):
            q, k = args[:2]
            self.pairs += q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
        return func(*args, **(kwargs or {}))


@torch.inference_mode()
def tile_pairs(degrees: ParallelDegrees, grid: tuple[int, int, int], references: int) -> int:
    """Pairs of a query and a key that this rank computes under a tile mask, batch of 2, 4 heads in all."""
    groups = make_groups(degrees)
    attention = TileAttention([TileMask(num_frames=grid[0], references=references)], grid)
    num_tokens = grid[0] * grid[1] * grid[2]
    mine = [shard(x, groups) for x in qkv(num_tokens, head_dim=16)]
    with CountPairs() as counted:
        sequence_parallel(attention, groups, num_tokens)(*mine, layer=0)
    groups.close()
    return counted.pairs


@torch.inference_mode()
def adaspa_errors(
    degrees: ParallelDegrees, grid: tuple[int, int, int], head_adaptive: bool
) -> tuple[list[float], list[float], float]:
    """Five steps of a model with AdaSpa, searching in the second and the fourth, against one rank.

    Errors by step, sparsity by step of the one rank, and the share of its state that this rank keeps after the second.
    """
    groups, model, inputs = make_groups(degrees), small_model(), model_inputs(grid)
    # With a threshold of 0 half of the heads become sparser, and which do is decided among those of all ranks.
    config = AdaSpaConfig(
        sparsity=0.5, block_tokens=8, search_steps=(1, 3), head_adaptive=head_adaptive, recall_threshold=0.0
    )
    ours, theirs = AdaSpaAttention(config), AdaSpaAttention(config)
    latents, errors, sparsities, share = inputs[0], [], [], 0.0
    for step in range(5):
        ours.begin_step(step)
        theirs.begin_step(step)
        out = parallel_forward(model, latents, *inputs[1:], groups, ours)
        wanted = model(latents, *inputs[1:], attention=theirs)
        errors.append(worst(out, wanted))
        sparsities.append(theirs.achieved_sparsity)
        share = ours.state_bytes / theirs.state_bytes if step == 1 else share
        latents = latents - 0.2 * wanted
    groups.close()
    return errors, sparsities, share
