"""What runs inside each rank in the tests of experts over ranks; every function returns plain values."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.contract import Choose, Move, Slots
from models.families.dit_moe.config import DitMoeConfig
from models.families.dit_moe.network import DitMoe, Gated
from models.families.dit_moe.spread import SpreadDitMoe
from models.methods.experts.grouped import grouped_swiglu
from models.methods.experts.parallel import ExpertRanks, every_replica
from models.parallel.degrees import ParallelDegrees
from models.parallel.groups import SequenceGroups, make_groups
from models.parallel.rows import all_shares, share_of

LAYERS, EXPERTS, WIDTH, HIDDEN, K = 2, 8, 16, 24, 2
EXPERT_BYTES = 3 * WIDTH * HIDDEN * 4


class Layer(nn.Module):
    """Packed experts, the same on every rank."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.gate_up = nn.Parameter(torch.randn(EXPERTS, 2 * HIDDEN, WIDTH, generator=generator) / WIDTH**0.5)
        self.down = nn.Parameter(torch.randn(EXPERTS, WIDTH, HIDDEN, generator=generator) / HIDDEN**0.5)


def placement(seed: int, num_slots: int) -> list[list[int]]:
    """Every expert, some of them twice or more, anywhere."""
    draw = random.Random(seed)
    placed = []
    for _ in range(LAYERS):
        slots = [*range(EXPERTS), *(draw.randrange(EXPERTS) for _ in range(num_slots - EXPERTS))]
        draw.shuffle(slots)
        placed.append(slots)
    return placed


def moves(old: Slots, new: Slots) -> list[Move]:
    """Each from the first slot that has the expert, on the same rank or not."""
    return [
        (layer, expert, list(old[layer]).index(expert), slot)
        for layer, held in enumerate(new)
        for slot, expert in enumerate(held)
        if old[layer][slot] != expert
    ]


def last_replica(slots: Sequence[int], tokens: Sequence[int], num_ranks: int) -> Sequence[Sequence[int]]:
    """One of each expert."""
    return [[one[-1]] for one in every_replica(slots, tokens, num_ranks)]


def routed(num_rows: int, tokens_per_row: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (B, N, W), and where their tokens go: some experts much more often than others."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_rows, tokens_per_row, WIDTH, generator=generator)
    logits = torch.randn(num_rows, tokens_per_row, EXPERTS, generator=generator) - torch.arange(EXPERTS) / 2
    weights, ids = logits.softmax(-1).topk(K)
    return rows, ids, weights


def alone(layers: Sequence[Layer], rows: Tensor, ids: Tensor, weights: Tensor) -> list[Tensor]:
    flat_rows, flat_ids, flat_weights = (one.flatten(0, 1) for one in (rows, ids, weights))
    return [
        grouped_swiglu(flat_rows, layer.gate_up, layer.down, flat_ids, flat_weights).view_as(rows) for layer in layers
    ]


def spread(ranks: ExpertRanks, rows: Tensor, ids: Tensor, weights: Tensor) -> list[Tensor]:
    own = [share_of(one, ranks.group).flatten(0, 1) for one in (rows, ids, weights)]
    return [all_shares(layer(*own).view(-1, *rows.shape[1:]), len(rows), ranks.group) for layer in ranks.layers]


def _made(slots: Slots, choose: Choose) -> tuple[SequenceGroups, list[Layer], ExpertRanks]:
    groups = make_groups(ParallelDegrees(expert=torch.distributed.get_world_size()))
    layers = [Layer(seed) for seed in range(LAYERS)]
    return groups, layers, ExpertRanks(layers, slots, groups.expert, groups.beside, choose)


def worst(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))


@torch.inference_mode()
def error(slots: Slots, num_rows: int, choice: str = "every") -> float:
    """Largest difference from one process with all experts."""
    groups, layers, ranks = _made(slots, every_replica if choice == "every" else last_replica)
    made = routed(num_rows, 5, seed=num_rows)
    found = worst(spread(ranks, *made), alone(layers, *made))
    groups.close()
    return found


@torch.inference_mode()
def after_moving(placements: Sequence[Slots]) -> tuple[list[float], int, int]:
    """Difference from one process after each placement, bytes that were sent for it, and bytes held."""
    groups, layers, ranks = _made(placements[0], every_replica)
    made = routed(6, 5, seed=1)
    wanted = alone(layers, *made)
    errors = [worst(spread(ranks, *made), wanted)]
    for slots in placements[1:]:
        ranks.fetch(slots, moves(ranks.slots, slots))
        errors.append(worst(spread(ranks, *made), wanted))  # fetched, not yet switched
        ranks.switch()
        errors.append(worst(spread(ranks, *made), wanted))
    held = sum(weight.nbytes for layer in ranks.layers for weight in layer.parameters())
    sent = groups.meter.by_collective["exchange"].sent_bytes
    groups.close()
    return errors, sent, held


@torch.inference_mode()
def while_fetching(placements: Sequence[Slots], num_steps: int) -> float:
    """Steps of one thread beside the fetch of another."""
    groups, layers, ranks = _made(placements[0], every_replica)
    made = routed(6, 5, seed=2)
    wanted = alone(layers, *made)
    errors = []
    for slots in placements[1:]:
        fetching = threading.Thread(target=ranks.fetch, args=(slots, moves(ranks.slots, slots)))
        fetching.start()
        errors += [worst(spread(ranks, *made), wanted) for _ in range(num_steps)]
        fetching.join()
        ranks.switch()
        errors.append(worst(spread(ranks, *made), wanted))
    groups.close()
    return max(errors)


def refused(held: Slots, slots: Slots, given: Sequence[Move]) -> tuple[str, float]:
    """What a placement that cannot be held is answered with, and what steps give after it."""
    groups, layers, ranks = _made(held, every_replica)
    made = routed(3, 5, seed=3)
    try:
        ranks.fetch(slots, given)
        words = ""
    except ValueError as error:
        words = str(error)
    with torch.inference_mode():
        found = worst(spread(ranks, *made), alone(layers, *made))
    groups.close()
    return words, found


def network_error(seed: int, num_rows: int, top_k: int | None) -> tuple[float, bool]:
    """A whole DiT-MoE on all ranks against one: the difference, and whether its experts were asked for the same."""
    groups = make_groups(ParallelDegrees(expert=torch.distributed.get_world_size()))
    config = DitMoeConfig(width=32, depth=LAYERS, num_heads=2, num_experts=EXPERTS, latent_side=8, num_classes=5)
    torch.manual_seed(seed)
    network = DitMoe(config).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_(std=0.1)  # an untrained one gives zeros
    inputs = (torch.randn(num_rows, 4, 8, 8), torch.rand(num_rows), torch.randint(0, 6, (num_rows,)))
    with torch.inference_mode():
        gated: list[Gated] = []
        wanted = network(*inputs, top_k, gated)
        layers = [block.moe.experts for block in network.blocks]
        ranks = ExpertRanks(layers, placement(seed, 12), groups.expert, groups.beside)
        spread_gated: list[Gated] = []
        found = SpreadDitMoe(network, ranks)(*inputs, top_k, spread_gated)
    groups.close()
    is_alike = all(torch.equal(a.ids, b.ids) for a, b in zip(gated, spread_gated, strict=True))
    return worst([found], [wanted]) / wanted.abs().max().item(), is_alike
