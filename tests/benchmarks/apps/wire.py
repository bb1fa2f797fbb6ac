"""The answer of POST /v1/classify and of vireo.v1 Classify, as the load generator reads it; for the other sides."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from vireo_pb.vireo.v1 import vireo_pb2

from tests.benchmarks.apps.model_call import Classified


class ClassifyBody(BaseModel):
    """The fields that the benchmark sends."""

    model: str
    images: list[str]
    top_k: int = 1


def to_json(model: str, answers: list[Classified]) -> dict[str, Any]:
    return {
        "object": "list",
        "model": model,
        "results": [
            {
                "index": index,
                "label": answer.label,
                "score": answer.score,
                "exit": answer.exit_number,
                "top_k": [{"label": answer.label, "score": answer.score}],
            }
            for index, answer in enumerate(answers)
        ],
        "vireo": {},
    }


def to_proto(model: str, answers: list[Classified]) -> vireo_pb2.ClassifyResponse:
    response = vireo_pb2.ClassifyResponse(model=model)
    for index, answer in enumerate(answers):
        response.results.add(index=index, label=answer.label, score=answer.score, exit=answer.exit_number)
    return response
