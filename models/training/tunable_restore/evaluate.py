"""Judge the nano variant on held-out pictures beside the best-tuned classical filters, and write its card.

``python -m models.training.tunable_restore.evaluate`` writes ``evaluation.json`` and ``pictures.jpg`` beside the
weights, and the tables between the marks in the family's README.md.

Each filter is tuned on the very picture that it is judged on, against the clean original, which nobody who uses one
has. Ours has no such help; it is not even told how strong the noise is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.contract import Unary, Variant
from models.families.tunable_restore.network import Runner, build
from models.identity import checkpoint_sha256
from models.registry import find
from models.training.tunable_restore.degrade import BLUR_SIGMA, as_bytes, blurred
from models.training.tunable_restore.pictures import TEST, TEST_FONTS, Pixels, pages, photographs

RESULT_FILE = "evaluation.json"
NOISE = (10, 25, 50)
"""Standard deviations, of 255."""
_GAUSSIANS = tuple(np.arange(0.3, 3.01, 0.1).round(1).tolist())
_MEDIANS = (3, 5, 7, 9)
_UNSHARP_SIGMAS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)
_UNSHARP_AMOUNTS = tuple((0.25 * 1.2 ** np.arange(22)).tolist())
_STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)

Images = Mapping[str, Pixels]


def held_out() -> dict[str, Images]:
    """Clean pictures of each kind, by name. Raises: ValueError: scikit-image is not installed."""
    text = {f"page {number}": page for number, page in enumerate(pages(TEST_FONTS, 8, seed=1), 1)}
    return {"photographs": photographs(TEST), "rendered text": text}


def noisy(picture: Pixels, sigma: float, seed: int) -> Pixels:
    """White Gaussian noise, then eight bits again."""
    noise = np.random.default_rng((seed, 7)).normal(0, sigma, picture.shape)
    return np.clip(np.round(picture + noise), 0, 255).astype(np.uint8)


def soft(picture: Pixels) -> Pixels:
    """The blur that ``sharpen`` is for."""
    return _from_floats(blurred(_to_floats(picture)))


def restored(runner: Unary, picture: Pixels, denoise: float, sharpen: float) -> Pixels:
    """Ours, as it is served."""
    made = runner.forward(torch.from_numpy(picture.copy())[None], [{"denoise": denoise, "sharpen": sharpen}])
    image: Pixels = made["image"][0].numpy()
    return image


def psnr(made: Pixels, wanted: Pixels) -> float:
    """Decibels; of 255."""
    error = np.square(made.astype(np.float64) - wanted).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


# -- classical filters ------------------------------------------------------------------------------------------------


def gaussians(picture: Pixels) -> Iterator[Pixels]:
    """The picture itself, and after each width of a Gaussian filter."""
    yield picture
    for sigma in _GAUSSIANS:
        yield _from_floats(blurred(_to_floats(picture), sigma))


def medians(picture: Pixels) -> Iterator[Pixels]:
    """The picture itself, and after a median over squares of each size."""
    yield picture
    for size in _MEDIANS:
        yield np.asarray(Image.fromarray(picture).filter(ImageFilter.MedianFilter(size)))


def unsharp_masks(picture: Pixels) -> Iterator[Pixels]:
    """The picture itself, and after each width and amount of an unsharp mask."""
    yield picture
    floats = _to_floats(picture)
    for sigma in _UNSHARP_SIGMAS:
        detail = floats - blurred(floats, sigma)
        for amount in _UNSHARP_AMOUNTS:
            yield _from_floats(floats + amount * detail)


def best(candidates: Iterator[Pixels], wanted: Pixels) -> float:
    """Decibels of whichever comes closest."""
    return max(psnr(candidate, wanted) for candidate in candidates)


def _to_floats(picture: Pixels) -> Tensor:
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 255


def _from_floats(picture: Tensor) -> Pixels:
    bytes_: Pixels = (as_bytes(picture) * 255).round().to(torch.uint8)[0].permute(1, 2, 0).numpy()
    return bytes_


# -- what is measured -------------------------------------------------------------------------------------------------


def evaluate(variant: Variant) -> dict[str, Any]:
    """Everything that the card says. Raises: ValueError: no weights, or no pictures."""
    runner = Runner(build(variant), variant)
    assert variant.weights is not None
    return {
        "checkpoint_sha256": checkpoint_sha256(variant.weights),
        "psnr_db": _restoration(runner),
        "strengths": _along_strengths(runner),
        "cost": _cost(runner),
    }


def _restoration(runner: Unary) -> list[dict[str, Any]]:
    """One row for each kind of picture and each damage: mean decibels, and those of every picture."""
    rows = []
    cases: list[tuple[str, Callable[[Pixels, int], Pixels], tuple[float, float], dict[str, Any]]] = [
        (f"noise {sigma}", _adding(sigma), (1.0, 0.0), {"gaussian": gaussians, "median": medians}) for sigma in NOISE
    ]
    cases.append((f"blur {BLUR_SIGMA}", lambda picture, _: soft(picture), (0.0, 1.0), {"unsharp": unsharp_masks}))
    for kind, images in held_out().items():
        for damage, spoil, strengths, filters in cases:
            found: dict[str, dict[str, float]] = {}
            for seed, (name, clean) in enumerate(images.items()):
                given = spoil(clean, seed)
                found[name] = {
                    "given": psnr(given, clean),
                    **{each: best(tuned(given), clean) for each, tuned in filters.items()},
                    "ours": psnr(restored(runner, given, *strengths), clean),
                }
            means = {key: _mean([one[key] for one in found.values()]) for key in next(iter(found.values()))}
            print(kind, damage, means, flush=True)
            rows.append({"pictures": kind, "damage": damage, **means, "each": _rounded(found)})
    return rows


def _adding(sigma: float) -> Callable[[Pixels, int], Pixels]:
    return lambda picture, seed: noisy(picture, sigma, seed)


def _along_strengths(runner: Unary) -> list[dict[str, Any]]:
    """Along each slider, of photographs: how far from what was given and from full effect, in 0..255, and decibels."""
    rows = []
    clean = list(photographs(TEST).values())
    for knob, given in (
        ("denoise", [noisy(picture, 25, seed) for seed, picture in enumerate(clean)]),
        ("sharpen", [soft(picture) for picture in clean]),
    ):
        made = [[restored(runner, one, *_set(knob, strength)) for strength in _STEPS] for one in given]
        moved = np.array([[_distance(one, steps[0]) for one in steps] for steps in made])
        left = np.array([[_distance(one, steps[-1]) for one in steps] for steps in made])
        quality = [_mean([psnr(steps[i], w) for steps, w in zip(made, clean, strict=True)]) for i in range(len(_STEPS))]
        rows.append(
            {
                "knob": knob,
                "strengths": list(_STEPS),
                "moved": moved.mean(0).round(3).tolist(),
                "left": left.mean(0).round(3).tolist(),
                "psnr_db": quality,
                "is_monotonic_for_each_picture": bool((np.diff(moved) > 0).all() and (np.diff(left) < 0).all()),
                "is_input_at_zero": all(np.array_equal(s[0], one) for s, one in zip(made, given, strict=True)),
            }
        )
    return rows


def _set(knob: str, strength: float) -> tuple[float, float]:
    return (strength, 0.0) if knob == "denoise" else (0.0, strength)


def _distance(one: Pixels, other: Pixels) -> float:
    return float(np.sqrt(np.square(one.astype(np.float64) - other).mean()))


def _cost(runner: Runner, side: int = 256, rounds: int = 20) -> list[dict[str, Any]]:
    """Multiply-accumulates and the least CPU time of one picture at several strengths, measured in turn."""
    picture = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8))
    points = [{"denoise": d, "sharpen": s} for d, s in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (1.0, 1.0))]
    times: list[list[float]] = [[] for _ in points]
    for _ in range(rounds):
        for point, taken in zip(points, times, strict=True):
            started_s = time.process_time()
            runner.forward(picture, [point])
            taken.append(time.process_time() - started_s)
    rows = []
    for point, taken in zip(points, times, strict=True):
        with FlopCounterMode(display=False) as counter:
            runner.forward(picture, [point])
        macs = counter.get_total_flops() // 2
        rows.append({**point, "side": side, "macs": macs, "cpu_ms": round(1e3 * min(taken), 2)})
    return rows


def _mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 3)


def _rounded(found: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    return {name: {key: round(value, 3) for key, value in one.items()} for name, one in found.items()}


# -- the card ---------------------------------------------------------------------------------------------------------


def write_card(card: Path, found: Mapping[str, Any]) -> None:
    """Replace what stands between the marks ``<!-- NAME -->`` and ``<!-- end -->``."""
    text = card.read_text(encoding="utf-8")
    tables = {"quality": _quality(found), "strengths": _sliders(found), "cost": _costs(found)}
    for name, table in tables.items():
        head, mark, rest = text.partition(f"<!-- {name} -->\n")
        if not mark:
            raise ValueError(f"{card} has no mark {name}")
        text = f"{head}{mark}{table}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    card.write_text(text, encoding="utf-8")


def _quality(found: Mapping[str, Any]) -> str:
    rows = []
    for row in found["psnr_db"]:
        others = {key: row[key] for key in ("gaussian", "median", "unsharp") if key in row}
        cells = [f"{row[key]:.2f}" if key in row else "" for key in ("given", "gaussian", "median", "unsharp", "ours")]
        rows.append([row["pictures"], row["damage"], *cells, f"{row['ours'] - max(others.values()):+.2f}"])
    return _table(
        ["pictures", "damage", "as given", "best Gaussian", "best median", "best unsharp mask", "ours", "gain"], rows
    )


def _sliders(found: Mapping[str, Any]) -> str:
    rows = [
        [row["knob"], f"{strength:g}", f"{moved:.2f}", f"{left:.2f}", f"{quality:.2f}"]
        for row in found["strengths"]
        for strength, moved, left, quality in zip(
            row["strengths"], row["moved"], row["left"], row["psnr_db"], strict=True
        )
    ]
    return _table(["slider", "at", "distance from the input", "distance from full effect", "PSNR"], rows)


def _costs(found: Mapping[str, Any]) -> str:
    rows = [
        [f"{row['denoise']:g}", f"{row['sharpen']:g}", f"{row['macs']:,}", f"{row['cpu_ms']:.1f}"]
        for row in found["cost"]
    ]
    return _table(["denoise", "sharpen", "multiply-accumulates", "CPU time, ms"], rows)


def _table(head: list[str], rows: list[list[str]]) -> str:
    rule = ["---"] * 2 + ["---:"] * (len(head) - 2)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))


def draw(variant: Variant, path: Path) -> None:
    """Before and after: noise and its removal by halves, blur and its removal by halves, the original."""
    from matplotlib.figure import Figure

    runner = Runner(build(variant), variant)
    sets = held_out()
    face, page = sets["photographs"]["astronaut.png"][30:158, 155:283], sets["rendered text"]["page 2"][:128, :128]
    figure = Figure(figsize=(12.6, 8.6), dpi=72, layout="constrained")
    axes = figure.subplots(4, 5)
    for row, (clean, knob) in enumerate([(face, "denoise"), (page, "denoise"), (face, "sharpen"), (page, "sharpen")]):
        given = noisy(clean, 25, 0) if knob == "denoise" else soft(clean)
        shown = [(f"{knob} {s:g}", restored(runner, given, *_set(knob, s))) for s in (0.0, 0.5, 1.0)]
        what = "noise 25" if knob == "denoise" else f"blur {BLUR_SIGMA}"
        for axis, (title, picture) in zip(axes[row], [(what, given), *shown, ("original", clean)], strict=True):
            axis.imshow(picture)
            axis.set_title(title if title == "original" else f"{title}, {psnr(picture, clean):.1f} dB", fontsize=10)
            axis.axis("off")
    figure.savefig(path)


def main() -> None:
    """Measure, and write everything."""
    torch.set_num_threads(1)
    variant = find("tunable-restore-nano")[1]
    assert variant.weights is not None
    found = evaluate(variant)
    (variant.weights / RESULT_FILE).write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    draw(variant, variant.weights / "pictures.jpg")
    write_card(Path(__file__).parents[2] / "families" / "tunable_restore" / "README.md", found)


if __name__ == "__main__":
    main()
