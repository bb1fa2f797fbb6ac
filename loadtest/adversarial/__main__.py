"""Attackers as measuring instruments, for models of this installation.

python -m loadtest.adversarial list
python -m loadtest.adversarial images --attack delayed-eos --tasks word
python -m loadtest.adversarial exits
python -m loadtest.adversarial experts
python -m loadtest.adversarial dearest
python -m loadtest.adversarial requests --url http://127.0.0.1:8000
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from rich.progress import Progress

OUT = Path("out/adversarial")


def main() -> int:
    """Command line. Returns the exit code: 1 where a hostile request was not refused."""
    args = _parser().parse_args()
    command: Callable[[argparse.Namespace], int] = args.command
    return command(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.adversarial",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("list", help="name the attacks on a chat's pictures").set_defaults(command=_list)
    _add_images(commands.add_parser("images", help="attack a chat's pictures"))
    exits = commands.add_parser("exits", help="delay a classifier's exits")
    exits.add_argument("--model", default="dyn-perceiver-nano")
    exits.add_argument("--pictures", type=int, default=64, help="how many")
    exits.add_argument("--eps", type=int, default=8, help="bound, grey levels")
    exits.add_argument("--iterations", type=int, default=30)
    exits.set_defaults(command=_exits)
    experts = commands.add_parser("experts", help="pile up on few experts")
    experts.add_argument("--model", default="dit-moe-nano")
    experts.add_argument("--ranks", type=int, default=2)
    experts.add_argument("--seeds", type=int, default=2, help="of each prompt")
    experts.set_defaults(command=_experts)
    commands.add_parser("dearest", help="what parameters alone can cost").set_defaults(command=_dearest)
    requests = commands.add_parser("requests", help="send hostile parameters to a server")
    requests.add_argument("--url", default="http://127.0.0.1:8000")
    requests.add_argument("--key", help="API key, if the server wants one")
    requests.set_defaults(command=_requests)
    return parser


def _add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="texthawk2-nano")
    parser.add_argument("--attack", required=True, help="one of `list`")
    parser.add_argument("--tasks", default="word", help="with commas between")
    parser.add_argument("--pictures", type=int, default=4, help="of each task")
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--every", type=int, default=10, help="iterations between two looks")
    parser.add_argument("--cap", type=int, default=512, help="most tokens of an answer")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT, help=f"default {OUT}")
    parser.add_argument("--estimate", action="store_true", help="say what an iteration takes, and stop")
    parser.add_argument("--pause-while", type=Path, metavar="FILE", help="wait while this file is there")
    parser.set_defaults(command=_images)


def _list(_: argparse.Namespace) -> int:
    from loadtest.adversarial.recipes import RECIPES

    for name, recipe in RECIPES.items():
        print(f"{name:25}{recipe.summary}")
    return 0


def _images(args: argparse.Namespace) -> int:
    from loadtest.adversarial.pictures import cases
    from loadtest.adversarial.runs import Plan, run, wait_while
    from loadtest.adversarial.victim import load_victim

    victim = load_victim(args.model)
    chosen = [
        case
        for task in args.tasks.split(",")
        for case in cases(task, args.pictures, seed=args.seed, limits=victim.limits)
    ]
    plan = Plan(
        model=args.model,
        attack=args.attack,
        iterations=args.iterations,
        every=args.every,
        seed=args.seed,
        cap=args.cap,
    )
    if args.estimate:
        from loadtest.adversarial.estimate import estimate

        print(json.dumps(estimate(plan, victim, chosen), indent=1))
        return 0
    with Progress(transient=True) as progress:
        bar = progress.add_task(args.attack, total=args.iterations)
        records = run(
            plan,
            victim,
            chosen,
            args.out / args.model / args.attack,
            on_progress=lambda _, done, total: progress.update(bar, completed=done, total=total),
            hold=lambda: wait_while(args.pause_while),
        )
    for one in records:
        print(f"{one.task} {one.index}: {one.clean_tokens} -> {one.tokens} tokens, {one.attacker_j:.0f} J")
    return 0


def _exits(args: argparse.Namespace) -> int:
    from loadtest.adversarial.tables import exits_table

    print(json.dumps(exits_table(args.model, args.pictures, args.eps / 255, args.iterations), indent=1))
    return 0


def _experts(args: argparse.Namespace) -> int:
    from loadtest.adversarial.tables import experts_table

    print(json.dumps(experts_table(args.model, args.ranks, args.seeds), indent=1))
    return 0


def _dearest(_: argparse.Namespace) -> int:
    from loadtest.adversarial.tables import dearest_table

    print(json.dumps(dearest_table(), indent=1))
    return 0


def _requests(args: argparse.Namespace) -> int:
    from loadtest.adversarial.requests import client_of, hostile, send

    with client_of(args.url, args.key) as client:
        outcomes = list(send(client, hostile()))
    for one in outcomes:
        if not one.is_refused:
            print(f"{one.status} {one.code} {one.what}")
    slowest = max(outcomes, key=lambda one: one.seconds)
    refused = sum(one.is_refused for one in outcomes)
    print(f"{refused} of {len(outcomes)} refused; slowest {1000 * slowest.seconds:.0f} ms: {slowest.what}")
    return 0 if refused == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
