"""The card of a family in Markdown, from its description alone. Free of torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from models.contract import Family, Knob, Variant


def family_card(family: Family) -> str:
    """What it is for, its settings, and its variants with licence, source and published figures."""
    parts = [
        f"# {family.name}",
        f"{family.summary}\n\nTasks: {', '.join(family.tasks)}. Runs as: {family.shape}.",
    ]
    if family.resolve is not None:
        parts.append(
            f"Models are named `{family.name}:NAME`, for example `{family.name}:{(*family.examples, 'NAME')[0]}`."
        )
    if family.knobs:
        rows = [(knob.name, _takes(knob), str(knob.default), str(knob.scope), _purpose(knob)) for knob in family.knobs]
        parts.append(_table(("setting", "takes", "default", "set for a", "what it does"), rows))
    if family.variants:
        rows = [
            (v.id, v.summary, v.source.licence, v.source.paper or v.source.url, _weights(v)) for v in family.variants
        ]
        parts.append(_table(("model", "what it is", "licence", "source", "weights"), rows))
    parts += [f"Does not keep `{check}`: {why}" for check, why in family.exempt.items()]
    return "\n\n".join(parts) + "\n"


def _takes(knob: Knob) -> str:
    if knob.values:
        return ", ".join(map(str, knob.values))
    if knob.low is not None and knob.high is not None:
        return f"{knob.low:g} to {knob.high:g}"
    return "text"


def _purpose(knob: Knob) -> str:
    return f"{knob.summary} Trades {knob.trades}." if knob.trades else knob.summary


def _weights(variant: Variant) -> str:
    return "yours to bring" if variant.weights is None else "trained here" if variant.is_nano else "a folder"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
