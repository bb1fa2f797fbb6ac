"""``POST /v1/chat/completions``: bodies to domain requests. Each field of OpenAI's works, is harmless or is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from serving.domain import Budget, Surface
from serving.errors import InvalidRequest, UnknownField, UnsupportedField
from serving.front.budget import budget_from_object
from serving.front.front import check_integer, check_model, check_number, shown
from serving.front.http.body import PIECE_BYTES
from serving.front.http.json_scan import Bounds
from serving.limits import IngressLimits
from serving.tasks.chat.domain import ChatRequest, Role, Sampling
from serving.tasks.chat.rules import (
    ANY_OBJECT,
    MAX_SEED,
    MAX_TEMPERATURE,
    MAX_TOKENS,
    MAX_TOP_LOGPROBS,
    Prompt,
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
class Refused:
    """A field that we know and do not offer, with the values that ask for nothing. Null is always one of them."""

    why: str
    harmless: tuple[Any, ...] = ()


_NO_TOOLS: Final = "no model here calls tools"
_NO_AUDIO: Final = "answers are text"
_PLAIN_SAMPLING: Final = "sampling has temperature, top_p, seed and stop"
_OWN_TEMPLATE: Final = "the template belongs to the model"
_OWN_HASHES: Final = "hashes of images are computed by the server"
_OWN_CACHE: Final = "what shares a cache is decided by the tenant and the content"
_OWN_END: Final = "an answer ends where the model, stop or max_tokens end it"

REFUSED: Final[Mapping[str, Refused]] = {
    "tools": Refused(_NO_TOOLS, ([],)),
    "tool_choice": Refused(_NO_TOOLS, ("none", "auto")),
    "parallel_tool_calls": Refused(_NO_TOOLS, (False, True)),
    "functions": Refused(_NO_TOOLS, ([],)),
    "function_call": Refused(_NO_TOOLS, ("none", "auto")),
    "web_search_options": Refused(_NO_TOOLS),
    "audio": Refused(_NO_AUDIO),
    "modalities": Refused(_NO_AUDIO, (["text"],)),
    "presence_penalty": Refused("penalties are not offered; only 0 is", (0, 0.0)),
    "frequency_penalty": Refused("penalties are not offered; only 0 is", (0, 0.0)),
    "prediction": Refused("predicted output is not offered"),
    "reasoning_effort": Refused("no model here reasons apart from its answer", ("none",)),
    "verbosity": Refused("bound the answer with max_tokens", ("medium",)),
    "store": Refused("nothing is stored", (False,)),
    "service_tier": Refused("send vireo.priority", ("auto", "default")),
    "prompt_cache_key": Refused(_OWN_CACHE),
    "prompt_cache_retention": Refused(_OWN_CACHE),
    "prompt_cache_options": Refused(_OWN_CACHE),
    "moderation": Refused("texts are not moderated here"),
    "cache_salt": Refused(_OWN_CACHE),
    "mm_hashes": Refused(_OWN_HASHES),
    "multi_modal_uuids": Refused(_OWN_HASHES),
    "mm_processor_kwargs": Refused("how images are cut is decided by the operating point"),
    "media_io_kwargs": Refused("how images are read is decided by the server"),
    "chat_template": Refused(_OWN_TEMPLATE),
    "chat_template_kwargs": Refused(_OWN_TEMPLATE),
    "add_generation_prompt": Refused(_OWN_TEMPLATE, (True,)),
    "continue_final_message": Refused(_OWN_TEMPLATE, (False,)),
    "structured_outputs": Refused("send response_format"),
    "extra_body": Refused("it is an argument of the Python client; its members go into the body itself"),
    "vllm_xargs": Refused("arguments of the engine are the server's"),
    "kv_transfer_params": Refused("arguments of the engine are the server's"),
    "priority": Refused("send vireo.priority"),
    "request_id": Refused("send the header x-request-id"),
    "ignore_eos": Refused(_OWN_END, (False,)),
    "min_tokens": Refused(_OWN_END, (0,)),
    "stop_token_ids": Refused(_OWN_END, ([],)),
    "include_stop_str_in_output": Refused(_OWN_END, (False,)),
    "logits_processors": Refused(_PLAIN_SAMPLING),
    "prompt_logprobs": Refused("probabilities of the prompt feed black-box attacks"),
    "top_k": Refused(_PLAIN_SAMPLING, (-1, 0)),
    "min_p": Refused(_PLAIN_SAMPLING, (0, 0.0)),
    "repetition_penalty": Refused(_PLAIN_SAMPLING, (1, 1.0)),
    "length_penalty": Refused(_PLAIN_SAMPLING, (1, 1.0)),
    "use_beam_search": Refused(_PLAIN_SAMPLING, (False,)),
    "best_of": Refused(_PLAIN_SAMPLING, (1,)),
    "bad_words": Refused(_PLAIN_SAMPLING, ([],)),
    "allowed_token_ids": Refused(_PLAIN_SAMPLING),
    **{
        f"guided_{name}": Refused("send response_format")
        for name in ("json", "regex", "choice", "grammar", "decoding_backend", "whitespace_pattern")
    },
}
"""Fields of the body that other servers take."""

REFUSED_IN_MESSAGE: Final[Mapping[str, Refused]] = {
    "tool_calls": Refused(_NO_TOOLS, ([],)),
    "tool_call_id": Refused(_NO_TOOLS),
    "function_call": Refused(_NO_TOOLS),
    "audio": Refused(_NO_AUDIO),
    "refusal": Refused("send what was said as content"),
    "annotations": Refused("send what was said as content", ([],)),
    "reasoning": Refused("send what was said as content"),
    "reasoning_content": Refused("send what was said as content"),
}
REFUSED_IN_PART: Final[Mapping[str, Refused]] = {"uuid": Refused(_OWN_HASHES)}

# fmt: off
_FIELDS: Final = frozenset((
    "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "stop", "seed",
    "temperature", "top_p", "n", "response_format", "logprobs", "top_logprobs", "logit_bias", "user",
    "safety_identifier", "metadata", "vireo",
))
# fmt: on
_MESSAGE_FIELDS: Final = frozenset(("role", "content", "name"))


@dataclass(frozen=True, slots=True)
class ChatCall:
    """A parsed call and how its answer is to be sent."""

    request: ChatRequest
    wants_usage: bool
    """Whether a stream ends with a chunk of its own for the usage."""


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
    fields = _known(document, _FIELDS, REFUSED, "")
    prompt = Prompt(limits)
    for index, message in enumerate(_of(list, "a list of messages", fields.get("messages", []), "messages")):
        _read_message(message, f"messages[{index}]", prompt)
    is_stream, wants_usage = _stream(fields)
    request = ChatRequest(
        request_id=request_id,
        surface=Surface.HTTP_CHAT,
        tenant=tenant,
        model=_model(fields),
        sampling=_sampling(fields, limits, may_use_logprobs),
        budget=_budget(fields, fallback),
        is_streamed=is_stream,
        messages=await prompt.finish(),
    )
    return ChatCall(request, wants_usage)


def _known(
    document: dict[str, Any], names: frozenset[str], refused: Mapping[str, Refused], where: str
) -> dict[str, Any]:
    """Return the members that are not null. Raises: UnknownField, UnsupportedField."""
    for name, value in document.items():
        if name in names:
            continue
        param = f"{where}{name[:64]}"
        refusal = refused.get(name)
        if refusal is None:
            raise UnknownField(f"field {shown(param)} is unknown; remove it, or check its spelling", param=param)
        if value is not None and not any(value == h and type(value) is type(h) for h in refusal.harmless):
            raise UnsupportedField(f"{param} is not offered: {refusal.why}. Remove it", param=param)
    return {name: value for name, value in document.items() if value is not None and name in names}


def _of(kind: type | tuple[type, ...], what: str, value: Any, param: str) -> Any:
    """Return the value. Raises: InvalidRequest: it is of another type; a boolean is no number."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InvalidRequest(f"{param} is {shown(value)}; send {what}", param=param)
    return value


