"""The nano checkpoint's model card and pictures, made from its log and its held-out answers: no hand-typed figures.

python -m models.training.texthawk2.card models/checkpoints/texthawk2-nano
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from models.families.texthawk2.auto import register
from models.families.texthawk2.coordinates import Box, parse_boxes
from models.families.texthawk2.modeling import TextHawk2ForConditionalGeneration
from models.training.log import LOG_FILE
from models.training.texthawk2.evaluation import GROUNDING, SEED, Answered, answer, held_out, summarise
from models.training.texthawk2.synth.examples import MEASURED
from models.training.texthawk2.synth.fonts import HELD_OUT_CHINESE, HELD_OUT_LATIN, default_fonts, font
from models.training.texthawk2.synth.scene import SMALLEST_TEXT

AIMS = {
    "word": 0.95,
    "line": 0.80,
    "chinese": 0.92,
    "ground_shape": 0.85,
    "ground_text": 0.85,
    "chinese_ground": 0.85,
    "count": 0.90,
    "caption": 0.80,
}
"""Shares of right answers that this checkpoint was made to reach."""
CURVES = ("word", "chinese", "line", "ground_shape", "ground_text", "count", "caption")
CELL = (300, 330)
COLUMNS = 4


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--count", type=int, default=500, help="held-out pictures per task")
    args = parser.parse_args()
    write_card(args.checkpoint, args.count)


def write_card(checkpoint: Path, count: int) -> None:
    """Write README.md, evaluation.json, curves.png, answers.png and failures.png into ``checkpoint``."""
    from transformers import AutoTokenizer

    register()
    model = TextHawk2ForConditionalGeneration.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    answers: list[Answered] = []
    for task in MEASURED:
        answers += answer(model, tokenizer, held_out(task, count))
        print(task, {key: round(value, 3) for key, value in summarise(answers)[task].items()}, flush=True)
    summary = summarise(answers)
    log = _read(checkpoint / LOG_FILE)
    hours = round(_total_seconds(log) / 3600, 2)
    evaluation = {"seed": SEED, "smallest_text": SMALLEST_TEXT, "hours": hours, "tasks": summary}
    evaluation["earlier"] = earlier_evaluations(checkpoint / "evaluation.json", hours)
    (checkpoint / "evaluation.json").write_text(json.dumps(evaluation, indent=1) + "\n")
    plot_curves(log, checkpoint / "curves.png")
    draw_answers([one for one in answers if one.is_right], checkpoint / "answers.png")
    draw_answers([one for one in answers if not one.is_right], checkpoint / "failures.png")
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    (checkpoint / "README.md").write_text(_card(evaluation, log, num_parameters), encoding="utf-8")


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def plot_curves(log: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Held-out fonts: patches named right by the tower, then from the connector's tokens; loss; exact answers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(20, 4), layout="constrained")
    FigureCanvasAgg(figure)
    tower, tokens, losses, answers = figure.subplots(1, 4)
    steps = _running_steps(log)

    def draw(axes: Any, keys: Mapping[str, str], scale: float = 100.0) -> None:
        for label, key in keys.items():
            pairs = [(step, scale * one[key]) for step, one in zip(steps, log, strict=True) if one.get(key)]
            if pairs:
                axes.plot(*zip(*pairs, strict=True), label=label)
        axes.set(xlabel="step")

    draw(tower, {name: name for name in ("latin", "chinese")})
    tower.set(title="first stage, held-out fonts", ylabel="patches named right, %")
    draw(tokens, {name: f"tokens_{name}" for name in ("latin", "chinese", "shapes")})
    tokens.set(title="second stage, held-out fonts", ylabel="patches named right from tokens, %")
    draw(losses, {"loss": "loss"}, 1.0)
    losses.set(title="loss of a step", yscale="log")
    draw(answers, {task: f"exact_{task}" for task in CURVES})
    answers.set(title="second stage, small held-out set", ylabel="exact answers, %")
    for axes in (tower, tokens, answers):
        axes.legend()
    figure.savefig(path, dpi=70)


def _running_steps(log: Sequence[Mapping[str, Any]]) -> list[int]:
    """Steps over several runs, each of which counts from 0 again."""
    steps: list[int] = []
    base = previous = 0
    for one in log:
        if one["step"] < previous:
            base += previous
        previous = int(one["step"])
        steps.append(base + previous)
    return steps


def earlier_evaluations(path: Path, hours: float) -> list[dict[str, Any]]:
    """Those that ``path`` holds of weights with less training on the same kind of pictures, oldest first."""
    if not path.exists():
        return []
    last = json.loads(path.read_text(encoding="utf-8"))
    found = [*last.pop("earlier", []), last]
    return [one for one in found if one.get("smallest_text") == SMALLEST_TEXT and one["hours"] < hours]


def at_ten_times(evaluations: Sequence[Mapping[str, Any]], task: str) -> float | None:
    """Share right after ten times the hours, if the error goes on falling as a power of them.

    None: it does not fall, or was evaluated once.
    """
    points = [(one["hours"], 1 - one["tasks"][task]["right"]) for one in evaluations if task in one["tasks"]]
    if len(points) < 2 or not all(0 < wrong < 1 for _, wrong in points):
        return None
    log_hours, log_wrong = np.log(np.asarray(points, float)).T
    slope, height = np.polyfit(log_hours, log_wrong, 1)
    at = height + slope * np.log(10 * points[-1][0])
    return float(1 - np.exp(at)) if slope < 0 else None


def draw_answers(answers: Sequence[Answered], path: Path, most: int = 16) -> None:
    """A sheet of pictures with question, expected and given answer, tasks taken in turn; boxes are drawn."""
    chosen = _in_turn(answers, most)
    rows = -(-max(1, len(chosen)) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * CELL[0], rows * CELL[1]), "white")
    for index, one in enumerate(chosen):
        sheet.paste(_cell(one), (index % COLUMNS * CELL[0], index // COLUMNS * CELL[1]))
    sheet.quantize(128).save(path, optimize=True)


def _in_turn(answers: Sequence[Answered], most: int) -> list[Answered]:
    by_task: dict[str, list[Answered]] = {}
    for one in answers:
        by_task.setdefault(one.task, []).append(one)
    rounds = [group[index] for index in range(most) for group in by_task.values() if index < len(group)]
    return sorted(rounds[:most], key=lambda one: one.task)


def _cell(one: Answered) -> Image.Image:
    cell = Image.new("RGB", CELL, "white")
    picture = _side_by_side(one.example.images)
    if one.task in GROUNDING:
        pen = ImageDraw.Draw(picture)
        for text, colour in ((one.expected, "lime"), (one.given, "red")):
            for box in _boxes(text):
                pen.rectangle(_pixels(box, picture.size), outline=colour, width=max(2, picture.width // 150))
    picture.thumbnail((CELL[0] - 10, 210))
    cell.paste(picture, (5, 5))
    lines = [one.question] if one.task in GROUNDING else [one.question, f"expected: {one.expected}"]
    if one.task not in GROUNDING:
        lines.append(f"given: {one.given}")
    shown = "\n".join(part for line in lines for part in textwrap.wrap(line[:90], 40))
    ImageDraw.Draw(cell).text((5, 220), shown, fill="black", font=_label_font())
    return cell


def _side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    height = max(picture.height for picture in pictures)
    sheet = Image.new("RGB", (sum(picture.width for picture in pictures), height), "white")
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width
    return sheet


def _boxes(text: str) -> list[Box]:
    try:
        return parse_boxes(text)
    except ValueError:
        return []


def _pixels(box: Box, size: tuple[int, int]) -> list[float]:
    return [box.x1 * size[0], box.y1 * size[1], box.x2 * size[0], box.y2 * size[1]]


def _label_font() -> Any:
    """A font that has Latin and Chinese letters."""
    return font(default_fonts().families("chinese", "train")[0][0], 13)


def _card(
    evaluation: Mapping[str, Any],
    log: Sequence[Mapping[str, Any]],
    num_parameters: int,
) -> str:
    evaluations = [*evaluation["earlier"], evaluation]
    rows = "\n".join(_row(task, one, at_ten_times(evaluations, task)) for task, one in evaluation["tasks"].items())
    hours = evaluation["hours"]
    evaluated_at = " and ".join(f"{one['hours']:.1f}" for one in evaluations)
    fonts = ", ".join(family.name for family in (*HELD_OUT_LATIN, *HELD_OUT_CHINESE))
    return f"""# texthawk2-nano

