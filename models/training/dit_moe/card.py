"""The nano checkpoint's model card, made from its log, its evaluation and its table: no hand-typed figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.contract import Variant
from models.operating_points import TABLE_FILE, Point, Table, read_table
from models.registry import find
from models.training.dit_moe.evaluate import EVALUATION_FILE
from models.training.dit_moe.pictures import COLOURS, NUM_CLASSES, THINGS
from models.training.dit_moe.train import LOG_FILE
from models.training.dit_moe.transformer import LOG_EVERY
from models.training.dyn_perceiver.digits import HELD_OUT_FONTS, TRAIN_FONTS

AIM = 0.9
"""Share of samples at the teacher's steps that was to be right."""


def write_card(variant: Variant) -> Path:
    """Write README.md and curves.png beside the weights; ``evaluate`` made the other pictures.

    Raises: ValueError: no weights, log or evaluation, or a table of other weights.
    """
    folder = variant.weights
    if folder is None or not (folder / EVALUATION_FILE).is_file():
        raise ValueError(f"{variant.id} has no {EVALUATION_FILE}; run 'python -m models.training.dit_moe.evaluate'")
    report, log = (json.loads((folder / name).read_text("utf-8")) for name in (EVALUATION_FILE, LOG_FILE))
    table = read_table(variant) if (folder / TABLE_FILE).is_file() else None
    plot_curves(log, folder / "curves.png")
    card = folder / "README.md"
    card.write_text(_card(variant, report, log, table), encoding="utf-8")
    return card


def plot_curves(log: Mapping[str, Any], path: Path) -> None:
    """Losses of the stages, against steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 3.4), dpi=70, layout="constrained")
    panels = (("vae", ("loss",)), ("judge", ("loss",)), ("transformer", ("loss", "held_back")))
    for axis, (stage, keys) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for key in keys:
            pairs = [(one["step"], one[key]) for one in log[stage] if key in one]
            axis.plot([step for step, _ in pairs], [value for _, value in pairs], label=key.replace("_", " "))
        axis.set(title=stage, xlabel="step", ylabel="loss", yscale="log")
        axis.legend()
    figure.savefig(path)


def _card(variant: Variant, report: Mapping[str, Any], log: Mapping[str, Any], table: Table | None) -> str:
    network, last = variant.config["network"], {stage: _last(log[stage]) for stage in ("vae", "judge", "transformer")}
    teacher, bounds = report["teacher"], report["bounds"]
    verdict = "**reached**" if teacher["right"] >= AIM else "not reached"
    minutes = sum(one.get("step_s", 0.0) for one in log["transformer"]) * LOG_EVERY / 60
    parts = [
        f"# {variant.id}\n",
        "Generated: every figure below comes from the files that `vireo train`, "
        "`python -m models.training.dit_moe.evaluate` and `vireo calibrate` write.\n",
        f"A toy-sized DiT-MoE: {network['depth']} blocks of width {network['width']}, each with "
        f"{network['num_experts']} experts, {network['top_k']} of them for each token, and a shared expert for all. "
        "Attention and rectified flow are those of the published XL and G. It draws one coloured digit or shape on a "
        f"light background, 64x64. The {NUM_CLASSES} classes are {', '.join(COLOURS)} times {', '.join(THINGS)}. "
        "Latents of 4x16x16 come from a small `AutoencoderKL`.\n",
        "![samples](samples.png)\n",
        f"One sample of each class at {teacher['steps']} steps, not hand-picked.\n",
        "## Quality\n",
        f"Aim: {AIM:.0%} of {teacher['count']} samples over all classes right in colour and thing at "
        f"{teacher['steps']} steps. Measured: **{teacher['right']:.1%}** ({teacher['colour']:.1%} right in colour, "
        f"{teacher['thing']:.1%} in thing): {verdict}. At the default of {report['usual']['steps']} steps, "
        f"{report['usual']['right']:.1%} of {report['usual']['count']}.\n",
        "The judge is a small convolutional network trained on drawn pictures. It is right on "
        f"{last['judge']['right']:.1%} of 2,000 pictures whose digits are in fonts that it never saw. Of "
        f"{teacher['count']} pictures drawn for this evaluation it reads {bounds['rendered']:.1%} correctly, and "
        f"{bounds['autoencoder']:.1%} after they have passed through the autoencoder "
        f"({bounds['autoencoder_psnr_db']:.1f} dB).\n",
        *([] if table is None else [_points(variant, table)]),
        "## What the experts learnt\n",
        _routing(report["routing"]),
        "![routing](routing.png)\n",
        _experts(report),
        "## Reproduce\n",
        f"```\nmake train-{variant.id}\n```\n",
        f"{last['transformer']['step']:,} steps of the transformer in {minutes:.0f} min on one core, torch "
        f"{log['torch']}. Digits are drawn with {len(TRAIN_FONTS)} fonts that matplotlib ships; {len(HELD_OUT_FONTS)} "
        "others are held out for measuring. An interrupted run resumes where it stopped, and ends with the same "
        "weights.\n",
        "![curves](curves.png)\n",
    ]
    return "\n".join(parts)


def _last(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The last value of each key."""
    return {key: value for one in records for key, value in one.items()}