# -- messages --------------------------------------------------------------------------------------------------------


def _read_message(message: Any, where: str, prompt: Prompt) -> None:
    _of(dict, "an object with role and content", message, where)
    members = _known(message, _MESSAGE_FIELDS, REFUSED_IN_MESSAGE, f"{where}.")
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
        members = _known(part, frozenset(("type", "text")), REFUSED_IN_PART, f"{where}.")
        prompt.text(_of(str, "a string", members.get("text"), f"{where}.text"), f"{where}.text")
    elif kind == "image_url":
        members = _known(part, frozenset(("type", "image_url")), REFUSED_IN_PART, f"{where}.")
        image = _of(dict, "an object with a url", members.get("image_url"), f"{where}.image_url")
        members = _known(image, frozenset(("url", "detail")), REFUSED_IN_PART, f"{where}.image_url.")
        detail = _one_of(members, "detail", ("auto", "low", "high"), f"{where}.image_url.")
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


def _stream(fields: dict[str, Any]) -> tuple[bool, bool]:
    """Whether to stream, and whether to end with the usage."""
    is_stream: bool = _of(bool, "true or false", fields.get("stream", False), "stream")
    if "stream_options" not in fields:
        return is_stream, False
    if not is_stream:
        raise InvalidRequest("stream_options goes with stream: true; remove it", param="stream_options")
    options = _of(dict, "an object", fields["stream_options"], "stream_options")
    padding = Refused("chunks are not padded", (False,))
    options = _known(options, frozenset(("include_usage",)), {"include_obfuscation": padding}, "stream_options.")
    param = "stream_options.include_usage"
    return True, _of(bool, "true or false", options.get("include_usage", False), param)


def _budget(fields: dict[str, Any], fallback: Budget) -> Budget:
    if "vireo" not in fields:
        return fallback
    return budget_from_object(_of(dict, "an object", fields["vireo"], "vireo"), fallback)


def _sampling(fields: dict[str, Any], limits: IngressLimits, may_use_logprobs: bool) -> Sampling:
    return Sampling(
        max_tokens=_max_tokens(fields),
        temperature=_number(fields, "temperature", 1.0, 0.0, MAX_TEMPERATURE),
        top_p=_number(fields, "top_p", 1.0, 0.0, 1.0, is_open_low=True),
        stop=_stop(fields.get("stop", []), limits),
        seed=_integer(fields, "seed", None, 0, MAX_SEED),
        n=_integer(fields, "n", 1, 1, limits.max_choices) or 1,
        json_schema=_schema(fields.get("response_format"), limits),
        logprobs=_logprobs(fields, may_use_logprobs),
        logit_bias=_logit_bias(fields.get("logit_bias", {}), limits, may_use_logprobs),
    )


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
    where = "response_format."
    _of(dict, "an object with a type", value, "response_format")
    kind = _one_of(value, "type", ("text", "json_object", "json_schema"), where)
    if kind is None:
        raise InvalidRequest("response_format.type is missing; send it", param="response_format.type")
    names = ("type", "json_schema") if kind == "json_schema" else ("type",)
    members = _known(value, frozenset(names), {}, where)
    if kind != "json_schema":
        return ANY_OBJECT if kind == "json_object" else None
    where = "response_format.json_schema"
    inner = _of(dict, "an object with name and schema", members.get("json_schema"), where)
    inner = _known(inner, frozenset(("name", "description", "schema", "strict")), {}, f"{where}.")
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
