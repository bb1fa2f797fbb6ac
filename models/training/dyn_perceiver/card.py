"""The nano checkpoint's model card and pictures, made from its log, table and weights: no hand-typed figures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from models.contract import Variant
from models.families.dyn_perceiver.load import build_meta, load_model
from models.families.dyn_perceiver.runner import DynPerceiverRunner
from models.operating_points import CONFIDENCE, TABLE_FILE, Point, Quality, Table, read_table
from models.training.classify.pictures import ExitOutputs, Pictures, exit_outputs
from models.training.dyn_perceiver.digits import HELD_OUT_FONTS, TRAIN_FONTS
from models.training.dyn_perceiver.evaluation import held_out_sets

EXIT_NAMES = ("1 (latents, stage 3)", "2 (latents, stage 4)", "3 (features)", "4 (merged)")


def write_card(variant: Variant) -> Path:
    """Write README.md, curves.png and failures.png beside the weights, and operating_points.png if there is a table.

    Raises:
        ValueError: no weights, or a table of other weights.
    """
    directory = variant.weights
    if directory is None or not (directory / "training_log.json").is_file():
        raise ValueError(f"{variant.id} has no training log to make a card from; run 'vireo train {variant.id}'")
    log = json.loads((directory / "training_log.json").read_text())
    table = read_table(variant) if (directory / TABLE_FILE).is_file() else None
    runner = DynPerceiverRunner(load_model(variant), variant)
    sets = held_out_sets("test")
    outputs = {name: exit_outputs(runner, pictures) for name, pictures in sets.items()}
    plot_curves(log, directory / "curves.png")
    draw_failures(sets["hard"], outputs["hard"], directory / "failures.png")
    if table is not None:
        plot_points(table, directory / "operating_points.png")
    card = directory / "README.md"
    card.write_text(_card(variant, log, table, sets, outputs))
    return card


def plot_curves(log: Mapping[str, Any], path: Path) -> None:
    """Loss and accuracy of every exit on the clean calibration split, against steps."""
    figure, (left, right) = _figure(2)
    steps = [entry["step"] for entry in log["history"]]
    left.plot(steps, [entry["loss"] for entry in log["history"]])
    left.set(xlabel="step", ylabel="training loss", title="loss")
    for exit_index, name in enumerate(EXIT_NAMES):
        right.plot(steps, [100 * entry["clean_accuracy"][exit_index] for entry in log["history"]], label=name)
    right.set(xlabel="step", ylabel="accuracy, %", title="clean calibration split", ylim=(85, 100.5))
    right.legend(title="exit")
    figure.savefig(path)


def plot_points(table: Table, path: Path) -> None:
    """Accuracy against the share of the full network's FLOPs, on clean, hard and mixed test pictures."""
    figure, (axis,) = _figure(1)
    points = sorted(table.points.values(), key=lambda point: point.figures["macs_fraction"])
    fractions = [100 * p.figures["macs_fraction"] for p in points]
    axis.plot(fractions, [100 * _accuracy(p).value for p in points], "o-", label="mixed")
    low, high = ([100 * getattr(_accuracy(p), end) for p in points] for end in ("low", "high"))
    axis.fill_between(fractions, low, high, alpha=0.15, label=f"mixed, {CONFIDENCE:.0%} interval")
    axis.plot(fractions, [100 * p.figures["accuracy_hard"] for p in points], "s-", label="hard, same thresholds")
    clean = [100 * p.figures["macs_fraction_clean"] for p in points]
    axis.plot(clean, [100 * p.figures["accuracy_clean"] for p in points], "^-", label="clean, same thresholds")
    axis.set(
        xlabel="FLOPs, % of the full network (hard: those of mixed)", ylabel="accuracy, %", title="operating points"
    )
    axis.legend()
    figure.savefig(path)