def _points(variant: Variant, table: Table) -> str:
    """Cost and quality of each operating point."""
    rows = [
        "## Operating points\n",
        f"{table.metric.capitalize()}, with its 95% interval, of {table.data.get('pictures_of_each')} pictures of each "
        f"class. Seconds of one picture alone on one thread of {table.hardware.cpu}, with a load of "
        f"{table.hardware.load} before it.\n",
        "| steps | guidance | experts a token | right | interval | seconds |",
        "|---:|---:|---:|---:|---|---:|",
    ]
    costs = {name: _seconds(variant, point) for name, point in table.points.items()}
    for name, point in sorted(table.points.items(), key=lambda item: -costs[item[0]]):
        settings, quality = point.settings, point.quality
        judged = " | " if quality is None else f"{quality.value:.1%} | {quality.low:.1%} to {quality.high:.1%}"
        rows.append(
            f"| {settings['num_inference_steps']} | {settings['guidance_scale']} | {settings['k0']} | {judged} "
            f"| {costs[name]:.3f} |"
        )
    return "\n".join(rows) + "\n"


def _seconds(variant: Variant, point: Point) -> float:
    """Of one picture alone."""
    family = find(variant.id)[0]
    assert family.work is not None
    units = family.work.load()(variant, variant.io.largest, family.check_point(point.settings)).units
    return float(sum(units[unit] * prices[1].seconds for unit, prices in point.seconds_per_unit.items()))


def _routing(found: Mapping[str, Any]) -> str:
    rows = [
        "In bits, at most 3: by layer, the entropy of which expert a token takes, and its mutual information with each "
        "of time, place, colour and thing.\n",
        "| layer | entropy | in the first tenth of the steps | time | place | colour | thing |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    early = found["entropy_by_time"][0]
    for layer, whole in enumerate(found["entropy"]):
        said = " | ".join(
            f"{found[f'information_of_{name}'][layer]:.3f}" for name in ("time", "place", "colour", "thing")
        )
        rows.append(f"| {layer + 1} | {whole:.3f} | {early[layer]:.3f} | {said} |")
    rows.append(
        "\nAs in the paper, the choice of experts depends on where in the picture a token is, a little on the time, "
        "and hardly on the class; it is most concentrated in the first and the last steps. Over a whole picture, all "
        "experts are used almost evenly.\n"
    )
    return "\n".join(rows)


def _experts(report: Mapping[str, Any]) -> str:
    """What it costs to exchange them."""
    usual, broken = report["usual"], report["experts"]
    whole = broken["permuted"]
    alone = {name: one["right"] for name, one in broken.items() if name != "permuted"}
    worst = min(alone, key=lambda name: alone[name])
    layer = worst.removeprefix("permuted in ").removesuffix(" alone")
    return (
        "Experts are not interchangeable. If each expert of every layer does the work of the next one, with weights "
        f"and loads unchanged, {whole['right']:.1%} of {usual['count']} samples are right instead of "
        f"{usual['right']:.1%} ({whole['colour']:.1%} in colour, {whole['thing']:.1%} in thing). In one layer alone, "
        f"the share falls to {alone[worst]:.1%} at worst ({layer}).\n"
    )
