"""``/openapi.json``, made from the models in ``schemas`` and the table in ``status``."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serving.front.http import schemas
from serving.front.status import TABLE
from serving.tasks.videos.rules import MAX_KEY_CHARS, MAX_PAGE

VARIANTS = ("video", "thumbnail")
"""Files of a video."""

_FILES = ("video/mp4", "image/gif", "image/jpeg")
_BINARY = {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}
_REF = "#/components/schemas/{model}"
_BODIES: tuple[type[BaseModel], ...] = (
    schemas.ClassifyBody,
    schemas.ChatBody,
    schemas.InferBody,
    schemas.VideoBody,
    schemas.ErrorAnswer,
    schemas.ClassifyAnswer,
    schemas.ChatAnswer,
    schemas.ChatChunk,
    schemas.ShownModelAnswer,
    schemas.ModelListAnswer,
    schemas.VideoAnswer,
    schemas.VideoEventAnswer,
    schemas.VideoListAnswer,
    schemas.VideoDeletedAnswer,
    schemas.ServerMetadataAnswer,
    schemas.ModelMetadataAnswer,
    schemas.InferAnswer,
)


@cache
def openapi_document() -> dict[str, Any]:
    """Return the OpenAPI 3.1 description of every HTTP path. Do not change the result."""
    _, definitions = models_json_schema([(body, "validation") for body in _BODIES], ref_template=_REF)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Vireo",
            "version": vireo_version(),
            "description": "Serves vision models inside a latency and an energy budget.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": _paths(),
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def vireo_version() -> str:
    """Return the version of the installed distribution."""
    try:
        return version("vireo")
    except PackageNotFoundError:
        return "0+uninstalled"


def _paths() -> dict[str, Any]:
    model, model_version = _path_parameter("model"), _path_parameter("version")
    keyed: dict[str, Any] = {
        "/v1/models": _get("List the models", "ModelListAnswer"),
        "/v1/models/{model}": _get("Show a model", "ShownModelAnswer", model),
        "/v2": _get("Server metadata (Open Inference Protocol)", "ServerMetadataAnswer"),
    }
    for prefix, parameters in (
        ("/v2/models/{model}", (model,)),
        ("/v2/models/{model}/versions/{version}", (model, model_version)),
    ):
        keyed[prefix] = _get("Model metadata", "ModelMetadataAnswer", *parameters)
        keyed[f"{prefix}/ready"] = _get("Is the model ready?", None, *parameters)
        keyed[f"{prefix}/infer"] = {"post": _infer(*parameters)}
    open_paths = {
        "/v2/health/live": _get("Is the process alive?", None),
        "/v2/health/ready": _get("Can requests be answered?", None),
        "/healthz": _get("Can requests be answered?", None),
        "/metrics": _get("Metrics in Prometheus' text format", None, content="text/plain"),
        "/openapi.json": _get("This document", None),
    }
    for item in open_paths.values():
        item["get"]["security"] = []
    return {
        "/v1/chat/completions": {"post": _chat()},
        "/v1/classify": {"post": _classify()},
        **_videos(),
        **keyed,
        **open_paths,
    }


def _classify() -> dict[str, Any]:
    form = {
        "type": "object",
        "required": ["model", "file"],
        "additionalProperties": False,
        "properties": {
            "model": {"type": "string"},
            "file": {"type": "array", "items": {"type": "string", "contentMediaType": "application/octet-stream"}},
            "top_k": {"type": "integer", "minimum": 1},
            "vireo": {"$ref": _REF.format(model="BudgetBody")},
        },
    }
    body = {
        "required": True,
        "content": {"application/json": {"schema": _ref("ClassifyBody")}, "multipart/form-data": {"schema": form}},
    }
    return _operation("Classify images", "ClassifyAnswer", *_budget_headers()) | {"requestBody": body}


def _chat() -> dict[str, Any]:
    body = {"required": True, "content": {"application/json": {"schema": _ref("ChatBody")}}}
    operation = _operation("Chat about text and images", "ChatAnswer", *_budget_headers())
    operation["responses"]["200"]["content"]["text/event-stream"] = _events("ChatChunk")
    text = "With stream, each event is a line of data with a chunk; the last one is [DONE]."
    return operation | {"requestBody": body, "description": text}


def _videos() -> dict[str, Any]:
    video_id = _path_parameter("id")
    page = (
        _query("after", {"type": "string"}, "Id of the video after which the page begins."),
        _query("limit", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE}, "Most videos of a page."),
        _query("order", {"enum": ["asc", "desc"]}, "By time of creation; newest first when absent."),
    )
    variant = _query("variant", {"enum": list(VARIANTS)}, "Which file of the video.")
    events = _operation("Watch a video job", None, video_id)
    events["responses"]["200"]["content"] = {"text/event-stream": _events("VideoEventAnswer")}
    events["description"] = "An event for each change, named progress; the last is named completed or failed."
    remove = _operation("Cancel a video job, or remove one that is over", "VideoDeletedAnswer", video_id)
    return {
        "/v1/videos": {"post": _create("VideoAnswer"), **_get("List video jobs", "VideoListAnswer", *page)},
        "/v1/videos/sync": {"post": _create(None)},
        "/v1/videos/{id}": {**_get("Show a video job", "VideoAnswer", video_id), "delete": remove},
        "/v1/videos/{id}/content": {"get": _content(video_id, variant)},
        "/v1/videos/{id}/events": {"get": events},
    }


def _create(answer: str | None) -> dict[str, Any]:
    schema = {"schema": _ref("VideoBody")}
    key = {
        "name": "Idempotency-Key",
        "in": "header",
        "schema": {"type": "string", "maxLength": MAX_KEY_CHARS},
        "description": "Requests with the same key are one job.",
    }
    summary = "Make a video" if answer else "Make a video and wait for it"
    operation = _operation(summary, answer, key, *_budget_headers())
    if answer is None:
        operation["responses"]["200"]["content"] = dict.fromkeys(_FILES[:2], _BINARY)
    body = {"required": True, "content": {"application/json": schema, "multipart/form-data": schema}}
    return operation | {"requestBody": body}


def _content(*parameters: dict[str, Any]) -> dict[str, Any]:
    span = {"name": "Range", "in": "header", "schema": {"type": "string"}, "description": "One range of bytes."}
    operation = _operation("Fetch a file of a video", None, *parameters, span)
    content = dict.fromkeys(_FILES, _BINARY)
    operation["responses"]["200"]["content"] = content
    operation["responses"]["206"] = {"description": "The range asked for", "content": content}
    operation["responses"]["304"] = {"description": "The caller has it already (If-None-Match)"}
    return operation


def _query(name: str, schema: dict[str, Any], text: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": text}


def _infer(*parameters: dict[str, Any]) -> dict[str, Any]:
    length = {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "schema": {"type": "integer", "minimum": 0},
        "description": "Binary tensor extension: length of the JSON at the start of the body.",
    }
    binary = {
        "application/octet-stream": {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}
    }
    body = {"required": True, "content": {"application/json": {"schema": _ref("InferBody")}, **binary}}
    operation = _operation("Infer (Open Inference Protocol)", "InferAnswer", *parameters, length, *_budget_headers())
    operation["responses"]["200"]["content"] |= binary
    return operation | {"requestBody": body}


def _get(
    summary: str, answer: str | None, *parameters: dict[str, Any], content: str = "application/json"
) -> dict[str, Any]:
    return {"get": _operation(summary, answer, *parameters, content=content)}


def _operation(
    summary: str, answer: str | None, *parameters: dict[str, Any], content: str = "application/json"
) -> dict[str, Any]:
    schema = _ref(answer) if answer else {"type": "string" if content == "text/plain" else "object"}
    return {
        "summary": summary,
        "parameters": list(parameters),
        "security": [{"bearer": []}, {"apiKey": []}, {}],
        "responses": {"200": {"description": "Success", "content": {content: {"schema": schema}}}, **_errors()},
    }


def _events(data: str) -> dict[str, Any]:
    """A stream of server-sent events, each with a document of the schema ``data`` as its data.

    In the form of OpenAPI 3.2, which readers of 3.1 leave aside; 3.1 has none.
    """
    content = {"type": "string", "contentMediaType": "application/json", "contentSchema": _ref(data)}
    properties = {"event": {"type": "string"}, "data": content}
    return {"itemSchema": {"type": "object", "properties": properties, "required": ["data"]}}


def _errors() -> dict[str, Any]:
    """One entry per HTTP status of the table, listing the codes that have it."""
    codes: dict[int, set[str]] = {}
    for cls, status in TABLE.items():
        codes.setdefault(status.http, set()).add(cls.code)
    content = {"application/json": {"schema": _ref("ErrorAnswer")}}
    return {str(http): {"description": ", ".join(sorted(codes[http])), "content": content} for http in sorted(codes)}


def _budget_headers() -> tuple[dict[str, Any], ...]:
    return tuple(
        {"name": name, "in": "header", "schema": {"type": "number", "exclusiveMinimum": 0}, "description": text}
        for name, text in (
            ("x-vireo-latency-ms", "Latency budget, where the body has none."),
            ("x-vireo-energy-j", "Energy budget, where the body has none."),
        )
    )


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _ref(model: str) -> dict[str, str]:
    return {"$ref": _REF.format(model=model)}
