"""What the Open Inference Protocol v2 clients share: names of tensors and parameters, and the reading of outputs.

The classifier's contract (docs/api.md): one input IMAGE, BYTES [N], of encoded files; outputs LABEL, EXIT and ERROR,
one element per image, where ERROR is empty or a JSON object; budget in and report out as parameters with the prefix
``vireo_``.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from loadtest.clients.base import Payload
from loadtest.clients.outcomes import Answer, ErrorBody, WrongAnswer, outcome_of_items, read_error_object, read_report

INPUT = "IMAGE"
OUTPUTS = ("LABEL", "EXIT", "ERROR")
_PREFIX = "vireo_"


def request_parameters(payload: Payload) -> dict[str, int | float | str]:
    """Budget and ``top_k`` as request parameters."""
    budget = {} if payload.budget is None else payload.budget.to_json()
    return {"top_k": payload.top_k} | {_PREFIX + name: value for name, value in budget.items()}


def read_outputs(outputs: Mapping[str, Sequence[Any]], parameters: Mapping[str, Any], payload: Payload) -> Answer:
    """Read the elements of the outputs (labels and errors as text) and the report.

    Raises: WrongAnswer: if an output is missing, of the wrong length or not readable.
    """
    try:
        errors = [_read_error(text) for text in outputs["ERROR"]]
        labels, exits = outputs["LABEL"], outputs["EXIT"]
        if not len(errors) == len(labels) == len(exits) == len(payload.images):
            raise WrongAnswer(f"{len(labels)} labels for {len(payload.images)} images")
        first = next((error for error in errors if error is not None), ErrorBody())
        return Answer(
            outcome=outcome_of_items([None if error is None else error.type or "" for error in errors]),
            labels=tuple(str(label) if error is None else None for label, error in zip(labels, errors, strict=True)),
            exits=tuple(int(exit_) for exit_, error in zip(exits, errors, strict=True) if error is None),
            server=read_report(_report(parameters)),
            error_code=first.code,
            error_message=first.message,
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise WrongAnswer(f"not an inference answer: {type(error).__name__} {error}") from error


def pack_bytes(elements: Sequence[bytes]) -> bytes:
    """A raw BYTES tensor: each element after its length in four little-endian bytes."""
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def unpack_bytes(raw: bytes) -> list[bytes]:
    """The inverse of ``pack_bytes``. Raises: WrongAnswer: if lengths and bytes disagree."""
    elements, at = [], 0
    while at < len(raw):
        end = at + 4 + int.from_bytes(raw[at : at + 4], "little")
        if end > len(raw):
            raise WrongAnswer(f"a BYTES element ends at byte {end} of {len(raw)}")
        elements.append(raw[at + 4 : end])
        at = end
    return elements


def _read_error(text: str) -> ErrorBody | None:
    return read_error_object(json.loads(text)) if text else None


def _report(parameters: Mapping[str, Any]) -> dict[str, Any]:
    report = {name.removeprefix(_PREFIX): value for name, value in parameters.items() if name.startswith(_PREFIX)}
    degraded = str(report.get("degraded") or "")
    return report | {"degraded": degraded.split(",") if degraded else []}
