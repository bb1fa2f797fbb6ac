"""Budgets: who is answered within them under load, by policy, and what a decision costs.

    make bench-budgets                                          # simulated, and the cost of decisions
    python -m tests.benchmarks.bench_budgets --served           # also a served system beside its simulation
    python -m tests.benchmarks.bench_budgets --only decisions   # one part anew, the others as they were

*Simulated* is the same to the last digit wherever it is run, as long as code and tables of operating points are.
"""

from __future__ import annotations

from typing import Any

from tests.benchmarks.common import out_dir, parser_of, provenance
from tests.benchmarks.parts import Parts, module_of, run_parts

#: Name on the command line -> module and heading.
PARTS: Parts = {
    "simulated": ("budgets_simulated", "The mixed trace, simulated"),
    "decisions": ("budgets_decisions", "What a decision costs"),
    "served": ("budgets_served", "Simulated against served"),
}


def main() -> None:
    """Measure what is asked for."""
    parser = parser_of(__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, help="do these parts, keep the others")
    parser.add_argument("--served", action="store_true", help="also start a system, for about three minutes")
    args = parser.parse_args()
    chosen = args.only or [part for part in PARTS if part != "served" or args.served]

    def measure(part: str) -> dict[str, Any]:
        return {**provenance("budgets"), **module_of(PARTS, part).measure(quick=args.quick)}

    run_parts("budgets", PARTS, chosen, measure, out_dir(args), must=True)


if __name__ == "__main__":
    main()
