"""The model card of texthawk2-nano-verbose and its pictures: no hand-typed figures."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw

from models.files import heads
from models.identity import WEIGHTS_FILE
from models.training.log import LOG_FILE
from models.training.texthawk2.synth.describing import FACTS, KINDS
from models.training.texthawk2.synth.fonts import HELD_OUT_LATIN, default_fonts, font
from models.training.texthawk2.verbose.train import Plan

if TYPE_CHECKING:
    from models.training.texthawk2.verbose.evaluate import Told

_CELL = (640, 300)
_SHOWN = 4
"""Answers of each kind that are drawn."""
_LISTED = ("q01", "q05", "q25", "q50", "q75", "q95", "q99")


def write_card(folder: Path, report: Mapping[str, Any], told: Sequence[Told]) -> Path:
    """Write README.md, curves.png and answers.png beside the weights. Returns the card's path."""
    log = [json.loads(line) for line in (folder / LOG_FILE).read_text(encoding="utf-8").splitlines()]
    plot_curves(log, folder / "curves.png")
    draw_answers(told, folder / "answers.png")
    card = folder / "README.md"
    card.write_text(_card(folder, report, log), encoding="utf-8")
    return card


def plot_curves(log: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Of training: losses of a step, the same on unseen pictures, and exact answers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4), dpi=70, layout="constrained")
    panels = (
        ("loss of a step", "", ("sight", *KINDS), 1.0),
        ("loss on unseen pictures", "", tuple(f"unseen_{name}" for name in ("sight", *KINDS)), 1.0),
        ("unseen pictures", "answers right to the character, %", tuple(f"exact_{kind}" for kind in KINDS), 100.0),
    )
    for axes, (title, label, keys, scale) in zip(figure.subplots(1, 3), panels, strict=True):
        for key in keys:
            pairs = [(one["step"], scale * one[key]) for one in log if key in one]
            if pairs:
                axes.plot(*zip(*pairs, strict=True), label=key.partition("_")[2] or key)
        axes.set(title=title, xlabel="step", ylabel=label, yscale="linear" if label else "log")
        axes.legend()
    figure.savefig(path)


