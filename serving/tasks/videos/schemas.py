"""JSON of ``/v1/videos``: what is taken, and what is answered."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, NotRequired, TypeAlias

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from serving.domain import Degradation
from serving.front.budget import BudgetBody
from serving.front.http.json_body import Strict, Within, limit
from serving.front.status import ErrorObject
from serving.limits import MAX_ID_CHARS
from serving.stores.jobs.base import JobStatus

MAX_SIDE = MAX_FRAMES = 65_536
MAX_STEPS = 10_000
MAX_FPS = 1_000
MAX_GUIDANCE = 1_000.0
MAX_SEED = (1 << 63) - 1
MAX_SECONDS = 86_400.0
MAX_LABEL_CHARS = 512
MAX_NAME_CHARS = 64
SIZE: Final = r"([1-9][0-9]{0,4})[xX]([1-9][0-9]{0,4})"
SECONDS: Final = r"[0-9]{1,6}(\.[0-9]{1,6})?"

KNOBS: Final = ("num_inference_steps", "guidance_scale", "sampler", "attention")
"""Settings of a model that are fields of a body, as other servers have them; the others are in ``vireo.settings``."""

VideoFormat: TypeAlias = Literal["mp4", "gif"]
"""How a finished clip is encoded."""


_Name: TypeAlias = Annotated[str, Within(maxLength=MAX_NAME_CHARS)]


class VideoExtraBody(Strict):
    """Settings of Vireo beyond those of other servers; each may be sent beside the others just as well."""

    sampler: _Name | None = None
    attention: _Name | None = None
    output_format: VideoFormat | None = None


class FirstFrameBody(Strict):
    """A picture, as OpenAI wraps it."""

    image_url: Annotated[str, Within(maxLength=limit("max_image_chars"))]
    """A data: URL, an https URL of a host that the operator allows, or base64."""


class VideoBody(Strict):
    """Body of ``POST /v1/videos``, as JSON or as a form. What is absent is chosen by the operating point."""

    model: Annotated[str | None, Field(min_length=1, max_length=MAX_ID_CHARS)] = None
    """Model id, as in ``GET /v1/models``; may be absent where one video model is served."""
    prompt: Annotated[str, Within(maxLength=limit("max_text_chars"))] = ""
    """What the clip shows; needed by models that take words."""
    input_reference: Annotated[str, Within(maxLength=limit("max_image_chars"))] | FirstFrameBody | None = None
    """The picture that the clip begins with, needed by models that take one unless ``optional_inputs`` has ``image``:
    a data: URL of a JPEG, PNG or WebP file, an https URL of a host that the operator allows, or base64."""
    negative_prompt: Annotated[str, Within(maxLength=limit("max_text_chars"))] | None = None
    """What it does not."""
    seconds: (
        Annotated[str, Within(pattern=f"^(?=.*[1-9]){SECONDS}$")]
        | Annotated[float, Within(exclusiveMinimum=0, maximum=MAX_SECONDS)]
        | None
    ) = None
    """Length; the nearest number of frames that the model makes."""
    num_frames: Annotated[int, Field(ge=1), Within(maximum=MAX_FRAMES)] | None = None
    """Length in frames; goes before ``seconds``."""
    fps: Annotated[int, Field(ge=1), Within(maximum=MAX_FPS)] | None = None
    """Frames per second of the file."""
    size: Annotated[str, Within(pattern=f"^{SIZE}$")] | None = None
    """Width and height, as in ``64x64``."""
    width: Annotated[int, Field(ge=1), Within(maximum=MAX_SIDE)] | None = None
    height: Annotated[int, Field(ge=1), Within(maximum=MAX_SIDE)] | None = None
    num_inference_steps: Annotated[int, Field(ge=1), Within(maximum=MAX_STEPS)] | None = None
    """Denoising steps."""
    guidance_scale: Annotated[float, Field(ge=0), Within(maximum=MAX_GUIDANCE)] | None = None
    """How much more the prompt counts than the negative prompt; 1 is no guidance."""
    seed: Annotated[int, Field(ge=0), Within(maximum=MAX_SEED)] | None = None
    """Makes the clip repeatable."""
    sampler: _Name | None = None
    """One of those that the model lists."""
    attention: _Name | None = None
    """``dense``, or a sparse attention that the model has, as in ``adaspa:0.8``."""
    output_format: VideoFormat | None = None
    user: Annotated[str, Within(maxLength=MAX_LABEL_CHARS)] | None = None
    """The caller's own label; returned and not used."""
    extra_params: VideoExtraBody | None = None
    vireo: BudgetBody | None = None
    """Budget."""


@with_config(ConfigDict(extra="allow"))
class VideoSettingsAnswer(TypedDict):
    """Everything that decides what the clip looks like: the same settings make the same clip. Beside these are the
    other settings of the model, by name."""

    width: int
    height: int
    num_frames: int
    fps: int
    num_inference_steps: NotRequired[int]
    guidance_scale: NotRequired[float]
    seed: int
    sampler: NotRequired[str]
    attention: NotRequired[str]
    variant: str
    output_format: VideoFormat
    negative_prompt: str


class VideoBlock(TypedDict):
    """What was picked, how far it is and what it cost; null where it is not known yet."""

    operating_point: str
    energy_j: float | None
    energy_source: str
    queue_ms: float | None
    compute_ms: float | None
    cache: str
    degraded: list[str]
    degradation: Degradation | None
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


class VideoAnswer(TypedDict):
    """A video job."""

    id: str
    object: Literal["video"]
    model: str
    prompt: str
    status: JobStatus
    progress: int
    created_at: int
    completed_at: int | None
    expires_at: int | None
    seconds: str
    size: str
    remixed_from_video_id: None
    error: ErrorObject | None
    url: str | None
    media_type: str | None
    file_name: str | None
    inference_time_s: float | None
    user: str
    vireo: VideoBlock
