"""The nano checkpoint's model card, made from its log and its evaluation: no hand-typed figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.contract import Variant
from models.training.exvideo.evaluate import AIM, EVALUATION_FILE
from models.training.exvideo.scenes import (
    BUCKETS_PER_PIXEL,
    COLOURS,
    FASTEST,
    FRAMES,
    HELD_OUT,
    LONG_FASTEST,
    LONG_FRAMES,
    SHAPES,
    SIZE,
    SLOWEST,
)
from models.training.exvideo.train import LOG_FILE, STAGES

_WAYS = {
    "extended": "extended, 40 frames at once",
    "unextended": "the base asked for 40 frames",
    "windows": "the base in windows of 8, each from the last frame of the one before",
}


def write_card(variant: Variant) -> Path:
    """Write README.md and curves.png beside the weights; ``evaluate`` made strips.png.

    Raises: ValueError: no weights, log or evaluation.
    """
    folder = variant.weights
    if folder is None or not (folder / EVALUATION_FILE).is_file():
        raise ValueError(f"{variant.id} has no {EVALUATION_FILE}; run 'python -m models.training.exvideo.evaluate'")
    report, log = (json.loads((folder / name).read_text("utf-8")) for name in (EVALUATION_FILE, LOG_FILE))
    plot_curves(log, folder / "curves.png")
    card = folder / "README.md"
    card.write_text(_card(variant, report, log), encoding="utf-8")
    return card


def plot_curves(log: Mapping[str, Any], path: Path) -> None:
    """Losses of the stages, against steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(17, 3.4), dpi=70, layout="constrained")
    keys = {"vae": ("loss",), "image_encoder": ("loss",)}
    for axis, stage in zip(figure.subplots(1, len(STAGES)), STAGES, strict=True):
        for key in keys.get(stage, ("loss", "at_1.0", "at_5.0")):
            pairs = [(one["step"], one[key]) for one in log[stage] if key in one]
            axis.plot([step for step, _ in pairs], [value for _, value in pairs], label=key.replace("at_", "noise of "))
        axis.set(title=stage.replace("_", " "), xlabel="step", ylabel="loss", yscale="log")
        axis.legend()
    figure.savefig(path)


def _card(variant: Variant, report: Mapping[str, Any], log: Mapping[str, Any]) -> str:
    extended, bounds = report["extended"], report["bounds"]
    kept = extended["kept"]
    verdict = "**reached**" if kept["value"] >= AIM else "not reached"
    parts = [
        f"# {variant.id}\n",
        "Generated: every figure below comes from the files that training and "
        "`python -m models.training.exvideo.evaluate` write.\n",
        f"Stable Video Diffusion in miniature, and ExVideo's extension of it: from a first frame of {SIZE}x{SIZE} it "
        f"makes a clip. The base learnt {FRAMES} frames; the overlay `exvideo.safetensors`, in ExVideo's published "
        f"names, holds the temporal blocks that were trained on to {LONG_FRAMES}, and nothing else was. The clips show "
        f"a coloured shape ({', '.join(COLOURS)}; {' or '.join(SHAPES)}) on black that flies straight and bounces. The "
        "first frame leaves open whither it goes; the motion bucket says how fast: "
        f"{BUCKETS_PER_PIXEL} for each pixel a frame, from {SLOWEST} to {FASTEST}. The base learnt all directions. In "
        f"clips of {LONG_FRAMES} frames the shape sets out for the farther side wall, at up to {LONG_FASTEST} pixels a "
        "frame, so that the first frame settles the rest; the extension learnt these.\n",
        "![strips](strips.png)\n",
        f"Every third of {LONG_FRAMES} frames, for the first held-out first frames, not hand-picked. Rows of each: a "
        "rendered clip that begins so, the extended model, the base asked for as many frames, and the base in "
        "windows.\n",
        f"## {LONG_FRAMES} frames\n",
        f"Aim: {AIM:.0%} of clips keep colour and shape in all {LONG_FRAMES} frames. Measured: **{kept['value']:.1%}** "
        f"(95% interval {kept['low']:.1%} to {kept['high']:.1%}; {extended['count']} clips, {extended['steps']} steps, "
        f"guidance {extended['guidance']}): {verdict}.\n",
        _long(report),
        "*Kept*: colour and shape in every frame, by colours and drawn templates, with nothing learnt. *Smooth*: no "
        "turn of more than 45 degrees away from walls, and no standing still. *Roughness*: root mean square of the "
        f"second difference of the centre's track; of rendered clips {bounds['rendered']['roughness']:.2f}. A third of "
        f"the first frames show combinations that were never trained on ({_named(HELD_OUT)}).\n",
        f"Of rendered clips the judge finds {bounds['rendered']['kept']['value']:.1%} kept and "
        f"{bounds['rendered']['smooth']['value']:.1%} smooth; after the autoencoder "
        f"({bounds['autoencoder_psnr_db']:.1f} dB) {bounds['autoencoder']['kept']['value']:.1%} and "
        f"{bounds['autoencoder']['smooth']['value']:.1%}.\n",
        f"## {FRAMES} frames\n",
        _base(report["base"]),
        "## Later starts\n",
        "The base from lower first noise levels, from plain noise and from the mean and variance of clips "
        "(Analytic-Init). *Speed* is that of what is asked for.\n",
        _starts(report["starts"]),
        "## Reproduce\n",
        f"```\nmake train-{variant.id}\n```\n",
        "![curves](curves.png)\n",
        _stages(log),
    ]
    return "\n".join(parts)


def _named(kinds: Sequence[tuple[str, str]]) -> str:
    return ", ".join(" ".join(kind) for kind in kinds)


_HEAD = "kept | of new | frames kept | smooth | speed | roughness |"
_RULE = "---|---:|---:|---|---:|---:|"


def _figures(one: Mapping[str, Any]) -> str:
    def share(found: Mapping[str, float]) -> str:
        return f"{found['value']:.1%} ({found['low']:.0%} to {found['high']:.0%})"

    return (
        f"{share(one['kept'])} | {one['kept_of_new']:.0%} | {one['frames_kept']:.1%} | {share(one['smooth'])} | "
        f"{one['speed_of_asked']:.2f} | {one['roughness']:.2f} |"
    )


def _long(report: Mapping[str, Any]) -> str:
    rows = [f"| way | {_HEAD}", f"|---|{_RULE}"]
    return "\n".join([*rows, *(f"| {said} | {_figures(report[way])}" for way, said in _WAYS.items())]) + "\n"


def _base(found: Sequence[Mapping[str, Any]]) -> str:
    rows = [f"| steps | guidance | {_HEAD}", f"|---:|---:|{_RULE}"]
    return "\n".join([*rows, *(f"| {one['steps']} | {one['guidance']} | {_figures(one)}" for one in found)]) + "\n"


def _starts(found: Sequence[Mapping[str, Any]]) -> str:
    rows = [f"| start | from | {_HEAD}", f"|---:|---|{_RULE}"]
    kinds = {False: "plain noise", True: "Analytic-Init"}
    return (
        "\n".join([*rows, *(f"| {one['start_sigma']:g} | {kinds[one['analytic']]} | {_figures(one)}" for one in found)])
        + "\n"
    )


def _stages(log: Mapping[str, Any]) -> str:
    rows = ["| stage | steps |", "|---|---:|"]
    return (
        "\n".join([*rows, *(f"| {stage.replace('_', ' ')} | {log[stage][-1]['step']:,} |" for stage in STAGES)]) + "\n"
    )
