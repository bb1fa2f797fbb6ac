"""How long the answers of texthawk2-nano-verbose are, whether they end, and how much of what they say is true.

    python -m models.training.texthawk2.verbose.evaluate models/checkpoints/texthawk2-nano-verbose

Writes evaluation.json, and the model card from it. Pictures are in fonts and words that training never uses.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoTokenizer

from models.families.texthawk2.auto import register
from models.families.texthawk2.modeling import TextHawk2ForConditionalGeneration
from models.identity import checkpoint_sha256
from models.training.texthawk2.evaluation import SEED, Answered, answer
from models.training.texthawk2.synth.describing import FACTS, KINDS, QUESTIONS, Judged, Kind, Scene, judge, scene
from models.training.texthawk2.verbose.card import write_card

EVALUATION_FILE = "evaluation.json"
CAP = 512
"""Tokens after which an answer is cut off: more than twice the longest that training shows."""
WAYS: Mapping[str, Mapping[str, Any]] = {
    "greedy": {},
    "sampled": {"do_sample": True, "temperature": 1.0, "top_p": 0.9, "top_k": 0},
}
"""Of choosing tokens: the likeliest, and as attacks on the length of answers are measured."""
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_TOGETHER = 50


class Told(NamedTuple):
    """An answer, and what is true of it."""

    scene: Scene
    answered: Answered
    judged: Judged

    @property
    def has_ended(self) -> bool:
        """By itself, before the cap."""
        return self.answered.output_tokens < CAP


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--count", type=int, default=200, help="held-out pictures for each kind of answer")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(write_card(args.checkpoint, *evaluate(args.checkpoint, args.count)))


def evaluate(folder: Path, count: int) -> tuple[dict[str, Any], list[Told]]:
    """Ask about ``count`` pictures for each kind of answer, in each way. Writes and returns the figures, with the
    greedy answers behind them."""
    register()
    model = TextHawk2ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    kinds: dict[str, dict[str, Any]] = {}
    shown: list[Told] = []
    for kind in KINDS:
        kinds[kind] = {"questions": QUESTIONS[kind]}
        for way in WAYS:
            told = ask(model, tokenizer, kind, way, count)
            kinds[kind][way] = summary(told)
            shown += told if way == "greedy" else []
            print(kind, way, json.dumps(kinds[kind][way]["tokens"]), flush=True)
    sha256 = checkpoint_sha256(folder)
    report = {"checkpoint_sha256": sha256, "seed": SEED, "cap": CAP, "ways": WAYS, "kinds": kinds}
    (folder / EVALUATION_FILE).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report, shown


def ask(model: TextHawk2ForConditionalGeneration, tokenizer: Any, kind: Kind, way: str, count: int) -> list[Told]:
    """About the same pictures in every way."""
    rng = np.random.default_rng((SEED, zlib.crc32(kind.encode())))
    scenes = [scene(rng, "test") for _ in range(count)]
    examples = [one.example(rng, kind) for one in scenes]
    torch.manual_seed(SEED)
    told = answer(model, tokenizer, examples, batch=_TOGETHER, max_new_tokens=CAP, **WAYS[way])
    return [Told(seen, one, judge(one.given, seen.things)) for seen, one in zip(scenes, told, strict=True)]


def summary(told: Sequence[Told]) -> dict[str, Any]:
    """Lengths in tokens without the end, shares of answers that ended and that are right to the character, facts."""
    lengths = [one.answered.output_tokens for one in told]
    stated, true = Counter[str](), Counter[str]()
    for one in told:
        stated.update(one.judged.stated)
        true.update(one.judged.true)
    return {
        "count": len(told),
        "tokens": {"mean": float(np.mean(lengths)), **quantiles(lengths), "most": max(lengths)},
        "expected_tokens": quantiles([len(one.answered.expected) for one in told]),
        "ended": _share(one.has_ended for one in told),
        "exact": _share(one.answered.is_right for one in told),
        "facts": {kind: {"stated": stated[kind], "true": true[kind]} for kind in FACTS if stated[kind]},
        "facts_true": true.total() / stated.total() if stated.total() else None,
        "things_named": sum(one.judged.named for one in told) / sum(one.judged.things for one in told),
    }


def quantiles(lengths: Sequence[int]) -> dict[str, float]:
    """By name, as q50."""
    return {f"q{round(100 * q):02d}": float(np.quantile(lengths, q)) for q in QUANTILES}


def _share(values: Any) -> float:
    return float(np.mean(list(values)))


if __name__ == "__main__":
    main()
