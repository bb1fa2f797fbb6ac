"""``POST /v1/responses``: bodies to the requests of chat, whose rules hold. What happens to a field says ``fields``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from serving.domain import Budget, Surface
from serving.errors import InvalidRequest, UnsupportedField
from serving.front.auth import LogprobRights
from serving.front.front import shown
from serving.front.http.fields import integer, known, of, one_of
from serving.limits import IngressLimits
from serving.tasks.chat.body import budget_of, model_of, named_schema, read_message, sampling_of
from serving.tasks.chat.domain import ChatRequest, Role
from serving.tasks.chat.rules import (
    ANY_OBJECT,
    MAX_TOKENS,
    MAX_TOP_LOGPROBS,
    Prompt,
    check_may_see_logprobs,
)
from serving.tasks.responses.fields import BODY, FORMAT, IMAGE, MESSAGE, STREAM_OPTIONS, TEXT, TEXT_CONFIG
from serving.tasks.responses.schemas import INCLUDABLE, LOGPROBS, MAX_INCLUDED


@dataclass(frozen=True, slots=True)
class ResponseCall:
    """A parsed call and, by name, the fields that its answer repeats."""

    request: ChatRequest
    echoed: Mapping[str, Any]


async def call_from_document(
    document: dict[str, Any],
    *,
    request_id: str,
    tenant: str,
    fallback: Budget,
    limits: IngressLimits,
    logprobs: LogprobRights,
) -> ResponseCall:
    """Make a call of a JSON body. Raises: ClientError."""
    fields = known(document, BODY, "")
    known(of(dict, "an object", fields.get("stream_options", {}), "stream_options"), STREAM_OPTIONS, "stream_options.")
    prompt = Prompt(limits)
    if "instructions" in fields:
        prompt.begin(Role.SYSTEM, "instructions")
        prompt.text(of(str, "a string", fields["instructions"], "instructions"), "instructions")
    _read_input(fields.get("input"), prompt)
    form = _format(fields)
    json_schema = _schema(form, limits)
    if "schema" in form and json_schema is not None:
        form |= {"schema": orjson.Fragment(json_schema)}  # it may hold numbers that the encoder does not
    sampling = sampling_of(
        fields,
        limits,
        logprobs,
        max_tokens=integer(fields, "max_output_tokens", None, 1, MAX_TOKENS),
        json_schema=json_schema,
        logprobs=_logprobs(fields, logprobs, prompt.num_images),
    )
    request = ChatRequest(
        request_id=request_id,
        surface=Surface.HTTP_RESPONSES,
        tenant=tenant,
        model=model_of(fields),
        sampling=sampling,
        budget=budget_of(fields, fallback),
        is_streamed=of(bool, "true or false", fields.get("stream", False), "stream"),
        messages=await prompt.finish(),
    )
    calls = of(bool, "true or false", fields.get("parallel_tool_calls", True), "parallel_tool_calls")
    echoed = {
        "instructions": fields.get("instructions"),
        "metadata": fields.get("metadata", {}),
        "parallel_tool_calls": calls,
        "text": {"format": form, "verbosity": "medium"},
    }
    return ResponseCall(request, echoed)


def _read_input(given: Any, prompt: Prompt) -> None:
    if isinstance(given, str):
        prompt.begin(Role.USER, "input")
        prompt.text(given, "input")
        return
    if not of(list, "a string or a list of items", given, "input"):
        raise InvalidRequest("input is an empty list; send at least one item", param="input")
    for index, item in enumerate(given):
        where = f"input[{index}]"
        kind = of(dict, "an item, such as a message", item, where).get("type")
        if kind not in (None, "message"):
            raise UnsupportedField(
                f"{where} is of type {shown(kind)}; an item is a message: no model here calls tools or reasons apart "
                "from its answer, and nothing is kept that could be referred to",
                param=f"{where}.type",
            )
        read_message(known(item, MESSAGE, f"{where}."), where, prompt, _read_part)


def _read_part(part: Any, where: str, prompt: Prompt) -> None:
    kind = of(dict, "an object with a type", part, where).get("type")
    if kind in ("input_text", "output_text"):
        text = known(part, TEXT, f"{where}.").get("text")
        prompt.text(of(str, "a string", text, f"{where}.text"), f"{where}.text")
    elif kind == "input_image":
        members = known(part, IMAGE, f"{where}.")
        detail = one_of(members, "detail", ("auto", "low", "high", "original"), f"{where}.")
        url = of(str, "a URL", members.get("image_url"), f"{where}.image_url")
        prompt.image_url(url, where, is_coarse=detail == "low")
    else:
        raise UnsupportedField(
            f"{where} is of type {shown(kind)}; a part is of type input_text, input_image or output_text",
            param=f"{where}.type",
        )


def _format(fields: dict[str, Any]) -> dict[str, Any]:
    """What the answer looks like, as it was sent."""
    config = known(of(dict, "an object with a format", fields.get("text", {}), "text"), TEXT_CONFIG, "text.")
    form = of(dict, "an object with a type", config.get("format", {"type": "text"}), "text.format")
    return known(form, FORMAT, "text.format.")


def _schema(form: dict[str, Any], limits: IngressLimits) -> str | None:
    kind = one_of(form, "type", ("text", "json_object", "json_schema"), "text.format.")
    if kind is None:
        raise InvalidRequest("text.format.type is missing; send it", param="text.format.type")
    if kind == "json_schema":
        return named_schema(form, "text.format", limits)
    if name := next((name for name in form if name != "type"), None):
        raise InvalidRequest(
            f"text.format.{name} goes with the type json_schema, not {kind}; remove it", param=f"text.format.{name}"
        )
    return ANY_OBJECT if kind == "json_object" else None


def _logprobs(fields: dict[str, Any], rights: LogprobRights, num_images: int) -> int | None:
    included = of(list, "a list of names", fields.get("include", []), "include")
    if len(included) > MAX_INCLUDED:
        raise InvalidRequest(f"include has {len(included)} entries; the limit is {MAX_INCLUDED}", param="include")
    if unknown := [name for name in included if name not in INCLUDABLE]:
        raise InvalidRequest(f"include names {shown(unknown[0])}, which no answer has; remove it", param="include")
    is_wanted = LOGPROBS in included
    num_top = integer(fields, "top_logprobs", 0, 0, MAX_TOP_LOGPROBS)
    if is_wanted or num_top:
        check_may_see_logprobs(rights, num_images, "include" if is_wanted else "top_logprobs")
    if num_top and not is_wanted:
        raise InvalidRequest(f"top_logprobs goes with include: ['{LOGPROBS}']; send both", param="top_logprobs")
    return num_top if is_wanted else None
