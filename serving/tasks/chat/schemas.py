"""JSON of ``POST /v1/chat/completions``: what is taken, and what is answered."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, TypeAlias

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from serving.delivery.stream.wire import FinishReason
from serving.domain import Report
from serving.front.budget import BudgetBody
from serving.front.http.fields import MAX_USER_CHARS, documented
from serving.front.http.json_body import Strict, Within, limit
from serving.limits import MAX_ID_CHARS
from serving.tasks.chat.fields import (
    BODY,
    FIELDS,
    FORMAT,
    IMAGE,
    IMAGE_URL,
    MESSAGE,
    STREAM_OPTIONS,
    TEXT,
)
from serving.tasks.chat.rules import (
    MAX_BIAS,
    MAX_METADATA,
    MAX_SEED,
    MAX_TEMPERATURE,
    MAX_TOKENS,
    MAX_TOP_LOGPROBS,
    SCHEMA_NAME,
    TOKEN_ID,
)

Label: TypeAlias = Annotated[str, Field(max_length=MAX_USER_CHARS)]
Stop: TypeAlias = Annotated[str, Field(min_length=1), Within(maxLength=limit("max_stop_chars"))]
Stops: TypeAlias = Stop | Annotated[list[Stop], Within(maxItems=limit("max_stop"))]
Text: TypeAlias = Annotated[str, Within(maxLength=limit("max_text_chars"))]
ImageUrl: TypeAlias = Annotated[str, Within(maxLength=limit("max_image_chars"))]
Description: TypeAlias = Annotated[str, Within(maxLength=limit("max_schema_bytes"))]
Metadata: TypeAlias = Annotated[dict[Label, Label], Field(max_length=MAX_METADATA)]
LogitBias: TypeAlias = Annotated[
    dict[Annotated[str, Field(pattern=f"^{TOKEN_ID}$")], Annotated[float, Field(ge=-MAX_BIAS, le=MAX_BIAS)]],
    Within(maxProperties=limit("max_logit_bias"), additionalProperties=False),
]


class TextPartBody(Strict):
    """Words."""

    model_config = ConfigDict(json_schema_extra=documented(FIELDS[TEXT]))

    type: Literal["text"]
    text: Text


class ImageUrlBody(Strict):
    """Where an image is: in the URL itself, or at an https address that the operator has allowed."""

    model_config = ConfigDict(json_schema_extra=documented(FIELDS[IMAGE_URL]))

    url: ImageUrl
    """A ``data:`` URL, or an https URL."""
    detail: Literal["auto", "low", "high", "original"] | None = None
    """``low``: one tile is enough. Otherwise the operating point decides."""


class ImagePartBody(Strict):
    """An image, in user messages."""

    model_config = ConfigDict(json_schema_extra=documented(FIELDS[IMAGE]))

    type: Literal["image_url"]
    image_url: ImageUrlBody


class MessageBody(Strict):
    """One turn."""

    model_config = ConfigDict(json_schema_extra=documented(FIELDS[MESSAGE]))

    role: Literal["system", "developer", "user", "assistant"]
    """``system`` and ``developer`` are the same and may only come first."""
    content: (
        Text | Annotated[list[TextPartBody | ImagePartBody], Field(min_length=1), Within(maxItems=limit("max_parts"))]
    )
    name: Label | None = None
    """Accepted and not used."""


class StreamOptionsBody(Strict):
    """Where a stream tells its usage."""

    model_config = ConfigDict(json_schema_extra=documented(FIELDS[STREAM_OPTIONS]))

    include_usage: bool | None = None
    """Whether a chunk with the usage and without choices comes last."""
    continuous_usage_stats: bool | None = None
    """Whether each chunk has the usage so far."""


class JsonSchemaBody(Strict):
    """A schema that the answer keeps to."""

    name: Annotated[str, Field(pattern=f"^{SCHEMA_NAME}$")]
    json_schema: Annotated[dict[str, Any], Field(alias="schema")]
    description: Description | None = None
    strict: bool | None = None


class ResponseFormatBody(Strict):
    """What the answer looks like."""

    model_config = ConfigDict(json_schema_extra=documented(FIELDS[FORMAT]))

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaBody | None = None


class SpeechBody(Strict):
    """What both spellings of chat have."""

    model: Annotated[str | None, Field(min_length=1, max_length=MAX_ID_CHARS)] = None
    """Model id, as in ``GET /v1/models``; may be left out if only one model chats."""
    stream: bool | None = None
    """Whether the answer comes as server-sent events."""
    min_tokens: Annotated[int | None, Field(ge=0, le=MAX_TOKENS)] = None
    """Before so many tokens, neither the model nor ``stop`` ends an answer."""
    ignore_eos: bool | None = None
    """Whether the model's end of an answer is passed over: it ends at ``stop`` or at the most tokens."""
    stop: Stops | None = None
    """Sequences that end the answer and are not part of it."""
    seed: Annotated[int | None, Field(ge=0, le=MAX_SEED)] = None
    """Makes sampling repeatable."""
    temperature: Annotated[float | None, Field(ge=0, le=MAX_TEMPERATURE)] = None
    """0 always takes the likeliest token; 1 when absent."""
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    """Share of probability that is sampled from."""
    top_logprobs: Annotated[int | None, Field(ge=0, le=MAX_TOP_LOGPROBS)] = None
    logit_bias: LogitBias | None = None
    """Token ids to bias; closed to most tenants."""
    user: Label | None = None
    """Accepted and not used, like ``safety_identifier``."""
    safety_identifier: Label | None = None
    metadata: Metadata | None = None
    """Responses repeat it; chat does not use it."""
    vireo: BudgetBody | None = None
    """Budget."""


