"""Points of a family that makes pictures: settings one at a time, then pairs near the front, judged on the same rows.

A family says how good a picture is by its part ``judge``. Without one, a point is as good as its pictures agree with
those of the dearest point: that says what is given up for time, not how good the best is.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from models.contract import Family, Judge, OnProgress, SettingError, Unary, Variant
from models.inputs import Array, Inputs, row_of
from models.io import ImageIO
from models.operating_points import TABLE_FILE, Point, Seconds, mean_quality, round_off
from models.training import calibration
from models.training.agreement import METRIC, agreement
from models.training.calibration import Ledger, Measured, Settings
from models.training.held_out import Predicted, batch_s
from models.training.sweep import BATCH_SIZES, BETWEEN, sweep

_SIDE = 256
_NUM_ROWS = 16
_PROMPTS = ("a red circle", "a blue square on green", "a house by the sea", "two cats on a sofa")


def calibrate_pictures(
    family: Family,
    variant: Variant,
    *,
    ledger: Ledger,
    data_dir: Path | None = None,
    device: str = "cpu",
    num_threads: int = 1,
    watts: float = 6.0,
    repeats: int = 3,
    on_progress: OnProgress = lambda what, done, total: None,
) -> Path:
    """Measure and write the table. Returns its path. ``data_dir``: pictures, where they go in and there is no judge.

    Raises: ValueError: no pictures to calibrate on.
    """
    assert variant.weights is not None
    assert family.build is not None
    assert family.runner is not None
    judge = family.part("judge")(variant) if "judge" in family.parts else None
    rows = judge.rows if judge is not None else _rows(family, variant, data_dir)
    hardware = calibration.hardware(torch.device(device), num_threads)
    axes = [knob for knob in family.knobs if knob.is_axis]
    dearest = {knob.name: knob.points[-1] for knob in axes}
    with calibration.threads(num_threads):
        runner = family.runner.load()(family.build.load()(variant, device), variant)
        host = _Host(family, variant, runner, rows, judge, dearest, repeats)
        found = sweep(axes, dearest, ledger.keeping(host.measure), host.is_allowed, on_progress)
    described = {"rows": len(rows), "source": "rows in no relation to training" if data_dir is None else "--data"}
    calibration.write(
        variant,
        [one.point for one in found],
        hardware=hardware,
        watts=watts,
        metric=METRIC if judge is None else judge.metric,
        data=described if judge is None else dict(judge.data),
        held_out=[run for one in found for run in one.held_out],
    )
    return variant.weights / TABLE_FILE


@dataclass(frozen=True)
class _Host:
    """Runs rows as a replica does, and judges what comes of them."""

    family: Family
    variant: Variant
    runner: Unary
    rows: Sequence[Inputs]
    judge: Judge | None
    dearest: Settings
    repeats: int

    def is_allowed(self, settings: Settings) -> bool:
        try:
            point = self.family.check_point(settings)
            if self.family.allowed is not None:
                self.family.allowed.load()(self.variant, self.variant.io.largest, point)
        except SettingError:
            return False
        return True

    def measure(self, settings: Settings) -> Measured:
        """Quality of all rows, one after another, and the median time of a batch by its size."""
        pictures = self._run(settings)
        if self.judge is None:
            scores = [agreement(picture, best) for picture, best in zip(pictures, self._best, strict=True)]
        else:
            scores = [self.judge.score(number, picture) for number, picture in enumerate(pictures)]
        times = {size: self._time(settings, size) for size in BATCH_SIZES}
        macs = self._macs(settings)
        seconds = {
            size: Seconds(seconds=round_off(taken / size / macs), error=round_off(error / size / macs))
            for size, (taken, error) in times.items()
        }
        prices = {"macs": seconds} if macs else {}
        point = Point(settings=dict(settings), seconds_per_unit=prices, quality=mean_quality(scores))
        return Measured(point, times[1][0], self._held_out(settings, prices, macs))

    def _held_out(
        self, settings: Settings, prices: Mapping[str, Mapping[int, Seconds]], macs: float
    ) -> tuple[Predicted, ...]:
        """Batches of each measured size, and of one between them. Nothing is priced where nothing is counted."""
        sizes = sorted((*BATCH_SIZES, BETWEEN)) if prices else []
        return tuple(Predicted(batch_s(prices, {"macs": macs}, size), self._seconds(settings, size)) for size in sizes)

    @cached_property
    def _best(self) -> list[Array]:
        return self._run(self.dearest)

    def _macs(self, settings: Settings) -> float:
        """Of the row that is timed."""
        assert self.family.work is not None
        size, point = self.variant.io.request_of(self.rows[0]), self.family.check_point(settings)
        return float(self.family.work.load()(self.variant, size, point).units["macs"])

    def _run(self, settings: Settings) -> list[Array]:
        return [self._forward([row], settings)[0] for row in self.rows]

    def _time(self, settings: Settings, size: int) -> tuple[float, float]:
        taken = [self._seconds(settings, size) for _ in range(self.repeats)]
        error = statistics.stdev(taken) / len(taken) ** 0.5 if len(taken) > 1 else 0.0
        return statistics.median(taken), error

    def _seconds(self, settings: Settings, size: int) -> float:
        started_s = time.perf_counter()
        self._forward([self.rows[0]] * size, settings)
        return time.perf_counter() - started_s

    @torch.inference_mode()
    def _forward(self, rows: Sequence[Inputs], settings: Settings) -> list[Array]:
        points = [self.family.check_point(settings)] * len(rows)
        images = self.runner.forward(_stacked(rows), points)["image"]
        return [image.cpu().numpy() for image in images]


def _stacked(rows: Sequence[Inputs]) -> Any:
    if isinstance(rows[0], Mapping):
        named = [row for row in rows if isinstance(row, Mapping)]
        return {name: torch.from_numpy(np.stack([row[name] for row in named])) for name in named[0]}
    return torch.from_numpy(np.stack([row for row in rows if not isinstance(row, Mapping)]))


def _rows(family: Family, variant: Variant, data_dir: Path | None) -> list[Inputs]:
    """Prompts and seeds, and pictures from a folder, as many as there are of what goes in."""
    io: ImageIO = variant.io
    pictures = _pictures(io, variant, data_dir) if io.takes_picture else [None] * _NUM_ROWS
    words = family.part("words")(variant) if io.takes_prompt else None
    return [
        row_of(
            picture=picture,
            prompt=None if words is None else words(_PROMPTS[number % len(_PROMPTS)]),
            seed=number if io.is_seeded else None,
        )
        for number, picture in enumerate(pictures)
    ]


def _pictures(io: ImageIO, variant: Variant, data_dir: Path | None) -> list[Array]:
    """The middles of all pictures in the folder, of a size that the network takes."""
    paths = sorted(path for path in data_dir.rglob("*") if path.suffix.lower() in _SUFFIXES) if data_dir else []
    if not paths:
        raise ValueError(f"{variant.id} needs pictures to calibrate on; pass --data DIR with JPEG, PNG or WebP files")
    side = max(io.min_side, min(io.max_side, _SIDE) // io.multiple * io.multiple)
    made = []
    for path in paths:
        with Image.open(path) as file:
            made.append(np.asarray(_middle(file.convert("RGB"), side)))
    return made


_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def _middle(picture: Image.Image, side: int) -> Image.Image:
    """A square; a picture that is too small for it is scaled up."""
    scale = max(1.0, side / min(picture.size))
    if scale > 1.0:
        picture = picture.resize(
            (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC
        )
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))