Every figure below was written by `python -m models.training.texthawk2.card`, from the logs and the model's answers.

TextHawk2's architecture with {num_parameters:,} parameters: a SigLIP tower of 4 layers, 64 proposed queries and
16 tokens per 224x224 tile, a Qwen2 of 4 layers. It reads printed Latin and 300 common Chinese characters, finds
coloured shapes and words, counts and describes. It knows nothing else: no photographs, no general questions.

## Reproduce

```
make train-texthawk2-nano
```

It fetches the fonts, renders as it goes, and took {hours:.1f} hours here, on one or two busy CPU cores
({_running_steps(log)[-1]:,} steps). Interrupt it at will: the same command goes on.

## Answers on held-out data

Pictures in fonts, words and layouts that training never uses (held-out fonts: {fonts}). Greedy decoding. *right*: the
whole answer, to the character; for the three *ground* tasks an overlap (IoU) of at least 0.5. *similarity*: share of
characters in common, which says more of long answers.

| task | pictures | right | of one tile | of several tiles | similarity | aim | at ten times the training |
|---|---:|---:|---:|---:|---:|---:|---:|
{rows}

*at ten times the training*: where the error leads if it goes on falling as a power of the hours, as it did between the
weights of {evaluated_at} hours, asked the same; none: it did not fall, or was asked once. It says no more than which
aims more of the same could reach.

## What limits it

Text is read from {SMALLEST_TEXT:.0f} pixels an em on, as the model sees it: a tile of 224 pixels has 16 x 16 patches
of 14, and of smaller text two letters share a patch. The rest is training: all of it was {hours:.1f} hours of one core
or two.

![curves](curves.png)

## Right answers

![answers](answers.png)

## Wrong answers

Green: where it is; red: what was answered.

![failures](failures.png)
"""


def _row(task: str, values: Mapping[str, float], later: float | None) -> str:
    aim = f"{100 * AIMS[task]:.0f}%" if task in AIMS else ""
    shares = " | ".join(_percent(values[key]) for key in ("right", "one_tile", "several_tiles", "similarity"))
    drawn_out = "" if later is None else _percent(later)
    return f"| {task} | {int(values['count'])} | {shares} | {aim} | {drawn_out} |"


def _percent(share: float) -> str:
    return "" if share != share else f"{100 * share:.1f}%"


def _total_seconds(log: Sequence[Mapping[str, Any]]) -> float:
    """Of all runs; each starts its clock anew."""
    total = previous = 0.0
    for one in log:
        if one["seconds"] < previous:
            total += previous
        previous = float(one["seconds"])
    return total + previous


if __name__ == "__main__":
    main()
