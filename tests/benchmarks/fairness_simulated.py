"""Part of ``bench-fairness``: one of five tenants sends its share of each of five tasks, or ten times that, on the
virtual clock (``schedulers.lab.greedy``). The others send half of theirs. Beside it, a gateway that lets in whoever
comes first and does not tell what tenants were served elsewhere.

Tasks whose requests take milliseconds are played for seconds, the others for minutes: so that of each, hundreds of
requests make a p99.
"""

from __future__ import annotations

from typing import Any, Final

from schedulers.lab.greedy import OTHERS, USED, Asked, played, seen
from schedulers.lab.shapes import TASKS
from tests.benchmarks.common import markdown_table

SHARES: Final = (0.0, 1.0, 10.0)
PLACES: Final = {"default": 512, "small": 64}
SEEDS: Final = (0, 1)
PLAYED: Final = ((("classify", "infer"), 4.0), (("chat", "images", "videos"), 300.0))
"""Tasks that are asked together, and for how many seconds."""


def measure(*, quick: bool = False) -> dict[str, Any]:
    """What the others see, by gateway, by what the greedy tenant sends, by model."""
    rows = []
    for places in PLACES.values():
        for is_fair in (True, False):
            for greedy in SHARES:
                models: dict[str, Any] = {}
                for names, seconds in PLAYED:
                    runs = [
                        played(
                            greedy,
                            is_fair=is_fair,
                            seconds=seconds / 10 if quick else seconds,
                            places=places,
                            seed=seed,
                            models=names,
                        )
                        for seed in (SEEDS[:1] if quick else SEEDS)
                    ]
                    models |= _seen(runs)
                rows.append({"places": places, "is_fair": is_fair, "greedy": greedy, "models": models})
    return {"seeds": len(SEEDS), "others": len(OTHERS), "used": USED, "rows": rows}


def _seen(runs: list[list[Asked]]) -> dict[str, Any]:
    """Over all seeds, and the p99 of each."""
    each = [seen(run) for run in runs]
    return {
        model: {
            "num": sum(one.model == model for run in runs for one in run),
            "p99_s": one.p99_s,
            "good": one.good,
            "p99_by_seed_s": [alone[model].p99_s for alone in each],
        }
        for model, one in seen([one for run in runs for one in run]).items()
    }


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
    counts = ", ".join(f"{document['rows'][0]['models'][model]['num']} of {model}" for model in TASKS)
    return [
        f"{document['others']} tenants of equal weight send {document['used']:g} of their share of each model, with "
        f"Poisson arrivals and {document['seeds']} seeds; all requests have deadlines ({counts}, by all of them). "
        "Cells: p99 of their answers, and the part of their requests that was answered in time; of ten shares against "
        "one, the p99 over all seeds, and from the seed that saw least of it to the one that saw most.",
        "",
        *markdown_table(header, rows).splitlines(),
    ]


def _cell(one: dict[str, Any]) -> str:
    p99_s = one["p99_s"]
    return f"{'-' if p99_s is None else f'{1e3 * p99_s:.0f} ms'}, {one['good']:.1%}"


def _change(before: dict[str, Any], after: dict[str, Any]) -> str:
    if None in (*before["p99_by_seed_s"], *after["p99_by_seed_s"]):
        ratio = "-"
    else:
        each = [ten / one for one, ten in zip(before["p99_by_seed_s"], after["p99_by_seed_s"], strict=True)]
        ratio = f"{after['p99_s'] / before['p99_s']:.2f}x ({min(each):.2f} to {max(each):.2f})"
    return f"{ratio}, {after['good'] / before['good'] - 1.0:+.1%}"
