"""Mixtures of experts: what running them together buys, and what a scheduler that knows them does.

    make bench-moe                                              # all parts
    python -m tests.benchmarks.bench_moe --only kernel          # one part anew, the others as they were

A part is a module of this folder with ``measure(quick=...)``, a document, and ``lines``, what of it a reader wants. It
says itself what its sides are; they take turns in one run.
"""

from __future__ import annotations

import argparse
import importlib
import json
from typing import Any

from tests.benchmarks.common import add_output_options, out_dir, provenance

#: Name on the command line -> module and heading.
PARTS = {
    "kernel": ("moe_kernel", "One layer of experts"),
    "placement": ("moe_placement", "Experts on many ranks"),
    "residency": ("moe_residency", "Two networks, one of them in memory"),
    "signatures": ("moe_signatures", "Requests by what they wake, and hot experts"),
    "served": ("moe_served", "A served model of pictures"),
}


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="do these parts, keep the others")
    add_output_options(parser)
    args = parser.parse_args()
    folder = out_dir(args)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "moe.json"
    document = json.loads(path.read_text()) if path.exists() else {}
    for part in args.only:
        document[part] = {**provenance("moe"), **_module(part).measure(quick=args.quick)}
        print(f"\n## {PARTS[part][1]}\n", *_module(part).lines(document[part]), sep="\n", flush=True)
        # After each: a later one that fails loses nothing.
        path.write_text(json.dumps({name: document[name] for name in PARTS if name in document}, indent=1) + "\n")
    (folder / "moe.md").write_text("\n".join(_page(document)) + "\n")


def _page(document: dict[str, Any]) -> list[str]:
    page = []
    for part, (_, heading) in PARTS.items():
        if part in document:
            its = document[part]
            hardware = its["hardware"]
            origin = (
                f"{its['date']}, commit {its['commit']}, {hardware['cores']} cores of {hardware['cpu']}, torch "
                f"{hardware['torch']}, load before {hardware['load_average_before']}; `{its['command']}`"
            )
            page += [f"## {heading}", "", origin, "", *_module(part).lines(its), ""]
    return page[:-1]


def _module(part: str) -> Any:
    return importlib.import_module(f"tests.benchmarks.{PARTS[part][0]}")


if __name__ == "__main__":
    main()
