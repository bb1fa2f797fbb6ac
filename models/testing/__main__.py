"""``python -m models.testing NAME``: run a family's checks. With ``--oracle FOLDER``: compare it with official code."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from models.contract import Family
from models.registry import families
from models.testing import checks_of
from models.testing.parity import parities
from models.testing.subject import Subject


def main() -> None:
    """Exit with status 1 if a check fails or a difference is too large."""
    parser = argparse.ArgumentParser(prog="python -m models.testing", description=__doc__)
    parser.add_argument("family", help="as `vireo families` lists it")
    parser.add_argument("--oracle", type=Path, metavar="FOLDER", help="checkout of the official code; see the card")
    parser.add_argument("--model", metavar="ID", help="variant or miniature to compare; default: the first")
    args = parser.parse_args()
    if args.family not in families():
        parser.error(f"unknown family {args.family!r}; known families: {', '.join(families())}")
    family = families()[args.family]
    if args.oracle is not None and family.oracle is None:
        parser.error(f"{family.name} names no oracle")
    sys.exit(_compare(family, args.model, args.oracle) if args.oracle is not None else _check(family))


def _check(family: Family) -> int:
    failed = 0
    for check in checks_of(family):
        try:
            check()
            print(f"ok      {check}", flush=True)
        except AssertionError as error:
            failed += 1
            print(f"FAILED  {check}: {error}", flush=True)
    return int(failed > 0)


def _compare(family: Family, model: str | None, official: Path) -> int:
    """Print a Markdown table, as in the family's card."""
    torch.manual_seed(0)
    is_close = True
    print("| compared | largest value | largest difference |\n|---|---:|---:|")
    names = [*(variant.id for variant in (*family.variants, *family.miniatures)), *family.examples]
    subject = Subject(family, model or names[0])
    for parity in parities(subject, official):
        is_close &= parity.largest_difference <= parity.tolerance
        print(f"| {parity.case} | {parity.largest_value:.1f} | {parity.largest_difference:.1e} |", flush=True)
    return int(not is_close)


if __name__ == "__main__":
    main()
