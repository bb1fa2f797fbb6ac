"""A chat model of the family texthawk2 as its attackers see it.

``trace`` is the differentiable way, from raw pixels through the family's own preprocess, tower, connector and language
model to hidden states and logits; ``answer`` is the served one, from bytes to greedy or sampled tokens, through
``cut_tiles`` and a KV cache. A test holds them to the same logits.

Pictures have a size that the preprocess leaves as it is: sides that are whole multiples of a tile's, in the grid that
the family would choose for them. Nothing is resized then, so a perturbation of the file is one of the model's input.

Legend: B pictures, H W their height and width, S side of a tile, P tokens of a prompt, L positions, D width, V tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from models.families.texthawk2.config import TextHawk2Config
from models.families.texthawk2.image_processor import cut_tiles
from models.families.texthawk2.modeling import TextHawk2ForConditionalGeneration
from models.families.texthawk2.prompt import PromptBuilder
from models.families.texthawk2.tiling import Grid, TilingLimits, best_grid
from models.families.texthawk2.vision import read_levels
from models.identity import checkpoint_sha256
from models.registry import find

Pictures = NDArray[np.uint8]
"""(B, H, W, 3)."""
FAMILY = "texthawk2"
TOP_LOGPROBS = 20
"""Probabilities of each token that an API would give at most, as OpenAI's does."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Nucleus sampling at temperature 1. The seed makes it repeatable."""

    top_p: float
    seed: int


@dataclass(slots=True)
class Answer:
    """What came out. ``tokens``: without the end, which ``is_ended`` says was reached.

    ``log_p_ends``: natural logarithm of the end's probability at each step, the step that ended the answer included;
    ``top_divergences``: KL(uniform || the most probable ``TOP_LOGPROBS``, normalised) at each step, what a caller
    learns from probabilities.
    """

    tokens: list[int] = field(default_factory=list)
    is_ended: bool = False
    log_p_ends: list[float] = field(default_factory=list)
    top_divergences: list[float] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Tokens that were paid for, the end excepted."""
        return len(self.tokens)

    @property
    def end_probabilities(self) -> list[float]:
        """Of the end at each step."""
        return [math.exp(value) for value in self.log_p_ends]


@dataclass(frozen=True, slots=True)
class Trace:
    """One picture's teacher-forced pass.

    ``hidden``: (layers + 1, L, D), embeddings first, the last after the final norm. ``answer``: token ids that were
    forced, at positions ``num_prompt`` and after. ``image_places``: positions of the picture's tokens.
    """

    hidden: Tensor
    head: torch.nn.Module
    num_prompt: int
    answer: tuple[int, ...]
    image_places: Tensor

    @property
    def answer_places(self) -> Tensor:
        """Positions of the answer's own tokens."""
        return torch.arange(self.num_prompt, self.num_prompt + len(self.answer))

    @property
    def predicting_places(self) -> Tensor:
        """Positions whose logits decide the answer's tokens, one before each."""
        return self.answer_places - 1

    def logits(self, places: Tensor) -> Tensor:
        """(places, V)."""
        out: Tensor = self.head(self.hidden[-1, places])
        return out


