"""The HTTP application: the tasks' paths and those that are common to all, and one shape of error on any of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, Final, Literal, Protocol

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.routing import Route as AppRoute
from typing_extensions import TypedDict

from serving.delivery.job.experts import ExpertReport
from serving.errors import Forbidden, MethodNotAllowed, NotReady, ServingError, Unauthenticated, UnknownPath
from serving.front.auth import Authenticator
from serving.front.front import Front, request_id, shown
from serving.front.http.body import Receive
from serving.front.http.call import Answer, Call, Endpoint, Route, Scope, Send, error_answer, json_answer, send_answer
from serving.front.http.json_body import JsonReader
from serving.front.http.openapi import Tag, openapi_document, operation, path_parameter, vireo_version
from serving.front.status import http_error, to_serving_error
from serving.limits import IngressLimits
from serving.page.http import ROUTES as PAGE
from serving.service import Card, Service
from serving.tasks.budgets import BudgetAnswer, BudgetListAnswer, shown_budget, shown_budgets
from serving.tasks.experts import ExpertsAnswer, shown_experts
from serving.tasks.models import ModelAnswer, shown_model
from serving.tasks.table import TASKS
from serving.telemetry.events import Sink, ignore

_PLACEMENTS_S: Final = 1.0
"""For replicas to say where their experts are."""


class MetricsPage(Protocol):
    """What ``/metrics`` says (``serving.telemetry.exposition``). Called in a thread: it reads many files."""

    def __call__(self, accept: str, *, names_tenants: bool) -> tuple[bytes, str]:
        """Return the text and its content type."""
        ...


def build_http_app(
    service: Service,
    authenticator: Authenticator,
    limits: IngressLimits,
    metrics_page: MetricsPage | None,
    tell: Sink = ignore,
    *,
    metrics_needs_key: bool = False,
    adds_request_id: bool = True,
    json_reader: JsonReader | None = None,
) -> FastAPI:
    """Make the application.

    ``metrics_page``: None where there is no such path. ``adds_request_id=False`` where the
    server around the application puts ``x-request-id`` on every answer itself, as Ray Serve does.
    """
    front = Front(service=service, authenticator=authenticator, limits=limits, tell=tell)
    app = FastAPI(
        title="Vireo", version=vireo_version(), openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    reader = json_reader or JsonReader()
    routes = ROUTES if metrics_page is None else (*ROUTES, _metrics_route(metrics_page, metrics_needs_key))
    for route in routes:
        endpoint = Endpoint(front, reader, route, adds_request_id=adds_request_id)
        app.router.routes.append(AppRoute(route.path, endpoint, methods=[route.method]))
    app.router.default = _not_found(adds_request_id)
    document(limits)  # now, not while others wait for the first who asks for it
    app.add_exception_handler(HTTPException, _framework_error)
    app.add_exception_handler(Exception, _framework_error)
    return app


# -- paths that belong to no task ------------------------------------------------------------------------------------


class ModelListAnswer(TypedDict):
    """The served models."""

    object: Literal["list"]
    data: list[ModelAnswer]


async def _list_models(call: Call) -> Answer:
    """Those that chat come first: programs that are given no model take the first, and chat with it."""
    service = call.front.service
    cards = sorted(service.cards(), key=lambda card: "chat" not in card.tasks)
    data = await asyncio.gather(*(_shown(service, card) for card in cards))
    answer: ModelListAnswer = {"object": "list", "data": data}
    return json_answer(answer)


async def _show_model(call: Call) -> Answer:
    service = call.front.service
    card = call.front.card(call.path_params["model"], service.cards())
    return json_answer(await _shown(service, card))


async def _shown(service: Service, card: Card) -> ModelAnswer:
    """With the placements of replicas that say them at once: who lists models does not wait for one that is stuck."""
    reports: Sequence[ExpertReport] = ()
    if card.experts is not None and card.ranks > 1:
        with suppress(TimeoutError):
            reports = await asyncio.wait_for(service.experts(card.id), _PLACEMENTS_S)
    placements = [report.placed for report in reports if report.placed is not None]
    return shown_model(
        card, is_ready=service.is_model_ready(card.id), placements=placements, bending=service.bending_level(card.id)
    )


async def _show_experts(call: Call) -> Answer:
    service = call.front.service
    card = call.front.card(call.path_params["model"], service.cards())
    if not call.front.authenticator.is_admin(call.tenant):
        raise Forbidden("what experts are sent tells of all tenants; ask with the key of an admin")
    if card.experts is None:
        raise UnknownPath(
            f"{card.id} has no experts; vireo.experts in /v1/models says which models have", param="model"
        )
    if not (reports := await service.experts(card.id)):
        raise NotReady(f"no replica of {card.id} answers now. Try again")
    return json_answer(shown_experts(card, reports))


async def _show_budget(call: Call) -> Answer:
    tenant = call.tenant
    return json_answer(shown_budget(tenant, await call.front.service.accounts.account(tenant)))


async def _list_budgets(call: Call) -> Answer:
    if not call.front.authenticator.is_admin(call.tenant):
        raise Forbidden("the budgets of all tenants are an admin's to see; ask with the key of one, or GET /v1/budget")
    accounts = call.front.service.accounts
    # One after another: requests that are served want the connections to Redis, too.
    found = {tenant: await accounts.account(tenant) for tenant in accounts.tenants}
    return json_answer(shown_budgets(found))


async def _ready(call: Call) -> Answer:
    if not call.front.service.is_ready():
        raise NotReady("no request can be answered now: the server is starting or stopping. Try again")
    return json_answer({"ready": True})


async def _live(_call: Call) -> Answer:
    return json_answer({"live": True})


async def _openapi(call: Call) -> Answer:
    return json_answer(document(call.front.limits))


def _metrics_route(page: MetricsPage, needs_key: bool) -> Route:
    async def metrics(call: Call) -> Answer:
        is_known = needs_key or _is_known(call)
        names_tenants = is_known and call.front.authenticator.is_admin(call.tenant)
        accept = call.header(b"accept") or ""
        body, content_type = await asyncio.to_thread(page, accept, names_tenants=names_tenants)
        return Answer(body, 200, content_type.encode())

    text = {"schema": {"type": "string"}}
    described = operation(
        "Metrics for Prometheus",
        {"text/plain": text, "application/openmetrics-text": text},
        id="get_metrics",
        text="What is counted by tenant is added up, except for the keys of an admin.",
    )
    return Route(method="GET", path="/metrics", handler=metrics, operation=described, needs_key=needs_key)


def _is_known(call: Call) -> bool:
    """Whether a caller that needs no key has one all the same. Raises: Unauthenticated: a wrong one."""
    try:
        call.authenticate()
    except (Unauthenticated, Forbidden):
        if call.headers.keys() & {b"authorization", b"x-api-key"}:
            raise
        return False
    return True


def _get(
    path: str, handler: Any, id: str, summary: str, answer: Any = None, *parameters: Any, needs_key: bool = True
) -> Route:
    described = operation(summary, answer, *parameters, id=id)
    return Route(method="GET", path=path, handler=handler, operation=described, needs_key=needs_key)


_TAGGED: Final[Mapping[Tag, tuple[Route, ...]]] = {
    **{Tag(task.name, task.about): task.routes.load() for task in TASKS},
    Tag("models", "What is served, and what each model takes."): (
        _get("/v1/models", _list_models, "list_models", "List the models", ModelListAnswer),
        _get("/v1/models/{model}", _show_model, "get_model", "Show a model", ModelAnswer, path_parameter("model")),
        _get(
            "/v1/models/{model}/experts",
            _show_experts,
            "get_model_experts",
            "Show what the experts of a model are sent",
            ExpertsAnswer,
            path_parameter("model"),
        ),
    ),
    Tag("budgets", "What a tenant may spend, has spent and has left."): (
        _get("/v1/budget", _show_budget, "get_budget", "Show the caller's budget", BudgetAnswer),
        _get("/v1/budgets", _list_budgets, "list_budgets", "Show the budgets of all tenants", BudgetListAnswer),
    ),
    Tag("server", "Health, metrics, this document, and the page that shows them."): (
        _get("/v2/health/live", _live, "get_liveness", "Is the process alive?", needs_key=False),
        _get("/v2/health/ready", _ready, "get_readiness", "Can requests be answered?", needs_key=False),
        _get("/healthz", _ready, "get_healthz", "Can requests be answered?", needs_key=False),
        _get("/health", _ready, "get_health", "As /healthz: where clients of vLLM and SGLang ask.", needs_key=False),
        _get("/openapi.json", _openapi, "get_openapi", "This document", needs_key=False),
        *PAGE,
    ),
}
ROUTES: Final = tuple(route for routes in _TAGGED.values() for route in routes)


def _no_metrics(accept: str, *, names_tenants: bool) -> tuple[bytes, str]:
    return b"", ""


@cache
def document(limits: IngressLimits | None = None) -> dict[str, Any]:
    """What ``/openapi.json`` says of a server with these limits, or with those of the defaults. Do not change it."""
    *others, (server, routes) = _TAGGED.items()
    routes_by_tag = {**dict(others), server: (*routes, _metrics_route(_no_metrics, needs_key=True))}
    return openapi_document(routes_by_tag, limits or IngressLimits())


# -- what no path answers --------------------------------------------------------------------------------------------


def _not_found(adds_request_id: bool) -> Callable[[Scope, Receive, Send], Any]:
    async def not_found(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        proposed = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        answer = error_answer(_unknown_path(scope["path"]), scope["path"])
        await send_answer(send, answer, request_id(proposed) if adds_request_id else None)

    return not_found


def _unknown_path(path: str) -> UnknownPath:
    if path == "/v1/completions":  # what `vllm bench serve` asks unless it is told otherwise
        return UnknownPath(f"there is nothing at {path}: models here chat; send messages to /v1/chat/completions")
    if path.startswith("/v1/responses/"):
        return UnknownPath(
            f"there is nothing at {shown(path)}: no answer is kept; send the whole conversation as input"
        )
    return UnknownPath(f"there is nothing at {shown(path)}; see /openapi.json for the paths")


def _methods_at(request: Request) -> list[str]:
    """Every method that some route has at the path of a request."""
    routes = [one for one in request.app.router.routes if one.matches(request.scope)[0] is not Match.NONE]
    return sorted({"OPTIONS"}.union(*(route.methods for route in routes)))


async def _framework_error(request: Request, error: Exception) -> Response:
    """Answer what the framework raises before or around an endpoint, in the shape of every other error."""
    known: ServingError = to_serving_error(error)
    path: str = request.scope["path"]  # to make `request.url`, Starlette decodes the query, which may be no UTF-8
    extra: dict[str, str] = {}
    if isinstance(error, HTTPException):
        extra = dict(error.headers or {})
        if error.status_code == 405:
            allowed = extra["Allow"] = ", ".join(_methods_at(request))
            if request.method == "OPTIONS":
                return Response(status_code=204, headers=extra)
            known = MethodNotAllowed(f"{request.method} is not possible at {shown(path)}; use {allowed}")
        elif error.status_code == 404:
            known = _unknown_path(path)
    status, headers, body = http_error(known, path)
    extra |= {name.decode(): value.decode() for name, value in headers}
    return Response(body, status, extra, "application/json")
