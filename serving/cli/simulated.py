"""What is simulated: models by the tables beside their checkpoints, or a system described in a JSON file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from models.contract import STEP_UNITS, Family, Variant
from models.io import MAX_TILES, MAX_TOKENS, ChatIO
from models.operating_points import Point, Table
from models.operating_points import Seconds as Time
from models.registry import default_variants
from schedulers.admission import BucketLimits
from schedulers.lab.cluster import System, Tenant
from schedulers.lab.served import IMAGE, LOOKS, NOTHING, OUTPUT, PROMPT, PointNumbers, Seconds, ServedModel
from serving.config.models import JobOptions, StreamOptions, UnaryOptions
from serving.errors import ConfigError
from serving.operating_points import load_table, usual_request, usual_work

_STEPS = "num_inference_steps"
_MAX_STEP_BATCH = JobOptions().max_batch
_ENDLESS = 1e9


def shipped_models() -> list[ServedModel]:
    """The models that `vireo up` serves, at the costs that their tables say."""
    return [
        model_of(family, variant)
        for family, variant in default_variants()
        if variant.weights is not None and (variant.weights / "operating_points.json").is_file()
    ]


def model_of(family: Family, variant: Variant) -> ServedModel:
    """A model in plain numbers. Raises: ConfigError: no table, or one that cannot be used."""
    table, work = load_table(variant), usual_work(family, variant)
    units = {name: work(point.settings) for name, point in table.points.items()}
    tasks = tuple(dict.fromkeys((*family.tasks, "infer"))) if family.shape in ("unary", "staged") else family.tasks
    common: dict[str, Any] = {"id": variant.id, "tasks": tasks, "watts": table.energy.watts}
    if isinstance(variant.io, ChatIO):
        return _chat_model(variant, table, common)
    if family.shape == "job":
        points = tuple(_steps(name, point, units[name]) for name, point in table.points.items())
        return ServedModel(shape="steps", points=points, max_batch=_MAX_STEP_BATCH, **common)
    best = next(iter(table.points))
    stages = tuple(Seconds({rows: one.seconds for rows, one in part.seconds.items()}) for part in table.slices)
    points = tuple(
        PointNumbers(name=name, quality=_quality(point), exit_shares=_exit_shares(point, len(stages)))
        for name, point in table.points.items()
    )
    return ServedModel(
        shape="rows",
        points=points,
        stage_s=stages or (_together(table.points[best].seconds_per_unit, units[best]),),
        max_batch=UnaryOptions().max_batch,
        **common,
    )


def _quality(point: Point) -> float | None:
    return None if point.quality is None else point.quality.low


def _exit_shares(point: Point, num_stages: int) -> tuple[float, ...]:
    shares = tuple(point.figures.get("exit_shares", ()))
    return shares if len(shares) == num_stages else ()


def _together(prices: Mapping[str, Mapping[int, Time]], units: Mapping[str, float]) -> Seconds:
    """By rows that run together, what all of them take."""
    if not prices:
        return NOTHING
    rows = sorted(set.intersection(*(set(times) for times in prices.values())))
    return Seconds(
        {n: n * math.fsum(units.get(unit, 0.0) * times[n].seconds for unit, times in prices.items()) for n in rows}
    )


def _steps(name: str, point: Point, units: Mapping[str, float]) -> PointNumbers:
    count = int(point.settings.get(_STEPS, 1))
    prices = point.seconds_per_unit
    whole = _together({unit: times for unit, times in prices.items() if unit in STEP_UNITS}, units)
    others = {unit: times[min(times)].seconds for unit, times in prices.items() if unit not in STEP_UNITS}
    phase = ",".join(f"{key}={value}" for key, value in sorted(point.settings.items()) if key != _STEPS)
    return PointNumbers(
        name=name,
        quality=_quality(point),
        step_s=Seconds({rows: seconds / count for rows, seconds in whole.by_rows.items()}),
        num_steps=count,
        decode_s=math.fsum(units.get(unit, 0.0) * seconds for unit, seconds in others.items()),
        phase=phase,
    )


def _chat_model(variant: Variant, table: Table, common: Mapping[str, Any]) -> ServedModel:
    io, usual = variant.io, usual_request(variant.io)

    def numbers(name: str, point: Point) -> PointNumbers:
        tiles = int(point.settings.get(MAX_TILES, io.max_tiles))
        caps = {IMAGE: (tiles + (tiles > 1)) * io.tokens_per_tile, OUTPUT: point.settings.get(MAX_TOKENS, math.inf)}
        token_s = {
            unit: Seconds({rows: rows * one.seconds for rows, one in times.items()})
            for unit, times in point.seconds_per_unit.items()
            if unit in (IMAGE, PROMPT, OUTPUT, LOOKS)
        }
        caps = {unit: float(most) for unit, most in caps.items() if most < math.inf}
        return PointNumbers(name=name, quality=_quality(point), token_s=token_s, caps=caps)

    return ServedModel(
        shape="slots",
        points=tuple(numbers(name, point) for name, point in table.points.items()),
        usual_tokens={
            IMAGE: float(usual.image_tokens),
            PROMPT: float(usual.text_tokens),
            OUTPUT: float(usual.max_tokens),
        },
        max_batch=StreamOptions().max_num_seqs,
        **common,
    )


# -- a file ----------------------------------------------------------------------------------------------------------

_ByRows = Annotated[dict[int, float], msgspec.Meta(min_length=1)]


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Nothing but what is declared."""


