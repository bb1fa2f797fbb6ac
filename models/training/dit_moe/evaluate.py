"""How often dit-moe-nano draws what was asked for, and what its experts have learnt.

    python -m models.training.dit_moe.evaluate models/checkpoints/dit-moe-nano

Writes evaluation.json beside the weights, and samples.png and routing.png for the card.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from models.contract import Family, Variant
from models.families.dit_moe.networks import Networks
from models.io import ImageRequest
from models.registry import find
from models.training import calibration
from models.training.autoencoder import encode
from models.training.dit_moe import autoencoder, pictures
from models.training.dit_moe.judge import ClassJudge
from models.training.dit_moe.pictures import COLOURS, NUM_CLASSES, SIDE, THINGS, class_name

EVALUATION_FILE = "evaluation.json"
NUM_BUCKETS = 10
FIRST_SEED = 4_242
_TOGETHER = 50
_COLUMNS = 15

Images = NDArray[np.uint8]
Counts = NDArray[np.int64]
"""How many choices of an expert, by bucket of time, layer, place, class and expert."""


class Shares(NamedTuple):
    """Of samples that the judge finds right."""

    right: float
    colour: float
    thing: float


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--count", type=int, default=500, help="samples at the teacher's steps")
    parser.add_argument("--few", type=int, default=180, help="samples of everything else")
    parser.add_argument("--steps", type=int, default=50, help="the teacher's")
    args = parser.parse_args()
    with calibration.threads(1):
        evaluate(args.checkpoint, args.count, args.few, args.steps)


def evaluate(checkpoint: Path, count: int = 500, few: int = 180, steps: int = 50) -> dict[str, Any]:
    """Write the files. Returns what evaluation.json holds."""
    family, found = find("dit-moe-nano")
    studio = Studio(family, found.with_weights(checkpoint))
    images, counts = studio.counted(steps, count)
    draw_sheet(images[:NUM_CLASSES], checkpoint / "samples.png")
    draw_routing(counts, checkpoint / "routing.png")
    usual = int(family.check_point({})["num_inference_steps"])
    report = {
        "hardware": msgspec.to_builtins(calibration.hardware(torch.device("cpu"))),
        "bounds": studio.bounds(count),
        "teacher": {"steps": steps, "count": count, **studio.shares(images)._asdict()},
        "usual": {"steps": usual, "count": few, **studio.shares(studio.draw(usual, few))._asdict()},
        "experts": studio.broken(usual, few),
        "routing": summary(counts),
    }
    (checkpoint / EVALUATION_FILE).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


class Studio:
    """Draws samples as a replica does, and has them judged. Sample r is of class r modulo all, and has its own seed."""

    def __init__(self, family: Family, variant: Variant) -> None:
        assert variant.weights is not None
        assert family.build is not None
        assert family.runner is not None
        self._family = family
        self._networks: Networks = family.build.load()(variant)
        self._runner = family.runner.load()(self._networks, variant)
        self._judge = ClassJudge.load(variant.weights / "judge")
        self.blocks: list[Any] = list(self._networks.transformer.blocks)

    def draw(self, steps: int, count: int, **settings: Any) -> Images:
        """``count`` samples (count, 64, 64, 3)."""
        return np.concatenate([images for _, _, images in self._slices(steps, count, settings) if images is not None])

    def shares(self, images: Images) -> Shares:
        """Of those that ``draw`` made."""
        return shares(self._judge.labels(list(images)), [row % NUM_CLASSES for row in range(len(images))])

    def counted(self, steps: int, count: int) -> tuple[Images, Counts]:
        """Samples, and where their tokens went on the way; passes without a class are left out."""
        config = self._networks.transformer.config
        counts = np.zeros((NUM_BUCKETS, config.depth, config.num_tokens, NUM_CLASSES, config.num_experts), np.int64)
        ids: list[Tensor] = []
        hooks = [block.moe.register_forward_hook(lambda _m, _i, made: ids.append(made[1].ids)) for block in self.blocks]
        drawn: list[Images] = []
        for labels, step, images in self._slices(steps, count, {}):
            if images is not None:
                drawn.append(images)
                continue
            for layer, chosen in enumerate(ids):
                of_rows = chosen.view(-1, config.num_tokens, chosen.shape[-1])[: len(labels)].numpy()
                places = np.arange(config.num_tokens)[None, :, None]
                np.add.at(counts[step * NUM_BUCKETS // steps, layer], (places, labels[:, None, None], of_rows), 1)
            ids.clear()
        for hook in hooks:
            hook.remove()
        return np.concatenate(drawn), counts

    def broken(self, steps: int, count: int) -> dict[str, Any]:
        """Shares where every gate's choice is carried out by another expert, in all layers and in each alone."""
        found = {}
        with permuted(self.blocks):
            found["permuted"] = self.shares(self.draw(steps, count))._asdict()
        for layer, block in enumerate(self.blocks):
            with permuted([block]):
                found[f"permuted in layer {layer + 1} alone"] = self.shares(self.draw(steps, count // 2))._asdict()
        return found

    def bounds(self, count: int) -> dict[str, float]:
        """What the judge says of drawn pictures, and of what the autoencoder makes of them: nothing can be better."""
        drawn = pictures.draw(count, FIRST_SEED, held_out=True)
        again = autoencoder.decode(self._networks.vae, encode(self._networks.vae, drawn.pixels))
        labels = drawn.labels.tolist()
        return {
            "rendered": shares(self._judge.labels(list(pictures.as_bytes(drawn.pixels))), labels).right,
            "autoencoder": shares(self._judge.labels(list(pictures.as_bytes(again))), labels).right,
            "autoencoder_psnr_db": round(autoencoder.psnr(self._networks.vae, drawn.pixels), 2),
        }

    @torch.inference_mode()
    def _slices(
        self, steps: int, count: int, settings: dict[str, Any]
    ) -> Iterator[tuple[NDArray[np.int64], int, Images | None]]:
        """After each step: classes of the rows, its number, None. After the last: the pictures."""
        point = self._family.check_point({**settings, "num_inference_steps": steps})
        for first in range(0, count, _TOGETHER):
            rows = range(first, min(first + _TOGETHER, count))
            labels = np.array([row % NUM_CLASSES for row in rows])
            requests = [ImageRequest(width=SIDE, height=SIDE, prompt=class_name(label)) for label in labels.tolist()]
            states = [
                self._runner.open(request, point, FIRST_SEED + row) for row, request in zip(rows, requests, strict=True)
            ]
            for step in range(steps):
                self._runner.step(states)
                yield labels, step, None
            while self._runner.remaining(states[0]):
                self._runner.step(states)
            yield labels, steps, np.concatenate([self._runner.close(state)["image"] for state in states])


@contextmanager
def permuted(blocks: Sequence[Any]) -> Iterator[None]:
    """Each expert does the work of the next: weights stay the same, and so do the loads."""
    experts = [block.moe.experts for block in blocks]
    _roll(experts, 1)
    try:
        yield
    finally:
        _roll(experts, -1)


@torch.no_grad()
def _roll(experts: Sequence[Any], places: int) -> None:
    for one in experts:
        one.gate_up.copy_(one.gate_up.roll(places, 0))
        one.down.copy_(one.down.roll(places, 0))


def shares(found: Sequence[int], wanted: Sequence[int]) -> Shares:
    """Of numbers of classes that are right, and of their parts."""
    pairs = list(zip(found, wanted, strict=True))
    things = len(THINGS)
    return Shares(
        right=_mean(one == other for one, other in pairs),
        colour=_mean(one // things == other // things for one, other in pairs),
        thing=_mean(one % things == other % things for one, other in pairs),
    )


def _mean(values: Iterable[bool]) -> float:
    listed = list(values)
    return round(sum(listed) / len(listed), 4)


def summary(counts: Counts) -> dict[str, Any]:
    """In bits, by layer: the entropy of the choice of an expert (at most 3 of 8), the same by time, and what time,
    place and class each say about the choice."""
    things = _by_thing(counts)
    return {
        "entropy": _rounded(entropy(counts.sum((0, 2, 3)))),
        "entropy_by_time": [_rounded(entropy(bucket.sum((1, 2)))) for bucket in counts],
        "information_of_time": _rounded(information(counts.sum((2, 3)).transpose(1, 0, 2))),
        "information_of_place": _rounded(information(counts.sum((0, 3)))),
        "information_of_colour": _rounded(information(things.sum(2))),
        "information_of_thing": _rounded(information(things.sum(1))),
    }


def _by_thing(counts: Counts) -> Counts:
    """(layers, colours, things, experts)."""
    by_class: Counts = counts.sum((0, 2))
    return by_class.reshape(len(by_class), len(COLOURS), len(THINGS), -1)


def entropy(counts: Counts) -> NDArray[np.float64]:
    """Bits, over the last axis."""
    shares_of = counts / counts.sum(-1, keepdims=True)
    bits: NDArray[np.float64] = -(shares_of * np.log2(np.where(shares_of > 0, shares_of, 1.0))).sum(-1)
    return bits


def information(counts: Counts) -> NDArray[np.float64]:
    """Mutual information in bits of the last two axes."""
    weights = counts.sum(-1) / counts.sum((-2, -1))[..., None]
    bits: NDArray[np.float64] = entropy(counts.sum(-2)) - (weights * entropy(counts)).sum(-1)
    return bits


def _rounded(values: NDArray[np.float64]) -> list[float]:
    return [round(float(value), 4) for value in values]


def draw_sheet(images: Images, path: Path) -> None:
    """Rows of pictures, in 32 levels of each colour: the file is a third as large."""
    rows = len(images) // _COLUMNS
    grid = images[: rows * _COLUMNS].reshape(rows, _COLUMNS, SIDE, SIDE, 3).transpose(0, 2, 1, 3, 4)
    levels = (grid.astype(np.uint16) + 4) // 8 * 8
    pixels = levels.clip(0, 255).astype(np.uint8).reshape(rows * SIDE, _COLUMNS * SIDE, 3)
    Image.fromarray(pixels).save(path, optimize=True)


def draw_routing(counts: Counts, path: Path) -> None:
    """By layer: each expert's share by time, where in the picture it is chosen, and by thing."""
    from matplotlib.figure import Figure

    _, layers, places, _, experts = counts.shape
    side = math.isqrt(places)
    figure = Figure(figsize=(14, 1.5 * layers), dpi=70, layout="constrained")
    axes = figure.subplots(layers, 3, width_ratios=(1.2, 3, 1.4))
    panels = (
        ("time: noise (left) to picture", counts.sum((2, 3)).transpose(1, 2, 0)),
        ("place: one map of 8x8 patches for each expert", counts.sum((0, 3)).transpose(0, 2, 1)),
        ("thing", _by_thing(counts).sum(1).transpose(0, 2, 1)),
    )
    for column, (title, by_layer) in enumerate(panels):
        for layer in range(layers):
            axis = axes[layer][column]
            shown = by_layer[layer] / by_layer[layer].sum(0)
            if column == 1:
                framed = np.pad(shown.reshape(experts, side, side), ((0, 0), (0, 0), (0, 1)), constant_values=np.nan)
                shown = np.concatenate(list(framed), axis=1)
            axis.imshow(shown, vmin=0, vmax=0.5, aspect="equal" if column == 1 else "auto", cmap="viridis")
            axis.set(xticks=[], yticks=[], ylabel=f"layer {layer + 1}" if column == 0 else "")
            if column == 2:
                axis.set_xticks(range(len(THINGS)), [thing[:3] for thing in THINGS], fontsize=6)
        axes[0][column].set_title(title, fontsize=10)
    figure.savefig(path)


if __name__ == "__main__":
    main()
