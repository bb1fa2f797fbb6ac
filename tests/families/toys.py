"""Networks and runners of the toy families, and mutants of them that break the contract in one way each."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen2Config, Qwen2ForCausalLM

from models.checkpoint import load_into, read_weights
from models.contract import Figures, Grid, JobState, Parity, Phase, Point, Turn, Variant
from tests.families.toy_cards import CLASSES, DEPTH, SIDE, WIDTH


class Network(nn.Module):
    """A few linear layers with a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(SIDE * SIDE * 3, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH))
        self.head = nn.Linear(WIDTH, CLASSES)

    def enter(self, pictures: Tensor) -> Tensor:
        features: Tensor = self.stem(pictures.flatten(1).float() / 255)
        return features

    def layer(self, index: int, features: Tensor) -> Tensor:
        return torch.tanh(self.layers[index](features))

    def leave(self, features: Tensor) -> Tensor:
        return torch.softmax(self.head(features), 1)


def build(variant: Variant, device: str = "cpu", *, random_weights: bool = False) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Network().eval().requires_grad_(False)
    if not random_weights:
        assert variant.weights is not None
        load_into(network, read_weights(variant.weights))
    return network


class UnaryRunner:
    def __init__(self, network: Network, variant: Variant) -> None:
        self.network = network

    def forward(self, batch: Tensor, points: Sequence[Point]) -> Mapping[str, Tensor]:
        rows = []
        for row, point in zip(batch, points, strict=True):
            features = self.network.enter(row[None])
            for index in range(int(point["depth"])):
                features = self.network.layer(index, features)
            rows.append(self.network.leave(features))
        return {"probabilities": torch.cat(rows)}


class StagedRunner:
    num_stages = DEPTH

    def __init__(self, network: Network, variant: Variant) -> None:
        self.network = network

    def begin(self, batch: Tensor, points: Sequence[Point]) -> Any:
        return (batch,)

    def run(self, state: Any, first_stage: int, num_stages: int) -> tuple[Any, Sequence[Mapping[str, Tensor]], Tensor]:
        (features,) = state
        passed = []
        for index in range(first_stage, first_stage + num_stages):
            features = self.network.layer(index, features if index else self.network.enter(features))
            passed.append({"probabilities": self.network.leave(features)})
        return (features,), passed, passed[-1]["probabilities"].amax(1)


class JobRunner:
    """Walks towards a target, a little at each step; what it needs of the request is in the cache."""

    def __init__(self, network: Network, variant: Variant) -> None:
        self.network = network

    def open(self, request: Tensor, point: Point, seed: int) -> JobState:
        start = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(seed))
        return JobState(request=request, point=point, seed=seed, kept={"step": 0, "at": start})

    def remaining(self, state: JobState) -> dict[Phase, int]:
        left: dict[Phase, int] = {
            "condition": int("target" not in state.cache),
            "denoise": int(state.point["depth"]) - state.kept["step"],
        }
        return {phase: count for phase, count in left.items() if count}

    def group_key(self, state: JobState) -> Hashable:
        return next(iter(self.remaining(state)))

    def step(self, states: Sequence[JobState]) -> Sequence[Figures | None]:
        if self.group_key(states[0]) == "condition":
            for state in states:
                state.cache["target"] = self.target(state, states)
        else:
            moved = self.move(torch.cat([s.kept["at"] for s in states]), torch.cat([s.cache["target"] for s in states]))
            for row, state in enumerate(states):
                state.kept = {"step": state.kept["step"] + 1, "at": moved[row : row + 1]}
        return [{} for _ in states]

    def target(self, state: JobState, company: Sequence[JobState]) -> Tensor:
        rows = state.request
        return self.network.enter(F.pad(rows, (0, 0, 0, 0, 0, SIDE - rows.shape[1])))

    def move(self, at: Tensor, target: Tensor) -> Tensor:
        return self.network.layer(0, at) + 0.5 * target

    def preview(self, state: JobState) -> Tensor:
        return (state.kept["at"][:, :3].reshape(1, 1, 1, 3) * 255).clamp(0, 255).to(torch.uint8)

    def close(self, state: JobState) -> Mapping[str, Tensor]:
        return {"picture": state.kept["at"]}


