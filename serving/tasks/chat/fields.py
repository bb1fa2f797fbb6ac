"""Every field of the chat bodies of OpenAI, vLLM and SGLang, and what happens to it. The parser reads this table, the
OpenAPI document and docs/chat-fields.md are made of it.

A field that another server takes is used, or passes because no value of it asks for anything here, or passes at the
values that ask for nothing, of which null is always one, and is ``unsupported_field`` at any other. A field that is not
in the table is ``unknown_field``, whatever its value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from serving.errors import UnknownField, UnsupportedField
from serving.front.front import shown


class Fate(StrEnum):
    """What happens to a field."""

    USED = "used"
    CHECKED = "accepted within its limits, not used"
    PASSES = "accepted with any value"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Field:
    """``who``: a letter each for OpenAI, vLLM (present and past releases) and SGLang; none: our own.

    ``why``: it is not used. ``harmless``: values beside null that ask for nothing.
    """

    name: str
    who: str
    fate: Fate = Fate.USED
    why: str = ""
    harmless: tuple[Any, ...] = ()

    def lets_pass(self, value: Any) -> bool:
        """Whether a value asks for nothing, or the field is used or passes whatever it says."""
        return (
            self.fate is not Fate.REFUSED
            or value is None
            or any(value == one and isinstance(value, bool) is isinstance(one, bool) for one in self.harmless)
        )


def _used(who: str, *names: str) -> Iterator[Field]:
    return (Field(name, who) for name in names)


def _passes(who: str, why: str, *names: str) -> Iterator[Field]:
    return (Field(name, who, Fate.PASSES, why) for name in names)


def _refused(who: str, why: str, names: str, *harmless: Any) -> Iterator[Field]:
    return (Field(name, who, Fate.REFUSED, why, harmless) for name in names.split())


_NO_TOOLS: Final = "no model here calls tools"
_NO_AUDIO: Final = "answers are text"
_NO_REASONING: Final = "no model here reasons apart from its answer"
_NO_VIDEO: Final = "no model here takes videos"
_AS_CONTENT: Final = "send what was said as content"
_PLAIN_SAMPLING: Final = "sampling has temperature, top_p, seed and stop"
_NO_PENALTIES: Final = "penalties are not offered; only 0 is"
_OWN_TEMPLATE: Final = "the template belongs to the model"
_OWN_TOKENS: Final = "prompts are made and answers are read as text; ids of tokens are the model's own matter"
_OWN_HASHES: Final = "hashes of images are computed by the server"
_OWN_CACHE: Final = "what shares a cache is decided by the tenant and the content"
_CACHE_HINT: Final = f"a hint about caches; {_OWN_CACHE}"
_OWN_TILES: Final = "how images are cut is decided by the operating point; send vireo.settings"
_OWN_ENGINE: Final = "arguments of the engine are the server's"
_OWN_PLACES: Final = "where a request runs is decided by the server"
_OWN_ID: Final = "send the header x-request-id"
_AS_FORMAT: Final = "send response_format"
_NO_INSIDES: Final = "what a model computes on its way to an answer feeds black-box attacks"
_NO_SESSIONS: Final = "nothing is kept between requests; send the whole conversation"
_ONLY_RENDERED: Final = "it steers what vLLM's rendering paths answer, and nothing of a chat"

BODY: Final = ""
STREAM_OPTIONS: Final = "stream_options."
FORMAT: Final = "response_format."
SCHEMA: Final = "response_format.json_schema."
MESSAGE: Final = "messages[]."
TEXT: Final = "messages[].content[text]."
IMAGE: Final = "messages[].content[image_url]."
IMAGE_URL: Final = "messages[].content[image_url].image_url."

_TABLE: Final[Mapping[str, tuple[Iterator[Field] | Field, ...]]] = {
    BODY: (
        _used("OVS", "model", "messages", "stream", "stream_options", "max_completion_tokens", "max_tokens", "stop"),
        _used("OVS", "seed", "temperature", "top_p", "n", "response_format", "logprobs", "top_logprobs", "logit_bias"),
        _used("VS", "min_tokens", "ignore_eos"),
        _used("", "vireo"),
        Field("user", "OVS", Fate.CHECKED),
        Field("safety_identifier", "O", Fate.CHECKED),
        Field("metadata", "O", Fate.CHECKED),
        # -- tools, sound and thought
        _refused("OVS", _NO_TOOLS, "tools", []),
        _refused("O", _NO_TOOLS, "functions", []),
        _refused("OVS", _NO_TOOLS, "tool_choice", "none", "auto"),
        _refused("O", _NO_TOOLS, "function_call", "none", "auto"),
        _passes("OVS", _NO_TOOLS, "parallel_tool_calls"),
        _refused("O", _NO_TOOLS, "web_search_options"),
        _refused("O", _NO_AUDIO, "audio"),
        _refused("O", _NO_AUDIO, "modalities", ["text"]),
        _refused("S", _NO_VIDEO, "use_audio_in_video", False),
        _refused("OVS", _NO_REASONING, "reasoning_effort", "none"),
        _refused("S", _NO_REASONING, "reasoning", {}, {"effort": "none"}, {"enabled": False}),
        _refused("V", _NO_REASONING, "thinking_token_budget", 0),
        _passes("V", _NO_REASONING, "include_reasoning"),
        _passes("S", _NO_REASONING, "separate_reasoning", "stream_reasoning"),
        # -- sampling
        _refused("OVS", _NO_PENALTIES, "presence_penalty frequency_penalty", 0),
        _refused("VS", _PLAIN_SAMPLING, "top_k", -1, 0),
        _refused("VS", _PLAIN_SAMPLING, "min_p", 0),
        _refused("VS", _PLAIN_SAMPLING, "repetition_penalty", 1),
        _refused("V", _PLAIN_SAMPLING, "length_penalty best_of", 1),
        _refused("V", _PLAIN_SAMPLING, "use_beam_search watermarking", False),
        _refused("V", _PLAIN_SAMPLING, "bad_words", []),
        _refused("V", _PLAIN_SAMPLING, "logits_processors", []),
        _refused("V", _PLAIN_SAMPLING, "allowed_token_ids repetition_detection"),
        _refused("S", _PLAIN_SAMPLING, "custom_logit_processor stop_regex"),
        _refused("VS", _OWN_TOKENS, "stop_token_ids", []),
        _refused("V", "a stop sequence is not part of an answer", "include_stop_str_in_output", False),
        _refused("S", "a stop sequence is not part of an answer", "no_stop_trim", False),
        _refused("VS", _OWN_TOKENS, "skip_special_tokens", True),
        _refused("V", _OWN_TOKENS, "spaces_between_special_tokens", True),
        _refused("O", "predicted output is not offered", "prediction"),
        _refused("O", "bound the answer with max_tokens", "verbosity", "medium"),
        # -- what the answer looks like
        _refused("V", _AS_FORMAT, "structured_outputs"),
        _refused("V", _AS_FORMAT, "guided_json guided_regex guided_choice guided_grammar"),
        _refused("V", _AS_FORMAT, "guided_decoding_backend guided_whitespace_pattern"),
        _refused("S", _AS_FORMAT, "regex ebnf"),
        _refused("V", "probabilities of the prompt feed black-box attacks", "prompt_logprobs"),
        _refused("V", _OWN_TOKENS, "logprob_token_ids"),
        _refused("V", _OWN_TOKENS, "return_tokens_as_token_ids", False),
        _refused("VS", _OWN_TOKENS, "return_token_ids", False),
        _refused("S", _OWN_TOKENS, "return_prompt_token_ids return_meta_info", False),
        _refused("V", "the prompt is not repeated", "echo return_prompt_text", False),
        _refused("S", _NO_INSIDES, "return_hidden_states return_routed_experts", False),
        _refused("S", "usage.prompt_tokens_details has what is known", "return_cached_tokens_details", False),
        _passes("S", "no experts are returned", "routed_experts_start_len"),
        _passes("V", "no experts are returned", "routed_experts_prompt_start"),
        _refused("V", "chunks are sent as they come", "stream_interval", 1),
        _passes("V", _ONLY_RENDERED, "return_token_offsets", "mm_payload", "return_mm_kwargs"),
        # -- the prompt
        _refused("V", _OWN_TEMPLATE, "chat_template"),
        _refused("VS", _OWN_TEMPLATE, "chat_template_kwargs", {}, {"enable_thinking": False}, {"thinking": False}),
        _refused("V", _OWN_TEMPLATE, "add_generation_prompt", True),
        _refused("VS", _OWN_TEMPLATE, "continue_final_message", False),
        _refused("V", _OWN_TEMPLATE, "add_special_tokens", False),
        _refused("V", "send documents as messages", "documents", []),
        _refused("V", "a prompt is answered whole or refused", "truncate_prompt_tokens"),
        _passes("V", "nothing is cut off a prompt", "truncation_side"),
        _refused("S", "no model here has tasks", "task"),
        _refused("S", _OWN_TOKENS, "input_ids"),
        _refused("V", _OWN_TILES, "mm_processor_kwargs", {}),
        _refused("V", "how images are read is decided by the server", "media_io_kwargs", {}),
        _refused("S", _OWN_TILES, "max_dynamic_patch min_dynamic_patch"),
        _refused("S", _OWN_TILES, "images_config", {}),
        _refused("V", _OWN_HASHES, "mm_hashes multi_modal_uuids"),
        # -- the server
        _refused("O", "nothing is stored", "store", False),
        _refused("O", "send vireo.priority", "service_tier", "auto", "default"),
        _refused("VS", "send vireo.priority", "priority", 0),
        _refused("O", "texts are not moderated here", "moderation"),
        _passes("O", _CACHE_HINT, "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"),
        _refused("VS", _OWN_CACHE, "cache_salt"),
        _refused("S", _OWN_CACHE, "extra_key"),
        _refused("V", _OWN_ID, "request_id"),
        _refused("S", _OWN_ID, "rid"),
        _passes("VS", "a hint about what belongs together", "session_id"),
        _refused("S", _NO_SESSIONS, "session_params"),
        _refused("S", "a model is named whole, by model", "lora_path"),
        _refused("S", _OWN_ENGINE, "custom_params", {}),
        _refused("V", _OWN_ENGINE, "vllm_xargs kv_transfer_params ec_transfer_params", {}),
        _refused("S", _OWN_ENGINE, "ngram_corpus_id"),
        _refused("S", _OWN_PLACES, "bootstrap_host bootstrap_port bootstrap_room"),
        _refused("S", _OWN_PLACES, "routed_dp_rank disagg_prefill_dp_rank data_parallel_rank"),
        _refused("", "it is an argument of the Python client; its members go into the body itself", "extra_body"),
    ),
    STREAM_OPTIONS: (
        _used("OVS", "include_usage"),
        _used("VS", "continuous_usage_stats"),
        _refused("O", "chunks are not padded", "include_obfuscation", False),
    ),
    FORMAT: (
        _used("OVS", "type", "json_schema"),
        _refused("VS", "send a JSON schema", "format structures triggers"),
        _refused("S", "send a JSON schema", "at_least_one", False),
    ),
    SCHEMA: (_used("OVS", "name", "description", "schema", "strict"),),
    MESSAGE: (
        _used("OVS", "role", "content"),
        Field("name", "OVS", Fate.CHECKED),
        _refused("OVS", _NO_TOOLS, "tool_calls", []),
        _refused("OVS", _NO_TOOLS, "tool_call_id"),
        _refused("OV", _NO_TOOLS, "function_call"),
        _refused("VS", _NO_TOOLS, "tools", []),
        _refused("OV", _NO_AUDIO, "audio"),
        _refused("OV", _AS_CONTENT, "refusal"),
        _refused("O", _AS_CONTENT, "annotations", []),
        _refused("V", _AS_CONTENT, "reasoning"),
        _refused("VS", _AS_CONTENT, "reasoning_content"),
        _refused("V", "no model here has tasks", "task"),
    ),
    TEXT: (
        _used("OVS", "type", "text"),
        _refused("V", _OWN_HASHES, "uuid"),
        _passes("O", _CACHE_HINT, "prompt_cache_breakpoint"),
    ),
    IMAGE: (
        _used("OVS", "type", "image_url"),
        _refused("V", _OWN_HASHES, "uuid"),
        _passes("O", _CACHE_HINT, "prompt_cache_breakpoint"),
        _refused("S", _NO_VIDEO, "modalities", "image"),
    ),
    IMAGE_URL: (
        _used("OVS", "url", "detail"),
        _refused("V", _OWN_HASHES, "uuid"),
        _refused("S", _OWN_HASHES, "content_hash"),
        _refused("S", _OWN_TILES, "max_dynamic_patch min_dynamic_patch"),
    ),
}

FIELDS: Final[Mapping[str, Mapping[str, Field]]] = {
    scope: {field.name: field for row in rows for field in ([row] if isinstance(row, Field) else row)}
    for scope, rows in _TABLE.items()
}
"""By the object in which they stand, and their name."""


def known(document: dict[str, Any], scope: str, where: str) -> dict[str, Any]:
    """Return the members that are used and not null. ``where``: the object, as messages of errors call it.

    Raises: UnknownField, UnsupportedField.
    """
    fields = FIELDS[scope]
    given: dict[str, Any] = {}
    for name, value in document.items():
        field = fields.get(name)
        if field is None:
            param = f"{where}{name[:64]}"
            raise UnknownField(f"field {shown(param)} is unknown; remove it, or check its spelling", param=param)
        if not field.lets_pass(value):
            param = f"{where}{name}"
            raise UnsupportedField(f"{param} is not offered: {field.why}. Remove it", param=param)
        if value is not None and field.fate in (Fate.USED, Fate.CHECKED):
            given[name] = value
    return given


def documented(scope: str) -> Callable[[dict[str, Any]], None]:
    """What adds to the JSON schema of an object the fields that it has no member for."""

    def add(schema: dict[str, Any]) -> None:
        for name, field in FIELDS[scope].items():
            if field.fate is Fate.PASSES:
                schema["properties"][name] = {"description": f"Not used: {field.why}."}
            elif field.fate is Fate.REFUSED:
                said = f"Not offered: {field.why}."
                schema["properties"][name] = {"enum": [None, *field.harmless], "description": said}

    return add
