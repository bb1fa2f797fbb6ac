"""JSON of the Open Inference Protocol: what is taken, and what is answered."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, NotRequired, TypeAlias

from pydantic import AfterValidator, Field, TypeAdapter, WithJsonSchema
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from serving.front.http.json_body import Strict, Within
from serving.front.http.json_decode import Numbers
from serving.limits import MAX_ID_CHARS, MAX_TYPED_ELEMENTS

MAX_DIM: Final = (1 << 31) - 1
MAX_INPUTS, MAX_OUTPUTS, MAX_PARAMETERS, MAX_DIMS = 8, 16, 16, 8
"""Of one inference request: more than any valid one has."""

Parameters: TypeAlias = Annotated[dict[str, Any] | None, Field(max_length=MAX_PARAMETERS)]
_ELEMENTS: Final = TypeAdapter(Annotated[list[Any], Within(maxItems=MAX_TYPED_ELEMENTS)] | None).json_schema()


def _elements(data: Any) -> Any:
    """Lists of JSON, and the arrays that long ones have become."""
    if not isinstance(data, list | Numbers | None):
        raise PydanticCustomError("list_type", "Input should be a valid list")
    return data


class InferInput(Strict):
    """An input tensor of the Open Inference Protocol."""

    name: Annotated[str, Field(max_length=64)]
    shape: Annotated[list[Annotated[int, Within(minimum=1, maximum=MAX_DIM)]], Field(max_length=MAX_DIMS)]
    datatype: Annotated[str, Field(max_length=16)]
    parameters: Parameters = None
    data: Annotated[Any, AfterValidator(_elements), WithJsonSchema(_ELEMENTS)] = None


class InferOutput(Strict):
    """An output tensor that the caller wants."""

    name: Annotated[str, Field(max_length=64)]
    parameters: Parameters = None


class InferBody(Strict):
    """Body of ``POST /v2/models/{model}/infer``."""

    id: Annotated[str | None, Field(max_length=MAX_ID_CHARS)] = None
    parameters: Parameters = None
    inputs: Annotated[list[InferInput], Field(max_length=MAX_INPUTS)]
    outputs: Annotated[list[InferOutput] | None, Field(max_length=MAX_OUTPUTS)] = None


class TensorMetadata(TypedDict):
    """A tensor of a model."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelMetadataAnswer(TypedDict):
    """Inputs and outputs of a model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ConfigTensor(TypedDict):
    """A tensor of a model's configuration; ``dims``: of one row. ``optional``: of an input."""

    name: str
    data_type: str
    dims: tuple[int, ...]
    optional: NotRequired[bool]


class ConfigParameter(TypedDict):
    """A parameter of a model's configuration."""

    string_value: str


class ConfigBatching(TypedDict):
    """How requests of a model are batched; 1 is the most urgent priority."""

    priority_levels: int
    default_priority_level: int


class ModelConfigAnswer(TypedDict):
    """A model's configuration, as Triton spells it. ``parameters``: JSON schemas of its settings."""

    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[ConfigTensor]
    output: list[ConfigTensor]
    dynamic_batching: ConfigBatching
    parameters: dict[str, ConfigParameter]


class ServerMetadataAnswer(TypedDict):
    """The server."""

    name: str
    version: str
    extensions: list[str]


class IndexBody(Strict):
    """Body of ``POST /v2/repository/index``, which may have none."""

    ready: bool | None = None
    """Only models that can answer now."""


class ModelIndexAnswer(TypedDict):
    """A served model in the index; ``reason`` says why it is unavailable."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str


class DurationAnswer(TypedDict):
    """How often something was done, and its nanoseconds in all."""

    count: int
    ns: int


class InferStatisticsAnswer(TypedDict):
    """Where the time of a model's requests went."""

    success: DurationAnswer
    fail: DurationAnswer
    queue: DurationAnswer
    compute_input: DurationAnswer
    compute_infer: DurationAnswer
    compute_output: DurationAnswer


class ModelStatisticsAnswer(TypedDict):
    """Statistics of a model; ``last_inference`` in milliseconds of Unix time."""

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: InferStatisticsAnswer
    batch_stats: list[dict[str, Any]]


class StatisticsAnswer(TypedDict):
    """Statistics of one model, or of all."""

    model_stats: list[ModelStatisticsAnswer]


class OutputTensorAnswer(TypedDict):
    """An output tensor; its elements are in ``data``, or in the binary part that follows the JSON."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: NotRequired[dict[str, int]]
    data: NotRequired[list[Any]]


class InferAnswer(TypedDict):
    """Answer of an inference."""

    model_name: str
    model_version: str
    id: NotRequired[str]
    parameters: dict[str, str | float]
    outputs: list[OutputTensorAnswer]