def draw_failures(pictures: Pictures, outputs: ExitOutputs, path: Path, columns: int = 16, rows: int = 3) -> None:
    """A sheet of hard test pictures that the last exit gets wrong, titled "truth>answer"."""
    wrong = np.flatnonzero(~outputs.correct[-1])[: columns * rows]
    answers = outputs.probabilities[-1].argmax(-1)
    figure, axes = _figure(rows, columns, size=(columns * 0.62, rows * 0.8))
    for axis in axes:
        axis.axis("off")
    for axis, i in zip(axes, wrong, strict=False):
        axis.imshow(pictures.images[i])
        axis.set_title(f"{pictures.labels[i]}>{answers[i]}", fontsize=7, pad=1)
    figure.savefig(path)


def _figure(rows_or_panels: int, columns: int | None = None, size: tuple[float, float] | None = None) -> Any:
    """A figure and its flat list of axes, without touching pyplot's global state."""
    from matplotlib.figure import Figure

    rows, columns = (1, rows_or_panels) if columns is None else (rows_or_panels, columns)
    figure = Figure(figsize=size or (5.2 * columns, 3.6), dpi=80, layout="constrained")
    return figure, list(np.ravel(figure.subplots(rows, columns)))


def _card(
    variant: Variant,
    log: Mapping[str, Any],
    table: Table | None,
    sets: Mapping[str, Pictures],
    outputs: Mapping[str, ExitOutputs],
) -> str:
    config = log["config"]
    parts = [
        f"# {variant.id}\n",
        "Made by `vireo train` and `vireo calibrate`; every figure below comes from their logs.\n",
        f"A Dynamic Perceiver for single digits on {variant.io.input_size}x{variant.io.input_size} pictures, "
        f"{sum(p.numel() for p in build_meta(variant).parameters()):,} parameters, four exits.\n",
        "## Reproduce\n",
        "```\n" + f"vireo train {variant.id}\nvireo calibrate {variant.id}\n" + "```\n",
        f"Seed {config['seed']}, {config['steps']} steps of {config['batch_size']} in {log['training_s'] / 60:.0f} min "
        f"on {config['num_threads']} thread(s), torch {log['torch']}. The same seed gives the same weights on the same "
        "build, thread count and kind of processor. An interrupted run goes on where it stopped.\n",
        _data_section(log, config),
        _accuracy_section(sets, outputs),
        "![curves](curves.png)\n",
        _failure_section(sets, outputs),
    ]
    if table is not None:
        parts.append(_points_section(table))
    parts.append(_LIMITS)
    return "\n".join(parts)


