"""A load test as a YAML file. Strict: an unknown or ill-typed field is an error that names it.

Durations are in seconds and rates in requests per second; only fields that mirror the API (``latency_ms``) or that
people state in milliseconds (objectives) are in milliseconds, and say so in their names.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)

from loadtest.clients.base import DEFAULT_CHAT_MODEL, DEFAULT_FILMER, DEFAULT_MODEL, DEFAULT_PAINTER
from loadtest.records import CHAT_SURFACES, FILMING_SURFACES, PAINTING_SURFACES

SurfaceName = Literal[
    "http_classify",
    "http_oip",
    "grpc_vireo",
    "grpc_vireo_stream",
    "grpc_oip",
    "http_chat",
    "http_chat_unary",
    "grpc_chat",
    "http_images",
    "grpc_images",
    "http_videos",
    "grpc_videos",
]
SCENARIO_DIR = Path(__file__).parent / "scenarios"

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class ScenarioError(ValueError):
    """The scenario cannot be used. The message names the file, the field and what is wrong with it."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Uniform(_Strict):
    """Open loop, evenly spaced."""

    kind: Literal["uniform"]
    rate_per_s: Positive = Field(description="Requests per second.")


class Poisson(_Strict):
    """Open loop, independent callers."""

    kind: Literal["poisson"]
    rate_per_s: Positive = Field(description="Mean requests per second.")


class Gamma(_Strict):
    """Open loop, gaps of a chosen variability."""

    kind: Literal["gamma"]
    rate_per_s: Positive = Field(description="Mean requests per second.")
    cv: Positive = Field(description="Coefficient of variation of the gaps: 1 is Poisson, above 1 is bursty. No unit.")


class Trace(_Strict):
    """Open loop, recorded send times."""

    kind: Literal["trace"]
    times_s: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] = Field(
        min_length=1, description="Send times in seconds from the start of the phase, not decreasing."
    )
    speed: Positive = Field(default=1.0, description="Replay this many times as fast. No unit.")

    @model_validator(mode="after")
    def _is_sorted(self) -> Self:
        if any(later < earlier for earlier, later in zip(self.times_s, self.times_s[1:], strict=False)):
            raise ValueError("times_s goes back in time; sort it")
        return self


class Closed(_Strict):
    """Closed loop: callers that wait for their answer. Cannot see a stall of the server (docs/loadtest.md)."""

    kind: Literal["closed"]
    concurrency: int = Field(gt=0, description="Callers at work at once.")
    num_requests: int | None = Field(
        default=None, gt=0, le=1_000_000, description="End after so many requests, if the duration is not over before."
    )


Arrival = Annotated[Uniform | Poisson | Gamma | Trace | Closed, Field(discriminator="kind")]


class Phase(_Strict):
    """A stretch of time with one kind of load."""

    name: str = Field(min_length=1, description="Name in the report.")
    arrival: Arrival = Field(description="When to send.")
    duration_s: Positive = Field(description="Length of the phase in seconds.")
    is_warm_up: bool = Field(default=False, description="Send, and leave out of all figures. Only before other phases.")


class Target(_Strict):
    """Where the server is."""

    http_url: str = Field(
        default="http://127.0.0.1:8000", pattern=r"^https?://[^/\s]+", description="Base URL of the HTTP surfaces."
    )
    grpc_address: str = Field(
        default="127.0.0.1:9000", pattern=r"^[^/\s]+:\d+$", description="HOST:PORT of the gRPC surfaces."
    )


class BudgetModel(_Strict):
    """The ``vireo`` budget that requests carry, as in the API. Absent: no limit."""

    latency_ms: Positive | None = Field(default=None, description="Milliseconds from arrival to answer.")
    energy_j: Positive | None = Field(default=None, description="Joules for the request.")
    priority: Literal["low", "normal", "high"] | None = Field(default=None, description="Order among requests.")
    quality_floor: Share | None = Field(default=None, description="Lowest acceptable accuracy, 0 to 1.")


