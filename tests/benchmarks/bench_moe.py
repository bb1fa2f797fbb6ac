"""Mixtures of experts: what running them together buys, and what a scheduler that knows them does.

    make bench-moe                                              # all parts
    python -m tests.benchmarks.bench_moe --only kernel          # one part anew, the others as they were

A part is a module of this folder with ``measure(quick=...)``, a document, and ``lines``, what of it a reader wants. It
says itself what its sides are; they take turns in one run.
"""

from __future__ import annotations

from typing import Any

from tests.benchmarks.common import out_dir, parser_of, provenance
from tests.benchmarks.parts import Parts, module_of, run_parts

#: Name on the command line -> module and heading.
PARTS: Parts = {
    "kernel": ("moe_kernel", "One layer of experts"),
    "placement": ("moe_placement", "Experts on many ranks"),
    "residency": ("moe_residency", "Two networks, one of them in memory"),
    "signatures": ("moe_signatures", "Requests by what they wake, and hot experts"),
    "served": ("moe_served", "A served model of pictures"),
}


def main() -> None:
    """Measure what is asked for."""
    parser = parser_of(__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="do these parts, keep the others")
    args = parser.parse_args()

    def measure(part: str) -> dict[str, Any]:
        return {**provenance("moe"), **module_of(PARTS, part).measure(quick=args.quick)}

    run_parts("moe", PARTS, args.only, measure, out_dir(args), must=True)


if __name__ == "__main__":
    main()