class Victim:
    """A network with its tokenizer. Weights are frozen. ``weights``: SHA-256 of their files."""

    def __init__(self, network: TextHawk2ForConditionalGeneration, prompts: PromptBuilder, weights: str) -> None:
        self.network = network.requires_grad_(False)
        self.network.train(False)
        self.prompts = prompts
        self.weights = weights
        config = network.config
        assert isinstance(config, TextHawk2Config)
        self.config = config
        self.limits = TilingLimits(
            tile_size=config.tile_size, max_area=config.max_tiles, max_side=config.max_tiles_side
        )
        self.end_id = prompts.end_of_turn_id

    # -- the same for both ways --------------------------------------------------------------------------------------

    def grid_of(self, height: int, width: int) -> Grid:
        """The grid of a picture that is cut without being resized.

        Raises: ValueError: it would be resized.
        """
        grid, side = best_grid(height, width, self.limits), self.limits.tile_size
        if (height, width) != (grid.rows * side, grid.cols * side):
            raise ValueError(
                f"a picture of {width} x {height} pixels would be resized to {grid.cols * side} x {grid.rows * side}; "
                f"give it that size"
            )
        return grid

    def prompt(self, question: str, height: int, width: int) -> list[int]:
        """Tokens of one turn: the picture, then the question, as the server builds them."""
        ids = self.prompts.build([("user", (None, question))])
        return self.prompts.expand(ids, [self.grid_of(height, width)])

    # -- the differentiable way --------------------------------------------------------------------------------------

    def tiles(self, pixels: Tensor) -> Tensor:
        """Raw pixels (B, H, W, 3) in 0..1 to the tower's input (B, tiles, 3, S, S), thumbnail first.

        The thumbnail is the mean of blocks, rounded to bytes as Pillow does; its gradient is that of the mean.
        """
        rows, columns = self.grid_of(*pixels.shape[1:3])
        side, page = self.limits.tile_size, 255.0 * pixels.permute(0, 3, 1, 2)
        cut = page.reshape(len(page), 3, rows, side, columns, side).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        if rows * columns > 1:
            means = functional.avg_pool2d(page, (rows, columns))
            cut = torch.cat([(means + ((means + 0.5).floor() - means).detach())[:, None], cut], dim=1)
        return cut / 127.5 - 1.0

    def embedded(self, pixels: Tensor) -> Tensor:
        """What the language model sees of pictures (B, H, W, 3): (B, tokens, D)."""
        grid = self.grid_of(*pixels.shape[1:3])
        levels = read_levels(self.network.vision_tower, self.tiles(pixels).flatten(0, 1), self.config.vision_levels)
        return torch.stack(list(self.network.connector(levels, [grid] * len(pixels))))

    def trace(self, pixels: Tensor, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[Trace]:
        """Run prompts with their pictures (B, H, W, 3) and what was answered, all positions at once."""
        images = self.embedded(pixels).flatten(0, 1)
        rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
        # Padding on the right is not seen by what comes before it.
        ids = torch.full((len(rows), max(map(len, rows))), int(self.config.text_config.pad_token_id or 0))
        for row, tokens in zip(ids, rows, strict=True):
            row[: len(tokens)] = torch.tensor(tokens)
        places = ids == self.config.image_token_id
        for row, prompt in zip(places, prompts, strict=True):
            row[len(prompt) :] = False  # an answer may hold the token, too
        embeds = self.network.get_input_embeddings()(ids).masked_scatter(places[..., None], images)
        outputs = self.network.language_model.model(inputs_embeds=embeds, use_cache=False, output_hidden_states=True)
        hidden = torch.stack(outputs.hidden_states)
        return [
            Trace(
                hidden=hidden[:, row, : len(tokens)],
                head=self.network.get_output_embeddings(),
                num_prompt=len(prompts[row]),
                answer=tuple(answers[row]),
                image_places=places[row].nonzero()[:, 0],
            )
            for row, tokens in enumerate(rows)
        ]

    # -- the served way ----------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def answer(
        self,
        pictures: Pictures,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        sampling: Sampling | None = None,
    ) -> list[Answer]:
        """Answer all; greedily unless ``sampling`` is given. Rows leave the batch as they end."""
        cut = [cut_tiles(picture, self.limits) for picture in pictures]
        return self.answer_tiles(cut, prompts, max_tokens=max_tokens, sampling=sampling)

    @torch.inference_mode()
    def answer_tiles(
        self,
        cut: Sequence[tuple[Pictures, tuple[int, int]]],
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        sampling: Sampling | None = None,
    ) -> list[Answer]:
        """The same of pictures that have been cut, with their grids: all of the first prompt, then of the next."""
        width, pad = max(map(len, prompts)), int(self.config.text_config.pad_token_id or 0)
        ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        tiles = torch.from_numpy(np.concatenate([tiles for tiles, _ in cut]))
        grids = torch.tensor([tuple(grid) for _, grid in cut])
        embeds = self.network.embed(ids, tiles, grids)
        draw = None if sampling is None else Draw(sampling)
        return self._decode(embeds, mask, max_tokens, draw)

    def _decode(self, embeds: Tensor, mask: Tensor, max_tokens: int, draw: Draw | None) -> list[Answer]:
        answers = [Answer() for _ in range(len(embeds))]
        rows, positions = list(range(len(embeds))), (mask.cumsum(1) - 1).clamp_min(0)
        cache: Any = DynamicCache(config=self.config.text_config)
        for _ in range(max_tokens):
            logits = self.network.language_model(
                inputs_embeds=embeds,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            logs = logits.float().log_softmax(-1)
            chosen = logs.argmax(-1) if draw is None else draw(logs.exp())
            kept = self._note(answers, rows, logs, chosen)
            if not kept:
                break
            if len(kept) < len(rows):
                left = torch.tensor(kept)
                cache.batch_select_indices(left)
                rows, mask, positions, chosen = [rows[i] for i in kept], mask[left], positions[left], chosen[left]
            embeds = self.network.get_input_embeddings()(chosen)[:, None]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            positions = positions[:, -1:] + 1
        return answers

    def _note(self, answers: list[Answer], rows: list[int], logs: Tensor, chosen: Tensor) -> list[int]:
        """Write a step down; returns which of ``rows`` go on. ``logs``: of probabilities."""
        ends = logs[:, self.end_id].tolist()
        divergences = top_divergence(logs.exp()).tolist()
        kept = []
        for index, (row, token) in enumerate(zip(rows, chosen.tolist(), strict=True)):
            answer = answers[row]
            answer.log_p_ends.append(ends[index])
            answer.top_divergences.append(divergences[index])
            answer.is_ended = token == self.end_id
            if not answer.is_ended:
                answer.tokens.append(token)
                kept.append(index)
        return kept


class Draw:
    """Draws tokens from the nucleus: the most probable ones that together reach ``top_p``."""

    def __init__(self, sampling: Sampling) -> None:
        self._top_p = sampling.top_p
        self._generator = torch.Generator().manual_seed(sampling.seed)

    def __call__(self, probabilities: Tensor) -> Tensor:
        """One token for each row of (B, V)."""
        ordered, ids = probabilities.sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        nucleus = ordered.masked_fill(before >= self._top_p, 0.0)
        picked = torch.multinomial(nucleus, 1, generator=self._generator)
        return ids.gather(1, picked)[:, 0]


def top_divergence(probabilities: Tensor, top: int = TOP_LOGPROBS) -> Tensor:
    """KL(uniform || the ``top`` most probable, normalised) of each row (B, V): 0 where nothing is preferred."""
    most = probabilities.topk(min(top, probabilities.shape[-1]), -1).values.clamp_min(1e-12)
    shares = most / most.sum(-1, keepdim=True)
    return -shares.log().mean(-1) - math.log(shares.shape[-1])


def load_victim(model_id: str) -> Victim:
    """A checkpoint of this installation.

    Raises: ValueError: unknown, not of the family, or without weights.
    """
    family, variant = find(model_id)
    if family.name != FAMILY or family.build is None or variant.weights is None:
        raise ValueError(f"{model_id} is of the family {family.name}; these attacks are for {FAMILY} with weights")
    return Victim(family.build.load()(variant), family.part("prompts")(variant), checkpoint_sha256(variant.weights))