class Chat(_Strict):
    """What a chat request asks. Its pictures show words instead of digits."""

    model: str = Field(default=DEFAULT_CHAT_MODEL, min_length=1, description="Chat model to ask.")
    question: str = Field(default="What does the picture say?", min_length=1, description="Text of the request.")
    is_numbered: bool = Field(
        default=False, description="Begin each question with a number of its own: no two questions are the same."
    )
    max_tokens: int = Field(default=32, ge=1, le=4096, description="Most tokens of the answer.")
    temperature: float = Field(
        default=0.0, ge=0, le=2, allow_inf_nan=False, description="0: always the likeliest token. No unit."
    )
    width_px: int = Field(default=224, ge=16, le=8192, description="Width of a picture in pixels.")
    height_px: int = Field(default=224, ge=16, le=8192, description="Height of a picture in pixels.")
    repeat_images_share: Share = Field(
        default=0.0,
        description="Share of fresh requests whose pictures were shown before, for caches of images. 0 to 1.",
    )
    files: tuple[str, ...] = Field(
        default=(), description="Encoded pictures to show instead of drawn ones, in turn: paths from where it is run."
    )


class Draw(_Strict):
    """What a request for pictures asks. Each has seeds of its own, so that no cache answers it."""

    model: str = Field(default=DEFAULT_PAINTER, min_length=1, description="Model to ask.")
    prompts: tuple[str, ...] = Field(default=("a green 7",), min_length=1, description="Prompts, drawn at random.")
    n: int = Field(default=1, ge=1, le=10, description="Pictures in one request.")
    size: str | None = Field(
        default=None, pattern=r"^[1-9]\d{0,4}x[1-9]\d{0,4}$", description="WIDTHxHEIGHT in pixels; absent: the model's."
    )
    settings: dict[str, StrictBool | StrictInt | Finite | StrictStr] = Field(
        default={}, max_length=32, description="Settings of the model by name; absent ones are the server's choice."
    )


class Film(_Strict):
    """What a request for a clip asks. Each has a seed of its own."""

    model: str = Field(default=DEFAULT_FILMER, min_length=1, description="Model to ask.")
    prompts: tuple[str, ...] = Field(
        default=("a red circle moves right",),
        min_length=1,
        description='Prompts, drawn at random; [""] for a model that takes none.',
    )
    has_first_frame: bool = Field(
        default=False, description="Whether each clip begins with a picture of its own, a digit of `images.size_px`."
    )
    num_frames: int | None = Field(default=None, ge=1, le=65_536, description="Length in frames; absent: the model's.")
    size: str | None = Field(
        default=None, pattern=r"^[1-9]\d{0,4}x[1-9]\d{0,4}$", description="WIDTHxHEIGHT in pixels; absent: the model's."
    )
    settings: dict[str, StrictBool | StrictInt | Finite | StrictStr] = Field(
        default={}, max_length=32, description="Settings of the model by name; absent ones are the server's choice."
    )


class MixEntry(_Strict):
    """One kind of request of the mix."""

    surface: SurfaceName = Field(description="Front door to use.")
    tenant: str = Field(default="default", min_length=1, description="Who asks; must be in `tenants` if that is given.")
    weight: Positive = Field(default=1.0, description="Share of requests relative to the other entries. No unit.")
    phases: tuple[str, ...] = Field(default=(), description="Phases in which it is sent; empty: all of them.")
    images_per_request: int = Field(default=1, ge=0, le=64, description="Images in one request; 0 only in a chat.")
    top_k: int = Field(default=1, ge=1, le=1000, description="Classes to return for each image.")
    budget: BudgetModel | None = Field(default=None, description="Budget that the request carries.")
    chat: Chat | None = Field(default=None, description="What a request to a chat surface asks; only there.")
    draw: Draw | None = Field(default=None, description="What a request for pictures asks; only there.")
    film: Film | None = Field(default=None, description="What a request for a clip asks; only there.")

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        is_chat = self.surface in CHAT_SURFACES
        if self.chat is not None and not is_chat:
            raise ValueError(f"chat is set, but {self.surface} is no chat surface; remove it")
        if self.draw is not None and self.surface not in PAINTING_SURFACES:
            raise ValueError(f"draw is set, but {self.surface} makes no pictures; remove it")
        if self.film is not None and self.surface not in FILMING_SURFACES:
            raise ValueError(f"film is set, but {self.surface} makes no clips; remove it")
        if self.images_per_request == 0 and not is_chat:
            raise ValueError(f"images_per_request is 0; {self.surface} needs at least 1")
        return self

    @property
    def question(self) -> Chat | None:
        """What is asked; ``None`` where nothing is chatted about."""
        return (self.chat or Chat()) if self.surface in CHAT_SURFACES else None

    @property
    def drawn(self) -> Draw | None:
        """The pictures that are asked for; ``None`` where none are."""
        return (self.draw or Draw()) if self.surface in PAINTING_SURFACES else None

    @property
    def filmed(self) -> Film | None:
        """The clip that is asked for; ``None`` where none is."""
        return (self.film or Film()) if self.surface in FILMING_SURFACES else None

    @property
    def shows_pictures(self) -> bool:
        """Whether its requests hold pictures, which may be broken ones."""
        return self.drawn is None and (self.filmed is None or self.filmed.has_first_frame)

    def is_sent_in(self, phase: str) -> bool:
        """Whether a phase has requests of this kind."""
        return not self.phases or phase in self.phases


