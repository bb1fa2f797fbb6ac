"""``POST /v1/chat/completions``: bodies to domain requests. What happens to a field says the table in ``fields``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from serving.domain import Budget, Surface
from serving.errors import InvalidRequest, UnsupportedField
from serving.front.budget import budget_from_object
from serving.front.front import check_integer, check_model, check_number, shown
from serving.front.http.body import PIECE_BYTES
from serving.front.http.json_scan import Bounds
from serving.limits import IngressLimits
from serving.tasks.chat.domain import ChatRequest, Role, Sampling
from serving.tasks.chat.fields import (
    BODY,
    FORMAT,
    IMAGE,
    IMAGE_URL,
    MESSAGE,
    SCHEMA,
    STREAM_OPTIONS,
    TEXT,
    known,
)
from serving.tasks.chat.reply import StreamUsage
from serving.tasks.chat.rules import (
    ANY_OBJECT,
    MAX_SEED,
    MAX_TEMPERATURE,
    MAX_TOKENS,
    MAX_TOP_LOGPROBS,
    Prompt,
    check_end,
    check_logit_bias,
    check_may_use_logprobs,
    check_num_biases,
    check_stop,
    compact_schema,
)

MAX_USER_CHARS = 512
MAX_METADATA = 16
_MAX_CHAR_BYTES = 12
"""Of a character in JSON: two escapes."""
_ROLES = {"system": Role.SYSTEM, "developer": Role.SYSTEM, "user": Role.USER, "assistant": Role.ASSISTANT}
_SCHEMA_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TOKEN_ID = re.compile(r"\d{1,10}", re.ASCII)


@dataclass(frozen=True, slots=True)
class ChatCall:
    """A parsed call and, where it is streamed, how it tells its usage."""

    request: ChatRequest
    usage: StreamUsage | None


def json_bounds(limits: IngressLimits) -> Bounds:
    """Of a JSON body, whatever it says."""
    return Bounds(
        max_values=8 * limits.max_parts + 8 * limits.max_messages + limits.max_schema_bytes,
        max_plain_bytes=limits.max_images * PIECE_BYTES + _MAX_CHAR_BYTES * limits.max_text_chars + (1 << 20),
        max_string_bytes=max(2 * limits.max_bytes_per_image, _MAX_CHAR_BYTES * limits.max_text_chars),
    )


async def call_from_document(
    document: dict[str, Any],
    *,
    request_id: str,
    tenant: str,
    fallback: Budget,
    limits: IngressLimits,
    may_use_logprobs: bool,
) -> ChatCall:
    """Make a call of a JSON body. Raises: ClientError."""
    fields = known(document, BODY, "")
    prompt = Prompt(limits)
    for index, message in enumerate(_of(list, "a list of messages", fields.get("messages", []), "messages")):
        _read_message(message, f"messages[{index}]", prompt)
    usage = _stream(fields)
    request = ChatRequest(
        request_id=request_id,
        surface=Surface.HTTP_CHAT,
        tenant=tenant,
        model=_model(fields),
        sampling=_sampling(fields, limits, may_use_logprobs),
        budget=_budget(fields, fallback),
        is_streamed=usage is not None,
        messages=await prompt.finish(),
    )
    return ChatCall(request, usage)


def _of(kind: type | tuple[type, ...], what: str, value: Any, param: str) -> Any:
    """Return the value. Raises: InvalidRequest: it is of another type; a boolean is no number."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InvalidRequest(f"{param} is {shown(value)}; send {what}", param=param)
    return value


# -- messages --------------------------------------------------------------------------------------------------------


def _read_message(message: Any, where: str, prompt: Prompt) -> None:
    _of(dict, "an object with role and content", message, where)
    members = known(message, MESSAGE, f"{where}.")
    role = _ROLES.get(_of(str, "a role", members.get("role", ""), f"{where}.role"))
    if role is None:
        raise InvalidRequest(
            f"{where}.role is {shown(members.get('role'))}; it must be one of {', '.join(_ROLES)}",
            param=f"{where}.role",
        )
    _short_text(members, "name", f"{where}.")
    prompt.begin(role, where)
    content = _of((str, list), "a string or a list of parts", members.get("content"), f"{where}.content")
    if isinstance(content, str):
        prompt.text(content, f"{where}.content")
        return
    if not content:
        raise InvalidRequest(f"{where}.content is an empty list; send at least one part", param=f"{where}.content")
    for index, part in enumerate(content):
        _read_part(part, f"{where}.content[{index}]", prompt)


