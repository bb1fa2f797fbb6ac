"""The HTTP application: every path, what answers it, and the same error shape wherever something goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving.domain import Surface
from serving.errors import MethodNotAllowed, NotReady, ServingError, UnknownPath, UnsupportedMediaType
from serving.front.auth import Authenticator
from serving.front.front import Front, request_id, shown
from serving.front.http.body import Receive, read_into
from serving.front.http.call import (
    Answer,
    Call,
    Endpoint,
    Handler,
    Scope,
    Send,
    error_answer,
    json_answer,
    send_answer,
)
from serving.front.http.json_body import JsonReader
from serving.front.http.multipart import FormReader
from serving.front.http.openapi import openapi_document, vireo_version
from serving.front.status import http_error, to_serving_error
from serving.limits import IngressLimits
from serving.service import ChatModelCard, ModelCard, Service
from serving.tasks.chat.http import answer_stream, answer_whole, read_chat
from serving.tasks.classify.body import (
    budget_from_headers,
    json_bounds,
    reply_to_json,
    request_from_document,
    request_from_form,
)
from serving.tasks.infer.http import (
    EXTENSIONS,
    SERVER_NAME,
    encode_answer,
    infer_from_document,
    model_metadata,
    read_infer,
)
from serving.tasks.videos.http import VideoPaths
from serving.tasks.videos.reply import video_model_to_json
from serving.telemetry.events import Sink, ignore

METRICS_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
OIP_JSON_LENGTH = b"inference-header-content-length"


def build_http_app(
    service: Service,
    authenticator: Authenticator,
    limits: IngressLimits,
    metrics_endpoint: Callable[[], bytes] | None,
    tell: Sink = ignore,
    *,
    metrics_needs_key: bool = False,
    adds_request_id: bool = True,
    json_reader: JsonReader | None = None,
) -> FastAPI:
    """Make the application.

    ``metrics_endpoint`` returns Prometheus text; None: there is no such path. ``adds_request_id=False`` where the
    server around the application puts ``x-request-id`` on every answer itself, as Ray Serve does.
    """
    front = Front(service=service, authenticator=authenticator, limits=limits, tell=tell)
    app = FastAPI(
        title="Vireo", version=vireo_version(), openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    reader = json_reader or JsonReader()
    paths = HttpPaths(front, reader)
    table: list[tuple[str, str, Handler, Surface | None, bool]] = [
        ("POST", "/v1/classify", paths.classify, Surface.HTTP_CLASSIFY, True),
        ("POST", "/v1/chat/completions", paths.chat, Surface.HTTP_CHAT, True),
        *VideoPaths(front, lambda call: budget_from_headers(call.headers, limits), reader).table(),
        ("POST", "/v2/models/{model}/infer", paths.infer, Surface.HTTP_OIP, True),
        ("POST", "/v2/models/{model}/versions/{version}/infer", paths.infer, Surface.HTTP_OIP, True),
        ("GET", "/v1/models", paths.list_models, None, True),
        ("GET", "/v1/models/{model}", paths.show_model, None, True),
        ("GET", "/v2", paths.server_metadata, None, True),
        ("GET", "/v2/models/{model}", paths.model_metadata, None, True),
        ("GET", "/v2/models/{model}/versions/{version}", paths.model_metadata, None, True),
        ("GET", "/v2/models/{model}/ready", paths.model_ready, None, True),
        ("GET", "/v2/models/{model}/versions/{version}/ready", paths.model_ready, None, True),
        ("GET", "/v2/health/live", paths.live, None, False),
        ("GET", "/v2/health/ready", paths.ready, None, False),
        ("GET", "/healthz", paths.ready, None, False),
        ("GET", "/openapi.json", paths.openapi, None, False),
    ]
    if metrics_endpoint is not None:
        table.append(("GET", "/metrics", _metrics_path(metrics_endpoint), None, metrics_needs_key))
    for method, path, handler, surface, needs_key in table:
        endpoint = Endpoint(front, handler, surface=surface, needs_key=needs_key, adds_request_id=adds_request_id)
        app.router.routes.append(Route(path, endpoint, methods=[method]))
    app.router.default = _not_found(adds_request_id)
    app.openapi = openapi_document  # type: ignore[method-assign]
    app.add_exception_handler(HTTPException, _framework_error)
    app.add_exception_handler(Exception, _framework_error)
    return app


def _metrics_path(metrics_endpoint: Callable[[], bytes]) -> Handler:
    async def metrics(_call: Call) -> Answer:
        return Answer(metrics_endpoint(), 200, METRICS_TYPE)

    return metrics


class HttpPaths:
    """What each path does with a call whose caller is known."""

    def __init__(self, front: Front, reader: JsonReader) -> None:
        self._front = front
        self._reader = reader

    async def classify(self, call: Call) -> Answer:
        """``POST /v1/classify``."""
        assert call.visit is not None
        limits = self._front.limits
        fallback = budget_from_headers(call.headers, limits)
        content_type = call.headers.get(b"content-type", b"").decode("latin-1")
        kind = _media_type(content_type)
        if kind == "application/json":
            request = await request_from_document(
                await self._reader.read(call.receive, call.headers, limits, json_bounds(limits)),
                request_id=call.request_id,
                tenant=call.tenant,
                fallback=fallback,
                limits=limits,
            )
        elif kind == "multipart/form-data":
            reader = FormReader(content_type, limits)
            await read_into(call.receive, call.headers, limits, reader.feed)
            request = request_from_form(
                reader.finish(), request_id=call.request_id, tenant=call.tenant, fallback=fallback, limits=limits
            )
        else:
            raise _wrong_type(content_type, "application/json or multipart/form-data")
        return json_answer(reply_to_json(await self._front.classify(request, call.visit)))

    async def chat(self, call: Call) -> Answer | None:
        """``POST /v1/chat/completions``."""
        content_type = call.headers.get(b"content-type", b"").decode("latin-1")
        if _media_type(content_type) != "application/json":
            raise _wrong_type(content_type, "application/json")
        fallback = budget_from_headers(call.headers, self._front.limits)
        chat = await read_chat(call, self._front, self._reader, fallback)
        if not chat.request.is_streamed:
            return await answer_whole(call, chat, self._front)
        await answer_stream(call, chat, self._front)
        return None

    async def infer(self, call: Call) -> Answer:
        """``POST /v2/models/{model}[/versions/{version}]/infer``."""
        assert call.visit is not None
        limits, json_length = self._front.limits, call.headers.get(OIP_JSON_LENGTH)
        content_type = call.headers.get(b"content-type", b"").decode("latin-1")
        if _media_type(content_type) not in ("", "application/json", "application/octet-stream"):
            raise _wrong_type(content_type, "application/json, or application/octet-stream with binary tensors")
        card = self._card(call)
        call.visit.model = card.id
        infer = await infer_from_document(
            *await read_infer(
                self._reader,
                call.receive,
                call.headers,
                None if json_length is None else json_length.decode("latin-1"),
                limits,
            ),
            model=card.id,
            request_id=call.request_id,
            tenant=call.tenant,
            fallback=budget_from_headers(call.headers, limits),
            limits=limits,
        )
        body, head_length = encode_answer(infer, await self._front.classify(infer.request, call.visit))
        if head_length is None:
            return Answer(body)
        return Answer(body, 200, b"application/octet-stream", ((OIP_JSON_LENGTH, str(head_length).encode()),))

    async def list_models(self, call: Call) -> Answer:
        """``GET /v1/models``."""
        service = self._front.service
        cards = [model_to_json(card) for card in service.models()]
        cards += [chat_model_to_json(card) for card in service.chat_models()]
        cards += [video_model_to_json(card) for card in service.video_models()]
        return json_answer({"object": "list", "data": [self._with_state(card) for card in cards]})

    async def show_model(self, call: Call) -> Answer:
        """``GET /v1/models/{model}``."""
        model = call.path_params["model"]
        for card in self._front.service.chat_models():
            if card.id == model:
                return json_answer(self._with_state(chat_model_to_json(card)))
        for video_card in self._front.service.video_models():
            if video_card.id == model:
                return json_answer(self._with_state(video_model_to_json(video_card)))
        return json_answer(self._with_state(model_to_json(self._card(call))))

    async def server_metadata(self, call: Call) -> Answer:
        """``GET /v2``."""
        return json_answer({"name": SERVER_NAME, "version": vireo_version(), "extensions": EXTENSIONS})

    async def model_metadata(self, call: Call) -> Answer:
        """``GET /v2/models/{model}[/versions/{version}]``."""
        return json_answer(model_metadata(self._card(call)))

    async def model_ready(self, call: Call) -> Answer:
        """``GET /v2/models/{model}[/versions/{version}]/ready``."""
        params = call.path_params
        model = self._front.served(params["model"], params.get("version", ""))
        if not self._front.service.is_model_ready(model):
            raise NotReady(f"no replica of {model} can answer now: it is starting, or being replaced. Try again")
        return json_answer({"name": model, "ready": True})

    async def live(self, call: Call) -> Answer:
        """``GET /v2/health/live``: the process answers."""
        return json_answer({"live": True})

    async def ready(self, call: Call) -> Answer:
        """``GET /v2/health/ready`` and ``GET /healthz``: requests to one model at least can be answered."""
        self._check_ready()
        return json_answer({"ready": True})

    async def openapi(self, call: Call) -> Answer:
        """``GET /openapi.json``."""
        return json_answer(openapi_document())

    def _card(self, call: Call) -> ModelCard:
        params = call.path_params
        return self._front.card(params["model"], params.get("version", ""))

    def _with_state(self, model: dict[str, Any]) -> dict[str, Any]:
        """Say of a model whether it can be asked now."""
        return {**model, "vireo": {**model["vireo"], "ready": self._front.service.is_model_ready(model["id"])}}

    def _check_ready(self) -> None:
        if not self._front.service.is_ready():
            raise NotReady("no request can be answered now: the server is starting or stopping. Try again")


def model_to_json(card: ModelCard) -> dict[str, Any]:
    """Return a model in OpenAI's shape, with a ``vireo`` block."""
    return {
        "id": card.id,
        "object": "model",
        "created": card.created_s,
        "owned_by": "vireo",
        "vireo": {
            "family": card.family,
            "input_size": card.input_size,
            "num_classes": card.num_classes,
            "num_exits": card.num_exits,
            "labels": card.labels,
            "checkpoint_sha256": card.checkpoint_sha256,
            "operating_points": card.operating_points,
        },
    }


