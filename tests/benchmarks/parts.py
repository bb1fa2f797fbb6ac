"""A benchmark of several parts, each measured by itself: one anew, the others as they were.

A part is a module of this folder with ``lines``, what of its document a reader wants, and ``measure``.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

Parts: TypeAlias = Mapping[str, tuple[str, str]]
"""Name on the command line -> module and heading."""


class Missing(Exception):
    """What a part measures is not here."""


def module_of(parts: Parts, part: str) -> Any:
    """The module that measures it."""
    return importlib.import_module(f"tests.benchmarks.{parts[part][0]}")


def run_parts(
    name: str,
    parts: Parts,
    chosen: Iterable[str],
    measure: Callable[[str], Mapping[str, Any]],
    folder: Path,
    *,
    must: bool,
) -> None:
    """Measure ``chosen`` parts into NAME.json and NAME.md of a folder. ``must``: end where a part is missing what it
    needs, in place of leaving it out."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    document = json.loads(path.read_text()) if path.exists() else {}
    for part in chosen:
        try:
            document[part] = dict(measure(part))
        except Missing as error:
            if must:
                raise SystemExit(f"{part}: {error}") from None
            print(f"\n{part} is left out: {error}", flush=True)
            continue
        print(f"\n## {parts[part][1]}\n", *module_of(parts, part).lines(document[part]), sep="\n", flush=True)
        # After each: a later one that fails loses nothing.
        path.write_text(json.dumps({one: document[one] for one in parts if one in document}, indent=1) + "\n")
    (folder / f"{name}.md").write_text("\n".join(_page(parts, document)) + "\n")


def _page(parts: Parts, document: Mapping[str, Any]) -> list[str]:
    page = []
    for part, (_, heading) in parts.items():
        if part in document:
            its = document[part]
            page += [f"## {heading}", "", _origin(its), "", *module_of(parts, part).lines(its), ""]
    return page[:-1]


def _origin(its: Mapping[str, Any]) -> str:
    hardware = its["hardware"]
    threads = f"{its['threads']} of " if "threads" in its else ""
    others = f"others kept {its['foreign_cores']} cores busy, {its['took_s']} s" if "foreign_cores" in its else ""
    facts = (
        its["date"],
        f"commit {its['commit']}",
        f"{threads}{hardware['cores']} cores of {hardware['cpu']}",
        f"torch {hardware['torch']}",
        f"load before {hardware['load_average_before']}",
        others,
    )
    return f"{', '.join(filter(None, facts))}; `{its['command']}`"
