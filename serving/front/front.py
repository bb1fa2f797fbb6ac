"""What HTTP and gRPC share behind the parsing: the service, the rules of a whole call, and one record per call."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, TypeVar

import structlog

from models.contract import SettingError, check_settings
from serving.domain import Budget, Priority, Surface, within_priority
from serving.errors import InvalidRequest, ServingError, UnknownModel
from serving.front.auth import Authenticator
from serving.front.status import to_serving_error
from serving.limits import MAX_ID_CHARS, IngressLimits
from serving.service import Card, Service
from serving.telemetry import tracing
from serving.telemetry.events import OK, PARTIAL, UNKNOWN, CallFinished, CallStarted, Sink, ignore

if TYPE_CHECKING:
    from opentelemetry.trace import Span

MODEL_VERSION = "1"
"""The only version of every model that OIP clients see; the checkpoint's hash says more."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._\-]{1,128}")


def is_request_id(proposed: str) -> bool:
    """Whether a caller's request id is safe to echo and log."""
    return _REQUEST_ID.fullmatch(proposed) is not None


def request_id(proposed: str | None) -> str:
    """Return the caller's request id if it is safe to echo and log, and a fresh one otherwise."""
    if proposed is not None and is_request_id(proposed):
        return proposed
    return uuid.uuid4().hex


def clean(text: str) -> str:
    """Return text that can be sent: half a surrogate pair becomes a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def shown(value: object, max_chars: int = 60) -> str:
    """Return a caller's value as it may stand in a message: printable, short."""
    if isinstance(value, str | bytes):
        text = repr(value[:max_chars])
        return text if len(value) <= max_chars else f"{text}... ({len(value)} long)"
    if isinstance(value, list | tuple | dict):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= max_chars else text[:max_chars] + "..."


def check_model(value: str | None) -> str:
    """Return the id of a model, "" where none is named: ``Front.asked``. Raises: InvalidRequest: no model has it."""
    if value is None:
        return ""
    if not value or len(value) > MAX_ID_CHARS:
        raise InvalidRequest(f"model is {shown(value)}; send a model id", param="model")
    return value


