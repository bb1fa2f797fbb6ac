"""Tables and plots of ``bench-guard``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from tests.benchmarks.common import markdown_table
from tests.benchmarks.guard.judged import DETECTORS, MIN_FOR_RARE

Table: TypeAlias = tuple[str, list[str], list[list[object]]]


def markdown(tables: Sequence[Table]) -> str:
    """One under the other."""
    return "\n\n".join(f"{title}\n\n{markdown_table(header, cells)}" for title, header, cells in tables)


def tables(document: Mapping[str, Any]) -> Iterator[Table]:
    """Of the parts that are there."""
    for model, part in document.get("offline", {}).items():
        if model != "of":
            yield from _of_model(model, part)
    for row in document.get("dos", {}).get("tables", ()):
        yield row["title"], row["header"], row["cells"]
    for name in ("neighbours", "overhead"):
        if name in document:
            part = document[name]
            yield part["title"], part["header"], part["cells"]


def _of_model(model: str, part: Mapping[str, Any]) -> Iterator[Table]:
    of = (
        f"{part['num_benign']} benign answers, of which {part['num_hard']} hard; calibrated with "
        f"{part['num_calibration']} others; {part['num_attacked']} attacked pictures"
    )
    rare = part["num_benign"] >= MIN_FOR_RARE
    yield _aims(model, part)
    yield _found(f"**{model}**: share of attacked answers found at 1% false alarms as calibrated ({of})", part, "0.01")
    if rare:
        yield _found(f"**{model}**: the same at 0.1%", part, "0.001")
    yield _false_alarms(model, part, rare)
    yield _energy(model, part)
    yield _benign(model, part)
    yield _coverage(model, part)


def _aims(model: str, part: Mapping[str, Any]) -> Table:
    cells: list[list[object]] = [
        [
            row["what"],
            f"{'at most' if row['is_most'] else 'at least'} {row['aim']:g}",
            "{value:.3f} ({low:.3f} to {high:.3f})".format(**row["measured"]),
            "met" if row["is_met"] else "missed",
        ]
        for row in part["aims"]
    ]
    return f"**{model}**: aims", ["figure", "aim", "measured", ""], cells


def _found(title: str, part: Mapping[str, Any], level: str) -> Table:
    header = ["attack", "times as long", "pictures", *DETECTORS]
    cells: list[list[object]] = [
        [row["attack"], row["bucket"], row["num"], *(_share(row[f"{name}_{level}"]) for name in DETECTORS)]
        for row in part["found"]
    ]
    return title, header, cells


def _false_alarms(model: str, part: Mapping[str, Any], rare: bool) -> Table:
    levels = ("0.01", "0.001") if rare else ("0.01",)
    header = ["detector", "answers"]
    header += [f"{prefix}at {float(level):.1%}" for level in levels for prefix in ("", "hard ones ")]
    cells: list[list[object]] = []
    for row in part["false_alarms"]:
        shares = [row.get(f"{prefix}{level}") for level in levels for prefix in ("", "hard_")]
        cells.append([row["detector"], row["num"], *(None if one is None else _share(one) for one in shares)])
    return f"**{model}**: false alarms among benign answers that nothing was calibrated with", header, cells


def _energy(model: str, part: Mapping[str, Any]) -> Table:
    header = ["attack", "pictures", "tokens clean", "open", "guarded", "times as long", "guarded", "times the joules"]
    header += ["guarded", "capped", "cap over clean", "attacker's J", "J saved"]
    cells: list[list[object]] = [
        [
            row["attack"],
            row["num"],
            f"{row['clean_tokens']:.1f}",
            f"{row['tokens']:.1f}",
            f"{row['guarded_tokens']:.1f}",
            _ratio(row["length"]),
            _ratio(row["guarded_length"]),
            _ratio(row["energy"]),
            _ratio(row["guarded_energy"]),
            _share(row["capped"]),
            f"{row['cap_over_clean']:.1f}",
            f"{row['attacker_j']:.0f}",
            f"{row['saved_j']:.1f}",
        ]
        for row in part["energy"]
    ]
    return f"**{model}**: what attacks cost, without and with the guard; second looks are paid for", header, cells


def _benign(model: str, part: Mapping[str, Any]) -> Table:
    header = [
        "benign answers",
        "number",
        "embedding looked at",
        "looked at twice",
        "put last",
        "capped",
        "cut off by the guard",
    ]
    header += ["right before", "right after", "tokens of second looks"]
    cells: list[list[object]] = [
        [
            row["which"],
            row["num"],
            *(_share(row[name]) for name in ("glanced", "suspects", "last", "capped", "truncated")),
            *(None if row[name] is None else f"{row[name]:.2%}" for name in ("score_before", "score_after")),
            f"{row['probe_share']:.2%}",
        ]
        for row in part["benign"]
    ]
    return f"**{model}**: what the guard does to benign requests", header, cells


def _coverage(model: str, part: Mapping[str, Any]) -> Table:
    cells: list[list[object]] = [
        [row["group"], row["num"], row["bounded"], None if row["exceeded"] is None else _share(row["exceeded"])]
        for row in part["coverage"]
    ]
    title = f"**{model}**: benign answers over the bound that their text set (1% is the aim)"
    return title, ["group", "answers", "with a bound", "over it"], cells


def _share(value: Mapping[str, float]) -> str:
    return f"{value['value']:.1%} ({value['low']:.1%} to {value['high']:.1%})"


def _ratio(value: Mapping[str, float]) -> str:
    return f"{value['value']:.2f} ({value['low']:.2f} to {value['high']:.2f})"


def draw(document: Mapping[str, Any], folder: Path) -> None:
    """ROC of each model, the rate of false alarms on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    models = {name: part for name, part in document.get("offline", {}).items() if name != "of" and part["roc"]}
    if not models:
        return
    figure, axes = plt.subplots(1, len(models), figsize=(5.2 * len(models), 4.2), squeeze=False)
    for axis, (name, part) in zip(axes[0], models.items(), strict=True):
        floor = 0.5 / part["num_benign"]
        for detector, points in part["roc"].items():
            axis.step([max(x, floor) for x, _ in points], [y for _, y in points], where="post", label=detector)
        axis.axvline(0.01, color="grey", linewidth=0.8, linestyle=":")
        axis.set(xscale="log", xlim=(floor, 1), ylim=(0, 1.02), xlabel="false alarms", title=name)
        axis.set_ylabel("found, of answers six times as long")
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(folder / "guard.png", dpi=110)
    plt.close(figure)
