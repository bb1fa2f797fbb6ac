"""JSON bodies as strict models: what is not named here is refused. ``/openapi.json`` is made from them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from serving.domain import MAX_ENERGY_J, MAX_LATENCY_MS, Budget, Priority

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


class InferInput(Strict):
    """An input tensor of the Open Inference Protocol."""

    name: Annotated[str, Field(max_length=64)]
    shape: Annotated[list[int], Field(max_length=MAX_DIMS)]
    datatype: Annotated[str, Field(max_length=16)]
    parameters: Annotated[dict[str, Any], Field(max_length=MAX_PARAMETERS)] = {}
    data: list[Any] | None = None


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


class ModelBlock(Strict):
    """What Vireo says of a model beyond OpenAI's fields."""

    family: str
    input_size: int
    num_classes: int
    num_exits: int
    labels: list[str]
    checkpoint_sha256: str
    operating_points: list[str]


class ModelAnswer(Strict):
    """A served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    vireo: ModelBlock


class ModelListAnswer(Strict):
    """The served models."""

    object: Literal["list"]
    data: list[ModelAnswer]


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
    data: list[Any] | None = None


class InferAnswer(Strict):
    """Answer of an inference."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: dict[str, Any]
    outputs: list[OutputTensorAnswer]