def _data_section(log: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    return f"""## Data

scikit-learn's 1,797 handwritten digits (8x8, UCI optdigits), split once with seed {log["split_seed"]}, stratified:
60% train, 20% calibration (curves, thresholds), 20% test (all accuracies below).
{config["font_share"]:.0%} of every training batch are digits drawn with {len(TRAIN_FONTS)} fonts that matplotlib ships,
so that typeset digits work too; {len(HELD_OUT_FONTS)} other fonts are for testing only.
Training pictures are disturbed at random: pose, stroke, colours (dark on light and light on dark),
uneven background, occlusion, blur, noise (`models/training/dyn_perceiver/augment.py`); {config["hard_share"]:.0%} as
strongly as the hard test set, {config["clean_share"]:.0%} not at all. Half of the glyphs are bent first.
"""


def _accuracy_section(sets: Mapping[str, Pictures], outputs: Mapping[str, ExitOutputs]) -> str:
    header = "| test set | pictures | " + " | ".join(f"exit {name}" for name in EXIT_NAMES) + " |"
    rows = [
        f"| {name} | {len(sets[name]):,} | " + " | ".join(f"{100 * a:.2f}%" for a in output.accuracy) + " |"
        for name, output in outputs.items()
    ]
    table = "\n".join([header, "|---|---|---|---|---|---|", *rows])
    return f"""## Accuracy on held-out data

{table}

clean: light on dark, undisturbed. hard: each test digit four times, strength 0.7 to 1. mixed: half clean (each digit
repeated four times), half hard. fonts: drawn in fonts never trained on, mildly disturbed.
"""


def _failure_section(sets: Mapping[str, Pictures], outputs: Mapping[str, ExitOutputs]) -> str:
    lines = [f"- {name}: {_confusions(sets[name], outputs[name])}" for name in ("clean", "hard", "fonts")]
    return (
        "## Failures of the last exit\n\nMost frequent confusions (truth>answer, times):\n\n"
        + "\n".join(lines)
        + "\n\n![hard pictures it gets wrong](failures.png)\n"
    )


def _confusions(pictures: Pictures, outputs: ExitOutputs, most: int = 8) -> str:
    answers = outputs.probabilities[-1].argmax(-1)
    wrong = np.flatnonzero(answers != pictures.labels)
    pairs = Counter(f"{pictures.labels[i]}>{answers[i]}" for i in wrong)
    listed = ", ".join(f"{pair} {count}" for pair, count in pairs.most_common(most))
    return f"{len(wrong)} of {len(pictures)} wrong" + (f": {listed}" if listed else "")


def _accuracy(point: Point) -> Quality:
    assert point.quality is not None, "a classifier is calibrated on labelled pictures"
    return point.quality


def _points_section(table: Table) -> str:
    return f"""## Operating points

Thresholds are searched on the mixed calibration pictures and judged on the test pictures. The interval
({CONFIDENCE:.0%}, Wilson) counts each test digit once, however often it is shown; points are ranked by its lower end.

{points_table(table)}

Times: {table.hardware.cpu}, {table.hardware.threads} thread(s), torch {table.hardware.torch}.
Joules are an {table.energy.source} ({table.energy.note}; {table.energy.watts:g} W).

{slice_table(table)}

![operating points](operating_points.png)
"""


def points_table(table: Table) -> str:
    """The points as a Markdown table, the dearest first."""
    header = (
        "| point | FLOPs, mixed | FLOPs, clean | accuracy mixed | interval | clean | hard "
        "| leaving at exits 1-4, mixed |\n|---|---|---|---|---|---|---|---|"
    )
    points = sorted(table.points.items(), key=lambda item: -item[1].figures["macs_fraction"])
    rows = [
        f"| {name} | {100 * p.figures['macs_fraction']:.1f}% | {100 * p.figures['macs_fraction_clean']:.1f}% | "
        f"{100 * _accuracy(p).value:.2f}% | {100 * _accuracy(p).low:.1f} to {100 * _accuracy(p).high:.1f}% | "
        f"{100 * p.figures['accuracy_clean']:.2f}% | {100 * p.figures['accuracy_hard']:.2f}% | "
        f"{' / '.join(f'{100 * share:.0f}%' for share in p.figures['exit_shares'])} |"
        for name, p in points
    ]
    return "\n".join([header, *rows])


def slice_table(table: Table) -> str:
    """Measured milliseconds of the stages as a Markdown table."""
    sizes = table.slices[0].seconds
    header = "| stage, ms at batch | " + " | ".join(map(str, sizes)) + " | MMACs up to its exit |"
    rule = "|---" * (len(sizes) + 2) + "|"
    rows = [
        f"| to exit {number} | "
        + " | ".join(f"{1e3 * one.seconds:.2f}" for one in part.seconds.values())
        + f" | {part.units['macs'] / 1e6:.2f} |"
        for number, part in enumerate(table.slices, 1)
    ]
    return "\n".join([header, rule, *rows])


_LIMITS = """## Limits

One digit per picture, roughly upright, filling at least half of the frame. Other pictures still get a digit as an
answer: there is no class for "none of these", and the confidence is not a probability on unfamiliar pictures. With 364
test digits one clean error is worth 0.27 points. Writers are not separated between the splits (the data
set does not name them).
"""
