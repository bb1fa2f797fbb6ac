"""``/openapi.json``, made from the routes: the classes that are parsed and encoded, and the table in ``status``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from serving.domain import MAX_ENERGY_J, MAX_LATENCY_MS
from serving.front.http.call import Route
from serving.front.http.json_body import LIMIT
from serving.front.status import TABLE, error_shape
from serving.limits import MAX_ID_CHARS, IngressLimits

BINARY: Final = {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}
_REF: Final = "#/components/schemas/{model}"


@dataclass(frozen=True, slots=True)
class Tag:
    """A group of paths: each path is in one."""

    name: str
    text: str


def openapi_document(routes: Mapping[Tag, Iterable[Route]], limits: IngressLimits) -> dict[str, Any]:
    """Return the OpenAPI 3.1 description of the routes, with the bounds of a server."""
    found: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for tag, tagged in routes.items():
        for route in tagged:
            described = {"tags": [tag.name], **_complete(route)}
            paths.setdefault(route.path, {})[route.method.lower()] = _with_refs(described, found)
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "Vireo",
            "version": vireo_version(),
            "description": "Serves vision models inside a latency and an energy budget.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": [{"name": tag.name, "description": tag.text} for tag in routes],
        "paths": paths,
        "components": {
            "schemas": _schemas(found),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }
    bounded: dict[str, Any] = _with_limits(document, limits)
    return bounded


def vireo_version() -> str:
    """Return the version of the installed distribution."""
    try:
        return version("vireo")
    except PackageNotFoundError:
        return "0+uninstalled"


# -- what routes say of themselves -----------------------------------------------------------------------------------


def operation(
    summary: str,
    answer: Any = None,
    *parameters: Mapping[str, Any],
    id: str,
    body: Mapping[str, Any] | None = None,
    text: str = "",
    also: Mapping[str, Any] | None = None,
    links: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Describe a path. ``answer``: class of a successful answer, or its content by media type. ``id``: name of the
    method in generated clients, which stays. ``body``: as ``answer``, of the request. ``also``: further responses.
    ``links``: what a value of the answer can be given to."""
    content = answer if isinstance(answer, dict) else {"application/json": {"schema": answer or {"type": "object"}}}
    success = {"description": "Success", "content": content, **({"links": links} if links else {})}
    made: dict[str, Any] = {
        "operationId": id,
        "summary": summary,
        "parameters": list(parameters),
        "responses": {"200": success, **(also or {})},
    }
    if text:
        made["description"] = text
    return made if body is None else {**made, "requestBody": {"required": True, "content": body}}


def json_content(schema: Any) -> dict[str, Any]:
    """Content that is JSON of a class."""
    return {"application/json": {"schema": schema}}


def form_schema(kind: type[BaseModel]) -> dict[str, Any]:
    """The fields of a body as those of a form, which has no nulls: what is not said is absent."""
    schema = kind.model_json_schema(ref_template=_REF)
    schema.pop("$defs", None)
    for field in schema["properties"].values():
        kinds = [one for one in field.pop("anyOf", ()) if one != {"type": "null"}]
        field.update(kinds[0] if len(kinds) == 1 else {"anyOf": kinds} if kinds else {})
        if field.get("default", 0) is None:
            del field["default"]
    return schema


def event_content(data: Any) -> dict[str, Any]:
    """Content that is a stream of server-sent events, each with a document of a class as its data.

    OpenAPI 3.1 has no form for it: as is the custom, the schema is that of an event. (OpenAPI 3.2 has ``itemSchema``,
    which is refused by what checks documents against 3.1.)
    """
    content = {"type": "string", "contentMediaType": "application/json", "contentSchema": data}
    properties = {"event": {"type": "string"}, "data": content}
    item = {"type": "object", "properties": properties, "required": ["data"]}
    return {"text/event-stream": {"schema": item}}


def parameter(where: str, name: str, schema: Mapping[str, Any], text: str = "") -> dict[str, Any]:
    """Describe a parameter in the ``path``, the ``query`` or a ``header``."""
    made: dict[str, Any] = {"name": name, "in": where, "schema": schema}
    if where == "path":
        made["required"] = True
    return {**made, "description": text} if text else made


def path_parameter(name: str, max_chars: int = MAX_ID_CHARS) -> dict[str, Any]:
    """Describe a part of the path. What is longer is the name of nothing."""
    return parameter("path", name, {"type": "string", "minLength": 1, "maxLength": max_chars})


BUDGET_HEADERS: Final = tuple(
    parameter("header", f"x-vireo-{name}", {"type": "number", "exclusiveMinimum": 0, "maximum": most}, text)
    for name, most, text in (
        ("latency-ms", MAX_LATENCY_MS, "Latency budget, where the body has none."),
        ("energy-j", MAX_ENERGY_J, "Energy budget, where the body has none."),
    )
)


# -- the document ----------------------------------------------------------------------------------------------------


def _complete(route: Route) -> dict[str, Any]:
    """Add what every operation has: keys, and an answer for each status of the table, with the codes that have it."""
    codes: dict[int, set[str]] = {}
    for cls, status in TABLE.items():
        codes.setdefault(status.http, set()).add(cls.code)
    content = json_content(error_shape(route.path))
    errors = {str(http): {"description": ", ".join(sorted(codes[http])), "content": content} for http in sorted(codes)}
    security: list[dict[str, Any]] = [{"bearer": []}, {"apiKey": []}, {}] if route.needs_key else []
    return {**route.operation, "responses": {**errors, **route.operation["responses"]}, "security": security}


def _with_refs(node: Any, found: dict[str, Any]) -> Any:
    """Put a reference in the place of each class, and note the class."""
    if isinstance(node, Mapping):
        return {key: _with_refs(value, found) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_with_refs(value, found) for value in node]
    if isinstance(node, type):
        assert found.setdefault(node.__name__, node) is node, f"two schemas are called {node.__name__}"
        return {"$ref": _REF.format(model=node.__name__)}
    return node


def _with_limits(node: Any, limits: IngressLimits) -> Any:
    """Put the server's limits in the places that stand for them."""
    if isinstance(node, dict):
        if node.keys() == {LIMIT}:
            return getattr(limits, node[LIMIT])
        return {key: _with_limits(value, limits) for key, value in node.items()}
    return [_with_limits(value, limits) for value in node] if isinstance(node, list) else node


def _schemas(found: Mapping[str, Any]) -> dict[str, Any]:
    inputs = [
        (name, "validation" if issubclass(kind, BaseModel) else "serialization", TypeAdapter(kind))
        for name, kind in found.items()
    ]
    _, definitions = TypeAdapter.json_schemas(inputs, ref_template=_REF, schema_generator=_Closed)  # type: ignore[arg-type]
    schemas: dict[str, Any] = definitions["$defs"]
    return schemas


class _Closed(GenerateJsonSchema):
    """Answers have every field of their class and, unless it says that it allows them, no other."""

    def typed_dict_schema(self, schema: Any) -> dict[str, Any]:
        return {"additionalProperties": False, **super().typed_dict_schema(schema)}

    def dataclass_schema(self, schema: Any) -> dict[str, Any]:
        made = super().dataclass_schema(schema)
        return {**made, "additionalProperties": False, "required": list(made["properties"])}
