"""How well a checkpoint reads, finds, counts and describes: greedy answers on pictures that it never saw."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from models.families.texthawk2.coordinates import iou, parse_boxes
from models.families.texthawk2.image_processor import cut_tiles
from models.families.texthawk2.modeling import TextHawk2ForConditionalGeneration
from models.families.texthawk2.tiling import TilingLimits, image_tokens
from models.training.texthawk2.synth.example import Example
from models.training.texthawk2.synth.examples import TASKS
from models.training.texthawk2.synth.fonts import Split, default_fonts

GROUNDING = ("ground_shape", "ground_text", "chinese_ground")
IOU = 0.5
SEED = 2026


@dataclass(frozen=True, slots=True)
class Answered:
    """One question with the expected answer and the model's."""

    task: str
    example: Example
    question: str
    expected: str
    given: str
    num_tiles: int
    """Of the largest picture."""
    image_tokens: int
    prompt_tokens: int
    output_tokens: int

    @property
    def is_right(self) -> bool:
        """Boxes overlap by half or more; every other answer is equal to the character."""
        if self.task not in GROUNDING:
            return self.given == self.expected
        return box_overlap(self.expected, self.given) >= IOU

    @property
    def similarity(self) -> float:
        """Share of characters that agree, between 0 and 1: for long answers."""
        return SequenceMatcher(None, self.expected, self.given, autojunk=False).ratio()


def box_overlap(expected: str, given: str) -> float:
    """Intersection over union of the only box in each text; 0 when the answer is not exactly one box."""
    try:
        boxes = parse_boxes(given)
    except ValueError:
        return 0.0
    return iou(parse_boxes(expected)[0], boxes[0]) if len(boxes) == 1 else 0.0


def held_out(task: str, count: int, split: Split = "test", seed: int = SEED) -> list[Example]:
    """Always the same pictures of a task, in fonts, words and layouts that training never uses."""
    rng = np.random.default_rng((seed, zlib.crc32(task.encode())))
    return [TASKS[task](rng, split, default_fonts()) for _ in range(count)]


@torch.no_grad()
def answer(
    model: TextHawk2ForConditionalGeneration,
    tokenizer: Any,
    examples: Sequence[Example],
    batch: int = 16,
    max_new_tokens: int = 320,
    max_tiles: int | None = None,
    **options: Any,
) -> Iterator[Answered]:
    """Ask each example's first question; of a picture in at most so many tiles. ``options``: as for ``generate``."""
    config = model.config
    most = min(max_tiles or config.max_tiles, config.max_tiles)
    limits = TilingLimits(tile_size=config.tile_size, max_area=most, max_side=config.max_tiles_side)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for start in range(0, len(examples), batch):
        part = examples[start : start + batch]
        cut = [[cut_tiles(np.asarray(image, np.uint8), limits) for image in example.images] for example in part]
        prompts = [
            prompt_of(tokenizer, example.turns[0][0], [grid for _, grid in images])
            for example, images in zip(part, cut, strict=True)
        ]
        width = max(map(len, prompts))
        made = generate(model, prompts, cut, max_new_tokens=max_new_tokens, eos_token_id=end, **options)
        for example, images, prompt, tokens in zip(part, cut, prompts, made[:, width:].tolist(), strict=True):
            told = tokens[: tokens.index(end)] if end in tokens else tokens
            question, expected = example.turns[0]
            given = tokenizer.decode(told, skip_special_tokens=False)
            yield Answered(
                example.task,
                example,
                question,
                expected,
                given,
                num_tiles=max(len(tiles) for tiles, _ in images),
                image_tokens=sum(image_tokens(grid) for _, grid in images),
                prompt_tokens=len(prompt),
                output_tokens=len(told),
            )


Cut: TypeAlias = tuple[NDArray[np.uint8], tuple[int, int]]
"""Tiles of a picture, and how many down and across."""


def generate(
    model: TextHawk2ForConditionalGeneration,
    prompts: Sequence[list[int]],
    cut: Sequence[Sequence[Cut]],
    **options: Any,
) -> torch.Tensor:
    """Tokens behind all prompts (N, longest prompt and answer), padded on the left. ``cut``: their pictures.
    ``options``: of transformers' ``generate``; greedy where they do not say."""
    width, pad = max(map(len, prompts)), model.config.text_config.pad_token_id
    made: Any = model.generate(  # type: ignore[misc]
        input_ids=torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts]),
        attention_mask=torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
        pixel_values=torch.from_numpy(np.concatenate([tiles for images in cut for tiles, _ in images])),
        grids=torch.tensor([grid for images in cut for _, grid in images]),
        pad_token_id=pad,
        **{"do_sample": False, **options},
    )
    tokens: torch.Tensor = made
    return tokens


def prompt_of(tokenizer: Any, question: str, grids: Sequence[tuple[int, int]]) -> list[int]:
    """Its tokens, with room for those of pictures that are cut so."""
    images = "".join("<vision_start>" + "<image>" * image_tokens(grid) + "<vision_end>" for grid in grids)
    text = f"<|im_start|>user\n{images}{question}<|im_end|>\n<|im_start|>assistant\n"
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def summarise(answers: Sequence[Answered]) -> dict[str, dict[str, float]]:
    """Per task: how many, share right, share right on pictures of one tile and of several, similarity."""
    by_task: dict[str, list[Answered]] = defaultdict(list)
    for one in answers:
        by_task[one.task].append(one)
    return {
        task: {
            "count": len(group),
            "right": _share(group),
            "one_tile": _share([one for one in group if one.num_tiles == 1]),
            "several_tiles": _share([one for one in group if one.num_tiles > 1]),
            "similarity": float(np.mean([one.similarity for one in group])),
        }
        for task, group in sorted(by_task.items())
    }


def _share(group: Sequence[Answered]) -> float:
    return float(np.mean([one.is_right for one in group])) if group else float("nan")