def chat_model_to_json(card: ChatModelCard) -> dict[str, Any]:
    """Return a chat model in OpenAI's shape, with a ``vireo`` block."""
    return {
        "id": card.id,
        "object": "model",
        "created": card.created_s,
        "owned_by": "vireo",
        "vireo": {
            "modalities": card.modalities,
            "max_model_len": card.max_model_len,
            "max_output_tokens": card.max_output_tokens,
            "checkpoint_sha256": card.checkpoint_sha256,
        },
    }


def _media_type(content_type: str) -> str:
    """Return the type without its parameters; a JSON body in another charset than UTF-8 is no type that we take."""
    kind, _, parameters = content_type.partition(";")
    charset = parameters.lower().replace(" ", "").partition("charset=")[2].strip('"')
    if charset and kind.strip().lower() == "application/json" and not charset.startswith("utf-8"):
        return content_type
    return kind.strip().lower()


def _wrong_type(content_type: str, wanted: str) -> UnsupportedMediaType:
    return UnsupportedMediaType(
        f"content-type is {shown(content_type) if content_type else 'missing'}; send {wanted}", param="content-type"
    )


def _not_found(adds_request_id: bool) -> Callable[[Scope, Receive, Send], Any]:
    async def not_found(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        proposed = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        error = UnknownPath(f"there is nothing at {shown(scope['path'])}; see /openapi.json for the paths")
        await send_answer(send, error_answer(error), request_id(proposed) if adds_request_id else None)

    return not_found


async def _framework_error(request: Request, error: Exception) -> Response:
    """Answer what the framework raises before or around an endpoint, in the shape of every other error."""
    known: ServingError = to_serving_error(error)
    extra: dict[str, str] = {}
    if isinstance(error, HTTPException):
        extra = dict(error.headers or {})
        if error.status_code == 405:
            allowed = extra.get("Allow", "another method")
            known = MethodNotAllowed(f"{request.method} is not possible at {shown(request.url.path)}; use {allowed}")
        elif error.status_code == 404:
            known = UnknownPath(f"there is nothing at {shown(request.url.path)}; see /openapi.json for the paths")
    status, headers, body = http_error(known)
    extra |= {name.decode(): value.decode() for name, value in headers}
    return Response(body, status, extra, "application/json")
