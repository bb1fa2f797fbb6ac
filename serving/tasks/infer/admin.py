"""What the Open Inference Protocol and Triton's extensions say of the server and its models, for HTTP and gRPC alike.

Models of every task are named; those that do not answer with tensors have none.
"""

from __future__ import annotations

from typing import Final

import orjson

from serving.errors import InvalidRequest
from serving.front.front import MODEL_VERSION, Front, shown
from serving.front.http.openapi import vireo_version
from serving.service import Card, Service
from serving.tasks.infer.parameters import PRIORITIES
from serving.tasks.infer.schemas import (
    ConfigTensor,
    ModelConfigAnswer,
    ModelIndexAnswer,
    ModelMetadataAnswer,
    ServerMetadataAnswer,
)
from serving.tasks.infer.tensors import TensorForm, has_tensors, inputs_of, outputs_of

EXTENSIONS: Final = (
    "binary_tensor_data", "classification", "model_configuration", "parameters", "schedule_policy", "statistics",
)  # fmt: skip
"""By Triton's names; only what is served whole: of the model repository there is nothing but the index."""


def card_for_infer(front: Front, model: str, version: str) -> Card:
    """Look up a model that is sent tensors. Raises: UnknownModel; InvalidRequest: it takes none."""
    service = front.service
    card = front.card(model, service.cards(), version)
    if not has_tensors(card):
        able = ", ".join(one.id for one in service.unary.models()) or "none"
        raise InvalidRequest(
            f"model {shown(card.id)} is for {' and '.join(card.tasks)} and takes no tensors; models that do: {able}",
            param="model",
        )
    return card


def server_metadata() -> ServerMetadataAnswer:
    """Return what is said of the server."""
    return {"name": "vireo", "version": vireo_version(), "extensions": list(EXTENSIONS)}


def model_metadata(card: Card) -> ModelMetadataAnswer:
    """Return the inputs and outputs of a model."""
    return {
        "name": card.id,
        "versions": [MODEL_VERSION],
        "platform": f"vireo_{card.family}",
        "inputs": [{"name": name, "datatype": datatype, "shape": shape} for name, datatype, shape in inputs_of(card)],
        "outputs": [{"name": name, "datatype": datatype, "shape": shape} for name, datatype, shape in outputs_of(card)],
    }


def model_config(card: Card, max_rows: int) -> ModelConfigAnswer:
    """Return a model's configuration as Triton spells it: shapes are of one row."""
    inputs = inputs_of(card)
    either = {"IMAGE", "PIXELS"} if "PIXELS" in {name for name, _, _ in inputs} else set()
    return {
        "name": card.id,
        "platform": f"vireo_{card.family}",
        "backend": "vireo",
        "max_batch_size": max_rows if has_tensors(card) else 0,
        "input": [{**_config_tensor(form), "optional": form[0] in {*either, "SEED"}} for form in inputs],
        "output": [_config_tensor(form) for form in outputs_of(card)],
        "dynamic_batching": {"priority_levels": len(PRIORITIES), "default_priority_level": 2},
        "parameters": {knob.name: {"string_value": orjson.dumps(knob.json_schema()).decode()} for knob in card.knobs},
    }


def _config_tensor(form: TensorForm) -> ConfigTensor:
    name, datatype, shape = form
    kind = "STRING" if datatype == "BYTES" else datatype
    return {"name": name, "data_type": f"TYPE_{kind}", "dims": shape[1:] or (1,)}


def repository_index(service: Service, *, only_ready: bool) -> list[ModelIndexAnswer]:
    """Return every model that is served, whatever it is for, or those that can answer now."""
    index: list[ModelIndexAnswer] = []
    for card in service.cards():
        if service.is_model_ready(card.id):
            index.append({"name": card.id, "version": MODEL_VERSION, "state": "READY", "reason": ""})
        elif not only_ready:
            reason = "no replica of it is alive"
            index.append({"name": card.id, "version": MODEL_VERSION, "state": "UNAVAILABLE", "reason": reason})
    return index
