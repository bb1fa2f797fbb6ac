"""JSON of ``/v1/videos``: what is taken, and what is answered."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field
from typing_extensions import TypedDict

from serving.front.budget import BudgetBody
from serving.front.http.json_body import Strict
from serving.limits import MAX_ID_CHARS
from serving.stores.jobs.base import JobStatus

VideoFormat: TypeAlias = Literal["mp4", "gif"]
"""How a finished clip is encoded."""


class VideoExtraBody(Strict):
    """Settings of Vireo beyond those of other servers; each may be sent beside the others just as well."""

    sampler: str | None = None
    attention: str | None = None
    output_format: VideoFormat | None = None


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
    output_format: VideoFormat | None = None
    user: str | None = None
    """The caller's own label; returned and not used."""
    extra_params: VideoExtraBody | None = None
    vireo: BudgetBody | None = None
    """Budget."""


class VideoSettingsAnswer(TypedDict):
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


class VideoErrorAnswer(TypedDict):
    """Why a job failed; ``cancelled`` if somebody wanted it to."""

    code: str
    message: str


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
    error: VideoErrorAnswer | None
    url: str | None
    media_type: str | None
    file_name: str | None
    inference_time_s: float | None
    user: str
    vireo: VideoBlock
