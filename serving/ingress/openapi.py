"""``/openapi.json``, made from the models in ``schemas`` and the table in ``status``."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serving.ingress import schemas
from serving.ingress.status import TABLE

_REF = "#/components/schemas/{model}"
_BODIES: tuple[type[BaseModel], ...] = (
    schemas.ClassifyBody,
    schemas.ChatBody,
    schemas.InferBody,
    schemas.ErrorAnswer,
    schemas.ClassifyAnswer,
    schemas.ChatAnswer,
    schemas.ChatChunk,
    schemas.ShownModelAnswer,
    schemas.ModelListAnswer,
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
    operation["responses"]["200"]["content"]["text/event-stream"] = {"schema": _ref("ChatChunk")}
    text = "With stream, each event is a line of data with a chunk; the last one is [DONE]."
    return operation | {"requestBody": body, "description": text}


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