class Tenant(_Strict):
    """A caller with its own key. Keys are never written in scenarios."""

    name: str = Field(min_length=1, description="Name used by the mix.")
    api_key_env: str = Field(min_length=1, description="Environment variable that holds the API key.")


class Images(_Strict):
    """The pictures to send; drawn before the run."""

    size_px: int = Field(default=32, ge=8, le=4096, description="Width and height in pixels.")
    formats: tuple[Literal["png", "jpeg", "webp"], ...] = Field(
        default=("png",), min_length=1, description="Encodings, used in turn."
    )
    repeat_share: Share = Field(
        default=0.0, description="Share of requests that send again what was sent before (cache hits). 0 to 1."
    )
    bad_share: Share = Field(default=0.0, description="Share of requests with a broken image. 0 to 1.")
    pool_size: int = Field(
        default=20_000, ge=1, description="Most distinct requests to draw; beyond it they are sent again in turn."
    )


class Isolation(_Strict):
    """Two phases that differ in what one tenant sends, and how much slower others may be in the second."""

    baseline: str = Field(min_length=1, description="Phase without the attack.")
    attack: str = Field(min_length=1, description="Phase with the attack.")
    tenants: tuple[str, ...] = Field(min_length=1, description="Those that must not suffer.")
    max_p99_ratio: Positive = Field(default=1.3, description="Highest p99 under attack / p99 without. No unit.")


class Slo(_Strict):
    """What the run must show, or the command fails. A figure that the sample is too small for counts as not shown."""

    deadline_ms: Positive = Field(description="An answer later than this is not good. Milliseconds from scheduled.")
    min_good_share: Share | None = Field(default=None, description="Least share of good requests. 0 to 1.")
    max_p50_ms: Positive | None = Field(default=None, description="Highest median latency from scheduled, ms.")
    max_p99_ms: Positive | None = Field(default=None, description="Highest p99 latency from scheduled, ms.")
    max_failed_share: Share | None = Field(default=None, description="Highest share of requests not answered in full.")
    max_generator_lag_p99_ms: Positive | None = Field(default=None, description="Highest p99 of generator lag, ms.")
    are_bad_inputs_refused: bool = Field(
        default=True, description="Every broken image must be answered with a typed error."
    )
    isolation: Isolation | None = Field(default=None, description="Tenants that another one must not slow down.")


class Limits(_Strict):
    """Bounds that protect the generator."""

    max_in_flight: int = Field(default=2048, ge=1, description="Most requests waiting for an answer at once.")
    timeout_s: Positive = Field(default=30.0, description="Longest wait for one answer, seconds.")


