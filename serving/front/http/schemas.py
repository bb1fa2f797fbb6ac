"""JSON bodies as strict models: what is not named here is refused. ``/openapi.json`` is made from them."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, RootModel, TypeAdapter, WithJsonSchema
from pydantic_core import PydanticCustomError

from serving.domain import MAX_ENERGY_J, MAX_LATENCY_MS, Budget, Priority
from serving.front.http.json_decode import Numbers

MAX_ID_CHARS = 256
MAX_INPUTS, MAX_OUTPUTS, MAX_PARAMETERS, MAX_DIMS = 8, 16, 16, 8
"""Of one inference request: more than any valid one has."""


class Strict(BaseModel):
    """No unknown fields, no silent conversions, no NaN."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class BudgetBody(Strict):
    """What the caller is willing to spend. An absent field means no limit of that kind."""

    latency_ms: Annotated[float | None, Field(gt=0, le=MAX_LATENCY_MS)] = None
    """Milliseconds from arrival to answer."""
    energy_j: Annotated[float | None, Field(gt=0, le=MAX_ENERGY_J)] = None
    """Joules for the whole request."""
    priority: Literal["low", "normal", "high"] | None = None
    """Order among competing requests."""
    quality_floor: Annotated[float | None, Field(ge=0, le=1)] = None
    """Lowest acceptable held-out accuracy of the operating point."""

    def to_budget(self, fallback: Budget) -> Budget:
        """Return the budget, with ``fallback`` where a field is absent."""
        return Budget(
            latency_ms=fallback.latency_ms if self.latency_ms is None else self.latency_ms,
            energy_j=fallback.energy_j if self.energy_j is None else self.energy_j,
            priority=fallback.priority if self.priority is None else Priority(self.priority),
            quality_floor=fallback.quality_floor if self.quality_floor is None else self.quality_floor,
        )


class ClassifyBody(Strict):
    """Body of ``POST /v1/classify``. Exactly one of ``image`` and ``images``."""

    model: Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]
    """Model id, as in ``GET /v1/models``."""
    image: str | None = None
    """One image: base64 or a data: URL of a JPEG, PNG or WebP file."""
    images: Annotated[list[str] | None, Field(min_length=1)] = None
    """Several images."""
    top_k: Annotated[int | None, Field(ge=1)] = None
    """Classes to return for each image; 1 when absent."""
    vireo: BudgetBody | None = None
    """Budget."""


class TextPartBody(Strict):
    """Words."""

    type: Literal["text"]
    text: str


class ImageUrlBody(Strict):
    """Where an image is: in the URL itself, or at an https address that the operator has allowed."""

    url: str
    """A ``data:`` URL, or an https URL."""
    detail: Literal["auto", "low", "high"] | None = None
    """Accepted and not used: the budget decides."""


class ImagePartBody(Strict):
    """An image, in user messages."""

    type: Literal["image_url"]
    image_url: ImageUrlBody


class MessageBody(Strict):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    """``system`` and ``developer`` are the same and may only come first."""
    content: str | Annotated[list[TextPartBody | ImagePartBody], Field(min_length=1)]
    name: str | None = None
    """Accepted and not used."""


class StreamOptionsBody(Strict):
    """How a stream ends."""

    include_usage: bool | None = None
    """Whether a chunk with the usage and without choices comes last."""


class JsonSchemaBody(Strict):
    """A schema that the answer keeps to."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    json_schema: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class ResponseFormatBody(Strict):
    """What the answer looks like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaBody | None = None


class ChatBody(Strict):
    """Body of ``POST /v1/chat/completions``. Read by ``chat_json``, which says more about what it refuses."""

    model: Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]
    """Model id, as in ``GET /v1/models``."""
    messages: Annotated[list[MessageBody], Field(min_length=1)]
    """The conversation."""
    stream: bool | None = None
    """Whether the answer comes as server-sent events."""
    stream_options: StreamOptionsBody | None = None
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    """Most tokens of an answer; the server has its own limit."""
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    """The older name of ``max_completion_tokens``."""
    stop: str | list[str] | None = None
    """Sequences that end the answer and are not part of it."""
    seed: Annotated[int | None, Field(ge=0)] = None
    """Makes sampling repeatable."""
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    """0 always takes the likeliest token; 1 when absent."""
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    """Share of probability that is sampled from."""
    n: Annotated[int | None, Field(ge=1)] = None
    """Number of answers."""
    response_format: ResponseFormatBody | None = None
    logprobs: bool | None = None
    """Whether probabilities are returned; closed to most tenants."""
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    logit_bias: dict[str, float] | None = None
    """Token ids to bias; closed to most tenants."""
    user: str | None = None
    """Accepted and not used, like ``safety_identifier`` and ``metadata``."""
    safety_identifier: str | None = None
    metadata: dict[str, str] | None = None
    vireo: BudgetBody | None = None
    """Budget."""


class VideoExtraBody(Strict):
    """Settings of Vireo beyond those of other servers; each may be sent beside the others just as well."""

    sampler: str | None = None
    attention: str | None = None
    output_format: Literal["mp4", "gif"] | None = None


