"""Part of ``bench-fairness``: one of five tenants sends its share of each of five tasks, or ten times that, on the
virtual clock (``schedulers.lab.greedy``). The others send half of theirs. Beside it, a gateway that lets in whoever
comes first and does not tell what tenants were served elsewhere."""

from __future__ import annotations

from typing import Any, Final

from schedulers.lab.greedy import OTHERS, USED, seen
from schedulers.lab.shapes import TASKS
from tests.benchmarks.common import markdown_table

SHARES: Final = (0.0, 1.0, 10.0)
PLACES: Final = {"default": 512, "small": 64}
_SECONDS: Final = 60.0


def measure(*, quick: bool = False) -> dict[str, Any]:
    """What the others see, by gateway, by what the greedy tenant sends, by model."""
    seconds, rows = (10.0 if quick else _SECONDS), []
    for places in PLACES.values():
        for is_fair in (True, False):
            for greedy in SHARES:
                result = seen(greedy, is_fair=is_fair, seconds=seconds, places=places)
                row = {model: {"p99_s": one.p99_s, "good": one.good} for model, one in result.items()}
                rows.append({"places": places, "is_fair": is_fair, "greedy": greedy, "models": row})
    return {"seconds": seconds, "others": len(OTHERS), "used": USED, "rows": rows}


def lines(document: dict[str, Any]) -> list[str]:
    """A table: p99 and the part answered in time, and both beside ten shares against one."""
    header = ("places", "gateway", "greedy sends", *TASKS)
    rows: list[tuple[object, ...]] = []
    groups: dict[tuple[int, bool], dict[float, Any]] = {}
    for row in document["rows"]:
        groups.setdefault((row["places"], row["is_fair"]), {})[row["greedy"]] = row["models"]
    for (places, is_fair), by_greedy in groups.items():
        gateway = "shares" if is_fair else "first come"
        for greedy, models in by_greedy.items():
            rows.append((places, gateway, f"{greedy:g} shares", *(_cell(models[model]) for model in TASKS)))
        one, ten = by_greedy[1.0], by_greedy[10.0]
        rows.append((places, gateway, "10 against 1", *(_change(one[model], ten[model]) for model in TASKS)))
    return [
        f"{document['others']} tenants of equal weight send {document['used']:g} of their share of each model, for "
        f"{document['seconds']:g} s of Poisson arrivals, one seed; all have deadlines. Cells: p99 of their answers, "
        "and the part of their requests that was answered in time.",
        "",
        *markdown_table(header, rows).splitlines(),
    ]


def _cell(one: dict[str, Any]) -> str:
    p99_s = one["p99_s"]
    return f"{'-' if p99_s is None else f'{1e3 * p99_s:.0f} ms'}, {one['good']:.1%}"


def _change(before: dict[str, Any], after: dict[str, Any]) -> str:
    ratio = "-" if None in (before["p99_s"], after["p99_s"]) else f"{after['p99_s'] / before['p99_s']:.2f}x"
    return f"{ratio}, {after['good'] / before['good'] - 1.0:+.1%}"
