"""Everything that is published of one model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from schedulers.guard.calibration import GuardCalibration
from tests.benchmarks.guard.aims import aims, sanity
from tests.benchmarks.guard.costs import energy, joules_of
from tests.benchmarks.guard.judged import Judged, counted, records_of
from tests.benchmarks.guard.rates import Decode, benign_rows, coverage, false_alarms, found, limits_of, roc


def measured(judged: Sequence[Judged], calibration: GuardCalibration, *, decode: Decode) -> dict[str, Any]:
    """Rates, lengths and joules, as JSON holds them."""
    mixed = [one for one in judged if one.record is None and not one.subject.is_extra]
    hard = [one for one in judged if one.record is None and one.subject.is_hard]
    attacked = [one for one in judged if one.record is not None]
    joules, limits = joules_of(records_of(attacked)), limits_of(mixed)
    spent = list(energy(attacked, joules))
    return {
        "num_benign": len(mixed),
        "num_hard": len(hard),
        "num_calibration": calibration.num_benign,
        "num_attacked": len(counted(attacked)),
        "coverage": list(coverage(mixed)),
        "benign": benign_rows(mixed, hard, decode),
        "false_alarms": list(false_alarms(mixed, hard)),
        "limits": {f"{level:g}": limit for level, limit in limits.items()},
        "found": list(found(attacked, limits)),
        "roc": roc(mixed, attacked),
        "energy": spent,
        "aims": list(aims(mixed, attacked, spent, decode)),
        "sanity": list(sanity(attacked)),
        "joules": {"of_a_request": joules[0], "of_a_token": joules[1]},
    }
