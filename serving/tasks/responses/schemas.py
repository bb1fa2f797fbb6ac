"""JSON of ``POST /v1/responses``: what is taken, and what is answered."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, NotRequired

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from serving.domain import Report
from serving.front.http.fields import documented
from serving.front.http.json_body import Strict, Within, limit
from serving.front.status import ErrorObject
from serving.tasks.chat.rules import MAX_TOKENS, SCHEMA_NAME
from serving.tasks.chat.schemas import Description, ImageUrl, SpeechBody, Text, TokenLogprobAnswer
from serving.tasks.responses import fields

LOGPROBS: Final = "message.output_text.logprobs"
INCLUDABLE: Final = (
    LOGPROBS, "message.input_image.image_url", "reasoning.encrypted_content", "file_search_call.results",
    "web_search_call.results", "web_search_call.action.sources", "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
)  # fmt: skip
"""What an answer may hold more of. All but probabilities are of things that no answer here has."""
MAX_INCLUDED: Final = 16

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class ItemTextBody(Strict):
    """Words."""

    model_config = ConfigDict(json_schema_extra=documented(fields.TEXT))

    type: Literal["input_text", "output_text"]
    text: Text


class ItemImageBody(Strict):
    """An image, in user messages."""

    model_config = ConfigDict(json_schema_extra=documented(fields.IMAGE))

    type: Literal["input_image"]
    image_url: ImageUrl
    """A ``data:`` URL, or an https URL of a host that the operator has allowed."""
    detail: Literal["auto", "low", "high", "original"] | None = None
    """``low``: one tile is enough. Otherwise the operating point decides."""


class ItemBody(Strict):
    """One turn."""

    model_config = ConfigDict(json_schema_extra=documented(fields.MESSAGE))

    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    """``system`` and ``developer`` are the same and may only come first."""
    content: (
        Text | Annotated[list[ItemTextBody | ItemImageBody], Field(min_length=1), Within(maxItems=limit("max_parts"))]
    )


class TextFormatBody(Strict):
    """What the answer looks like. The other members go with the type ``json_schema``."""

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str | None, Field(pattern=f"^{SCHEMA_NAME}$")] = None
    json_schema: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    description: Description | None = None
    strict: bool | None = None


class TextConfigBody(Strict):
    """How the answer is written."""

    model_config = ConfigDict(json_schema_extra=documented(fields.TEXT_CONFIG))

    format: TextFormatBody | None = None


class EventOptionsBody(Strict):
    """How events are sent."""

    model_config = ConfigDict(json_schema_extra=documented(fields.STREAM_OPTIONS))


class ResponseBody(SpeechBody):
    """Body of ``POST /v1/responses``. Read by ``body``, which knows which fields go together."""

    model_config = ConfigDict(json_schema_extra=documented(fields.BODY))

    input: Text | Annotated[list[ItemBody], Field(min_length=1), Within(maxItems=limit("max_messages"))]
    """What the user says, or the whole conversation."""
    instructions: Text | None = None
    """A system message that comes first."""
    max_output_tokens: Annotated[int | None, Field(ge=1, le=MAX_TOKENS)] = None
    """Most tokens of the answer; the server has its own limit."""
    text: TextConfigBody | None = None
    stream_options: EventOptionsBody | None = None
    include: Annotated[list[Annotated[str, Within(enum=INCLUDABLE)]], Field(max_length=MAX_INCLUDED)] | None = None
    """``message.output_text.logprobs``: probabilities, which are closed to most tenants."""
    parallel_tool_calls: bool | None = None
    """Repeated in the answer; no tool is called."""


class PartAnswer(TypedDict):
    """The text."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[TokenLogprobAnswer]


class ItemAnswer(TypedDict):
    """What the model says."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: ItemStatus
    content: list[PartAnswer]


class InputDetailsAnswer(TypedDict):
    """Parts of the input's tokens."""

    cached_tokens: int
    cache_write_tokens: int
    image_tokens: int


class ResponseUsageAnswer(TypedDict):
    """Tokens."""

    input_tokens: int
    input_tokens_details: InputDetailsAnswer
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class ResponseAnswer(TypedDict):
    """Answer of ``POST /v1/responses``."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    background: bool
    error: ErrorObject | None
    incomplete_details: dict[str, str] | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[ItemAnswer]
    parallel_tool_calls: bool
    previous_response_id: None
    reasoning: dict[str, None]
    service_tier: Literal["default"]
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: Literal["auto"]
    tools: list[Any]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsageAnswer | None
    vireo: Report | None


class ResponseEvent(TypedDict):
    """A server-sent event of ``POST /v1/responses``. What it holds depends on its type."""

    type: str
    sequence_number: int
    response: NotRequired[ResponseAnswer]
    output_index: NotRequired[int]
    item: NotRequired[ItemAnswer]
    item_id: NotRequired[str]
    content_index: NotRequired[int]
    part: NotRequired[PartAnswer]
    delta: NotRequired[str]
    text: NotRequired[str]
    logprobs: NotRequired[list[TokenLogprobAnswer]]
    code: NotRequired[str]
    message: NotRequired[str]
    param: NotRequired[str | None]
    error: NotRequired[ErrorObject]
