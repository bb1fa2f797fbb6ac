"""Experts over many ranks, simulated: who gets which tokens, how long a step takes, what is copied.

A layer takes as long as its slowest rank, and a rank as long as it reads the weights of its awake experts or multiplies
its tokens, whichever is more (a roofline). Attention and the exchange of tokens are the same whoever balances, and are
left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from random import Random
from typing import Literal, TypeAlias

from schedulers.experts.activation import choose, num_awake
from schedulers.experts.eplb import eplb
from schedulers.experts.loads import ExpertLoads
from schedulers.experts.placement import Placement, in_order
from schedulers.experts.replacement import Boundary, Event, Fetch, Fetched, Proposed, Replacement, ReplacementConfig

Step: TypeAlias = list[list[int]]
"""Tokens by layer and expert."""
_REDRAWN_STEPS = 10
"""So often popularity moves on while it drifts."""
Choose: TypeAlias = Callable[[Placement, int, Sequence[int]], Sequence[Sequence[int]]]
"""(placement, layer, tokens of each expert) -> slots that share them."""

# -- traces ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Popularity:
    """How readily tokens go to each expert of a layer."""

    weights: tuple[float, ...]

    @classmethod
    def zipf(cls, num_experts: int, exponent: float, rng: Random) -> Popularity:
        """The n-th most popular has weight ``n ** -exponent``; which one that is, is random."""
        weights = [rank**-exponent for rank in range(1, num_experts + 1)]
        rng.shuffle(weights)
        return cls(tuple(weights))

    def mixed(self, other: Popularity, part: float) -> Popularity:
        """So much of another one, the rest of this."""
        pairs = zip(self.weights, other.weights, strict=True)
        return Popularity(tuple((1.0 - part) * mine + part * its for mine, its in pairs))


def routed(popularity: Popularity, num_tokens: int, top_k: int, rng: Random) -> list[int]:
    """Tokens of each expert, if each goes to ``top_k`` different ones, drawn one after the other."""
    experts, limits = range(len(popularity.weights)), list(accumulate(popularity.weights))
    counts = [0] * len(experts)
    for _ in range(num_tokens):
        chosen: dict[int, None] = {}
        while len(chosen) < top_k:
            chosen.update(dict.fromkeys(rng.choices(experts, cum_weights=limits, k=2 * top_k)))
        for expert in islice(chosen, top_k):
            counts[expert] += 1
    return counts


def chances(popularity: Popularity, top_k: int) -> list[float]:
    """How probably a token goes to each expert, nearly: drawing one after the other is a race of exponential clocks,
    and the moment when the k-th rings is taken for fixed."""
    low, high = 0.0, top_k / min(popularity.weights)
    for _ in range(60):
        middle = (low + high) / 2.0
        expected = sum(1.0 - math.exp(-middle * weight) for weight in popularity.weights)
        low, high = (middle, high) if expected < top_k else (low, middle)
    return [1.0 - math.exp(-low * weight) for weight in popularity.weights]


def binomial(number: int, chance: float, rng: Random) -> int:
    """How many of ``number`` come true; from a normal distribution where that is close."""
    if chance > 0.5:
        return number - binomial(number, 1.0 - chance, rng)
    variance = number * chance * (1.0 - chance)
    if variance > 20.0:
        return min(number, max(0, round(rng.gauss(number * chance, math.sqrt(variance)))))
    hits, place = 0, 0
    while chance > 0.0:  # from one that comes true to the next
        place += 1 + int(math.log(1.0 - rng.random()) / math.log1p(-chance))
        if place > number:
            break
        hits += 1
    return hits


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Popularity by Zipf's law with ``exponent``, drawn anew for each layer. It *drifts* from one order of the experts
    to another within ``drift_steps``, if that is not 0. A part ``cursed`` of the tokens repeats one token, as an attack
    does (RepetitionCurse): it always goes to the same experts, and to others after ``curse_steps``.

    Tokens choose experts independently of each other, and each expert's tokens are drawn alone: ``top_k`` is the mean.
    """

    num_layers: int = 4
    num_experts: int = 256
    top_k: int = 8
    tokens_per_step: int = 512
    exponent: float = 1.0
    drift_steps: int = 0
    cursed: float = 0.0
    curse_steps: int = 250

    def steps(self, num_steps: int, seed: int = 0) -> list[Step]:
        """The same for everybody who is compared."""
        layers = [self._layer(num_steps, Random(f"{seed}/{layer}")) for layer in range(self.num_layers)]
        return [list(step) for step in zip(*layers, strict=True)]

    def _layer(self, num_steps: int, rng: Random) -> list[list[int]]:
        num_cursed = round(self.cursed * self.tokens_per_step)
        now, then = (Popularity.zipf(self.num_experts, self.exponent, rng) for _ in range(2))
        going, first = chances(now, self.top_k), 0
        steps: list[list[int]] = []
        for step in range(num_steps):
            if self.drift_steps and step % self.drift_steps == 0 and step:
                now, then = then, Popularity.zipf(self.num_experts, self.exponent, rng)
            if self.drift_steps and step % _REDRAWN_STEPS == 0:
                going = chances(now.mixed(then, step % self.drift_steps / self.drift_steps), self.top_k)
            if step % self.curse_steps == 0:
                first = rng.randrange(self.num_experts)
            counts = [binomial(self.tokens_per_step - num_cursed, chance, rng) for chance in going]
            for place in range(first, first + self.top_k if num_cursed else first):
                counts[place % self.num_experts] += num_cursed  # neighbours: at first on few ranks
            steps.append(counts)
        return steps