def _read_part(part: Any, where: str, prompt: Prompt) -> None:
    _of(dict, "an object with a type", part, where)
    kind = part.get("type")
    if kind == "text":
        members = known(part, TEXT, f"{where}.")
        prompt.text(_of(str, "a string", members.get("text"), f"{where}.text"), f"{where}.text")
    elif kind == "image_url":
        members = known(part, IMAGE, f"{where}.")
        image = _of(dict, "an object with a url", members.get("image_url"), f"{where}.image_url")
        members = known(image, IMAGE_URL, f"{where}.image_url.")
        detail = _one_of(members, "detail", ("auto", "low", "high", "original"), f"{where}.image_url.")
        url = _of(str, "a URL", members.get("url"), f"{where}.image_url.url")
        prompt.image_url(url, where, is_coarse=detail == "low")
    else:
        raise UnsupportedField(
            f"{where} is of type {shown(kind)}; a part is of type text or image_url", param=f"{where}.type"
        )


# -- the other fields ------------------------------------------------------------------------------------------------


def _model(fields: dict[str, Any]) -> str:
    model = check_model(_of(str, "a model id", fields["model"], "model") if "model" in fields else None)
    _short_text(fields, "user", "")
    _short_text(fields, "safety_identifier", "")
    _check_metadata(fields.get("metadata", {}))
    return model


def _check_metadata(metadata: Any) -> None:
    _of(dict, "an object of strings", metadata, "metadata")
    if len(metadata) > MAX_METADATA:
        raise InvalidRequest(f"metadata has {len(metadata)} entries; the limit is {MAX_METADATA}", param="metadata")
    for name in metadata:
        _short_text(metadata, name, "metadata.")


def _short_text(fields: dict[str, Any], name: str, where: str) -> None:
    """Check a text that is accepted and not used."""
    value = fields.get(name, "")
    param = f"{where}{name[:64]}"
    if len(_of(str, "a string", value, param)) > MAX_USER_CHARS:
        raise InvalidRequest(f"{param} has {len(value)} characters; the limit is {MAX_USER_CHARS}", param=param)


def _one_of(fields: dict[str, Any], name: str, choices: tuple[str, ...], where: str) -> str | None:
    value = fields.get(name)
    if value is not None and value not in choices:
        raise InvalidRequest(
            f"{where}{name} is {shown(value)}; it must be one of {', '.join(choices)}", param=f"{where}{name}"
        )
    return value


def _stream(fields: dict[str, Any]) -> StreamUsage | None:
    """Where a stream tells its usage; None: the answer comes whole."""
    is_stream: bool = _of(bool, "true or false", fields.get("stream", False), "stream")
    if "stream_options" not in fields:
        return StreamUsage() if is_stream else None
    if not is_stream:
        raise InvalidRequest("stream_options goes with stream: true; remove it", param="stream_options")
    options = known(_of(dict, "an object", fields["stream_options"], "stream_options"), STREAM_OPTIONS, STREAM_OPTIONS)

    def is_on(name: str) -> bool:
        value: bool = _of(bool, "true or false", options.get(name, False), f"{STREAM_OPTIONS}{name}")
        return value

    return StreamUsage(at_the_end=is_on("include_usage"), in_every_chunk=is_on("continuous_usage_stats"))


def _budget(fields: dict[str, Any], fallback: Budget) -> Budget:
    if "vireo" not in fields:
        return fallback
    return budget_from_object(_of(dict, "an object", fields["vireo"], "vireo"), fallback)


def _sampling(fields: dict[str, Any], limits: IngressLimits, may_use_logprobs: bool) -> Sampling:
    sampling = Sampling(
        max_tokens=_max_tokens(fields),
        min_tokens=_integer(fields, "min_tokens", 0, 0, MAX_TOKENS) or 0,
        ignore_eos=_of(bool, "true or false", fields.get("ignore_eos", False), "ignore_eos"),
        temperature=_number(fields, "temperature", 1.0, 0.0, MAX_TEMPERATURE),
        top_p=_number(fields, "top_p", 1.0, 0.0, 1.0, is_open_low=True),
        stop=_stop(fields.get("stop", []), limits),
        seed=_integer(fields, "seed", None, 0, MAX_SEED),
        n=_integer(fields, "n", 1, 1, limits.max_choices) or 1,
        json_schema=_schema(fields.get("response_format"), limits),
        logprobs=_logprobs(fields, may_use_logprobs),
        logit_bias=_logit_bias(fields.get("logit_bias", {}), limits, may_use_logprobs),
    )
    check_end(sampling)
    return sampling


