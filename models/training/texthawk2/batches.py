"""From rendered examples to padded batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from models.families.texthawk2.image_processor import cut_tiles
from models.families.texthawk2.tiling import TilingLimits, image_tokens
from models.training.texthawk2.synth.example import Example
from models.training.texthawk2.synth.examples import sample
from models.training.texthawk2.synth.fonts import Split

IGNORE = -100
POOL = 4
"""Batches drawn together and sorted by length, so that a page does not pad a word."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One conversation as tokens. ``labels`` is IGNORE outside of answers."""

    input_ids: list[int]
    labels: list[int]
    tiles: np.ndarray[Any, Any]
    grids: Sequence[tuple[int, int]]
    """Of each picture; ``tiles`` holds theirs one after another."""
    boxes: list[tuple[int, tuple[float, ...]]]
    """Position of each box's open tag in an answer, and the box."""
    task: str
    example: Example


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded on the right, which a causal model does not see."""

    input_ids: Tensor
    labels: Tensor
    tiles: Tensor
    grids: list[tuple[int, int]]
    box_places: Tensor
    """(N, 2): row and position of the open tags."""
    boxes: Tensor
    """(N, 4)."""
    tasks: list[str]
    examples: list[Example]
    tokens: Tensor | None = None
    """What the connector makes of the tiles, (N, width), where they were looked at before."""

    def to(self, device: str | torch.device) -> Batch:
        """The same with its tensors there."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        values |= {name: one.to(device) for name, one in values.items() if isinstance(one, Tensor)}
        return Batch(**values)


class Encoder:
    """Conversations to tokens, in the chat template's form."""

    def __init__(self, tokenizer: Any, max_tiles: int, max_side: int) -> None:
        self._ids: Callable[[str], list[int]] = lambda text: tokenizer.encode(text, add_special_tokens=False)
        self._token = tokenizer.convert_tokens_to_ids
        self._limits = TilingLimits(max_area=max_tiles, max_side=max_side)

    def __call__(self, example: Example, *, image_first: bool = True) -> Encoded:
        """Encode one example. ``image_first``: whether its pictures come before the first question or after it."""
        cut = [cut_tiles(np.asarray(image, dtype=np.uint8), self._limits) for image in example.images]
        grids = [grid for _, grid in cut]
        images = [token for grid in grids for token in self._image(grid)]
        ids: list[int] = []
        labels: list[int] = []
        boxes: list[tuple[int, tuple[float, ...]]] = []
        remaining = iter(example.boxes)
        for turn, (question, answer) in enumerate(example.turns):
            asked = self._ids(question)
            if turn == 0:
                asked = [*images, *asked] if image_first else [*asked, *images]
            prompt = [*self._ids("<|im_start|>user\n"), *asked, *self._ids("<|im_end|>\n<|im_start|>assistant\n")]
            replied = [*self._ids(answer), self._token("<|im_end|>")]
            start = len(ids) + len(prompt)
            box_start = self._token("<box>")
            boxes += [(start + place, next(remaining)) for place, token in enumerate(replied) if token == box_start]
            newline = self._ids("\n")
            ids += [*prompt, *replied, *newline]
            labels += [IGNORE] * len(prompt) + replied + [IGNORE] * len(newline)
        tiles = np.concatenate([tiles for tiles, _ in cut])
        return Encoded(ids, labels, tiles, grids, boxes, example.task, example)

    def _image(self, grid: tuple[int, int]) -> list[int]:
        start, image, end = (self._token(token) for token in ("<vision_start>", "<image>", "<vision_end>"))
        return [start, *[image] * image_tokens(grid), end]


def collate(items: Sequence[Encoded], pad_id: int) -> Batch:
    """Stack conversations."""
    longest = max(len(item.input_ids) for item in items)
    length = -(-longest // 32) * 32  # kernels are prepared, and kept, for every new shape
    input_ids = torch.full((len(items), length), pad_id)
    labels = torch.full((len(items), length), IGNORE)
    for row, item in enumerate(items):
        input_ids[row, : len(item.input_ids)] = torch.tensor(item.input_ids)
        labels[row, : len(item.labels)] = torch.tensor(item.labels)
    places = [(row, place) for row, item in enumerate(items) for place, _ in item.boxes]
    return Batch(
        input_ids=input_ids,
        labels=labels,
        tiles=torch.from_numpy(np.concatenate([item.tiles for item in items])),
        grids=[grid for item in items for grid in item.grids],
        box_places=torch.tensor(places, dtype=torch.long).reshape(-1, 2),
        boxes=torch.tensor([box for item in items for _, box in item.boxes], dtype=torch.float32).reshape(-1, 4),
        tasks=[item.task for item in items],
        examples=[item.example for item in items],
    )


class Batches(IterableDataset[Batch]):
    """Batches of about equal numbers of tiles, without end."""

    def __init__(
        self,
        encoder: Encoder,
        pad_id: int,
        split: Split,
        tiles: int,
        seed: int,
        tiles_per_image: int = 1000,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self._encoder, self._pad_id, self._split, self._weights = encoder, pad_id, split, weights
        self._tiles, self._seed, self._tiles_per_image = tiles, seed, tiles_per_image

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng((self._seed, worker.id if worker else 0))
        while True:
            pool: list[Encoded] = []
            while sum(len(item.tiles) for item in pool) < POOL * self._tiles:
                encoded = self._encoder(sample(rng, self._split, self._weights), image_first=rng.random() < 0.5)
                if len(encoded.tiles) <= self._tiles_per_image:
                    pool.append(encoded)
            pool.sort(key=lambda item: len(item.input_ids))
            chunks = list(_chunks(pool, self._tiles))
            for index in rng.permutation(len(chunks)):
                yield collate(chunks[index], self._pad_id)


def _chunks(pool: list[Encoded], tiles: int) -> Iterator[list[Encoded]]:
    chunk: list[Encoded] = []
    for item in pool:
        if chunk and sum(len(one.tiles) for one in chunk) + len(item.tiles) > tiles:
            yield chunk
            chunk = []
        chunk.append(item)
    if chunk:
        yield chunk
