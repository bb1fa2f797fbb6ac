"""JSON of ``/v1/images/generations`` and ``/v1/images/edits``: bodies and answers."""

from __future__ import annotations

from typing import Annotated, Final, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from serving.domain import Report
from serving.front.budget import BudgetBody
from serving.front.http.json_body import Strict, Within, limit
from serving.front.status import ErrorObject
from serving.limits import MAX_ID_CHARS
from serving.stores.jobs.base import JobStatus

MAX_SEED = (1 << 62) - 1
SIZE: Final = r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})"


class ImagesBudgetBody(BudgetBody):
    """Budget, and whether to wait."""

    background: bool | None = None
    """``true``: a job at once, ``false``: the pictures; when absent, a job if it is predicted to take long."""


class GenerationBody(Strict):
    """Body of ``POST /v1/images/generations``."""

    model: Annotated[str | None, Field(min_length=1, max_length=MAX_ID_CHARS)] = None
    """Model id; may be left out if only one model makes images."""
    prompt: Annotated[str, Within(maxLength=limit("max_text_chars"))] | None = None
    """What the picture shows."""
    negative_prompt: Annotated[str, Within(maxLength=limit("max_text_chars"))] | None = None
    """What it does not, of a model whose ``io.takes_negative_prompt`` is true."""
    n: Annotated[int, Field(ge=1), Within(maximum=limit("max_images"))] | None = None
    """Number of pictures; more than one only from a model that draws noise."""
    size: Annotated[str, Field(max_length=32), Within(pattern=f"^(auto|{SIZE})$")] | None = None
    """``auto``, or ``WIDTHxHEIGHT``."""
    response_format: Literal["b64_json", "url"] | None = None
    """``b64_json`` when absent."""
    output_format: Literal["png", "jpeg", "webp"] | None = None
    """``png`` when absent."""
    output_compression: Annotated[int | None, Field(ge=0, le=100)] = None
    """Quality of JPEG and WebP; 95 when absent."""
    seed: Annotated[int | None, Field(ge=0, le=MAX_SEED)] = None
    """Seed of the first picture; each further picture has the next one. Drawn when absent."""
    user: Annotated[str | None, Field(max_length=MAX_ID_CHARS)] = None
    """The caller's own label; not used."""
    vireo: ImagesBudgetBody | None = None
    """Budget, settings, and whether to wait."""


class ImageReference(Strict):
    """A picture, as OpenAI wraps it."""

    image_url: Annotated[str, Within(maxLength=limit("max_image_chars"))]
    """A data: URL, or base64."""


class EditBody(GenerationBody):
    """Body of ``POST /v1/images/edits``. Exactly one of ``image`` and ``images``."""

    image: Annotated[str, Within(maxLength=limit("max_image_chars"))] | None = None
    """The picture: base64 or a data: URL of a JPEG, PNG or WebP file."""
    images: Annotated[list[ImageReference] | None, Field(min_length=1, max_length=1)] = None
    """The same, as OpenAI wraps it."""


class ImageAnswer(TypedDict):
    """A picture. ``url``: can be fetched with the key of the tenant that asked, until ``expires_at``."""

    b64_json: NotRequired[str]
    url: NotRequired[str]
    expires_at: NotRequired[int]
    seed: NotRequired[int]


class ImagesAnswer(TypedDict):
    """Answer of ``POST /v1/images/generations`` and ``POST /v1/images/edits``."""

    created: int
    model: str
    data: list[ImageAnswer]
    output_format: Literal["png", "jpeg", "webp"]
    size: str
    vireo: Report


class ImageJobAnswer(TypedDict):
    """Pictures that are made as a job. ``urls``: of its files, once they are there."""

    id: str
    object: Literal["image"]
    model: str
    prompt: str
    seeds: list[int]
    n: int
    output_format: str
    status: JobStatus
    progress: int
    created_at: int
    completed_at: int | None
    expires_at: int | None
    predicted_finish_at: float | None
    error: ErrorObject | None
    urls: list[str]
    vireo: Report