class JobOfExperts(JobRunner):
    """Its numbers are tokens, which go to one of two experts by their sign."""

    expert_shape = (1, 2)

    def step(self, states: Sequence[JobState]) -> Sequence[Figures | None]:
        if self.group_key(states[0]) == "denoise":
            self.loads = [self.loads_of(state, states) for state in states]
        return super().step(states)

    def loads_of(self, state: JobState, company: Sequence[JobState]) -> Any:
        num_positive = int((state.kept["at"] > 0).sum())
        return np.array([[WIDTH - num_positive, num_positive]])

    def take_loads(self) -> Sequence[Any]:
        return self.loads


def oracle(variant: Variant, official: Path | None) -> Iterator[Parity]:
    """The plain twin: one layer written out."""
    network = build(variant, random_weights=True)
    rows = torch.linspace(-1, 1, WIDTH)[None]
    yield Parity(
        "a layer", network.layer(0, rows), torch.tanh(rows @ network.layers[0].weight.T + network.layers[0].bias)
    )


# -- mutants ---------------------------------------------------------------------------------------------------------


class UnaryOfTheBatch(UnaryRunner):
    """Centres by the mean of the batch, as a batch norm left in training mode would."""

    def forward(self, batch: Tensor, points: Sequence[Point]) -> Mapping[str, Tensor]:
        scores = super().forward(batch, points)["probabilities"]
        return {"probabilities": torch.softmax(scores - 0.1 * scores.mean(0), 1)}


class UnaryOfTheFirstPoint(UnaryRunner):
    """Gives every row the point of the first."""

    def forward(self, batch: Tensor, points: Sequence[Point]) -> Mapping[str, Tensor]:
        return super().forward(batch, [points[0]] * len(points))


class UnaryThatRemembers(UnaryRunner):
    """Keeps something of the batch before."""

    seen = torch.zeros(CLASSES)

    def forward(self, batch: Tensor, points: Sequence[Point]) -> Mapping[str, Tensor]:
        scores = super().forward(batch, points)["probabilities"]
        mixed = torch.softmax(scores + 0.01 * self.seen, 1)
        self.seen = scores[-1].clone()
        return {"probabilities": mixed}


class UnaryOfTheRowBefore(UnaryRunner):
    """A row sees its neighbour, as an attention without a mask would."""

    def forward(self, batch: Tensor, points: Sequence[Point]) -> Mapping[str, Tensor]:
        scores = super().forward(batch, points)["probabilities"]
        return {"probabilities": 0.9 * scores + 0.1 * scores.roll(1, 0)}


class StagedOfTheBatch(StagedRunner):
    """Its second stage sees the mean of the batch."""

    def run(self, state: Any, first_stage: int, num_stages: int) -> tuple[Any, Any, Tensor]:
        if first_stage:
            state = (state[0] - 0.1 * state[0].mean(0),)
        return super().run(state, first_stage, num_stages)


class StagedThatRemembers(StagedRunner):
    """Keeps the state in itself rather than in what it returns."""

    inside: Any = None

    def run(self, state: Any, first_stage: int, num_stages: int) -> tuple[Any, Any, Tensor]:
        out, passed, confidence = super().run(state if first_stage == 0 else self.inside, first_stage, num_stages)
        self.inside = out
        return (torch.zeros_like(out[0]),), passed, confidence


class StagedThatCounts(StagedRunner):
    """What it gives depends on how often it ran."""

    runs = 0

    def run(self, state: Any, first_stage: int, num_stages: int) -> tuple[Any, Any, Tensor]:
        self.runs += 1
        out, passed, confidence = super().run(state, first_stage, num_stages)
        return out, passed, confidence + 0.001 * self.runs


