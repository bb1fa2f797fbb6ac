"""Make the operating-point table of a classifier: cost and quality of each point, written beside its weights.

A network with exits: thresholds for shares of its cost. One without: a point for each combination of its settings'
calibrated values.
"""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from models.contract import Family, Point, Staged, Unary, Variant, point_key
from models.identity import checkpoint_sha256
from models.methods.early_exit.calibration import ALWAYS, Estimate, calibrate, estimate, first_exit_only, no_early_exit
from models.methods.early_exit.knobs import ALL
from models.operating_points import FORMAT, OperatingPoint, StageCost, Table, write_table
from models.training.classify.measure import expected_batch_ms, hardware, stage_costs
from models.training.classify.pictures import ExitOutputs, Sets, exit_outputs, folder_sets

TARGET_PERCENT = (75, 60, 50, 40, 30, 25, 20)
ENERGY_BATCH = 16
OnProgress = Callable[[str, int, int], None]


def calibrate_classifier(
    family: Family,
    variant: Variant,
    *,
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
        ValueError: no weights, or no pictures to calibrate on.
    """
    if variant.weights is None:
        raise ValueError(
            f"{variant.id} comes without weights; give their folder with --checkpoint ('vireo convert' makes one of "
            "published weights)"
        )
    assert family.build is not None
    assert family.runner is not None
    sets = _pictures(family, variant, data_dir)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        runner = family.runner.load()(family.build.load()(variant, device), variant)
        run = _Run(family, variant, runner, sets, torch.device(device), watts, repeats, target_percent, on_progress)
        table = run.table(run.exits() if isinstance(runner, Staged) else run.settings())
    finally:
        torch.set_num_threads(threads_before)
    return write_table(table, variant.weights)


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
    points: list[OperatingPoint]
    exit_flops: list[int]
    costs: StageCost


@dataclass(frozen=True)
class _Run:
    family: Family
    variant: Variant
    runner: Staged | Unary
    sets: Sets
    device: torch.device
    watts: float
    repeats: int
    target_percent: Sequence[int]
    on_progress: OnProgress

    def exits(self) -> _Measured:
        """Points of a network with exits: thresholds."""
        num_exits = self.variant.io.num_exits
        flops = [
            self._macs({f"exit_{number}": ALL} if number < num_exits else {}) for number in range(1, num_exits + 1)
        ]
        costs = self._costs({}, "timing stages")
        self.on_progress("searching thresholds", 0, 1)
        outputs = exit_outputs(self.runner, self.sets.search)
        tests = {name: exit_outputs(self.runner, pictures) for name, pictures in self.sets.judge.items()}
        found = _search(outputs, flops, self.target_percent)
        points = [self._point(name, e, tests, flops, flops[-1], costs) for name, e in found]
        self.on_progress("searching thresholds", 1, 1)
        return _Measured(points, flops, costs)

    def settings(self) -> _Measured:
        """Points of a network without: every combination of the settings' calibrated values, the dearest first."""
        axes = [knob for knob in self.family.knobs if knob.is_axis]
        combinations = itertools.product(*(reversed(knob.points) for knob in axes))
        chosen = [dict(zip((knob.name for knob in axes), values, strict=True)) for values in combinations]
        dearest = max(map(self._macs, chosen))
        points: list[OperatingPoint] = []
        all_costs: list[StageCost] = []
        for settings in chosen:
            name, flops = point_key(settings) or "full", [self._macs(settings)]
            costs = self._costs(settings, f"timing {name}")
            point = self.family.check_point(settings)
            search = exit_outputs(self.runner, self.sets.search, point)
            searched = estimate(search.confidences, search.correct, flops, (ALWAYS,))
            tests = {key: exit_outputs(self.runner, pictures, point) for key, pictures in self.sets.judge.items()}
            measured = self._point(name, searched, tests, flops, dearest, costs)
            measured["settings"] = settings
            points.append(measured)
            all_costs.append(costs)
        return _Measured(points, [dearest], max(all_costs, key=lambda costs: costs["stages"][0][-1]))

    def table(self, measured: _Measured) -> Table:
        """The whole file."""
        assert self.variant.weights is not None
        return {
            "format": FORMAT,
            "model": self.variant.id,
            "checkpoint_sha256": checkpoint_sha256(self.variant.weights),
            "hardware": hardware(self.device),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "split": self.sets.description,
            "exit_flops": measured.exit_flops,
            "stage_cost_ms": measured.costs,
            "energy": {
                "source": "estimate",
                "watts": self.watts,
                "note": f"busy milliseconds at batch {ENERGY_BATCH} times an assumed power of one busy core; "
                "not metered",
            },
            "points": measured.points,
        }

    def _macs(self, settings: Point) -> int:
        assert self.family.work is not None
        units = self.family.work.load()(self.variant, None, self.family.check_point(settings)).units
        return int(units["macs"])

    def _costs(self, settings: Point, what: str) -> StageCost:
        return stage_costs(
            self.runner,
            self.variant.io.input_size,
            self.device,
            point=self.family.check_point(settings),
            repeats=self.repeats,
            on_progress=lambda done, total: self.on_progress(what, done, total),
        )

    def _point(
        self,
        name: str,
        searched: Estimate,
        tests: Mapping[str, ExitOutputs],
        flops: Sequence[int],
        dearest: int,
        costs: StageCost,
    ) -> OperatingPoint:
        judged = {k: estimate(o.confidences, o.correct, flops, searched.thresholds) for k, o in tests.items()}
        mixed = judged["mixed"]
        ms = {str(size): round(expected_batch_ms(costs, mixed.exit_shares, size), 4) for size in costs["batch_sizes"]}
        clean, hard = judged.get("clean", mixed), judged.get("hard", mixed)
        return {
            "name": name,
            "settings": {},
            "thresholds": list(searched.thresholds),
            "exit_shares": list(mixed.exit_shares),
            "expected_flops": mixed.expected_cost,
            "flops_fraction": mixed.expected_cost / dearest,
            "ms_by_batch": ms,
            "joules_per_sample": self.watts * ms[str(ENERGY_BATCH)] / ENERGY_BATCH / 1e3,
            "accuracy": mixed.accuracy,
            "accuracy_clean": clean.accuracy,
            "accuracy_hard": hard.accuracy,
            "accuracy_calibration": searched.accuracy,
            "flops_fraction_clean": clean.expected_cost / dearest,
        }


def _search(outputs: ExitOutputs, flops: Sequence[int], percents: Sequence[int]) -> list[tuple[str, Estimate]]:
    """The full network, one point per target that can be met, dearest first, and the first exit alone."""
    full, first = (
        estimate(outputs.confidences, outputs.correct, flops, thresholds)
        for thresholds in (no_early_exit(len(flops)), first_exit_only(len(flops)))
    )
    reachable = [p for p in sorted(percents, reverse=True) if p * flops[-1] / 100 >= flops[0]]
    found = calibrate(outputs.confidences, outputs.correct, flops, [p * flops[-1] / 100 for p in reachable])
    named = [(f"flops-{p}", e) for p, e in zip(reachable, found, strict=True)]
    return [("full", full), *named, ("first-exit", first)]
