"""JSON of the Open Inference Protocol: what is taken, and what is answered."""

from __future__ import annotations

from typing import Annotated, Any, Final, NotRequired

from pydantic import AfterValidator, Field, TypeAdapter, WithJsonSchema
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from serving.front.http.json_body import Strict, Within
from serving.front.http.json_decode import Numbers
from serving.limits import MAX_ID_CHARS, MAX_TYPED_ELEMENTS

MAX_DIM: Final = (1 << 31) - 1
MAX_INPUTS, MAX_OUTPUTS, MAX_PARAMETERS, MAX_DIMS = 8, 16, 16, 8
"""Of one inference request: more than any valid one has."""

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
    parameters: Annotated[dict[str, Any], Field(default_factory=dict, max_length=MAX_PARAMETERS)]
    data: Annotated[Any, AfterValidator(_elements), WithJsonSchema(_ELEMENTS)] = None


class InferOutput(Strict):
    """An output tensor that the caller wants."""

    name: Annotated[str, Field(max_length=64)]
    parameters: Annotated[dict[str, Any], Field(default_factory=dict, max_length=MAX_PARAMETERS)]


class InferBody(Strict):
    """Body of ``POST /v2/models/{model}/infer``."""

    id: Annotated[str, Field(max_length=MAX_ID_CHARS)] = ""
    parameters: Annotated[dict[str, Any], Field(default_factory=dict, max_length=MAX_PARAMETERS)]
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
    """A tensor of a model's configuration; ``dims``: of one row."""

    name: str
    data_type: str
    dims: tuple[int, ...]


class ConfigParameter(TypedDict):
    """A parameter of a model's configuration."""

    string_value: str


class ModelConfigAnswer(TypedDict):
    """A model's configuration, as Triton spells it. ``parameters``: JSON schemas of its settings."""

    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[ConfigTensor]
    output: list[ConfigTensor]
    parameters: dict[str, ConfigParameter]


class ServerMetadataAnswer(TypedDict):
    """The server."""

    name: str
    version: str
    extensions: list[str]


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