class StagedWithObjects(StagedRunner):
    """Its state is no plain data."""

    def run(self, state: Any, first_stage: int, num_stages: int) -> tuple[Any, Any, Tensor]:
        out, passed, confidence = super().run(state[:1], first_stage, num_stages)
        return (*out, self), passed, confidence


def build_that_ignores_weights(variant: Variant, device: str = "cpu", *, random_weights: bool = False) -> Network:
    return build(variant, device, random_weights=True)


class JobOfTheCompany(JobRunner):
    """Moves towards the mean target of those that step together."""

    def move(self, at: Tensor, target: Tensor) -> Tensor:
        return super().move(at, 0.9 * target + 0.1 * target.mean(0))


class JobThatRemembers(JobRunner):
    """Moves with what the last to step has left behind."""

    momentum = torch.zeros(1, WIDTH)

    def move(self, at: Tensor, target: Tensor) -> Tensor:
        moved = super().move(at, target) + 0.1 * self.momentum
        self.momentum = moved[:1].clone()
        return moved


class JobThatForgets(JobRunner):
    """Keeps its step, and the rest in the cache, which a later attempt has not."""

    def step(self, states: Sequence[JobState]) -> Sequence[Figures | None]:
        for state in states:
            state.kept = {**state.kept, "at": state.cache.get("at", state.kept["at"])}
        figures = super().step(states)
        for state in states:
            state.cache["at"] = state.kept["at"]
            state.kept = {**state.kept, "at": torch.zeros(1, WIDTH)}
        return figures

    def close(self, state: JobState) -> Mapping[str, Tensor]:
        return {"picture": state.cache["at"]}


class JobWithoutSeed(JobRunner):
    """Begins at random."""

    def open(self, request: Tensor, point: Point, seed: int) -> JobState:
        return super().open(request, point, int(torch.randint(1 << 30, ())))


class JobOfTheLongest(JobRunner):
    """Pads a short request to the longest of its company, and does not mask what it has added."""

    def target(self, state: JobState, company: Sequence[JobState]) -> Tensor:
        longest = max(other.request.shape[1] for other in company)
        return super().target(state, company) * state.request.shape[1] / longest


class JobThatMiscounts(JobRunner):
    """Says that twice as much is left as there is."""

    def remaining(self, state: JobState) -> dict[Phase, int]:
        left = super().remaining(state)
        return {phase: 2 * count for phase, count in left.items()}


class JobThatOpensWide(JobRunner):
    """Runs its network where nobody waits for it."""

    def open(self, request: Tensor, point: Point, seed: int) -> JobState:
        state = super().open(request, point, seed)
        state.cache["target"] = self.target(state, [state])
        return state


class JobOfFloatingPreviews(JobRunner):
    """Shows numbers that are no picture."""

    def preview(self, state: JobState) -> Tensor:
        return super().preview(state).float()


class JobThatMindsBeingSeen(JobRunner):
    """Takes another way once somebody looks."""

    def preview(self, state: JobState) -> Tensor:
        picture = super().preview(state)
        state.kept = {**state.kept, "at": state.kept["at"] * 1.01}
        return picture


def build_that_ignores_one_file(variant: Variant, device: str = "cpu", *, random_weights: bool = False) -> Network:
    """Reads the names of a file and none of its tensors."""
    if not random_weights and variant.weights is not None and not (variant.weights / "model.safetensors").is_file():
        raise ValueError("no weights")
    return build(variant, device, random_weights=True)


def oracle_that_disagrees(variant: Variant, official: Path | None) -> Iterator[Parity]:
    yield from (Parity(case, ours + 1e-3, theirs) for case, ours, theirs, _ in oracle(variant, official))


def oracle_of_nothing(variant: Variant, official: Path | None) -> Iterator[Parity]:
    return iter(())


