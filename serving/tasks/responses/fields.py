"""Every field of a body of ``POST /v1/responses``, and what happens to it. Those of chat that are not offered there are
not offered here."""

from __future__ import annotations

from typing import Final

from serving.front.http.fields import Fate, Field, Fields, passes, refused, table, used
from serving.tasks.chat import fields as chat

_NO_TOOLS: Final = "no model here calls tools"
_NO_STATE: Final = "nothing is kept between requests; send the whole conversation as input"
_NO_REASONING: Final = "no model here reasons separately from its answer"
_CACHE_HINT: Final = "a hint about caches; the tenant and the content decide what shares one"

BODY: Final[Fields] = table(
    *(field for field in chat.FIELDS[chat.BODY].values() if field.fate in (Fate.PASSES, Fate.REFUSED)),
    *used("OV", "model", "input", "instructions", "max_output_tokens", "temperature", "top_p", "text"),
    *used("OV", "stream", "include", "top_logprobs", "metadata", "parallel_tool_calls"),
    *used("O", "stream_options"),
    *used("V", "seed", "stop", "ignore_eos", "logit_bias"),
    *used("", "min_tokens", "vireo"),
    Field("user", "OV", Fate.CHECKED),
    Field("safety_identifier", "O", Fate.CHECKED),
    *passes("OV", "nothing is stored, and the answer says so", "store"),
    *refused("", "send input", "messages"),
    *refused("", "send max_output_tokens", "max_tokens max_completion_tokens"),
    *refused("", "send text.format", "response_format"),
    *refused("", "send include", "logprobs", False),
    *refused("", "one answer is given", "n", 1),
    *refused("OV", _NO_STATE, "previous_response_id"),
    *refused("O", _NO_STATE, "conversation"),
    *refused("V", _NO_STATE, "previous_input_messages"),
    *refused("O", _NO_STATE, "context_management", []),
    *refused("OV", "the caller waits for an answer; images and videos have jobs", "background", False),
    *refused("O", "the caller waits for an answer; images and videos have jobs", "background_options"),
    *refused("OV", "prompt templates are not stored here; send input", "prompt"),
    *refused("OV", "an input is answered whole or refused; drop turns from it", "truncation", "disabled"),
    *refused("OV", _NO_TOOLS, "max_tool_calls"),
    *refused(
        "OV", _NO_REASONING, "reasoning", {}, *({"effort": effort, "summary": None} for effort in (None, "none")),
        *({"effort": effort} for effort in (None, "none")), {"summary": None},
    ),
    *refused("V", "the engine's messages are internal to the server", "enable_response_messages", False),
    *refused("O", "the key's tenant decides about access", "access_programs"),
    *refused("O", "the operating point decides how images are cut; send vireo.settings", "image", {}),
)  # fmt: skip
STREAM_OPTIONS: Final[Fields] = table(*refused("O", "events are not padded", "include_obfuscation", False))
TEXT_CONFIG: Final[Fields] = table(
    *used("OV", "format"), *refused("OV", "limit the answer with max_output_tokens", "verbosity", "medium")
)
FORMAT: Final[Fields] = table(*used("OV", "type", "name", "description", "schema", "strict"))
MESSAGE: Final[Fields] = table(
    *used("OV", "type", "role", "content"),
    *passes("OV", "it belongs to the answer that this item came from", "id", "status", "phase"),
)
TEXT: Final[Fields] = table(
    *used("OV", "type", "text"),
    *passes("OV", "it belongs to the answer that this item came from", "annotations", "logprobs", "parsed"),
    *passes("O", _CACHE_HINT, "prompt_cache_breakpoint"),
)
IMAGE: Final[Fields] = table(
    *used("OV", "type", "image_url", "detail"),
    *refused("OV", "no files are kept; send image_url", "file_id"),
    *passes("O", _CACHE_HINT, "prompt_cache_breakpoint"),
)
