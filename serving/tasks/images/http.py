"""``POST /v1/images/generations`` and ``/v1/images/edits``, the files that URLs lead to, and the jobs they begin."""

from __future__ import annotations

import asyncio
import base64
import re
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, TypeVar

from serving.delivery.job.http import KEY_HEADER
from serving.domain import Budget, ImageInput, Surface
from serving.errors import InvalidRequest, UnsupportedField
from serving.front.front import shown
from serving.front.http.body import PIECE_BYTES, read_into
from serving.front.http.call import Answer, Call, Route, json_answer
from serving.front.http.json_body import load_object, validate
from serving.front.http.json_scan import Bounds
from serving.front.http.multipart import FormReader, FormRules
from serving.front.http.openapi import BINARY, BUDGET_HEADERS, form_schema, json_content, operation, path_parameter
from serving.front.images import images_from_text
from serving.limits import IngressLimits
from serving.stores.jobs.base import JobRecord
from serving.tasks.images.jobs import JOBS, answer
from serving.tasks.images.rules import ImagesAsked, ImagesMade
from serving.tasks.images.schemas import EditBody, GenerationBody, ImageAnswer, ImageJobAnswer, ImagesAnswer

BodyOf = TypeVar("BodyOf", bound=GenerationBody)
_INTEGER = re.compile(r"[0-9]{1,19}")
_INTEGERS: Final = ("n", "seed", "output_compression")
_TEXTS: Final = ("model", "prompt", "negative_prompt", "size", "response_format", "output_format", "user")
_WAIT: Final = "the answer comes whole"
REFUSED: Final[Mapping[str, tuple[tuple[str, ...], str]]] = MappingProxyType(
    {
        "background": (("auto", "opaque"), "pictures have no transparency"),
        "mask": ((), "no model here takes a mask"),
        "moderation": (("auto", "low"), "there is no filter of contents"),
        "quality": (("auto",), "send vireo.quality_floor"),
        "style": ((), "say it in the prompt"),
        "input_fidelity": ((), "the model's settings decide that; see /v1/models"),
        "stream": (("false",), _WAIT),
        "partial_images": (("0",), _WAIT),
    }
)
"""Fields of other servers: the values that ask for nothing, and why others are refused. ``null`` counts as absent."""


async def generate(call: Call) -> Answer:
    """``POST /v1/images/generations``."""
    call.media_type("application/json")
    document = await call.read_json(json_bounds(call.front.limits))
    return await _answer(call, _parsed(GenerationBody, document), None)


async def edit(call: Call) -> Answer:
    """``POST /v1/images/edits``."""
    limits = call.front.limits
    if call.media_type("application/json", "multipart/form-data") == "application/json":
        body = _parsed(EditBody, await call.read_json(json_bounds(limits)))
        if (body.image is None) == (body.images is None):
            both = "both there" if body.image is not None else "both missing"
            raise InvalidRequest(f"image and images are {both}; send exactly one of them", param="image")
        text = body.images[0].image_url if body.images is not None else body.image
        (image,) = await images_from_text([text or ""], "image")
        return await _answer(call, body, image)
    reader = FormReader(call.content_type, limits, _form_rules(limits))
    await read_into(call.receive, call.headers, limits, reader.feed)
    form = reader.finish()
    if len(form.files) != 1:
        raise InvalidRequest(f"the form has {len(form.files)} images; send exactly one as image", param="image")
    body = _parsed(EditBody, {name: _form_value(name, text) for name, text in form.fields.items()})
    return await _answer(call, body, ImageInput(encoded=form.files[0]))


def _form_rules(limits: IngressLimits) -> FormRules:
    return FormRules(
        text_fields=(*_TEXTS, *_INTEGERS, "vireo", *(name for name in REFUSED if name != "mask")),
        file_fields=("image", "image[]"),
        max_text_bytes=4 * limits.max_text_chars,
        refused={"mask": REFUSED["mask"][1]},
    )


def _form_value(name: str, text: str) -> Any:
    if name == "vireo":
        return load_object(text.encode(), max_values=128, what="vireo")
    if name not in _INTEGERS:
        return text
    if not _INTEGER.fullmatch(text):
        raise InvalidRequest(f"{name} is {shown(text)}; send an integer", param=name)
    return int(text)


