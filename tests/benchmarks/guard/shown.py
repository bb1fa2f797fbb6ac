"""Tables and plots of ``bench-guard``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from tests.benchmarks.common import markdown_table
from tests.benchmarks.guard.judged import DETECTORS, camp_of
from tests.benchmarks.guard.train_screen import TRAINED_ON

Table: TypeAlias = tuple[str, list[str], list[list[object]]]
MIN_FOR_RARE = 5000
"""Benign answers below which no rate of 0.1% is claimed."""
_TRAINED_ON = (*TRAINED_ON, "all static")
_SERVED = ("neighbours", "overhead")


def markdown(tables: Sequence[Table], picture: str = "") -> str:
    """One under the other, and a picture at the end."""
    texts = [f"{title}\n\n{markdown_table(header, cells)}" for title, header, cells in tables]
    return "\n\n".join([*texts, *[picture] * bool(picture)])


def tables(document: Mapping[str, Any]) -> Iterator[Table]:
    """Of the parts that are there."""
    for model, part in document.get("offline", {}).items():
        yield from _of_model(model, part)
    for row in document.get("dos", {}).get("tables", ()):
        yield row["title"], row["header"], row["cells"]
    for part in [document[name] for name in _SERVED if name in document]:
        yield part["title"], part["header"], part["cells"]
    yield _measured_by(document)


def _of_model(model: str, part: Mapping[str, Any]) -> Iterator[Table]:
    of = (
        f"{part['num_benign']} benign answers, of which {part['num_hard']} hard; calibrated with "
        f"{part['num_calibration']} others; {part['num_attacked']} attacked pictures"
    )
    rare = part["num_benign"] >= MIN_FOR_RARE
    if not rare:
        of += f"; a rate of 0.1% is claimed from {MIN_FOR_RARE} benign answers on"
    yield _aims(model, part)
    for level in _levels(rare):
        title = (
            f"**{model}**: share found at p <= {_percent(level)} (nominal; the next table, and the heads of columns, "
            f"have what that was on benign answers; {of}; "
            "*: the pre-screen was trained on this attack, or on some of these)"
        )
        yield _found(title, part, level)
    yield _false_alarms(model, part, rare)
    yield _energy(model, part)
    yield _benign(model, part)
    yield _coverage(model, part)
    yield _sanity(model, part)


def _aims(model: str, part: Mapping[str, Any]) -> Table:
    cells: list[list[object]] = [
        [
            row["what"],
            None if row["aim"] is None else _limit(row, row["aim"]),
            "{value:.3f} ({low:.3f} to {high:.3f})".format(**row["measured"]),
            None if row["is_met"] is None else "met" if row["is_met"] else "missed",
        ]
        for row in part["aims"]
    ]
    return f"**{model}**: aims", ["figure", "aim", "measured", ""], cells


def _found(title: str, part: Mapping[str, Any], level: str) -> Table:
    benign = {row["detector"]: row.get(level) for row in part["false_alarms"]}
    header = ["attack", "times as long", "pictures"]
    header += [name if benign[name] is None else f"{name} ({benign[name]['value']:.1%})" for name in DETECTORS]
    header += [f"combined, at most {_percent(level)} of benign"]
    cells: list[list[object]] = []
    for row in part["found"]:
        shares = {name: _share(row[f"{name}_{level}"]) for name in DETECTORS}
        if row["attack"] in _TRAINED_ON and shares["screen"] is not None:
            shares["screen"] += " *"
        name = f"{row['attack']} (control)" if camp_of(row["attack"]) == "control" else row["attack"]
        cells.append([name, row["bucket"], row["num"], *shares.values(), _share(row[f"realised_{level}"])])
    return title, header, cells


def _false_alarms(model: str, part: Mapping[str, Any], rare: bool) -> Table:
    levels = _levels(rare)
    header = ["detector", "answers"]
    header += [f"{prefix}at p <= {_percent(level)}" for level in levels for prefix in ("", "hard ones ")]
    cells: list[list[object]] = []
    for row in part["false_alarms"]:
        shares = [row.get(f"{prefix}{level}") for level in levels for prefix in ("", "hard_")]
        cells.append([row["detector"], row["num"], *map(_share, shares)])
    return f"**{model}**: false alarms among benign answers that nothing was calibrated with", header, cells


def _energy(model: str, part: Mapping[str, Any]) -> Table:
    header = ["attack", "pictures", "tokens clean", "open", "guarded", "times as long", "guarded", "times the joules"]
    header += ["guarded", "capped", "p95 cap over clean", "attacker's J", "J saved"]
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
        [row["group"], row["num"], row["bounded"], _share(row["exceeded"])] for row in part["coverage"]
    ]
    title = f"**{model}**: benign answers over the bound that their text set (1% is the aim)"
    return title, ["group", "answers", "with a bound", "over it"], cells


def _sanity(model: str, part: Mapping[str, Any]) -> Table:
    cells: list[list[object]] = [
        [row["what"], f"{row['measured']:.2f}", _limit(row, row["limit"]), "holds" if row["holds"] else "fails"]
        for row in part["sanity"]
    ]
    return f"**{model}**: are the attacks what they should be", ["figure", "measured", "expected", ""], cells


def _measured_by(document: Mapping[str, Any]) -> Table:
    """Parts that were measured together have a command in common; others may be of another day."""
    parts: Iterable[tuple[str, Any]] = (
        *document.get("offline", {}).items(),
        *((name, document[name]) for name in ("dos", *_SERVED) if name in document),
    )
    cells: list[list[object]] = [
        [
            name,
            of["date"],
            of["commit"],
            f"{of['hardware']['cores']} cores of {of['hardware']['cpu']}",
            of["hardware"]["load_average_before"],
            f"`{of['command']}`",
        ]
        for name, of in ((name, part["of"]) for name, part in parts)
    ]
    return "**Measured by**", ["tables", "date", "commit", "processor", "load before", "command"], cells


def _levels(rare: bool) -> tuple[str, ...]:
    return ("0.01", "0.001") if rare else ("0.01",)


def _percent(level: str) -> str:
    return f"{100 * float(level):g}%"


def _limit(row: Mapping[str, Any], limit: float) -> str:
    return f"{'at most' if row['is_most'] else 'at least'} {limit:.3g}"


def _share(value: Mapping[str, float] | None) -> str | None:
    return None if value is None else f"{value['value']:.1%} ({value['low']:.1%} to {value['high']:.1%})"


def _ratio(value: Mapping[str, float]) -> str:
    return f"{value['value']:.2f} ({value['low']:.2f} to {value['high']:.2f})"


def draw(document: Mapping[str, Any], folder: Path) -> str:
    """ROC of each model, the rate of false alarms on a logarithmic axis. Returns a link, or nothing."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    models = {name: part for name, part in document.get("offline", {}).items() if part["roc"]}
    if not models:
        return ""
    folder.mkdir(parents=True, exist_ok=True)
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
    return "![Found of static and adaptive attacks over false alarms, each detector at every threshold](guard.png)"