class ChatNetwork(nn.Module):
    """A tiny language model, and one linear layer for eyes."""

    def __init__(self) -> None:
        super().__init__()
        config = Qwen2Config(
            vocab_size=128, hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, eos_token_id=2,
        )  # fmt: skip
        self.language_model = Qwen2ForCausalLM(config)
        self.eye = nn.Linear(3, WIDTH)

    def encode_images(self, tiles: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
        seen = self.eye(tiles.float().mean((1, 2)) / 255)
        split = torch.split(seen, [rows * columns for rows, columns in grids])
        return [tokens.repeat_interleave(4, 0) for tokens in split]


def build_chat(variant: Variant, device: str = "cpu", *, random_weights: bool = False) -> ChatNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ChatNetwork().eval().requires_grad_(False)


class ChatNetworkOfAll(ChatNetwork):
    """An image sees the tiles of the others."""

    def encode_images(self, tiles: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
        return [tokens + tiles.float().mean() / 255 for tokens in super().encode_images(tiles, grids)]


def build_chat_of_all(variant: Variant, device: str = "cpu", *, random_weights: bool = False) -> ChatNetwork:
    return ChatNetworkOfAll().eval().requires_grad_(False)


class ChatNetworkOfMore(ChatNetwork):
    """Makes a token more of each image."""

    def encode_images(self, tiles: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
        return [torch.cat([tokens, tokens[:1]]) for tokens in super().encode_images(tiles, grids)]


def build_chat_of_more(variant: Variant, device: str = "cpu", *, random_weights: bool = False) -> ChatNetwork:
    return ChatNetworkOfMore().eval().requires_grad_(False)


class Talk:
    """Prompts of a toy that chats: one token a letter."""

    image_id, end_of_turn_id = 1, 2

    def build(self, messages: Iterable[Turn]) -> list[int]:
        ids = []
        for _, parts in messages:
            ids += [self.image_id if part is None else ord(letter) for part in parts for letter in part or " "]
        return [*ids, self.end_of_turn_id]

    def image_tokens(self, grid: Grid) -> int:
        return 4 * grid[0] * grid[1]

    def expand(self, ids: Sequence[int], grids: Sequence[Grid]) -> list[int]:
        sizes = iter(grids)
        return [out for one in ids for out in [one] * (self.image_tokens(next(sizes)) if one == self.image_id else 1)]

    def num_expanded(self, ids: Sequence[int], grids: Sequence[Grid]) -> int:
        return len(ids) + sum(self.image_tokens(grid) - 1 for grid in grids)


class TalkThatRemembers(Talk):
    """Goes on where the last talk ended."""

    def __init__(self) -> None:
        self.before: list[int] = []

    def build(self, messages: Iterable[Turn]) -> list[int]:
        ids = super().build(messages)
        whole, self.before = [*self.before[-3:], *ids], [one for one in ids if one != self.image_id]
        return whole


class TalkOfOneMore(Talk):
    """Makes one token more than it announces."""

    def expand(self, ids: Sequence[int], grids: Sequence[Grid]) -> list[int]:
        return [*super().expand(ids, grids), self.end_of_turn_id]


class TalkUpsideDown(Talk):
    """Larger images cost less."""

    def image_tokens(self, grid: Grid) -> int:
        return 16 // (grid[0] * grid[1])


def talk(variant: Variant) -> Talk:
    return Talk()


def talk_that_remembers(variant: Variant) -> Talk:
    return TalkThatRemembers()


def talk_of_one_more(variant: Variant) -> Talk:
    return TalkOfOneMore()


def talk_upside_down(variant: Variant) -> Talk:
    return TalkUpsideDown()


class JobOfMixedUpExperts(JobOfExperts):
    """Counts the tokens of the last state for every state."""

    def loads_of(self, state: JobState, company: Sequence[JobState]) -> Any:
        return super().loads_of(company[-1], company)


class JobOfOtherExperts(JobOfExperts):
    """Has more experts than its card says."""

    expert_shape = (1, 3)