class VideoBody(Strict):
    """Body of ``POST /v1/videos``, as JSON or as a form. What is absent is chosen by the operating point."""

    model: Annotated[str | None, Field(min_length=1, max_length=MAX_ID_CHARS)] = None
    """Model id, as in ``GET /v1/models``; may be absent where one video model is served."""
    prompt: Annotated[str, Field(min_length=1)]
    """What the clip shows."""
    negative_prompt: str | None = None
    """What it does not."""
    seconds: str | float | None = None
    """Length; the nearest number of frames that the model makes."""
    num_frames: Annotated[int | None, Field(ge=1)] = None
    """Length in frames; goes before ``seconds``."""
    fps: Annotated[int | None, Field(ge=1)] = None
    """Frames per second of the file."""
    size: str | None = None
    """Width and height, as in ``64x64``."""
    width: Annotated[int | None, Field(ge=1)] = None
    height: Annotated[int | None, Field(ge=1)] = None
    num_inference_steps: Annotated[int | None, Field(ge=1)] = None
    """Denoising steps."""
    guidance_scale: Annotated[float | None, Field(ge=0)] = None
    """How much more the prompt counts than the negative prompt; 1 is no guidance."""
    seed: Annotated[int | None, Field(ge=0)] = None
    """Makes the clip repeatable."""
    sampler: str | None = None
    """``euler_ancestral``, ``ddim`` or ``consistency``."""
    attention: str | None = None
    """``dense``, ``tile:K:REST``, ``adaspa:SPARSITY`` or ``ras:SHARE``."""
    output_format: Literal["mp4", "gif"] | None = None
    user: str | None = None
    """The caller's own label; returned and not used."""
    extra_params: VideoExtraBody | None = None
    vireo: BudgetBody | None = None
    """Budget."""


_ELEMENTS: Final = TypeAdapter(list[Any] | None).json_schema()


def _elements(data: Any) -> Any:
    """Lists of JSON, and the arrays that long ones have become."""
    if not isinstance(data, list | Numbers | None):
        raise PydanticCustomError("list_type", "Input should be a valid list")
    return data


class InferInput(Strict):
    """An input tensor of the Open Inference Protocol."""

    name: Annotated[str, Field(max_length=64)]
    shape: Annotated[list[int], Field(max_length=MAX_DIMS)]
    datatype: Annotated[str, Field(max_length=16)]
    parameters: Annotated[dict[str, Any], Field(max_length=MAX_PARAMETERS)] = {}
    data: Annotated[Any, AfterValidator(_elements), WithJsonSchema(_ELEMENTS)] = None


class InferOutput(Strict):
    """An output tensor that the caller wants."""

    name: Annotated[str, Field(max_length=64)]
    parameters: Annotated[dict[str, Any], Field(max_length=MAX_PARAMETERS)] = {}


class InferBody(Strict):
    """Body of ``POST /v2/models/{model}/infer``."""

    id: Annotated[str, Field(max_length=MAX_ID_CHARS)] = ""
    parameters: Annotated[dict[str, Any], Field(max_length=MAX_PARAMETERS)] = {}
    inputs: Annotated[list[InferInput], Field(max_length=MAX_INPUTS)]
    outputs: Annotated[list[InferOutput] | None, Field(max_length=MAX_OUTPUTS)] = None


# The rest describes answers: it is never instantiated, and a test holds real answers against it.


class ErrorObject(Strict):
    """A typed error."""

    code: str
    message: str
    type: str
    param: str | None


class ErrorAnswer(Strict):
    """Answer of every failed HTTP request."""

    error: ErrorObject


class LabelScoreAnswer(Strict):
    """A class and its probability."""

    label: str
    score: float


class ResultAnswer(Strict):
    """Answer for one image."""

    index: int
    label: str
    score: float
    exit: int
    top_k: list[LabelScoreAnswer]


class FailedResultAnswer(Strict):
    """An image without an answer."""

    index: int
    error: ErrorObject


class ReportAnswer(Strict):
    """What the system picked and what it cost."""

    operating_point: str
    energy_j: float
    energy_source: str
    queue_ms: float
    compute_ms: float
    cache: str
    degraded: list[str]
    guard: dict[str, Any]


class ClassifyAnswer(Strict):
    """Answer of ``POST /v1/classify``."""

    object: Literal["list"]
    model: str
    results: list[ResultAnswer | FailedResultAnswer]
    vireo: ReportAnswer


class TokenAnswer(Strict):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobAnswer(TokenAnswer):
    """A token of the answer, and what else was likely."""

    top_logprobs: list[TokenAnswer]


class LogprobsAnswer(Strict):
    """Probabilities of the tokens of an answer."""

    content: list[TokenLogprobAnswer]


class PromptDetailsAnswer(Strict):
    """Parts of the prompt's tokens."""

    cached_tokens: int
    image_tokens: int


class UsageAnswer(Strict):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetailsAnswer


class ChatMessageAnswer(Strict):
    """What the model says."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoiceAnswer(Strict):
    """One answer."""

    index: int
    message: ChatMessageAnswer
    logprobs: LogprobsAnswer | None
    finish_reason: Literal["stop", "length"]


class ChatAnswer(Strict):
    """Answer of ``POST /v1/chat/completions``."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoiceAnswer]
    usage: UsageAnswer
    vireo: ReportAnswer


class ChatDeltaAnswer(Strict):
    """What is new; the role comes in the first chunk of a choice."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: None = None


class ChatChunkChoiceAnswer(Strict):
    """More of one answer."""

    index: int
    delta: ChatDeltaAnswer
    logprobs: LogprobsAnswer | None
    finish_reason: Literal["stop", "length"] | None


class ChatChunk(Strict):
    """A server-sent event of ``POST /v1/chat/completions``."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoiceAnswer]
    usage: UsageAnswer | None = None
    vireo: ReportAnswer | None = None


class ModelBlock(Strict):
    """What Vireo says of a model beyond OpenAI's fields."""

    family: str
    input_size: int
    num_classes: int
    num_exits: int
    labels: list[str]
    checkpoint_sha256: str
    operating_points: list[str]
    ready: bool


class ModelAnswer(Strict):
    """A served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    vireo: ModelBlock


class ChatModelBlock(Strict):
    """What Vireo says of a chat model beyond OpenAI's fields."""

    modalities: list[str]
    max_model_len: int
    max_output_tokens: int
    checkpoint_sha256: str
    ready: bool


class ChatModelAnswer(Strict):
    """A served chat model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    vireo: ChatModelBlock


class VideoModelBlock(Strict):
    """What Vireo says of a video model beyond OpenAI's fields."""

    outputs: list[str]
    sizes: list[str]
    num_frames: list[int]
    fps: int
    max_steps: int
    samplers: list[str]
    attention: list[str]
    checkpoint_sha256: str
    operating_points: list[str]
    ready: bool


class VideoModelAnswer(Strict):
    """A served video model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    vireo: VideoModelBlock


class ShownModelAnswer(RootModel[ModelAnswer | ChatModelAnswer | VideoModelAnswer]):
    """A served model of any kind."""


class ModelListAnswer(Strict):
    """The served models."""

    object: Literal["list"]
    data: list[ModelAnswer | ChatModelAnswer | VideoModelAnswer]


class VideoSettingsAnswer(Strict):
    """Everything that decides what the clip looks like: the same settings make the same clip."""

    width: int
    height: int
    num_frames: int
    fps: int
    num_inference_steps: int
    guidance_scale: float
    seed: int
    sampler: str
    attention: str
    variant: str
    output_format: Literal["mp4", "gif"]
    negative_prompt: str


class VideoBlock(Strict):
    """What was picked, how far it is and what it cost; null where it is not known yet."""

    operating_point: str
    energy_j: float | None
    energy_source: str
    queue_ms: float | None
    compute_ms: float | None
    cache: str
    degraded: list[str]
    guard: dict[str, Any]
    settings: VideoSettingsAnswer
    stage: str
    step: int
    num_steps: int
    attempts: int
    preemptions: int
    priority: str
    predicted_s: float
    predicted_j: float
    remaining_s: float | None
    predicted_finish_at: float | None
    deadline_at: float | None
    stages_s: dict[str, float]
    sparsity: float | None
    peak_bytes: int | None
    resumed_at_step: int


class VideoErrorAnswer(Strict):
    """Why a job failed; ``cancelled`` if somebody wanted it to."""

    code: str
    message: str


class VideoAnswer(Strict):
    """A video job."""

    id: str
    object: Literal["video"]
    model: str
    prompt: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int
    created_at: int
    completed_at: int | None
    expires_at: int | None
    seconds: str
    size: str
    remixed_from_video_id: None
    error: VideoErrorAnswer | None
    url: str | None
    media_type: str | None
    file_name: str | None
    inference_time_s: float | None
    user: str
    vireo: VideoBlock


class VideoEventAnswer(VideoAnswer):
    """An event of ``GET /v1/videos/{id}/events``: the job as it is now, and a frame as far as it is made."""

    preview: str | None


class VideoListAnswer(Strict):
    """A page of jobs."""

    object: Literal["list"]
    data: list[VideoAnswer]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoDeletedAnswer(Strict):
    """Answer of ``DELETE /v1/videos/{id}``."""

    id: str
    object: Literal["video.deleted"]
    deleted: bool


class TensorMetadata(Strict):
    """A tensor of a model."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadataAnswer(Strict):
    """Inputs and outputs of a model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadataAnswer(Strict):
    """The server."""

    name: str
    version: str
    extensions: list[str]


class OutputTensorAnswer(Strict):
    """An output tensor; its elements are in ``data``, or in the binary part that follows the JSON."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] | None = None
    data: Annotated[Any, AfterValidator(_elements), WithJsonSchema(_ELEMENTS)] = None


class InferAnswer(Strict):
    """Answer of an inference."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: dict[str, Any]
    outputs: list[OutputTensorAnswer]