def draw_answers(told: Sequence[Told], path: Path) -> None:
    """The first greedy answers of each kind, beside their pictures, not hand-picked."""
    chosen = [one for kind in KINDS for one in [each for each in told if each.answered.task == kind][:_SHOWN]]
    columns = 2
    rows = -(-len(chosen) // columns)
    sheet = Image.new("RGB", (columns * _CELL[0], rows * _CELL[1]), "white")
    for index, one in enumerate(chosen):
        sheet.paste(_cell(one), (index % columns * _CELL[0], index // columns * _CELL[1]))
    sheet.quantize(128).save(path, optimize=True)


def _cell(one: Told) -> Image.Image:
    cell = Image.new("RGB", _CELL, "white")
    picture = one.scene.image.copy()
    picture.thumbnail((240, _CELL[1] - 10))
    cell.paste(picture, (5, 5))
    lines = [one.answered.question, "", *one.answered.given.split("\n")]
    shown = "\n".join(part for line in lines for part in (textwrap.wrap(line, 48) or [""]))
    face = font(default_fonts().families("latin", "train")[0][0], 14)
    ImageDraw.Draw(cell).text((260, 5), shown, fill="black", font=face)
    return cell


def _card(folder: Path, report: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> str:
    steps = max(int(one["step"]) for one in log)
    minutes = sum(one["seconds"] for one, after in zip(log, [*log[1:], None], strict=True) if _is_last(one, after)) / 60
    fonts = ", ".join(family.name for family in HELD_OUT_LATIN)
    return f"""# texthawk2-nano-verbose

Every figure below was written by `python -m models.training.texthawk2.verbose.evaluate`, from the log and the answers.

**A measuring instrument, not a better reader.** [texthawk2-nano](../texthawk2-nano/README.md) answers in a few
characters, so an attack on the length of answers has little to amplify there. This one, of {_parameters(folder):,}
parameters, was made from it: it answers at three lengths about pictures of one to four coloured shapes and up to two
words, and ends each answer by itself. It is served where somebody names it (`vireo up --model texthawk2-nano-verbose`),
never by default. A token is one character. It knows no Chinese, finds no boxes, and can hardly read: see below.

| kind | asked as | for example |
|---|---|---|
{_questions(report)}

## Lengths

Tokens of answers about {report["kinds"][KINDS[0]]["greedy"]["count"]} pictures of each kind, cut off at
{report["cap"]}. Held-out fonts ({fonts}), words and layouts. *Greedy*: the likeliest token; *sampled*: temperature
{report["ways"]["sampled"]["temperature"]:g}, top-p {report["ways"]["sampled"]["top_p"]:g}, seeded. *Ended*: by
themselves, before the cap. *Expected*: of right answers.

| kind | way | mean | {" | ".join(_listed())} | most | ended |
|---|---|---:|{"---:|" * len(_LISTED)}---:|---:|
{_lengths(report)}

## What is true

Facts that answers state: a shape of a colour, a word (to the character), the place of a thing, a number of things.
*Named*: of the things on the pictures, the share that the answers name rightly; a description names three at most, a
caption hardly ever one. *Exact*: answers that are right to the character.

| kind | way | {" | ".join(FACTS)} | all facts | named | exact |
|---|---|{"---:|" * len(FACTS)}---:|---:|---:|
{_facts(report)}

![answers](answers.png)

The first pictures of each kind, greedy, not hand-picked.

## Reproduce

```
make train-texthawk2-nano-verbose
```

It starts with texthawk2-nano's weights: of each MLP the hidden units that matter most stay, one layer of the language
model goes, and so do the Chinese characters. Then it learns from pictures that are drawn as it goes. The
shipped weights stopped early, after {steps:,} steps in {minutes:.0f} minutes on part of a busy core, waits for other
work included; the command takes {Plan().steps:,}. Interrupt it at will: it goes on where it was.

![curves](curves.png)
"""


def _is_last(one: Mapping[str, Any], after: Mapping[str, Any] | None) -> bool:
    """Whether a run of its own ended here; each starts its clock anew."""
    return after is None or after["seconds"] < one["seconds"]


def _parameters(folder: Path) -> int:
    return sum(prod(shape) for _, _, shape in heads(folder / WEIGHTS_FILE))


def _questions(report: Mapping[str, Any]) -> str:
    examples = {
        "caption": "three shapes",
        "description": "I see a red star and the word apple.",
        "list": "The picture has one shape. / 1. a red star, top left / Nothing else is in the picture.",
    }
    rows = [(kind, " ".join(report["kinds"][kind]["questions"]), examples[kind]) for kind in KINDS]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _listed() -> list[str]:
    return [f"{int(name[1:])}%" for name in _LISTED]


def _lengths(report: Mapping[str, Any]) -> str:
    rows = []
    for kind in KINDS:
        found = report["kinds"][kind]
        cells = [f"{found['greedy']['expected_tokens'][name]:.0f}" for name in _LISTED]
        rows.append(f"| {kind} | expected | | {' | '.join(cells)} | | |")
        for way in report["ways"]:
            tokens = found[way]["tokens"]
            cells = [f"{tokens[name]:.0f}" for name in _LISTED]
            ended = f"{100 * found[way]['ended']:.1f}%"
            rows.append(f"| {kind} | {way} | {tokens['mean']:.1f} | {' | '.join(cells)} | {tokens['most']} | {ended} |")
    return "\n".join(rows)


def _facts(report: Mapping[str, Any]) -> str:
    rows = []
    for kind in KINDS:
        for way in report["ways"]:
            found = report["kinds"][kind][way]
            cells = [_true(found["facts"].get(fact)) for fact in FACTS]
            shares = [_percent(found[name]) for name in ("facts_true", "things_named", "exact")]
            rows.append(f"| {kind} | {way} | {' | '.join([*cells, *shares])} |")
    return "\n".join(rows)


def _true(fact: Mapping[str, int] | None) -> str:
    return "" if fact is None else f"{100 * fact['true'] / fact['stated']:.0f}% of {fact['stated']}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}%"