def _number(
    fields: dict[str, Any], name: str, default: float, low: float, high: float, *, is_open_low: bool = False
) -> float:
    value = _of((int, float), "a number", fields.get(name, default), name)
    return check_number(value, low, high, name, is_open_low=is_open_low)


def _integer(fields: dict[str, Any], name: str, default: int | None, low: int, high: int) -> int | None:
    if name not in fields:
        return default
    return check_integer(_of(int, "an integer", fields[name], name), low, high, name)


def _max_tokens(fields: dict[str, Any]) -> int | None:
    old = _integer(fields, "max_tokens", None, 1, MAX_TOKENS)
    new = _integer(fields, "max_completion_tokens", None, 1, MAX_TOKENS)
    if old is not None and new is not None and old != new:
        raise InvalidRequest(
            f"max_tokens is {old} and max_completion_tokens is {new}; send one of them", param="max_completion_tokens"
        )
    return old if new is None else new


def _stop(value: Any, limits: IngressLimits) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else _of(list, "a string or a list of strings", value, "stop")
    for text in texts[: limits.max_stop]:
        _of(str, "strings", text, "stop")
    return check_stop(texts, limits, "stop")


def _schema(value: Any, limits: IngressLimits) -> str | None:
    if value is None:
        return None
    _of(dict, "an object with a type", value, "response_format")
    members = known(value, FORMAT, FORMAT)
    if members.get("type") == "structural_tag":
        raise UnsupportedField(f"{FORMAT}type is structural_tag; send a JSON schema", param=f"{FORMAT}type")
    kind = _one_of(members, "type", ("text", "json_object", "json_schema"), FORMAT)
    if kind is None:
        raise InvalidRequest(f"{FORMAT}type is missing; send it", param=f"{FORMAT}type")
    where = f"{FORMAT}json_schema"
    if kind != "json_schema":
        if "json_schema" in members:
            raise InvalidRequest(f"{where} goes with the type json_schema, not {kind}; remove it", param=where)
        return ANY_OBJECT if kind == "json_object" else None
    inner = _of(dict, "an object with name and schema", members.get("json_schema"), where)
    inner = known(inner, SCHEMA, SCHEMA)
    if not _SCHEMA_NAME.fullmatch(_of(str, "a name", inner.get("name"), f"{where}.name")):
        raise InvalidRequest(
            f"{where}.name is {shown(inner['name'])}; send 1 to 64 letters, digits, _ or -", param=f"{where}.name"
        )
    _of(str, "a string", inner.get("description", ""), f"{where}.description")
    _of(bool, "true or false", inner.get("strict", False), f"{where}.strict")
    schema = _of(dict, "a JSON schema", inner.get("schema"), f"{where}.schema")
    return compact_schema(schema, limits, f"{where}.schema")


def _logprobs(fields: dict[str, Any], is_allowed: bool) -> int | None:
    is_wanted = _of(bool, "true or false", fields.get("logprobs", False), "logprobs")
    num_top = _integer(fields, "top_logprobs", None, 0, MAX_TOP_LOGPROBS)
    if is_wanted or num_top:
        check_may_use_logprobs(is_allowed, "logprobs" if is_wanted else "top_logprobs")
    if num_top and not is_wanted:
        raise InvalidRequest("top_logprobs goes with logprobs: true; send both or neither", param="top_logprobs")
    return (num_top or 0) if is_wanted else None


def _logit_bias(value: Any, limits: IngressLimits, is_allowed: bool) -> dict[int, float]:
    if not _of(dict, "an object of token ids", value, "logit_bias"):
        return {}
    check_may_use_logprobs(is_allowed, "logit_bias")
    check_num_biases(len(value), limits, "logit_bias")
    for token, bias in value.items():
        if not _TOKEN_ID.fullmatch(token):
            raise InvalidRequest(f"logit_bias names the token {shown(token)}; send token ids", param="logit_bias")
        _of((int, float), "a number", bias, f"logit_bias.{token}")
    return check_logit_bias({int(token): bias for token, bias in value.items()}, limits, "logit_bias")
