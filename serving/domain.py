"""The types in which HTTP and gRPC meet. Nothing behind the ingress knows which of them a request came by.

Seconds and joules inside; milliseconds only in ``Budget.latency_ms`` and ``Report``, which mirror the wire.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import TypedDict

from serving.energy.spent import Spent
from serving.errors import InvalidRequest, ServingError

Pixels = npt.NDArray[np.uint8]
"""uint8 RGB, shape (H, W, 3)."""

MAX_LATENCY_MS = 3_600_000.0
MAX_ENERGY_J = 1e9


class Surface(StrEnum):
    """The front door a request came by; a metric label, never a branch behind the ingress."""

    HTTP_CLASSIFY = "http_classify"
    HTTP_IMAGES = "http_images"
    GRPC_IMAGES = "grpc_images"
    HTTP_OIP = "http_oip"
    GRPC_VIREO = "grpc_vireo"
    GRPC_VIREO_STREAM = "grpc_vireo_stream"
    GRPC_OIP = "grpc_oip"
    HTTP_CHAT = "http_chat"
    GRPC_CHAT = "grpc_chat"
    HTTP_RESPONSES = "http_responses"
    HTTP_VIDEO = "http_video"
    HTTP_VIDEO_SYNC = "http_video_sync"
    GRPC_VIDEO = "grpc_video"


class Priority(StrEnum):
    """Order among the requests of one tenant."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


RANKS = {Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 2}
"""Order among the requests of one tenant, wherever tenants share something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What the caller is willing to spend. ``None`` means no limit of that kind.

    ``settings``: of the model's knobs, by name; the operating point chooses the others.
    ``degraded``: what was lowered to what the caller's tenant is allowed; nothing that a caller can say.
    """

    latency_ms: float | None = None
    energy_j: float | None = None
    priority: Priority = Priority.NORMAL
    quality_floor: float | None = None
    settings: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    degraded: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_range("vireo.latency_ms", self.latency_ms, 0.0, MAX_LATENCY_MS, open_low=True)
        _check_range("vireo.energy_j", self.energy_j, 0.0, MAX_ENERGY_J, open_low=True)
        _check_range("vireo.quality_floor", self.quality_floor, 0.0, 1.0)


def within_priority(budget: Budget, highest: Priority) -> Budget:
    """The budget, with its priority lowered to the highest that a tenant is allowed."""
    if RANKS[budget.priority] >= RANKS[highest]:
        return budget
    return replace(budget, priority=highest, degraded=(*budget.degraded, "priority"))


def _check_range(name: str, value: float | None, low: float, high: float, *, open_low: bool = False) -> None:
    if value is None:
        return
    try:
        value = float(value)
    except OverflowError:  # an int of more than 308 digits
        value = math.inf if value > 0 else -math.inf
    if not low <= value <= high or (open_low and value == low):
        bound = f"greater than {low:g}" if open_low else f"at least {low:g}"
        raise InvalidRequest(f"{name} is {value}; it must be a finite number {bound} and at most {high:g}", param=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInput:
    """One image as the client sent it: encoded bytes, or a pixel array. Exactly one is set, or ``error`` is.

    An item that could not even be parsed (broken base64, say) carries its error, so that its neighbours are served.
    """

    encoded: bytes | None = None
    pixels: Pixels | None = None
    error: ServingError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePart:
    """A picture: an encoded file, or an https URL for our own fetcher. Exactly one is set. ``is_coarse``: one tile of
    it is enough, whatever the operating point allows.

    ``param`` names where it stood in the request (``messages[0].content[1]``), for error messages.
    """

    encoded: bytes | None = None
    url: str | None = None
    is_coarse: bool = False
    param: str = "messages"

    def most_tiles(self, max_tiles: int | None) -> int | None:
        """Of this picture, where a request allows so many; None for a model that has no say in it."""
        return None if max_tiles is None else 1 if self.is_coarse else max_tiles


@dataclass(frozen=True, slots=True, kw_only=True)
class UnaryRequest:
    """Items for a unary or staged model, parsed and authenticated, in columns: each is as long as there are items, or
    empty where the model takes nothing of the kind."""

    request_id: str
    surface: Surface
    tenant: str
    model: str
    images: tuple[ImageInput, ...] = ()
    prompts: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    is_drawn: bool = False
    """Whether the seeds were drawn here, so that nobody will ask for the same again."""
    budget: Budget = field(default_factory=Budget)
    deadline_s: float | None = None
    """Absolute time on the monotonic clock of this process, from the transport (gRPC deadline); the budget's latency
    bounds it further."""

    @property
    def num_items(self) -> int:
        """How many answers there will be."""
        return max(len(self.images), len(self.prompts), len(self.seeds))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifyRequest(UnaryRequest):
    """A whole classify call."""

    top_k: int = 1


@dataclass(frozen=True, slots=True)
class LabelScore:
    """A class and its probability."""

    label: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Classification:
    """The answer for one image. ``exit`` counts from 1, as in the paper; ``top_k`` is never empty, best first, and
    ``indices`` are the numbers of its classes."""

    exit: int
    top_k: tuple[LabelScore, ...]
    indices: tuple[int, ...]
    degraded: bool = False

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.top_k[0].label

    @property
    def score(self) -> float:
        """Its probability."""
        return self.top_k[0].score


@dataclass(frozen=True, slots=True, kw_only=True)
class Degradation:
    """An operating point lower than the best, and what it gave up: quality as measured (null where nobody did) and
    joules as predicted, of the whole request. ``reasons``: the parts of the budget that ruled out the best point, and
    ``load``."""

    from_point: str
    to_point: str
    reasons: tuple[str, ...]
    quality_before: float | None
    quality_after: float | None
    energy_j_before: float
    energy_j_after: float


class GuardBlock(TypedDict, total=False):
    """The guard's verdict on a request; empty where nothing was looked at. ``score``: 0 (ordinary) to 1. ``action``:
    what was done, or in mode ``observe`` would have been. ``reasons``: what speaks against it, the strongest first."""

    score: float
    action: str
    reasons: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The ``vireo`` block of every answer (docs/api.md). ``energy_j`` None: the meter gave no reading."""

    operating_point: str
    energy_j: float | None
    energy_source: str
    queue_ms: float
    compute_ms: float
    cache: str
    degraded: tuple[str, ...] = ()
    degradation: Degradation | None = None
    guard: GuardBlock = field(default_factory=GuardBlock)

    @classmethod
    def of(
        cls,
        spent: Spent,
        *,
        operating_point: str,
        queue_s: float,
        cache: str,
        degraded: tuple[str, ...],
        degradation: Degradation | None = None,
        guard: GuardBlock | None = None,
    ) -> Report:
        """Of an answer that took so much."""
        return cls(
            operating_point=operating_point,
            energy_j=spent.joules,
            energy_source=spent.source,
            queue_ms=queue_s * 1e3,
            compute_ms=spent.seconds * 1e3,
            cache=cache,
            degraded=degraded,
            degradation=degradation,
            guard=guard or {},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class UnaryAnswer:
    """The outputs of one item, by name. ``exit`` counts from 1, as in the paper."""

    outputs: Mapping[str, npt.NDArray[Any]]
    exit: int
    degraded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UnaryReply:
    """One outcome per item, in the order sent, and what it cost."""

    model: str
    items: tuple[UnaryAnswer | ServingError, ...]
    report: Report


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifyReply:
    """The same, read as classes."""

    model: str
    items: tuple[Classification | ServingError, ...]
    report: Report