class _PointFile(_Strict, frozen=True, kw_only=True):
    name: str
    quality: float | None = None
    exit_shares: tuple[float, ...] = ()
    step_s: _ByRows | None = None
    num_steps: int = 1
    decode_s: float = 0.0
    phase: str = ""
    token_s: dict[str, _ByRows] = {}
    caps: dict[str, float] = {}


class _ModelFile(_Strict, frozen=True, kw_only=True):
    id: str
    tasks: tuple[str, ...]
    shape: Literal["rows", "steps", "slots"]
    points: tuple[_PointFile, ...]
    watts: float = 1.0
    max_batch: int = 1
    replicas: Annotated[int, msgspec.Meta(ge=1, le=100_000)] | None = None
    stage_s: tuple[_ByRows, ...] = ()
    usual_tokens: dict[str, float] = {}


class _TenantFile(_Strict, frozen=True, kw_only=True):
    """The names of a configuration."""

    weight: float = 1.0
    joules_per_s: float | None = None
    burst_j: float | None = None
    seconds_per_s: float | None = None
    burst_s: float | None = None


class _SystemFile(_Strict, frozen=True, kw_only=True):
    models: tuple[_ModelFile, ...] = ()
    tenants: dict[str, _TenantFile] = {}


def read_system(path: Path) -> System:
    """A system from a file; the shipped models where it names none. Raises: ConfigError: it cannot be used."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_SystemFile)
        models = [_model(one) for one in found.models] or shipped_models()
        tenants = {name: _tenant(one) for name, one in found.tenants.items()}
    except ValueError as error:  # msgspec's errors are that, too
        raise ConfigError(f"{path}: {error}") from None
    replicas = {one.id: one.replicas for one in found.models if one.replicas is not None}
    return System(models=models, replicas=replicas, tenants=tenants)


def _model(found: _ModelFile) -> ServedModel:
    points = tuple(
        PointNumbers(
            name=one.name,
            quality=one.quality,
            exit_shares=one.exit_shares,
            step_s=NOTHING if one.step_s is None else Seconds(one.step_s),
            num_steps=one.num_steps,
            decode_s=one.decode_s,
            phase=one.phase,
            token_s={unit: Seconds(by_rows) for unit, by_rows in one.token_s.items()},
            caps=one.caps,
        )
        for one in found.points
    )
    return ServedModel(
        id=found.id,
        tasks=found.tasks,
        shape=found.shape,
        points=points,
        watts=found.watts,
        max_batch=found.max_batch,
        stage_s=tuple(map(Seconds, found.stage_s)),
        usual_tokens=found.usual_tokens,
    )


def _tenant(found: _TenantFile) -> Tenant:
    joules, seconds = (found.joules_per_s, found.burst_j), (found.seconds_per_s, found.burst_s)
    if {*joules, *seconds} == {None}:
        return Tenant(weight=found.weight)
    joules_per_s, burst_j = _bucket(*joules)
    seconds_per_s, burst_s = _bucket(*seconds)
    limits = BucketLimits(
        joules_per_s=joules_per_s, joules_burst=burst_j, seconds_per_s=seconds_per_s, seconds_burst=burst_s
    )
    return Tenant(weight=found.weight, limits=limits)


def _bucket(per_s: float | None, burst: float | None) -> tuple[float, float]:
    """Without a rate it is never refilled, without a size it holds a second of its rate, without both it has no end."""
    if per_s is None and burst is None:
        return _ENDLESS, _ENDLESS
    per_s = 0.0 if per_s is None else per_s
    return per_s, per_s if burst is None else burst
