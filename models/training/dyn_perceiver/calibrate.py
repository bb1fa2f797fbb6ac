"""Make the operating-point table of a checkpoint: thresholds, cost and quality of each point, written beside it."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from models.contract import Variant
from models.families.dyn_perceiver.flops import exit_flops
from models.families.dyn_perceiver.load import build_meta, load_model
from models.families.dyn_perceiver.runner import DynPerceiverRunner
from models.identity import checkpoint_sha256
from models.methods.early_exit.calibration import Estimate, calibrate, estimate, first_exit_only, no_early_exit
from models.operating_points import FORMAT, OperatingPoint, StageCost, Table, write_table
from models.training.dyn_perceiver.evaluation import (
    HARD_COPIES,
    HARD_STRENGTH,
    SPLIT_SEED,
    ExitOutputs,
    Pictures,
    exit_outputs,
    held_out_sets,
)
from models.training.dyn_perceiver.image_folder import folder_sets
from models.training.dyn_perceiver.measure import expected_batch_ms, hardware, stage_costs

TARGET_PERCENT = (75, 60, 50, 40, 30, 25, 20)
ENERGY_BATCH = 16
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """``watts``: power of one busy core (or of the device), an assumption that the table repeats."""

    device: str = "cpu"
    num_threads: int = 1
    watts: float = 6.0
    repeats: int = 30
    target_percent: tuple[int, ...] = TARGET_PERCENT


def calibrate_model(
    variant: Variant,
    config: CalibrationConfig,
    *,
    data_dir: Path | None = None,
    on_progress: OnProgress = lambda what, done, total: None,
) -> Table:
    """Measure, search thresholds on the calibration split, judge them on the test split, write the table.

    ``data_dir`` holds labelled pictures, one folder per class in class order; the nano variant brings its own.

    Raises:
        ValueError: no weights, or no pictures to calibrate a published variant on.
    """
    if variant.weights is None:
        raise ValueError(
            f"{variant.id} ships without weights; run 'vireo convert' first, then calibrate with --checkpoint"
        )
    threads_before = torch.get_num_threads()
    torch.set_num_threads(config.num_threads)
    try:
        runner = DynPerceiverRunner(load_model(variant, config.device), variant)
        table = _table(variant, config, runner, _pictures(variant, data_dir), on_progress)
    finally:
        torch.set_num_threads(threads_before)
    write_table(table, variant.weights)
    return table


@dataclass(frozen=True)
class _Sets:
    """Pictures to search on, and pictures to judge on by name (always with "mixed")."""

    calibration: Pictures
    test: Mapping[str, Pictures]
    description: dict[str, object]


def _pictures(variant: Variant, data_dir: Path | None) -> _Sets:
    if data_dir is not None:
        search, judge = folder_sets(data_dir, variant)
        sizes = {"calibration": len(search), "test": len(judge)}
        return _Sets(search, {"mixed": judge}, {"source": "labelled folder, split in halves by seed 0", **sizes})
    if not variant.is_nano:
        raise ValueError(
            f"{variant.id} needs labelled pictures to calibrate on; pass --data DIR (one folder per class)"
        )
    search, tests = held_out_sets("calibration")["mixed"], held_out_sets("test")
    description: dict[str, object] = {
        "source": "scikit-learn digits, held out from training",
        "seed": SPLIT_SEED,
        "hard_copies": HARD_COPIES,
        "hard_strength": list(HARD_STRENGTH),
        "calibration": len(search),
        "test": {name: len(pictures) for name, pictures in tests.items()},
    }
    return _Sets(search, tests, description)


def _table(
    variant: Variant, config: CalibrationConfig, runner: DynPerceiverRunner, sets: _Sets, on_progress: OnProgress
) -> Table:
    assert variant.weights is not None
    flops = exit_flops(build_meta(variant))
    costs = stage_costs(
        runner,
        variant.io.input_size,
        runner.device,
        repeats=config.repeats,
        on_progress=lambda done, total: on_progress("timing stages", done, total),
    )
    on_progress("searching thresholds", 0, 1)
    search = exit_outputs(runner, sets.calibration)
    tests = {name: exit_outputs(runner, pictures) for name, pictures in sets.test.items()}
    found = _search(search, flops, config.target_percent)
    points = [_point(name, e, tests, flops, costs, config.watts) for name, e in found]
    on_progress("searching thresholds", 1, 1)
    return {
        "format": FORMAT,
        "model": variant.id,
        "checkpoint_sha256": checkpoint_sha256(variant.weights),
        "hardware": hardware(runner.device),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "split": sets.description,
        "exit_flops": flops,
        "stage_cost_ms": costs,
        "energy": {
            "source": "estimate",
            "watts": config.watts,
            "note": f"busy milliseconds at batch {ENERGY_BATCH} times an assumed power of one busy core; not metered",
        },
        "points": points,
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


def _point(
    name: str,
    searched: Estimate,
    tests: Mapping[str, ExitOutputs],
    flops: Sequence[int],
    costs: StageCost,
    watts: float,
) -> OperatingPoint:
    judged = {k: estimate(o.confidences, o.correct, flops, searched.thresholds) for k, o in tests.items()}
    mixed = judged["mixed"]
    ms = {str(size): round(expected_batch_ms(costs, mixed.exit_shares, size), 4) for size in costs["batch_sizes"]}
    clean, hard = judged.get("clean", mixed), judged.get("hard", mixed)
    return {
        "name": name,
        "thresholds": list(searched.thresholds),
        "exit_shares": list(mixed.exit_shares),
        "expected_flops": mixed.expected_cost,
        "flops_fraction": mixed.expected_cost / flops[-1],
        "ms_by_batch": ms,
        "joules_per_sample": watts * ms[str(ENERGY_BATCH)] / ENERGY_BATCH / 1e3,
        "accuracy": mixed.accuracy,
        "accuracy_clean": clean.accuracy,
        "accuracy_hard": hard.accuracy,
        "accuracy_calibration": searched.accuracy,
        "flops_fraction_clean": clean.expected_cost / flops[-1],
    }
