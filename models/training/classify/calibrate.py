"""Make the operating-point table of a classifier: cost and quality of each point, written beside its weights.

A network with exits: thresholds for shares of its cost. One without: points along its settings (``sweep``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from models.contract import Family, Staged, Unary, Value, Variant
from models.methods.early_exit.calibration import ALWAYS, NEVER, calibrate, estimate, first_exit_only, no_early_exit
from models.methods.early_exit.knobs import ALL, NONE
from models.operating_points import TABLE_FILE, Point, Seconds, Slice, point_name, round_off, share_quality
from models.training import calibration
from models.training.calibration import Ledger, Measured, Settings
from models.training.classify.measure import (
    Pass,
    StageCost,
    expected_batch_ms,
    held_out_of,
    held_out_passes,
    stage_costs,
)
from models.training.classify.pictures import ExitOutputs, Sets, exit_outputs, folder_sets
from models.training.held_out import Predicted
from models.training.sweep import sweep

TARGET_PERCENT = (75, 60, 50, 40, 30, 25, 20)
_THRESHOLD_DIGITS = 4
_OF_ROUNDS = 5
OnProgress = Callable[[str, int, int], None]


def calibrate_classifier(
    family: Family,
    variant: Variant,
    *,
    ledger: Ledger,
    data_dir: Path | None = None,
    device: str = "cpu",
    num_threads: int = 1,
    watts: float = 6.0,
    repeats: int = 30,
    target_percent: Sequence[int] = TARGET_PERCENT,
    on_progress: OnProgress = lambda what, done, total: None,
) -> Path:
    """Measure, search on one half of the pictures, judge on the other, write the table. Returns its path.

    ``data_dir`` holds labelled pictures, one folder per class in class order; a nano variant may bring its own.
    ``watts``: power of one busy core (or of the device), an assumption that the table repeats.

    Raises:
        ValueError: no pictures to calibrate on.
    """
    assert variant.weights is not None
    assert family.build is not None
    assert family.runner is not None
    sets = _pictures(family, variant, data_dir)
    hardware = calibration.hardware(torch.device(device), num_threads)
    with calibration.threads(num_threads):
        runner = family.runner.load()(family.build.load()(variant, device), variant)
        run = _Run(family, variant, runner, sets, torch.device(device), repeats, target_percent, ledger, on_progress)
        measured = run.exits() if isinstance(runner, Staged) else run.settings()
    calibration.write(
        variant,
        measured.points,
        hardware=hardware,
        watts=watts,
        metric="share of pictures that are named right",
        data=sets.description,
        slices=measured.slices,
        held_out=measured.held_out,
    )
    return variant.weights / TABLE_FILE


def _pictures(family: Family, variant: Variant, data_dir: Path | None) -> Sets:
    if data_dir is not None:
        assert family.prepare is not None
        return folder_sets(data_dir, variant, family.prepare.load()(variant))
    if not variant.is_nano or "held_out" not in family.parts:
        raise ValueError(
            f"{variant.id} needs labelled pictures to calibrate on; pass --data DIR (one folder per class)"
        )
    sets: Sets = family.part("held_out")()
    return sets


@dataclass(frozen=True)
class _Measured:
    points: Sequence[Point]
    slices: tuple[Slice, ...]
    held_out: Sequence[Predicted]


@dataclass(frozen=True)
class _Run:
    family: Family
    variant: Variant
    runner: Staged | Unary
    sets: Sets
    device: torch.device
    repeats: int
    target_percent: Sequence[int]
    ledger: Ledger
    on_progress: OnProgress

    def exits(self) -> _Measured:
        """Points of a network with exits: thresholds."""
        num_exits = self.variant.io.num_exits
        macs = [self._macs({f"exit_{number}": ALL} if number < num_exits else {}) for number in range(1, num_exits + 1)]
        costs = self._costs({}, "timing stages")
        self.on_progress("searching thresholds", 0, 1)
        outputs = exit_outputs(self.runner, self.sets.search)
        tests = {name: exit_outputs(self.runner, pictures) for name, pictures in self.sets.judge.items()}
        found = _search(outputs, macs, self.target_percent)
        points = [self._point(_settings(thresholds), outputs, tests, macs, macs[-1], costs) for thresholds in found]
        self.on_progress("searching thresholds", 1, 1)
        return _Measured(points, _slices(costs, macs), self._held_out({}, costs))

    def settings(self) -> _Measured:
        """Points of a network without: along its settings."""
        axes = [knob for knob in self.family.knobs if knob.is_axis]
        best: Settings = {knob.name: knob.points[-1] for knob in axes}
        dearest = self._macs(best)

        def measure(settings: Settings) -> Measured:
            macs = [self._macs(settings)]
            costs = self._costs(settings, f"timing {point_name(settings)}")
            at = self.family.check_point(settings)
            search = exit_outputs(self.runner, self.sets.search, at)
            tests = {key: exit_outputs(self.runner, pictures, at) for key, pictures in self.sets.judge.items()}
            point = self._point(settings, search, tests, macs, dearest, costs)
            return Measured(point, costs["stages"][0][0], self._held_out(settings, costs))

        found = sweep(axes, best, self.ledger.keeping(measure), lambda settings: True, self.on_progress)
        held_out = [run for one in found for run in one.held_out]
        return _Measured([one.point for one in found], _slices(self._costs(best, "timing"), [dearest]), held_out)

    def _macs(self, settings: Settings) -> int:
        assert self.family.work is not None
        units = self.family.work.load()(self.variant, None, self.family.check_point(settings)).units
        return int(units["macs"])

    def _costs(self, settings: Settings, what: str) -> StageCost:
        """Timed once."""
        measure = partial(
            stage_costs,
            self.runner,
            self.variant.io.input_size,
            self.device,
            point=self.family.check_point(settings),
            repeats=self.repeats,
            on_progress=lambda done, total: self.on_progress(what, done, total),
        )
        return self.ledger.keep(f"times of {point_name(settings)}", StageCost, measure)

    def _held_out(self, settings: Settings, costs: StageCost) -> tuple[Predicted, ...]:
        """Runs after those of the fit, a fifth as many rounds."""
        measure = partial(
            held_out_passes,
            self.runner,
            self.variant.io.input_size,
            self.device,
            point=self.family.check_point(settings),
            rounds=max(1, self.repeats // _OF_ROUNDS),
        )
        return held_out_of(costs, self.ledger.keep(f"held out of {point_name(settings)}", list[Pass], measure))

    def _point(
        self,
        settings: Settings,
        search: ExitOutputs,
        tests: Mapping[str, ExitOutputs],
        macs: Sequence[int],
        dearest: int,
        costs: StageCost,
    ) -> Point:
        thresholds = (*(float(settings[f"exit_{number}"]) for number in range(1, len(macs))), ALWAYS)
        judged = {name: estimate(o.confidences, o.correct, macs, thresholds) for name, o in tests.items()}
        mixed = judged["mixed"]
        clean, hard = judged.get("clean", mixed), judged.get("hard", mixed)
        return Point(
            settings=dict(settings),
            seconds_per_unit={"macs": _seconds_per_mac(costs, mixed.exit_shares, self._macs(settings))},
            quality=share_quality(round_off(mixed.accuracy), self.sets.num_independent),
            figures={
                "exit_shares": [round_off(share) for share in mixed.exit_shares],
                "expected_macs": round_off(mixed.expected_cost),
                "macs_fraction": round_off(mixed.expected_cost / dearest),
                "macs_fraction_clean": round_off(clean.expected_cost / dearest),
                "accuracy_clean": round_off(clean.accuracy),
                "accuracy_hard": round_off(hard.accuracy),
                "accuracy_search": round_off(estimate(search.confidences, search.correct, macs, thresholds).accuracy),
            },
        )


def _seconds_per_mac(costs: StageCost, exit_shares: Sequence[float], macs: int) -> dict[int, Seconds]:
    """Of a batch whose samples start together: what is expected, by the work that was asked for."""
    errors: StageCost = {**costs, "stages": costs["errors"]}
    return {
        size: Seconds(
            seconds=round_off(expected_batch_ms(costs, exit_shares, size) / 1e3 / size / macs),
            error=round_off(expected_batch_ms(errors, exit_shares, size) / 1e3 / size / macs),
        )
        for size in costs["batch_sizes"]
    }


def _slices(costs: StageCost, macs: Sequence[int]) -> tuple[Slice, ...]:
    rows = zip(macs, costs["stages"], costs["errors"], strict=True)
    return tuple(
        Slice(
            units={"macs": float(amount)},
            seconds={
                size: Seconds(seconds=round_off(ms / 1e3), error=round_off(error / 1e3))
                for size, ms, error in zip(costs["batch_sizes"], stage, errors, strict=True)
            },
        )
        for amount, stage, errors in rows
    )


def _settings(thresholds: Sequence[float]) -> Settings:
    """As knobs: rounded down, so that the sample that a threshold was made for still leaves. Behind an exit at which
    all leave, nothing counts."""
    made: dict[str, Value] = {}
    for number, threshold in enumerate(thresholds[:-1], 1):
        if threshold <= ALL or ALL in made.values():
            made[f"exit_{number}"] = ALL
        elif threshold >= NEVER:
            made[f"exit_{number}"] = NONE
        else:
            made[f"exit_{number}"] = math.floor(threshold * 10**_THRESHOLD_DIGITS) / 10**_THRESHOLD_DIGITS
    return made


def _search(outputs: ExitOutputs, macs: Sequence[int], percents: Sequence[int]) -> list[tuple[float, ...]]:
    """Thresholds of the full network, of each target that can be met, and of the first exit alone."""
    reachable = [p for p in percents if p * macs[-1] / 100 >= macs[0]]
    found = calibrate(outputs.confidences, outputs.correct, macs, [p * macs[-1] / 100 for p in reachable])
    return [no_early_exit(len(macs)), *(one.thresholds for one in found), first_exit_only(len(macs))]
