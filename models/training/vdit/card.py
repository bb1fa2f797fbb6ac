"""The nano checkpoint's model card and pictures, made from its logs and its evaluation: no hand-typed figures.

python -m models.training.vdit.card models/checkpoints/vdit-nano --training .cache/vdit-nano
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from models.training.vdit.clips import SIZE, Clip
from models.training.vdit.evaluate import held_out_scenes
from models.training.vdit.judge import Judge
from models.training.vdit.nano import FPS, FRAMES, LATENT_CHANNELS, LONG_FRAMES, nano_transformer
from models.training.vdit.scenes import Scene, vocabulary

Record = Mapping[str, Any]
STAGES = ("vae", "judge", "teacher", "student")
SHOWN_FRAMES = (0, 4, 8, 12, 16, 20, 24, 28)
ROWS = 10
CAPTION = 14
AIM = 0.9
"""Share of held-out prompts of one object that the teacher was to get right."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--training", type=Path, required=True, help="folder with the logs of the training runs")
    args = parser.parse_args()
    write_card(args.checkpoint, args.training)


def write_card(checkpoint: Path, training: Path) -> None:
    """Write README.md, curves.png, clips.png and failures.png. ``evaluate`` must have run before."""
    report = json.loads((checkpoint / "evaluation.json").read_text(encoding="utf-8"))
    logs = {stage: _read(training / f"{stage}_log.jsonl") for stage in STAGES}
    plot_curves(logs, checkpoint / "curves.png")
    draw_sheets(checkpoint, report)
    (checkpoint / "README.md").write_text(_card(report, logs), encoding="utf-8")


