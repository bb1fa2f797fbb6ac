"""What the experts of a model are sent, as ``/v1/models/{model}/experts`` shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from typing_extensions import TypedDict

from schedulers.experts.loads import balancedness
from serving.delivery.job.experts import WINDOW_S, Counts, ExpertReport, PlacedFacts, added
from serving.service import Card
from serving.tasks.models import PlacementAnswer, placement_of


class ExpertPhaseAnswer(TypedDict):
    """A half of the denoising steps. ``loads``: tokens by layer and expert; a token counts for each that it chose.
    ``balancedness``: mean over largest load, added up over layers."""

    phase: str
    balancedness: float
    loads: list[list[int]]


class ExpertTenantAnswer(TypedDict):
    """A tenant's part. ``balancedness``: as of a phase."""

    tenant: str
    tokens: int
    balancedness: float


class ExpertPlacementAnswer(PlacementAnswer):
    """More of it. ``moves``: slots that were given another expert since the start. ``rank_loads``: the part of the
    tokens that each rank works on."""

    moves: int
    rank_loads: list[float]


class ExpertsAnswer(TypedDict):
    """What the experts of a model were sent in the last ``window_s``, by all replicas that answered.
    ``distinct_experts``: those of a layer that a slice woke, on average; null if none ran. ``placements``: of each
    replica whose experts are spread over ranks."""

    object: Literal["model.experts"]
    id: str
    window_s: float
    replicas: int
    slices: int
    distinct_experts: float | None
    phases: list[ExpertPhaseAnswer]
    tenants: list[ExpertTenantAnswer]
    placements: list[ExpertPlacementAnswer]


def shown_experts(card: Card, reports: Sequence[ExpertReport]) -> ExpertsAnswer:
    """Return what replicas report, added up."""
    slices = sum(report.slices for report in reports)
    phases, tenants = added([each.phases for each in reports]), added([each.tenants for each in reports])
    return {
        "object": "model.experts",
        "id": card.id,
        "window_s": WINDOW_S,
        "replicas": len(reports),
        "slices": slices,
        "distinct_experts": sum(report.distinct for report in reports) / slices if slices else None,
        "phases": [_phase(name, phases[name]) for name in sorted(phases)],
        "tenants": [_tenant(name, counts) for name, counts in sorted(tenants.items())],
        "placements": [_placement(report.placed) for report in reports if report.placed is not None],
    }


def _phase(name: str, counts: Counts) -> ExpertPhaseAnswer:
    loads = counts.tolist()
    return {"phase": name, "balancedness": balancedness(loads), "loads": loads}


def _tenant(name: str, counts: Counts) -> ExpertTenantAnswer:
    return {"tenant": name, "tokens": int(counts.sum()), "balancedness": balancedness(counts.tolist())}


def _placement(placed: PlacedFacts) -> ExpertPlacementAnswer:
    return {**placement_of(placed), "moves": placed.moves, "rank_loads": list(placed.rank_loads)}