def json_bounds(limits: IngressLimits) -> Bounds:
    """Bounds of a JSON body, whatever its content."""
    return Bounds(max_values=256, max_plain_bytes=PIECE_BYTES + (1 << 20), max_string_bytes=limits.max_image_chars)


def _parsed(kind: type[BodyOf], document: Mapping[str, Any]) -> BodyOf:
    """Raises: InvalidRequest, UnknownField, UnsupportedField."""
    offered = {}
    for name, value in document.items():
        if name not in REFUSED:
            offered[name] = value
            continue
        harmless, why = REFUSED[name]
        if value is not None and str(value).lower() not in harmless:
            raise UnsupportedField(f"{name} is {shown(value)}, which is not offered: {why}. Remove it", param=name)
    return validate(kind, offered)


async def _answer(call: Call, body: GenerationBody, image: ImageInput | None) -> Answer:
    fallback: Budget = call.budget()
    asked = ImagesAsked(
        model=body.model or "",
        prompt=body.prompt or "",
        negative_prompt=body.negative_prompt or "",
        image=image,
        count=body.n or 1,
        size=body.size or "auto",
        format=body.output_format or "png",
        compression=body.output_compression,
        seed=body.seed,
        budget=fallback if body.vireo is None else body.vireo.to_budget(fallback),
    )
    made = await answer(call, asked, body, call.header(b"idempotency-key") or "")
    if isinstance(made, JobRecord):
        return JOBS.begun(call, made, 202)
    data = await _stored(call, made) if body.response_format == "url" else await asyncio.to_thread(_spelt, made)
    for seed, each in zip(made.seeds, data, strict=False):
        each["seed"] = seed
    document: ImagesAnswer = {
        "created": int(time.time()),
        "model": made.model,
        "data": data,
        "output_format": made.format,
        "size": f"{made.width}x{made.height}",
        "vireo": made.report,
    }
    return json_answer(document)


def _spelt(made: ImagesMade) -> list[ImageAnswer]:
    return [{"b64_json": base64.b64encode(file).decode()} for file in made.files]


async def _stored(call: Call, made: ImagesMade) -> list[ImageAnswer]:
    files = call.front.service.image_files
    stored = [await files.put(call.tenant, file, made.format) for file in made.files]
    return [{"url": call.url_of(f"/v1/images/files/{each.name}"), "expires_at": each.expires_at} for each in stored]


async def fetch(call: Call) -> Answer:
    """``GET /v1/images/files/{name}``."""
    data, media_type = await call.front.service.image_files.read(call.tenant, call.path_params["name"])
    return Answer(data, 200, media_type.encode(), ((b"cache-control", b"private, max-age=3600"),))


_FIELDS: Final = form_schema(EditBody)["properties"]
_FORM: Final = {
    "type": "object",
    "required": ["image"],
    "additionalProperties": False,
    "properties": {
        "image": BINARY["schema"],
        **{name: _FIELDS[name] for name in (*_TEXTS, *_INTEGERS, "vireo")},
    },
}
_FILES: Final = dict.fromkeys(("image/png", "image/jpeg", "image/webp"), BINARY)

_BEGUN: Final = {
    "202": {"description": "A job was begun", "content": json_content(ImageJobAnswer), "links": JOBS.links("/id")}
}

ROUTES: Final = (
    Route(
        method="POST",
        path="/v1/images/generations",
        handler=generate,
        surface=Surface.HTTP_IMAGES,
        operation=operation(
            "Make pictures of words",
            ImagesAnswer,
            KEY_HEADER,
            *BUDGET_HEADERS,
            id="generate_images",
            body=json_content(GenerationBody),
            also=_BEGUN,
        ),
    ),
    Route(
        method="POST",
        path="/v1/images/edits",
        handler=edit,
        surface=Surface.HTTP_IMAGES,
        operation=operation(
            "Change a picture",
            ImagesAnswer,
            KEY_HEADER,
            *BUDGET_HEADERS,
            id="edit_image",
            body={**json_content(EditBody), "multipart/form-data": {"schema": _FORM}},
            also=_BEGUN,
        ),
    ),
    Route(
        method="GET",
        path="/v1/images/files/{name}",
        handler=fetch,
        operation=operation("Fetch a picture by its URL", _FILES, path_parameter("name"), id="get_image_file"),
    ),
    *JOBS.routes(),
)