class ChatBody(SpeechBody):
    """Body of ``POST /v1/chat/completions``. Read by ``body``, which knows which fields go together."""

    model_config = ConfigDict(json_schema_extra=documented(FIELDS[BODY]))

    messages: Annotated[list[MessageBody], Field(min_length=1), Within(maxItems=limit("max_messages"))]
    """The conversation."""
    stream_options: StreamOptionsBody | None = None
    max_completion_tokens: Annotated[int | None, Field(ge=1, le=MAX_TOKENS)] = None
    """Most tokens of an answer; the server has its own limit."""
    max_tokens: Annotated[int | None, Field(ge=1, le=MAX_TOKENS)] = None
    """The older name of ``max_completion_tokens``."""
    n: Annotated[int, Field(ge=1), Within(maximum=limit("max_choices"))] | None = None
    """Number of answers."""
    response_format: ResponseFormatBody | None = None
    logprobs: bool | None = None
    """Whether probabilities are returned; closed to most tenants."""


class TokenAnswer(TypedDict):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobAnswer(TokenAnswer):
    """A token of the answer, and what else was likely."""

    top_logprobs: list[TokenAnswer]


class LogprobsAnswer(TypedDict):
    """Probabilities of the tokens of an answer."""

    content: list[TokenLogprobAnswer]


class PromptDetailsAnswer(TypedDict):
    """Parts of the prompt's tokens."""

    cached_tokens: int
    image_tokens: int


class UsageAnswer(TypedDict):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetailsAnswer


class UsageSoFarAnswer(TypedDict):
    """Tokens of the prompt, and of all choices until now."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatMessageAnswer(TypedDict):
    """What the model says."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoiceAnswer(TypedDict):
    """One answer."""

    index: int
    message: ChatMessageAnswer
    logprobs: LogprobsAnswer | None
    finish_reason: FinishReason


class ChatAnswer(TypedDict):
    """Answer of ``POST /v1/chat/completions``."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoiceAnswer]
    usage: UsageAnswer
    vireo: Report


class ChatDeltaAnswer(TypedDict):
    """What is new; the role comes in the first chunk of a choice."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    refusal: NotRequired[None]


class ChatChunkChoiceAnswer(TypedDict):
    """More of one answer."""

    index: int
    delta: ChatDeltaAnswer
    logprobs: LogprobsAnswer | None
    finish_reason: FinishReason | None


class ChatChunk(TypedDict):
    """A server-sent event of ``POST /v1/chat/completions``."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoiceAnswer]
    usage: NotRequired[UsageAnswer | UsageSoFarAnswer | None]
    vireo: NotRequired[Report]