# -- ranks -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """What experts run on. The defaults are DeepSeek-V3's experts in 8 bits (44 MB; 88 MFLOP a token) on accelerators
    that read 4.8 TB/s and multiply 1 PFLOP/s, with 50 GB/s between them.
    """

    num_ranks: int = 64
    num_slots: int = 320
    num_nodes: int = 8
    expert_bytes: int = 44_040_192
    read_s: float = 9.2e-6
    token_s: float = 8.8e-8
    link_bytes_per_s: float = 50e9

    @property
    def tokens_per_read(self) -> float:
        """As many tokens are multiplied while an expert's weights are read."""
        return self.read_s / self.token_s

    def in_turns(self, placement: Placement, layer: int, tokens: Sequence[int]) -> Sequence[Sequence[int]]:
        """Tokens go to an expert's replicas in turn."""
        return placement.replicas[layer]

    def fewest_awake(self, placement: Placement, layer: int, tokens: Sequence[int]) -> Sequence[Sequence[int]]:
        """As ``activation`` has it."""
        return choose(placement.slots[layer], tokens, self.num_ranks, self.tokens_per_read)


Balancing: TypeAlias = Literal["none", "global", "hierarchical"]


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """``balancing``: every ``period`` steps, EPLB by the tokens of the last ``period``, proposed once it can be judged
    by those of half a period more; hierarchical with as many groups of experts as nodes. Otherwise experts stay."""

    name: str
    balancing: Balancing
    choose: Choose
    period: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """``imbalance``: tokens of the fullest rank over the mean. ``awake``: experts of the rank that reads most. Both are
    means over layers and steps, as is ``layer_us``. ``moves``: slots that got another expert. ``copied_bytes``: between
    ranks. ``switches``: placements after the first."""

    imbalance: float
    awake: float
    layer_us: float
    moves: int
    copied_bytes: int
    switches: int


