"""Triton's statistics of a model, from the metrics of this node: of all its gateways and replicas, since they started.

A request is one call, on any surface; an inference is what a model makes one answer for: a row, a choice of a chat, a
clip. An answer from the cache is a request, and no inference. What no metric tells of a model stays 0: reading inputs,
writing outputs, and, of chat, the engine's steps and their time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client.metrics_core import Metric

from models.contract import Shape
from serving.front.front import MODEL_VERSION
from serving.service import Card
from serving.tasks.infer.schemas import DurationAnswer, ModelStatisticsAnswer
from serving.telemetry.events import OK, PARTIAL
from serving.telemetry.exposition import node_metrics


@dataclass(frozen=True, slots=True)
class _Names:
    """Of the metrics of a shape; empty: there is none. ``queue`` and ``compute`` are histograms of seconds."""

    inferences: str
    queue: str
    executions: str = ""
    compute: str = ""


_ROWS: Final = _Names(
    "vireo_queue_seconds_count", "vireo_queue_seconds", "vireo_stage_batch_size_count", "vireo_compute_seconds"
)
_NAMES: Final[Mapping[Shape, _Names]] = {
    "unary": _ROWS,
    "staged": _ROWS,
    "stream": _Names("vireo_chat_answer_tokens_count", "vireo_chat_queue_seconds"),
    "job": _Names(
        "vireo_video_jobs_ended_total", "vireo_video_queue_seconds", "vireo_video_step_seconds_count",
        "vireo_video_stage_seconds",
    ),
}  # fmt: skip
_COUNTED: Final[Mapping[str, tuple[str, Collection[str]]]] = {
    "vireo_stage_batch_size_count": ("stage", {"1"}),
    "vireo_video_jobs_ended_total": ("outcome", {"completed"}),
    "vireo_video_stage_seconds_sum": ("stage", {"text", "denoise", "decode", "encode"}),
}
"""The values of a label that count, where not all do: a batch of several stages is executed once."""


async def statistics(cards: Sequence[Card]) -> list[ModelStatisticsAnswer]:
    """Return the statistics of models. The files of the metrics are read in a thread."""
    return statistics_from(await asyncio.to_thread(lambda: list(node_metrics())), cards)


def statistics_from(metrics: Iterable[Metric], cards: Sequence[Card]) -> list[ModelStatisticsAnswer]:
    """Return the statistics of models as these metrics have them."""
    counted = _Counted(metrics)
    return [_of(counted, card) for card in cards]


class _Counted:
    """The samples of metrics that are by model."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._samples: dict[tuple[str, str], list[tuple[dict[str, str], float]]] = {}
        for metric in metrics:
            for sample in metric.samples:
                if (model := sample.labels.get("model")) is not None:
                    self._samples.setdefault((sample.name, model), []).append((sample.labels, sample.value))

    def total(self, name: str, model: str, label: str = "", values: Collection[str | None] = (None,)) -> float:
        """The sum of the samples of which a label has one of the values."""
        return sum(value for labels, value in self._samples.get((name, model), ()) if labels.get(label) in values)

    def known(self, name: str, model: str) -> float:
        """The sum of the samples that count."""
        return self.total(name, model, *_COUNTED.get(name, ()))


def _of(counted: _Counted, card: Card) -> ModelStatisticsAnswer:
    names, model = _NAMES[card.shape], card.id
    inferences = counted.known(names.inferences, model)
    num_requests = counted.total("vireo_requests_total", model)
    num_answered = counted.total("vireo_requests_total", model, "outcome", {OK, PARTIAL})
    seconds = {
        result: counted.total("vireo_request_time_seconds_total", model, "result", {result})
        for result in ("answered", "failed")
    }
    queue = _duration(counted.known(f"{names.queue}_count", model), counted.known(f"{names.queue}_sum", model))
    compute_s = counted.known(f"{names.compute}_sum", model)
    return {
        "name": model,
        "version": MODEL_VERSION,
        "last_inference": round(1e3 * counted.total("vireo_last_answer_timestamp_seconds", model)),
        "inference_count": round(inferences),
        "execution_count": round(counted.known(names.executions, model)),
        "inference_stats": {
            "success": _duration(num_answered, seconds["answered"]),
            "fail": _duration(num_requests - num_answered, seconds["failed"]),
            "queue": queue,
            "compute_input": _duration(0, 0),
            "compute_infer": _duration(inferences if names.compute else 0, compute_s),
            "compute_output": _duration(0, 0),
        },
        "batch_stats": [],
    }


def _duration(count: float, seconds: float) -> DurationAnswer:
    return {"count": round(count), "ns": round(1e9 * seconds)}