class Scenario(_Strict):
    """A whole load test."""

    name: str = Field(min_length=1, description="Name in the report.")
    description: str = Field(default="", description="What this test is for.")
    seed: int = Field(default=0, ge=0, description="Seed of arrivals, pictures and mix. The same seed, the same load.")
    model: str = Field(default=DEFAULT_MODEL, min_length=1, description="Classifier to ask.")
    target: Target = Field(default_factory=Target, description="Where the server is.")
    tenants: tuple[Tenant, ...] = Field(default=(), description="Callers with keys; empty for a server without keys.")
    mix: tuple[MixEntry, ...] = Field(min_length=1, description="Kinds of requests.")
    images: Images = Field(default_factory=Images, description="Pictures to send.")
    phases: tuple[Phase, ...] = Field(min_length=1, description="Carried out in this order.")
    slo: Slo = Field(description="What the run must show.")
    limits: Limits = Field(default_factory=Limits, description="Bounds that protect the generator.")

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        warm = [phase.is_warm_up for phase in self.phases]
        if all(warm) or warm != sorted(warm, reverse=True):
            raise ValueError("phases: warm-up phases must come first and be followed by one that is measured")
        names = [phase.name for phase in self.phases]
        if len(set(names)) < len(names):
            raise ValueError(f"phases: names must differ, got {', '.join(names)}")
        known = {tenant.name for tenant in self.tenants}
        unknown = {entry.tenant for entry in self.mix} - known
        if known and unknown:
            raise ValueError(f"mix: tenants {', '.join(sorted(unknown))} are not in `tenants`")
        self._check_phases(set(names))
        return self

    def _check_phases(self, names: set[str]) -> None:
        isolation = self.slo.isolation
        named = {name for entry in self.mix for name in entry.phases}
        if isolation is not None:
            named |= {isolation.baseline, isolation.attack}
        if unknown := named - names:
            raise ValueError(f"there is no phase {', '.join(sorted(unknown))}; there are: {', '.join(sorted(names))}")
        if idle := [name for name in names if not any(entry.is_sent_in(name) for entry in self.mix)]:
            raise ValueError(f"mix: nothing is sent in phase {', '.join(sorted(idle))}")

    def with_overrides(
        self,
        *,
        http_url: str | None = None,
        grpc_address: str | None = None,
        seed: int | None = None,
        rate_per_s: float | None = None,
    ) -> Scenario:
        """A new, validated scenario with another target, seed or rate.

        ``rate_per_s`` replaces the rate of the measured open phases that have one; warm-up, traces and closed loops
        stay.
        Raises: ScenarioError: if the result is not valid.
        """
        data = self.model_dump()
        data["target"] |= {k: v for k, v in (("http_url", http_url), ("grpc_address", grpc_address)) if v is not None}
        data["seed"] = self.seed if seed is None else seed
        for phase in data["phases"]:
            if rate_per_s is not None and not phase["is_warm_up"] and "rate_per_s" in phase["arrival"]:
                phase["arrival"]["rate_per_s"] = rate_per_s
        return parse_scenario(data, source="command line")


def load_scenario(name_or_path: str) -> Scenario:
    """Read a YAML file, or a shipped scenario by its name ("smoke"). Raises: ScenarioError."""
    path = find_scenario(name_or_path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ScenarioError(f"{path}: cannot be read: {error}") from error
    return parse_scenario(data, source=str(path))


def find_scenario(name_or_path: str) -> Path:
    """The file meant: a path, or the name of a shipped scenario. Raises: ScenarioError: if there is neither."""
    shipped = SCENARIO_DIR / f"{name_or_path}.yaml"
    for path in (Path(name_or_path), shipped):
        if path.is_file():
            return path
    known = shipped_names()
    close = "".join(f"; did you mean {name}?" for name in get_close_matches(name_or_path, known, 1))
    raise ScenarioError(
        f"{name_or_path}: no such file, and no shipped scenario of that name; there are: {', '.join(known)}{close}"
    )


def shipped_names() -> list[str]:
    """The scenarios that the package brings."""
    return sorted(path.stem for path in SCENARIO_DIR.glob("*.yaml"))


def parse_scenario(data: Any, *, source: str) -> Scenario:
    """Validate. Raises: ScenarioError: naming ``source`` and every field at fault."""
    try:
        return Scenario.model_validate(data)
    except ValidationError as error:
        problems = [f"  {_path(item['loc'])}: {item['msg']}" for item in error.errors()]
        raise ScenarioError(f"{source}: {len(problems)} problem(s)\n" + "\n".join(problems)) from error


def _path(location: tuple[str | int, ...]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.lstrip(".") or "scenario"
