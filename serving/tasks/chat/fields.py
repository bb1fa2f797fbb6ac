"""Every field of the chat bodies of OpenAI, vLLM and SGLang, and what happens to it. The parser reads this table, the
OpenAPI document and docs/chat-fields.md are made from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from serving.front.http.fields import Fate, Field, Fields, Row, passes, refused, table, used

_NO_TOOLS: Final = "no model here calls tools"
_NO_AUDIO: Final = "answers are text"
_NO_REASONING: Final = "no model here reasons separately from its answer"
_NO_VIDEO: Final = "no model here takes videos"
_NO_SOUND: Final = "no model here takes audio"
_NO_EMBEDDINGS: Final = "the server embeds images; send image_url"
_AS_CONTENT: Final = "send earlier answers as plain content"
_PLAIN_SAMPLING: Final = "sampling is controlled by temperature, top_p, seed and stop"
_NO_PENALTIES: Final = "no penalties are applied"
_OWN_TEMPLATE: Final = "the template belongs to the model"
_OWN_TOKENS: Final = "prompts and answers are text; token ids are internal to the model"
_OWN_HASHES: Final = "the server computes hashes of images"
_OWN_CACHE: Final = "the tenant and the content decide what shares a cache"
_CACHE_HINT: Final = f"a hint about caches; {_OWN_CACHE}"
_OWN_TILES: Final = "the operating point decides how images are cut; send vireo.settings"
_OWN_ENGINE: Final = "the server sets the engine's arguments"
_OWN_PLACES: Final = "the server decides where a request runs"
_OWN_ID: Final = "send the header x-request-id"
_AS_FORMAT: Final = "send response_format"
_NO_INSIDES: Final = "what a model computes on its way to an answer feeds black-box attacks"
_NO_SESSIONS: Final = "nothing is kept between requests; send the whole conversation"
_ONLY_RENDERED: Final = "it affects only vLLM's render endpoints, not chat"

BODY: Final = ""
STREAM_OPTIONS: Final = "stream_options."
FORMAT: Final = "response_format."
SCHEMA: Final = "response_format.json_schema."
MESSAGE: Final = "messages[]."
TEXT: Final = "messages[].content[text]."
IMAGE: Final = "messages[].content[image_url]."
IMAGE_URL: Final = "messages[].content[image_url].image_url."

_TABLE: Final[Mapping[str, tuple[Row, ...]]] = {
    BODY: (
        used("OVS", "model", "messages", "stream", "stream_options", "max_completion_tokens", "max_tokens", "stop"),
        used("OVS", "seed", "temperature", "top_p", "n", "response_format", "logprobs", "top_logprobs", "logit_bias"),
        used("VS", "min_tokens", "ignore_eos"),
        used("", "vireo"),
        Field("user", "OVS", Fate.CHECKED),
        Field("safety_identifier", "O", Fate.CHECKED),
        Field("metadata", "O", Fate.CHECKED),
        # -- tools, sound and thought
        refused("OVS", _NO_TOOLS, "tools", []),
        refused("O", _NO_TOOLS, "functions", []),
        refused("OVS", _NO_TOOLS, "tool_choice", "none", "auto"),
        refused("O", _NO_TOOLS, "function_call", "none", "auto"),
        passes("OVS", _NO_TOOLS, "parallel_tool_calls"),
        refused("O", _NO_TOOLS, "web_search_options"),
        refused("O", _NO_AUDIO, "audio"),
        refused("O", _NO_AUDIO, "modalities", ["text"]),
        refused("S", _NO_VIDEO, "use_audio_in_video", False),
        refused("OVS", _NO_REASONING, "reasoning_effort", "none"),
        refused("S", _NO_REASONING, "reasoning", {}, {"effort": "none"}, {"enabled": False}),
        refused("V", _NO_REASONING, "thinking_token_budget", 0),
        passes("V", _NO_REASONING, "include_reasoning"),
        passes("S", _NO_REASONING, "separate_reasoning", "stream_reasoning"),
        # -- sampling
        refused("OVS", _NO_PENALTIES, "presence_penalty frequency_penalty", 0),
        refused("VS", _PLAIN_SAMPLING, "top_k", -1, 0),
        refused("VS", _PLAIN_SAMPLING, "min_p", 0),
        refused("VS", _PLAIN_SAMPLING, "repetition_penalty", 1),
        refused("V", _PLAIN_SAMPLING, "length_penalty best_of", 1),
        refused("V", _PLAIN_SAMPLING, "use_beam_search watermarking", False),
        refused("V", _PLAIN_SAMPLING, "bad_words", []),
        refused("V", _PLAIN_SAMPLING, "logits_processors", []),
        refused("V", _PLAIN_SAMPLING, "allowed_token_ids repetition_detection"),
        refused("S", _PLAIN_SAMPLING, "custom_logit_processor stop_regex"),
        refused("VS", _OWN_TOKENS, "stop_token_ids", []),
        refused("V", "a stop sequence is not part of an answer", "include_stop_str_in_output", False),
        refused("S", "a stop sequence is not part of an answer", "no_stop_trim", False),
        refused("VS", _OWN_TOKENS, "skip_special_tokens", True),
        refused("V", _OWN_TOKENS, "spaces_between_special_tokens", True),
        refused("O", "predicted output is not used", "prediction"),
        refused("O", "limit the answer with max_tokens", "verbosity", "medium"),
        # -- what the answer looks like
        refused("V", _AS_FORMAT, "structured_outputs"),
        refused("V", _AS_FORMAT, "guided_json guided_regex guided_choice guided_grammar"),
        refused("V", _AS_FORMAT, "guided_decoding_backend guided_whitespace_pattern"),
        refused("S", _AS_FORMAT, "regex ebnf"),
        refused("V", "probabilities of the prompt feed black-box attacks", "prompt_logprobs"),
        refused("V", _OWN_TOKENS, "logprob_token_ids"),
        refused("V", _OWN_TOKENS, "return_tokens_as_token_ids", False),
        refused("VS", _OWN_TOKENS, "return_token_ids", False),
        refused("S", _OWN_TOKENS, "return_prompt_token_ids return_meta_info", False),
        refused("V", "the prompt is not repeated", "echo return_prompt_text", False),
        refused("S", _NO_INSIDES, "return_hidden_states return_routed_experts", False),
        refused("S", "usage.prompt_tokens_details has what is known", "return_cached_tokens_details", False),
        passes("S", "no experts are returned", "routed_experts_start_len"),
        passes("V", "no experts are returned", "routed_experts_prompt_start"),
        refused("V", "chunks are sent as they arrive", "stream_interval", 1),
        passes("V", _ONLY_RENDERED, "return_token_offsets", "mm_payload", "return_mm_kwargs"),
        # -- the prompt
        refused("V", _OWN_TEMPLATE, "chat_template"),
        refused("VS", _OWN_TEMPLATE, "chat_template_kwargs", {}, {"enable_thinking": False}, {"thinking": False}),
        refused("V", _OWN_TEMPLATE, "add_generation_prompt", True),
        refused("VS", _OWN_TEMPLATE, "continue_final_message", False),
        refused("V", _OWN_TEMPLATE, "add_special_tokens", False),
        refused("V", "send documents as messages", "documents", []),
        refused("V", "a prompt is answered whole or refused", "truncate_prompt_tokens"),
        passes("V", "prompts are never truncated", "truncation_side"),
        refused("S", "no model here has tasks", "task"),
        refused("S", _OWN_TOKENS, "input_ids"),
        refused("V", _OWN_TILES, "mm_processor_kwargs", {}),
        refused("V", "the server decides how images are read", "media_io_kwargs", {}),
        refused("S", _OWN_TILES, "max_dynamic_patch min_dynamic_patch"),
        refused("S", _OWN_TILES, "images_config", {}),
        refused("V", _OWN_HASHES, "mm_hashes multi_modal_uuids"),
        # -- the server
        refused("O", "nothing is stored", "store", False),
        refused("O", "send vireo.priority", "service_tier", "auto", "default"),
        refused("VS", "send vireo.priority", "priority", 0),
        refused("O", "texts are not moderated here", "moderation"),
        passes("O", _CACHE_HINT, "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"),
        refused("VS", _OWN_CACHE, "cache_salt"),
        refused("S", _OWN_CACHE, "extra_key"),
        refused("V", _OWN_ID, "request_id"),
        refused("S", _OWN_ID, "rid"),
        passes("VS", "a hint about which requests belong together", "session_id"),
        refused("S", _NO_SESSIONS, "session_params"),
        refused("S", "a model is chosen by model alone", "lora_path"),
        refused("S", _OWN_ENGINE, "custom_params", {}),
        refused("V", _OWN_ENGINE, "vllm_xargs kv_transfer_params ec_transfer_params", {}),
        refused("S", _OWN_ENGINE, "ngram_corpus_id"),
        refused("S", _OWN_PLACES, "bootstrap_host bootstrap_port bootstrap_room"),
        refused("S", _OWN_PLACES, "routed_dp_rank disagg_prefill_dp_rank data_parallel_rank"),
        refused("", "it is an argument of the Python client; its members go into the body itself", "extra_body"),
    ),
    STREAM_OPTIONS: (
        used("OVS", "include_usage"),
        used("VS", "continuous_usage_stats"),
        refused("O", "chunks are not padded", "include_obfuscation", False),
    ),
    FORMAT: (
        used("OVS", "type", "json_schema"),
        refused("VS", "send a JSON schema", "format structures triggers"),
        refused("S", "send a JSON schema", "at_least_one", False),
    ),
    SCHEMA: (used("OVS", "name", "description", "schema", "strict"),),
    MESSAGE: (
        used("OVS", "role", "content"),
        Field("name", "OVS", Fate.CHECKED),
        refused("OVS", _NO_TOOLS, "tool_calls", []),
        refused("OVS", _NO_TOOLS, "tool_call_id"),
        refused("OV", _NO_TOOLS, "function_call"),
        refused("VS", _NO_TOOLS, "tools", []),
        refused("OV", _NO_AUDIO, "audio"),
        refused("OV", _AS_CONTENT, "refusal"),
        refused("O", _AS_CONTENT, "annotations", []),
        refused("V", _AS_CONTENT, "reasoning"),
        refused("VS", _AS_CONTENT, "reasoning_content"),
        refused("V", "no model here has tasks", "task"),
    ),
    TEXT: (
        used("OVS", "type", "text"),
        refused("V", _OWN_HASHES, "uuid"),
        passes("O", _CACHE_HINT, "prompt_cache_breakpoint"),
    ),
    IMAGE: (
        used("OVS", "type", "image_url"),
        refused("V", _OWN_HASHES, "uuid"),
        passes("O", _CACHE_HINT, "prompt_cache_breakpoint"),
        refused("S", _NO_VIDEO, "modalities", "image"),
    ),
    IMAGE_URL: (
        used("OVS", "url", "detail"),
        refused("V", _OWN_HASHES, "uuid"),
        refused("S", _OWN_HASHES, "content_hash"),
        refused("S", _OWN_TILES, "max_dynamic_patch min_dynamic_patch"),
    ),
}

FIELDS: Final[Mapping[str, Fields]] = {scope: table(*rows) for scope, rows in _TABLE.items()}
"""By the object that they belong to, and their name."""

OTHER_ROLES: Final = table(
    *refused("OVS", _NO_TOOLS, "tool"),
    *refused("OV", _NO_TOOLS, "function"),
    *refused("S", "send it as a system message at the beginning", "latest_reminder"),
)
"""Message roles that other servers know."""

OTHER_PARTS: Final = table(
    *refused("OV", _NO_SOUND, "input_audio"),
    *refused("VS", _NO_SOUND, "audio_url"),
    *refused("V", _NO_SOUND, "audio_embeds"),
    *refused("VS", _NO_VIDEO, "video_url"),
    *refused("V", _NO_VIDEO, "video_embeds"),
    *refused("V", _NO_EMBEDDINGS, "image_embeds image_pil"),
    *refused("V", _OWN_TOKENS, "prompt_embeds"),
    *refused("O", "no files are kept; send image_url", "file"),
    *refused("OV", _AS_CONTENT, "refusal"),
    *refused("VS", _AS_CONTENT, "thinking"),
    *refused("S", _AS_CONTENT, "reasoning"),
    *refused("V", "it belongs to /v1/responses; send text", "input_text output_text"),
    *refused("V", "it belongs to /v1/responses; send image_url", "input_image"),
    *refused("VS", _NO_TOOLS, "tool_reference"),
)
"""Types of message parts that other servers know."""

OTHER_FORMATS: Final = table(*refused("VS", "send a JSON schema", "structural_tag"))
"""Types of ``response_format`` that other servers know."""
