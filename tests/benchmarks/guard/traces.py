"""What models answer to benign and attacked pictures, token by token: made once, kept, and judged at leisure.

python -m tests.benchmarks.guard.traces --model texthawk2-nano --part evaluation --count 5000

    out/guard/MODEL/calibration.jsonl, evaluation.jsonl     a ``Trace`` a line; the same command goes on where it was

Answers are greedy and come of the batched way of ``loadtest.adversarial.victim``, which a test holds to the served one.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from rich.progress import Progress

from loadtest.adversarial.victim import Answer, Victim, load_victim
from models.families.texthawk2.image_processor import cut_tiles
from tests.benchmarks.guard.corpus import MAX_TOKENS, MODELS, SEEDS, Item, Part, hard_places, items

T = TypeVar("T")
OUT = Path("out/guard")
_BATCH, _FEW_TILES = 256, 2
"""Items answered together; those with more tiles apart, since all prompts of a batch are padded to the longest."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One greedy answer. ``place``: of its item in the corpus, or of its picture in the attack's run. ``turns``:
    (role, text) of what was asked. ``prompt_ids``: with one token an image. ``log_p_ends``: of the end at each step,
    one more than ``token_ids`` where the answer ended."""

    place: int
    kind: str
    is_hard: bool
    turns: tuple[tuple[str, str], ...]
    prompt_ids: tuple[int, ...]
    expected: str | None
    token_ids: tuple[int, ...]
    is_ended: bool
    log_p_ends: tuple[float, ...]

    @property
    def length(self) -> int:
        """Tokens, with the end where there was one."""
        return len(self.token_ids) + self.is_ended


Tiles = tuple[np.ndarray[Any, np.dtype[np.uint8]], tuple[int, int]]
"""Of one picture, and its grid."""


def cut(item: Item, victim: Victim) -> list[Tiles]:
    """Every picture's tiles."""
    return [cut_tiles(np.asarray(Image.open(io.BytesIO(file)).convert("RGB")), victim.limits) for file in item.files]


def turns_of(item: Item) -> list[tuple[str, list[str | None]]]:
    """As the prompt builder takes them: None for a picture."""
    said: list[tuple[str, list[str | None]]] = []
    pictures: list[str | None] = [None] * len(item.files)
    for asked, told in item.history:
        said += [("user", [*pictures, asked]), ("assistant", [told])]
        pictures = []
    return [*said, ("user", [*pictures, item.question])]


def answers(
    victim: Victim, prompts: Sequence[Sequence[int]], pictures: Sequence[Sequence[Tiles]], max_tokens: int
) -> list[Answer]:
    """Of whole batches of prompts (one token an image) with any number of pictures each."""
    expanded = [
        victim.prompts.expand(ids, [grid for _, grid in own]) for ids, own in zip(prompts, pictures, strict=True)
    ]
    return victim.answer_tiles([one for own in pictures for one in own], expanded, max_tokens=max_tokens)


def made(victim: Victim, batch: Sequence[tuple[int, Item, list[Tiles]]]) -> Iterator[Trace]:
    """The answers to a batch of (place, item, its pictures' tiles)."""
    turns = [turns_of(item) for _, item, _ in batch]
    prompts = [victim.prompts.build(one) for one in turns]
    told = answers(victim, prompts, [own for _, _, own in batch], MAX_TOKENS)
    for (place, item, _), said, prompt, answer in zip(batch, turns, prompts, told, strict=True):
        yield Trace(
            place=place,
            kind=item.kind,
            is_hard=item.is_hard,
            turns=tuple((role, "".join(part for part in parts if part is not None)) for role, parts in said),
            prompt_ids=tuple(prompt),
            expected=item.expected,
            token_ids=tuple(answer.tokens),
            is_ended=answer.is_ended,
            log_p_ends=tuple(round(value, 4) for value in answer.log_p_ends),
        )


def batched(whole: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """In pieces of at most ``size``."""
    return (whole[first : first + size] for first in range(0, len(whole), size))


def read(path: Path) -> list[Trace]:
    """All that are there, by place; a line that was cut off by an interruption is none."""
    found: dict[int, Trace] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            plain = json.loads(line)
        except ValueError:
            continue
        plain["turns"] = tuple(map(tuple, plain["turns"]))
        for name in ("prompt_ids", "token_ids", "log_p_ends"):
            plain[name] = tuple(plain[name])
        found[plain["place"]] = Trace(**plain)
    return [found[place] for place in sorted(found)]


def make(model: str, part: Part, count: int, num_hard: int = 0, out: Path = OUT) -> list[Trace]:
    """The first ``count`` of a part, and so many hard ones beside, those that are missing first."""
    wanted = [*range(count), *hard_places(model, part, num_hard)]
    path = out / model / f"{part}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    have = {trace.place for trace in read(path)}
    missing = [place for place in wanted if place not in have]
    if missing:
        victim = load_victim(model)
        with Progress() as progress, path.open("a", encoding="utf-8") as file:
            bar = progress.add_task(f"{model}, {part}", total=len(wanted), completed=len(wanted) - len(missing))
            for places in batched(missing, _BATCH):
                asked = [
                    (place, item, cut(item, victim))
                    for place, item in zip(places, items(model, part, places), strict=True)
                ]
                for is_large in (False, True):
                    batch = [one for one in asked if (sum(len(tiles) for tiles, _ in one[2]) > _FEW_TILES) is is_large]
                    for trace in made(victim, batch) if batch else ():
                        file.write(json.dumps(asdict(trace), ensure_ascii=False) + "\n")
                    file.flush()
                    progress.advance(bar, len(batch))
    return [trace for trace in read(path) if trace.place in set(wanted)]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, action="append", help="default: all")
    parser.add_argument("--part", choices=sorted(SEEDS), action="append", help="default: both")
    parser.add_argument("--count", type=int, default=1500)
    parser.add_argument("--hard", type=int, default=0, help="so many hard ones beside, of the evaluation part")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for model in args.model or MODELS:
        for part in args.part or SEEDS:
            traces = make(model, part, args.count, args.hard if part == "evaluation" else 0)
            lengths = np.array([trace.length for trace in traces])
            print(
                model,
                part,
                len(traces),
                f"mean {lengths.mean():.1f} tokens",
                f"at the cap {np.mean([not t.is_ended for t in traces]):.2%}",
            )


if __name__ == "__main__":
    main()
