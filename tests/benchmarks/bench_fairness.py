"""A tenant that sends ten times its share, and tenants that make clips and pictures: what others see.

    make bench-fairness                                         # all parts
    python -m tests.benchmarks.bench_fairness --only simulated  # one part anew, the others as they were

``simulated``: five models on the virtual clock (``schedulers.lab.greedy``). ``served``: this machine, with ``vireo
loadtest`` as the client; the victim alone and beside others take turns in one run.
"""

from __future__ import annotations

from typing import Any

from tests.benchmarks.common import out_dir, parser_of, provenance
from tests.benchmarks.parts import Parts, module_of, run_parts

PARTS: Parts = {
    "simulated": ("fairness_simulated", "Five tasks, simulated"),
    "served": ("fairness_served", "Served: a classifier and a chat model, beside pictures and clips"),
}
"""Name on the command line -> module and heading."""


def main() -> None:
    """Measure what is asked for."""
    parser = parser_of(__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="do these parts, keep the others")
    args = parser.parse_args()

    def measure(part: str) -> dict[str, Any]:
        return {**provenance("fairness"), **module_of(PARTS, part).measure(quick=args.quick)}

    run_parts("fairness", PARTS, args.only, measure, out_dir(args), must=True)


if __name__ == "__main__":
    main()