def _read(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def plot_curves(logs: Mapping[str, Sequence[Record]], path: Path) -> None:
    """Losses of the stages, and the autoencoder's decibels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(20, 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 5)
    plots = (("vae", ("loss",)), ("vae", ("psnr",)), ("judge", ("loss",)), ("teacher", ("loss", "held_back")),
             ("student", ("loss",)))  # fmt: skip
    for panel, (stage, keys) in zip(panels, plots, strict=True):
        for key in keys:
            pairs = [(step, one[key]) for step, one in _in_a_row(logs[stage]) if key in one]
            panel.plot([step for step, _ in pairs], [value for _, value in pairs], label=key)
        panel.set(title=stage, xlabel="step", ylabel="dB" if keys == ("psnr",) else "loss")
        panel.set_yscale("linear" if keys == ("psnr",) else "log")
        panel.legend()
    figure.savefig(path, dpi=70)


def _in_a_row(log: Sequence[Record]) -> list[tuple[int, Record]]:
    """Records with their steps counted on over all runs of a stage."""
    found: list[tuple[int, Record]] = []
    before = last = 0
    for one in log:
        before, last = (before + last if one["step"] < last else before), one["step"]
        found.append((before + one["step"], one))
    return found


def draw_sheets(checkpoint: Path, report: Record) -> None:
    """Right and wrong clips of the best settings of teacher and student."""
    judge = Judge.load(checkpoint / "judge")
    samples = np.load(checkpoint / "samples.npz")
    best = [name for variant in ("teacher", "student") if (name := _best(report, variant)) and name in samples]
    rows: dict[bool, list[tuple[str, Clip]]] = {True: [], False: []}
    for name in best:
        clips = samples[name]
        scenes = _scenes(report["settings"][name])
        for scene, clip, verdict in zip(scenes, clips, judge.verdicts(list(clips), scenes), strict=True):
            seen = " + ".join(" ".join(one) for one in verdict.seen) or "nothing"
            note = "" if verdict.is_right else f"  (judge: {seen})"
            rows[verdict.is_right].append((f"{name}: {scene.prompt()}{note}", clip))
    for is_right, file in ((True, "clips.png"), (False, "failures.png")):
        draw_sheet(_spread(rows[is_right], ROWS), checkpoint / file)


def _best(report: Record, variant: str) -> str | None:
    """Name of the dense setting with the most prompts right."""
    found = [
        (one["one_object"]["right"], name)
        for name, one in report["settings"].items()
        if one["variant"] == variant and one["attention"] == "dense" and "one_object" in one
    ]
    return max(found)[1] if found else None


def _scenes(setting: Record) -> list[Scene]:
    counts = [setting.get(key, {}).get("count", 0) for key in ("one_object", "two_objects")]
    return held_out_scenes(counts[0], 0.0) + held_out_scenes(counts[1], 1.0)


def _spread(rows: Sequence[tuple[str, Clip]], most: int) -> list[tuple[str, Clip]]:
    """From all over the list, so that both variants and both counts of objects are shown."""
    picks = sorted({int(index) for index in np.linspace(0, len(rows) - 1, most)}) if rows else []
    return [rows[index] for index in picks]


def draw_sheet(rows: Sequence[tuple[str, Clip]], path: Path) -> None:
    """One clip a row: some frames beside each other, with its caption above."""
    height = SIZE + CAPTION
    sheet = Image.new("RGB", (len(SHOWN_FRAMES) * SIZE + 200, max(1, len(rows)) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (caption, clip) in enumerate(rows):
        pen.text((2, index * height + 1), caption, fill="black")
        strip = np.concatenate([clip[frame] for frame in SHOWN_FRAMES], axis=1)
        sheet.paste(Image.fromarray(strip), (0, index * height + CAPTION))
    sheet.save(path, optimize=True)


def _card(report: Record, logs: Mapping[str, Sequence[Record]]) -> str:
    rows = "\n".join(_row(name, one) for name, one in report["settings"].items())
    bounds = report["bounds"]
    limits = "\n".join(_row(name, {"attention": "", **bounds[name]}) for name in ("rendered", "autoencoder"))
    times = "\n".join(_times(stage, logs[stage]) for stage in logs if logs[stage])
    best = _best(report, "teacher")
    counts = [report["settings"][best][key]["count"] if best else 0 for key in ("one_object", "two_objects")]
    reached = report["settings"][best]["one_object"]["right"] if best else float("nan")
    verdict = "reached" if reached >= AIM else "NOT reached"
    return f"""# vdit-nano

Every figure below was written by `python -m models.training.vdit.card` from the logs and `evaluation.json`.

The architecture of Open-Sora-Plan v1.2 at a toy size: a CausalVAE (4x8x8, {LATENT_CHANNELS} channels), an OpenSoraT2V
transformer of {nano_transformer().num_layers} layers and width {nano_transformer().width}, a small mT5 encoder with a
tokenizer of whole words. It makes {FRAMES} or {LONG_FRAMES} frames of 64x64 at {FPS} per second: one or two coloured
shapes that move before a plain background, told in sentences such as "a red circle moves left slowly on a black
background". Speeds and the background may be left out. Words that it does not know are passed over; it knows
{", ".join(vocabulary())}.

## Aim

{100 * AIM:.0f}% of held-out prompts of one object right in colour, shape and direction. Best setting of the teacher
(`{best}`): {100 * reached:.1f}%: **{verdict}**.

## Held-out prompts

One in eight of the combinations colour x shape x direction is never trained on; prompts here have one of those:
{counts[0]} of one object, {counts[1]} of two.
*right*: the judge sees exactly the objects asked for, each with colour, shape and direction. The other columns are of
one object. *to twin*: PSNR to the clips of the same seeds at the setting named. Seconds on a shared CPU core, batches
of 10: they only compare rows.

| setting | attention | right | colour | shape | direction | background | two objects right | to twin, dB | s per clip |
|---|---|---:|---:|---:|---:|---:|---:|---:|---:|
{rows}

The judge's own limits, on the same scenes: rendered, and encoded and decoded again
({bounds["autoencoder_psnr_db"]:.1f} dB). No setting can be expected above the latter.

| clips | | right | colour | shape | direction | background | two objects right | | |
|---|---|---:|---:|---:|---:|---:|---:|---:|---:|
{limits}

![curves](curves.png)

## Right clips

![clips](clips.png)

## Wrong clips

![failures](failures.png)

## Reproduce

```
make train-vdit-nano
```

These weights were made in several runs on two shared cores, one after another, which the table adds up. The autoencoder
learnt with 4 latent channels first, and went on with {LATENT_CHANNELS}. The command does the same in one go; from end
to end it has been run at a small scale only.

| stage | steps | minutes |
|---|---:|---:|
{times}
"""


def _row(name: str, one: Record) -> str:
    single, double = one.get("one_object", {}), one.get("two_objects", {})
    parts = [_percent(single.get(key)) for key in ("right", "colour", "shape", "direction", "background")]
    twin = f"{one['psnr_to_twin_db']:.1f} ({one['twin']})" if "twin" in one else ""
    seconds = f"{one['seconds_per_clip']:.2f}" if "seconds_per_clip" in one else ""
    return " | ".join(
        (f"| {name}", one.get("attention", ""), *parts, _percent(double.get("right")), twin, seconds)
    ) + " |"  # fmt: skip


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}%"


def _times(stage: str, log: Sequence[Record]) -> str:
    """Steps and minutes over all runs of a stage; each run begins to count anew."""
    steps = minutes = 0.0
    for one, after in zip(log, [*log[1:], None], strict=True):
        if after is None or after["seconds"] < one["seconds"]:
            steps += one["step"]
            minutes += one["seconds"] / 60
    return f"| {stage} | {int(steps):,} | {minutes:.1f} |"


if __name__ == "__main__":
    main()
