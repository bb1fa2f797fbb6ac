"""How well calibrated prices predict runs that they were not fitted to, for each nano model that is served.

    make bench-costs                                          # all models, within ten minutes on two quiet cores
    python -m tests.benchmarks.bench_costs --only vdit-nano   # these models anew, the others as they were

Each model runs at a few of its points, as ``vireo calibrate`` times it and with the same fit; qualities are not judged.
Held out are repeats, sizes of requests between others, and numbers of rows between those that are fitted. A run's error
is that of its seconds; joules are seconds times watts, so theirs is the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import torch
from transformers import AutoTokenizer

from models.contract import Family, Value, Variant
from models.families.texthawk2.auto import register
from models.operating_points import Seconds, point_name
from models.registry import find
from models.training import calibration
from models.training.classify import measure
from models.training.held_out import Predicted, prediction
from models.training.requests import USUAL, example_requests
from models.training.sweep import fit_runs, held_out_of, job_host
from models.training.texthawk2 import timing
from tests.benchmarks.common import (
    ForeignLoad,
    markdown_table,
    out_dir,
    parser_of,
    print_table,
    provenance,
    write_results,
)

AIM = 0.10
_BUSY = 0.2
"""Cores that others keep busy, above which a table says so."""
Prices = Mapping[str, Mapping[int, Seconds]]


@dataclass(frozen=True)
class Timed:
    """A point, the prices that were fitted there, and the runs that they had to predict."""

    point: str
    prices: Prices
    held_out: tuple[Predicted, ...]


def classifier(family: Family, variant: Variant, is_quick: bool) -> Iterator[Timed]:
    """Every stage by batch size; a price is that of a row in a batch of so many."""
    assert family.build is not None
    assert family.runner is not None
    device, repeats = torch.device("cpu"), 2 if is_quick else 60
    runner = family.runner.load()(family.build.load()(variant, "cpu"), variant)
    side = variant.io.input_size
    costs = measure.stage_costs(runner, side, device, repeats=repeats)
    passes = measure.held_out_passes(runner, side, device, rounds=max(1, repeats // 5))
    for stage, (times, errors) in enumerate(zip(costs["stages"], costs["errors"], strict=True), 1):
        by_rows = {
            rows: Seconds(seconds=ms / 1e3 / rows, error=error / 1e3 / rows)
            for rows, ms, error in zip(costs["batch_sizes"], times, errors, strict=True)
        }
        yield Timed(
            f"stage {stage}", {"rows": by_rows}, measure.held_out_of(costs, passes)[stage - 1 :: len(costs["stages"])]
        )


def answers(family: Family, variant: Variant, is_quick: bool) -> Iterator[Timed]:
    """Questions of chosen lengths; what a token costs is the same at each point."""
    assert family.build is not None
    register()
    network, tokenizer = family.build.load()(variant), AutoTokenizer.from_pretrained(variant.weights)
    repeats, sizes = (1, (1, 2)) if is_quick else (4, (timing.ALONE, timing.TOGETHER))
    runs = timing.time_answers(family, variant, network, tokenizer, repeats=repeats, sizes=sizes)
    prices = timing.fit_answers(runs)
    yield Timed("all", prices, timing.held_out_of(runs, prices))


def jobs(*points: Mapping[str, Value], repeats: int) -> Callable[[Family, Variant, bool], Iterator[Timed]]:
    """Whole requests, at these points."""

    def timed(family: Family, variant: Variant, is_quick: bool) -> Iterator[Timed]:
        requests = example_requests(family, variant, USUAL)
        host = job_host(family, variant, requests, repeats=1 if is_quick else repeats, max_batch=1 if is_quick else 4)
        shown = points[:1] if is_quick else points
        replace(host, sizes=(1,), repeats=1).runs(shown[0])  # to warm up
        for settings in shown:
            runs = host.runs(settings)
            prices = fit_runs(runs)
            yield Timed(point_name(settings), prices, held_out_of(runs, prices))

    return timed


MODELS: dict[str, Callable[[Family, Variant, bool], Iterator[Timed]]] = {
    "dyn-perceiver-nano": classifier,
    "texthawk2-nano": answers,
    "vdit-nano": jobs(
        {"sampler": "ddim", "num_inference_steps": 10, "guidance_scale": 3.0, "attention": "dense"},
        {"sampler": "consistency", "num_inference_steps": 4, "guidance_scale": 1.0, "attention": "dense"},
        repeats=2,
    ),
    "dit-moe-nano": jobs(
        {"num_inference_steps": 20, "guidance_scale": 2.0, "k0": 2},
        {"num_inference_steps": 8, "guidance_scale": 2.0, "k0": 1},
        {"num_inference_steps": 20, "guidance_scale": 1.0, "k0": 2},
        repeats=6,
    ),
    "exvideo-nano": jobs(
        {"num_inference_steps": 5, "guidance_scale": 2.0},
        {"num_inference_steps": 10, "guidance_scale": 1.0},
        repeats=2,
    ),
}


def measured(model: str, is_quick: bool) -> dict[str, Any]:
    """One model: prices by point, and how well they predict."""
    family, variant = find(model)
    with calibration.threads(1), ForeignLoad() as load:
        timed = list(MODELS[model](family, variant, is_quick))
    held_out = [run for one in timed for run in one.held_out]
    found = prediction(held_out)
    assert found is not None
    return {
        **msgspec.to_builtins(found),
        "foreign_cores": round(load.cores, 2),
        "points": {
            one.point: {
                "prediction": msgspec.to_builtins(prediction(one.held_out)),
                "prices": msgspec.to_builtins(one.prices, str_keys=True),
                "held_out": [run._asdict() for run in one.held_out],
            }
            for one in timed
        },
    }


HEADER = ("model", "held-out runs", "median error", "p95 error", "others' cores", "units")


def rows(models: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """One of each model."""
    return [
        [
            model,
            str(one["runs"]),
            f"{one['median_error']:.1%}" + ("" if one["median_error"] <= AIM else " (aim missed)"),
            f"{one['p95_error']:.1%}",
            f"{one['foreign_cores']:g}" + (" (busy)" if one["foreign_cores"] > _BUSY else ""),
            ", ".join(dict.fromkeys(unit for point in one["points"].values() for unit in point["prices"])),
        ]
        for model, one in models.items()
    ]


def price_rows(models: Mapping[str, Mapping[str, Any]]) -> Iterator[list[str]]:
    """One of each model, point and unit: for a row alone, and in the largest batch that was fitted."""
    for model, one in models.items():
        for name, point in one["points"].items():
            for unit, times in point["prices"].items():
                alone, *_, together = [*times.values(), *times.values()]
                yield [model, name, unit, _price(alone), _price(together), str(max(map(int, times)))]


def _price(one: Mapping[str, Any]) -> str:
    error = "" if one["error"] is None or not one["seconds"] else f" ±{one['error'] / one['seconds']:.0%}"
    return f"{one['seconds']:.3g}{error}"


def markdown(models: Mapping[str, Mapping[str, Any]]) -> str:
    """Both tables."""
    prices = markdown_table(
        ("model", "point", "unit", "seconds alone", "seconds together", "rows together"), list(price_rows(models))
    )
    told = (
        f"The aim is a median of at most {AIM:.0%}. Prices are seconds per unit of work and row, with standard errors."
    )
    return f"{markdown_table(HEADER, rows(models))}\n\n{told}\n\n{prices}"


def kept(folder: Any, names: Sequence[str]) -> dict[str, Any]:
    """Models of an earlier run that are not measured now."""
    path = folder / "costs.json"
    before = json.loads(path.read_text())["models"] if path.is_file() else {}
    return {name: one for name, one in before.items() if name not in names}


def main() -> None:
    """Measure what is asked for."""
    parser = parser_of(__doc__)
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS), help="these models, keep the others")
    args = parser.parse_args()
    origin, folder = provenance("costs"), out_dir(args)
    made = kept(folder, args.only)
    for name in args.only:
        made[name] = {**measured(name, args.quick), **{key: origin[key] for key in ("date", "commit")}}
        print_table(HEADER, rows({name: made[name]}))
    models = {name: made[name] for name in MODELS if name in made}
    write_results(folder, {**origin, "aim_median_error": AIM, "models": models}, markdown(models))
    print_table(HEADER, rows(models))


if __name__ == "__main__":
    main()
