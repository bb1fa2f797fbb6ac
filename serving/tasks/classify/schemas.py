"""JSON of ``POST /v1/classify``: what is taken, and what is answered."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypedDict

from serving.domain import LabelScore, Report
from serving.front.budget import BudgetBody
from serving.front.http.json_body import Strict, Within, limit
from serving.front.status import ErrorObject
from serving.limits import MAX_ID_CHARS


class ClassifyBody(Strict):
    """Body of ``POST /v1/classify``. Exactly one of ``image`` and ``images``."""

    model: Annotated[str | None, Field(min_length=1, max_length=MAX_ID_CHARS)] = None
    """Model id, as in ``GET /v1/models``; may be left out if only one model classifies."""
    image: Annotated[str, Within(maxLength=limit("max_image_chars"))] | None = None
    """One image: base64 or a data: URL of a JPEG, PNG or WebP file."""
    images: (
        Annotated[
            list[Annotated[str, Within(maxLength=limit("max_image_chars"))]],
            Field(min_length=1),
            Within(maxItems=limit("max_images")),
        ]
        | None
    ) = None
    """Several images."""
    top_k: Annotated[int, Field(ge=1), Within(maximum=limit("max_top_k"))] | None = None
    """Classes to return for each image; 1 when absent."""
    vireo: BudgetBody | None = None
    """Budget."""


class ResultAnswer(TypedDict):
    """Answer for one image."""

    index: int
    label: str
    score: float
    exit: int
    top_k: tuple[LabelScore, ...]


class FailedResultAnswer(TypedDict):
    """An image without an answer."""

    index: int
    error: ErrorObject


class ClassifyAnswer(TypedDict):
    """Answer of ``POST /v1/classify``."""

    object: Literal["list"]
    model: str
    results: list[ResultAnswer | FailedResultAnswer]
    vireo: Report