def check_unicode(text: str, param: str) -> None:
    """Raises: InvalidRequest: half a surrogate pair, which is no character."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{param} holds half of a surrogate pair at character {error.start}; send whole characters", param=param
        ) from None


def check_integer(value: int, low: int, high: int, param: str) -> int:
    """Return the value. Raises: InvalidRequest: out of range."""
    if not low <= value <= high:
        raise InvalidRequest(f"{param} is {shown(value)}; it must be at least {low} and at most {high}", param=param)
    return value


def check_number(value: float, low: float, high: float, param: str, *, is_open_low: bool = False) -> float:
    """Return the value. Raises: InvalidRequest: NaN, infinite or out of range."""
    if not low <= value <= high or (is_open_low and value == low):
        least = f"greater than {low:g}" if is_open_low else f"at least {low:g}"
        raise InvalidRequest(f"{param} is {shown(value)}; it must be {least} and at most {high:g}", param=param)
    return float(value)


@dataclass(slots=True)
class Visit:
    """One call, as metrics see it. ``surface``: None where the call asks no model for anything; nobody hears of it."""

    surface: Surface | None
    started_s: float
    model: str = UNKNOWN
    tenant: str = UNKNOWN
    outcome: str = "cancelled"
    """What is recorded if nothing else is said: a task that is cancelled says nothing."""
    span: Span | None = None


class _Request(Protocol):
    @property
    def model(self) -> str: ...
    @property
    def tenant(self) -> str: ...
    @property
    def budget(self) -> Budget: ...


Request = TypeVar("Request", bound=_Request)
AnyCard = TypeVar("AnyCard", bound=Card)


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """Collaborators of the front door."""

    service: Service
    authenticator: Authenticator
    limits: IngressLimits
    tell: Sink = ignore

    def begin(self, surface: Surface | None, request_id: str, traceparent: str) -> Visit:
        """Open the record of a call."""
        visit = Visit(surface, time.perf_counter())
        if surface is not None:
            self.tell(CallStarted(surface))
            facts = {"vireo.surface": surface.value, "vireo.request_id": request_id}
            visit.span = tracing.begin("front", traceparent, facts)
        return visit

    def end(self, visit: Visit) -> None:
        """Close the record of a call."""
        if visit.surface is not None:
            seconds = time.perf_counter() - visit.started_s
            self.tell(
                CallFinished(
                    surface=visit.surface,
                    model=visit.model,
                    tenant=visit.tenant,
                    outcome=visit.outcome,
                    seconds=seconds,
                )
            )
            facts = {"vireo.model": visit.model, "vireo.tenant": visit.tenant, "vireo.outcome": visit.outcome}
            tracing.end(visit.span, facts)

    def admit(self, request: Request, cards: Sequence[Card], visit: Visit) -> Request:
        """What every request goes through, whatever its task: its model is served and has the settings that are asked
        for, and its budget is one that its tenant is allowed. What comes back names its model.

        Raises: UnknownModel: it is none of ``cards``. InvalidRequest: none is named and there are several; a setting
            that the model does not have or take.
        """
        card = self.asked(request.model, cards)
        visit.model = card.id
        budget = request.budget
        try:
            if budget.settings:
                budget = replace(budget, settings=check_settings(budget.settings, card.knobs, card.id))
        except SettingError as error:
            raise InvalidRequest(str(error), param=f"vireo.settings.{error.name}") from None
        highest = self.service.max_priorities.get(request.tenant, Priority.HIGH)
        budget = within_priority(budget, highest)
        if budget is request.budget and request.model:
            return request
        return replace(request, budget=budget, model=card.id)  # type: ignore[type-var]

    def asked(self, model: str, cards: Sequence[AnyCard]) -> AnyCard:
        """Look up the model of a request for a task: of ``cards`` the only one, where it names none.

        Raises: UnknownModel: it is none of them. InvalidRequest: none is named and there are several.
        """
        if model:
            return self.card(model, cards)
        if len(cards) == 1:
            return cards[0]
        if not cards:
            raise UnknownModel("no model that can do this is served here; see /v1/models", param="model")
        raise InvalidRequest(f"model is missing; send one of {_ids(cards)}", param="model")

    def card(self, model: str, cards: Sequence[AnyCard], version: str = "") -> AnyCard:
        """Look a model up. Raises: UnknownModel: no such model or version among ``cards``."""
        for card in cards:
            if card.id == model and version in ("", MODEL_VERSION):
                return card
        name = shown(model) if not version else f"{shown(model)} version {shown(version)}"
        if cards and model in [card.id for card in self.service.cards()]:
            raise UnknownModel(f"model {name} cannot do this; these can: {_ids(cards)}", param="model")
        known = _ids(cards) or "none that can do this"
        raise UnknownModel(f"model {name} is not served here; served: {known}", param="model")


def _ids(cards: Sequence[Card]) -> str:
    return ", ".join(card.id for card in cards)


@dataclass(slots=True)
class BaseCall:
    """One call, on either surface."""

    front: Front
    request_id: str
    visit: Visit

    @property
    def tenant(self) -> str:
        """Who calls; ``unknown`` until that is proved."""
        return self.visit.tenant

    @property
    def surface(self) -> Surface:
        """The door that it came by."""
        assert self.visit.surface is not None
        return self.visit.surface

    def note_outcome(self, items: Sequence[object]) -> None:
        """Record how the items of a call went. Raises: ServingError: all of them failed; the first one's error."""
        failed = [item for item in items if isinstance(item, ServingError)]
        if failed and len(failed) == len(items):
            raise failed[0]
        self.visit.outcome = PARTIAL if failed else OK

    def known(self, error: Exception) -> ServingError:
        """Return the error as the caller may see it; log it if it is not one of ours, and record it."""
        known = to_serving_error(error)
        if known is not error:
            structlog.get_logger(__name__).error("request_failed", request_id=self.request_id, exc_info=error)
        self.visit.outcome = known.code
        return known