def simulate(system: System, ranks: Ranks, trace: Sequence[Step], warm_up: int = 0) -> Outcome:
    """Replay a trace; means are of the steps after the first ``warm_up``."""
    num_layers, num_experts = len(trace[0]), len(trace[0][0])
    first = in_order(num_layers, num_experts, ranks.num_ranks, ranks.num_slots)
    placements = _Placements(system, ranks, first)
    now_s = imbalance = warm_s = 0.0
    awake = 0
    for number, step in enumerate(trace):
        if number == warm_up:
            warm_s, imbalance, awake = now_s, 0.0, 0
        placement = placements.current
        for layer, tokens in enumerate(step):
            chosen = system.choose(placement, layer, tokens)
            reads = num_awake(chosen, tokens, ranks.num_ranks, ranks.num_slots)
            work = _work(placement, chosen, tokens)
            now_s += max(max(n * ranks.read_s, t * ranks.token_s) for n, t in zip(reads, work, strict=True))
            awake += max(reads)
            imbalance += max(work) * ranks.num_ranks / sum(work)
        placements.step_ended(now_s, step)
    each = num_layers * (len(trace) - warm_up)
    return Outcome(
        imbalance=imbalance / each,
        awake=awake / each,
        layer_us=(now_s - warm_s) / each * 1e6,
        moves=placements.num_moves,
        copied_bytes=placements.copied_bytes,
        switches=placements.current.version - 1,
    )


def _work(placement: Placement, chosen: Sequence[Sequence[int]], tokens: Sequence[int]) -> list[float]:
    """Tokens of each rank."""
    size, work = placement.slots_per_rank, [0.0] * placement.num_ranks
    for count, slots in zip(tokens, chosen, strict=True):
        if count:
            for slot in slots:
                work[slot // size] += count / len(slots)
    return work


class _Placements:
    """Replacement on the virtual clock: copies take as long as the link does, and steps go on meanwhile."""

    def __init__(self, system: System, ranks: Ranks, first: Placement) -> None:
        self._system, self._ranks = system, ranks
        config = ReplacementConfig(
            expert_bytes=ranks.expert_bytes,
            bytes_per_s=ranks.link_bytes_per_s,
            max_staged_bytes=first.slots_per_rank * ranks.expert_bytes,
            num_nodes=ranks.num_nodes,
            expert_share=1.0,
        )
        self._machine = Replacement(first, config)
        shape = first.num_layers, first.num_experts
        self._loads = ExpertLoads(*shape, system.period)
        self._loads_since = ExpertLoads(*shape, system.period // 2)
        self._target: Placement | None = None
        self._num_steps = 0
        self._fetch: Fetch | None = None
        self._fetched_s = 0.0
        self.num_moves = self.copied_bytes = 0

    @property
    def current(self) -> Placement:
        return self._machine.placement

    def step_ended(self, now_s: float, step: Step) -> None:
        if self._system.balancing == "none":
            return
        for loads in (self._loads, self._loads_since):
            loads.add(step)
            loads.turn()
        self._num_steps += 1
        events: list[Event] = []
        if self._fetch is not None and now_s >= self._fetched_s:
            events.append(Fetched(self._fetch.placement.version))
            self._fetch = None
        events.append(Boundary())
        phase = self._num_steps % self._system.period
        if phase == 0:
            self._target = self._balanced()
        elif phase == self._system.period // 2 and self._target is not None:
            events.append(Proposed(self._target, self._loads_since.counts()))
        for decision in self._machine.handle(now_s, *events):
            if isinstance(decision, Fetch):
                self._begin(now_s, decision)

    def _balanced(self) -> Placement:
        ranks, current = self._ranks, self.current
        nodes = ranks.num_nodes if self._system.balancing == "hierarchical" else 1
        counts = self._loads.counts()
        return eplb(counts, ranks.num_slots, ranks.num_ranks, num_groups=nodes, num_nodes=nodes, current=current)

    def _begin(self, now_s: float, fetch: Fetch) -> None:
        self._fetch = fetch
        received = [0] * self._ranks.num_ranks
        for move in fetch.moves:
            source, rank = self.current.rank_of(move.source), self.current.rank_of(move.slot)
            received[rank] += source != rank
        self.num_moves += len(fetch.moves)
        self.copied_bytes += sum(received) * self._ranks.expert_bytes
        self._fetched_s = now_s + max(received) * self._ranks.expert_bytes / self._ranks.link_bytes_per_s
