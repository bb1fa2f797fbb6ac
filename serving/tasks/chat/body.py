"""``POST /v1/chat/completions``: bodies to domain requests. What happens to a field says the table in ``fields``."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from serving.domain import Budget, Surface
from serving.errors import InvalidRequest
from serving.front.auth import LogprobRights
from serving.front.budget import budget_from_object
from serving.front.front import check_model, check_unicode, shown
from serving.front.http.body import PIECE_BYTES
from serving.front.http.fields import check_not_others, integer, known, number, of, one_of, short_text
from serving.front.http.json_scan import Bounds
from serving.limits import IngressLimits
from serving.tasks.chat.domain import ChatRequest, Role, Sampling
from serving.tasks.chat.fields import (
    BODY,
    FIELDS,
    FORMAT,
    IMAGE,
    IMAGE_URL,
    MESSAGE,
    OTHER_FORMATS,
    OTHER_PARTS,
    OTHER_ROLES,
    SCHEMA,
    STREAM_OPTIONS,
    TEXT,
)
from serving.tasks.chat.reply import StreamUsage
from serving.tasks.chat.rules import (
    ANY_OBJECT,
    MAX_METADATA,
    MAX_SEED,
    MAX_TEMPERATURE,
    MAX_TOKENS,
    MAX_TOP_LOGPROBS,
    SCHEMA_NAME,
    TOKEN_ID,
    Prompt,
    check_end,
    check_logit_bias,
    check_may_bias,
    check_may_see_logprobs,
    check_num_biases,
    check_stop,
    compact_schema,
)

_MAX_CHAR_BYTES = 12
"""Of a character in JSON: two escapes."""
_ROLES = {"system": Role.SYSTEM, "developer": Role.SYSTEM, "user": Role.USER, "assistant": Role.ASSISTANT}
_SCHEMA_NAME = re.compile(SCHEMA_NAME)
_TOKEN_ID = re.compile(TOKEN_ID)


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
        max_string_bytes=max(limits.max_image_chars, _MAX_CHAR_BYTES * limits.max_text_chars),
    )


async def call_from_document(
    document: dict[str, Any],
    *,
    request_id: str,
    tenant: str,
    fallback: Budget,
    limits: IngressLimits,
    logprobs: LogprobRights,
) -> ChatCall:
    """Make a call of a JSON body. Raises: ClientError."""
    fields = known(document, FIELDS[BODY], "")
    prompt = Prompt(limits)
    for index, message in enumerate(of(list, "a list of messages", fields.get("messages", []), "messages")):
        where = f"messages[{index}]"
        of(dict, "an object with role and content", message, where)
        read_message(known(message, FIELDS[MESSAGE], f"{where}."), where, prompt, _read_part)
    usage = _stream(fields)
    request = ChatRequest(
        request_id=request_id,
        surface=Surface.HTTP_CHAT,
        tenant=tenant,
        model=model_of(fields),
        sampling=sampling_of(
            fields,
            limits,
            logprobs,
            max_tokens=_max_tokens(fields),
            n=integer(fields, "n", 1, 1, limits.max_choices),
            json_schema=_schema(fields.get("response_format"), limits),
            logprobs=_logprobs(fields, logprobs, prompt.num_images),
        ),
        budget=budget_of(fields, fallback),
        is_streamed=usage is not None,
        messages=await prompt.finish(),
    )
    return ChatCall(request, usage)


# -- messages --------------------------------------------------------------------------------------------------------


def read_message(
    members: dict[str, Any], where: str, prompt: Prompt, read_part: Callable[[Any, str, Prompt], None]
) -> None:
    """Add a message, whose parts are read by ``read_part``. Raises: ClientError."""
    role = _ROLES.get(of(str, "a role", members.get("role", ""), f"{where}.role"))
    if role is None:
        check_not_others(members.get("role"), OTHER_ROLES, f"{where}.role")
        raise InvalidRequest(
            f"{where}.role is {shown(members.get('role'))}; it must be one of {', '.join(_ROLES)}",
            param=f"{where}.role",
        )
    short_text(members, "name", f"{where}.")
    prompt.begin(role, where)
    content = of((str, list), "a string or a list of parts", members.get("content"), f"{where}.content")
    if isinstance(content, str):
        prompt.text(content, f"{where}.content")
        return
    if not content:
        raise InvalidRequest(f"{where}.content is an empty list; send at least one part", param=f"{where}.content")
    for index, part in enumerate(content):
        read_part(part, f"{where}.content[{index}]", prompt)


def _read_part(part: Any, where: str, prompt: Prompt) -> None:
    of(dict, "an object with a type", part, where)
    kind = part.get("type")
    if kind == "text":
        members = known(part, FIELDS[TEXT], f"{where}.")
        prompt.text(of(str, "a string", members.get("text"), f"{where}.text"), f"{where}.text")
    elif kind == "image_url":
        members = known(part, FIELDS[IMAGE], f"{where}.")
        image = of(dict, "an object with a url", members.get("image_url"), f"{where}.image_url")
        members = known(image, FIELDS[IMAGE_URL], f"{where}.image_url.")
        detail = one_of(members, "detail", ("auto", "low", "high", "original"), f"{where}.image_url.")
        url = of(str, "a URL", members.get("url"), f"{where}.image_url.url")
        prompt.image_url(url, where, is_coarse=detail == "low")
    else:
        check_not_others(kind, OTHER_PARTS, f"{where}.type")
        raise InvalidRequest(f"{where}.type is {shown(kind)}; it must be text or image_url", param=f"{where}.type")


# -- the other fields ------------------------------------------------------------------------------------------------


def model_of(fields: dict[str, Any]) -> str:
    """Return the model id, and check what is beside it about the call. Raises: InvalidRequest."""
    model = check_model(of(str, "a model id", fields["model"], "model") if "model" in fields else None)
    short_text(fields, "user", "")
    short_text(fields, "safety_identifier", "")
    _check_metadata(fields.get("metadata", {}))
    return model


def _check_metadata(metadata: Any) -> None:
    of(dict, "an object of strings", metadata, "metadata")
    if len(metadata) > MAX_METADATA:
        raise InvalidRequest(f"metadata has {len(metadata)} entries; the limit is {MAX_METADATA}", param="metadata")
    for name in metadata:
        short_text({name: name}, name, "metadata.")
        short_text(metadata, name, "metadata.")


def _stream(fields: dict[str, Any]) -> StreamUsage | None:
    """Where a stream tells its usage; None: the answer comes whole."""
    is_stream: bool = of(bool, "true or false", fields.get("stream", False), "stream")
    if "stream_options" not in fields:
        return StreamUsage() if is_stream else None
    if not is_stream:
        raise InvalidRequest("stream_options goes with stream: true; remove it", param="stream_options")
    options = known(
        of(dict, "an object", fields["stream_options"], "stream_options"), FIELDS[STREAM_OPTIONS], STREAM_OPTIONS
    )

    def is_on(name: str) -> bool:
        value: bool = of(bool, "true or false", options.get(name, False), f"{STREAM_OPTIONS}{name}")
        return value

    return StreamUsage(at_the_end=is_on("include_usage"), in_every_chunk=is_on("continuous_usage_stats"))


def budget_of(fields: dict[str, Any], fallback: Budget) -> Budget:
    """Return the budget of the body, or that of the headers. Raises: InvalidRequest, UnknownField."""
    if "vireo" not in fields:
        return fallback
    return budget_from_object(of(dict, "an object", fields["vireo"], "vireo"), fallback)


def sampling_of(fields: dict[str, Any], limits: IngressLimits, rights: LogprobRights, **others: Any) -> Sampling:
    """Return how tokens are chosen. ``others``: the fields that have other names elsewhere. Raises: ClientError."""
    sampling = Sampling(
        min_tokens=integer(fields, "min_tokens", 0, 0, MAX_TOKENS) or 0,
        ignore_eos=of(bool, "true or false", fields.get("ignore_eos", False), "ignore_eos"),
        temperature=number(fields, "temperature", 1.0, 0.0, MAX_TEMPERATURE),
        top_p=number(fields, "top_p", 1.0, 0.0, 1.0, is_open_low=True),
        stop=_stop(fields.get("stop", []), limits),
        seed=integer(fields, "seed", None, 0, MAX_SEED),
        logit_bias=_logit_bias(fields.get("logit_bias", {}), limits, rights),
        **others,
    )
    check_end(sampling)
    return sampling


def _max_tokens(fields: dict[str, Any]) -> int | None:
    old = integer(fields, "max_tokens", None, 1, MAX_TOKENS)
    new = integer(fields, "max_completion_tokens", None, 1, MAX_TOKENS)
    if old is not None and new is not None and old != new:
        raise InvalidRequest(
            f"max_tokens is {old} and max_completion_tokens is {new}; send one of them", param="max_completion_tokens"
        )
    return old if new is None else new


def _stop(value: Any, limits: IngressLimits) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else of(list, "a string or a list of strings", value, "stop")
    for text in texts[: limits.max_stop]:
        of(str, "strings", text, "stop")
    return check_stop(texts, limits, "stop")


def _schema(value: Any, limits: IngressLimits) -> str | None:
    if value is None:
        return None
    of(dict, "an object with a type", value, "response_format")
    members = known(value, FIELDS[FORMAT], FORMAT)
    check_not_others(members.get("type"), OTHER_FORMATS, f"{FORMAT}type")
    kind = one_of(members, "type", ("text", "json_object", "json_schema"), FORMAT)
    if kind is None:
        raise InvalidRequest(f"{FORMAT}type is missing; send it", param=f"{FORMAT}type")
    where = f"{FORMAT}json_schema"
    if kind != "json_schema":
        if "json_schema" in members:
            raise InvalidRequest(f"{where} goes with the type json_schema, not {kind}; remove it", param=where)
        return ANY_OBJECT if kind == "json_object" else None
    inner = of(dict, "an object with name and schema", members.get("json_schema"), where)
    return named_schema(known(inner, FIELDS[SCHEMA], SCHEMA), where, limits)


def named_schema(members: dict[str, Any], where: str, limits: IngressLimits) -> str:
    """Return the schema of an object with a name and a schema. Raises: InvalidRequest."""
    if not _SCHEMA_NAME.fullmatch(of(str, "a name", members.get("name"), f"{where}.name")):
        raise InvalidRequest(
            f"{where}.name is {shown(members['name'])}; send 1 to 64 letters, digits, _ or -", param=f"{where}.name"
        )
    description = of(str, "a string", members.get("description", ""), f"{where}.description")
    if len(description) > limits.max_schema_bytes:
        raise InvalidRequest(
            f"{where}.description has {len(description)} characters; the limit is {limits.max_schema_bytes}",
            param=f"{where}.description",
        )
    check_unicode(description, f"{where}.description")
    of(bool, "true or false", members.get("strict", False), f"{where}.strict")
    schema = of(dict, "a JSON schema", members.get("schema"), f"{where}.schema")
    return compact_schema(schema, limits, f"{where}.schema")


def _logprobs(fields: dict[str, Any], rights: LogprobRights, num_images: int) -> int | None:
    is_wanted = of(bool, "true or false", fields.get("logprobs", False), "logprobs")
    num_top = integer(fields, "top_logprobs", None, 0, MAX_TOP_LOGPROBS)
    if is_wanted or num_top:
        check_may_see_logprobs(rights, num_images, "logprobs" if is_wanted else "top_logprobs")
    if num_top and not is_wanted:
        raise InvalidRequest("top_logprobs goes with logprobs: true; send both or neither", param="top_logprobs")
    return (num_top or 0) if is_wanted else None


def _logit_bias(value: Any, limits: IngressLimits, rights: LogprobRights) -> dict[int, float]:
    if not of(dict, "an object of token ids", value, "logit_bias"):
        return {}
    check_may_bias(rights, "logit_bias")
    check_num_biases(len(value), limits, "logit_bias")
    for token, bias in value.items():
        if not _TOKEN_ID.fullmatch(token):
            raise InvalidRequest(f"logit_bias names the token {shown(token)}; send token ids", param="logit_bias")
        of((int, float), "a number", bias, f"logit_bias.{token}")
    return check_logit_bias({int(token): bias for token, bias in value.items()}, limits, "logit_bias")
