"""What is kept of a row's answer for whoever asks again, and what is said of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from schedulers.plan import Plan
from serving.delivery.unary.rows import Row
from serving.delivery.unary.wire import Packed, SampleAnswer, SampleFailure, SampleOutcome, unpack
from serving.domain import Degradation, Report, UnaryAnswer, UnaryReply, UnaryRequest
from serving.energy.spent import total
from serving.errors import ServingError
from serving.service import Card
from serving.stores.results import Codec
from serving.stores.sealed import ResultKey

_MAX_STORED_BYTES = 1 << 20
"""Of one answer: what is larger, a picture of 600x600 pixels say, is not kept in Redis."""


class StoredAnswer(NamedTuple):
    """A cached answer: the outputs, and the exit (from 0) that gave them."""

    outputs: Mapping[str, Packed]
    exit_index: int


def _decode(payload: dict[str, Any]) -> StoredAnswer | None:
    match payload:
        case {"outputs": dict(outputs), "exit_index": int(exit_index)}:
            return StoredAnswer(outputs, exit_index)
    return None


def _encode(answer: StoredAnswer) -> dict[str, Any] | None:
    num_bytes = sum(len(data) for _, _, data in answer.outputs.values())
    return answer._asdict() if num_bytes <= _MAX_STORED_BYTES else None


CODEC: Codec[StoredAnswer] = Codec(_encode, _decode)


def key_of(card: Card, request: UnaryRequest, choice: Plan, row: Row) -> ResultKey | None:
    """Under what the answer of a row is kept; None: it is drawn anew each time."""
    if request.is_drawn:
        return None
    return ResultKey(
        tenant=request.tenant,
        model=card.id,
        checkpoint_sha256=card.checkpoint_sha256,
        operating_point=choice.point.name,
        processor_version=card.prepare_version,
        content_sha256=row.content,
    )


def kept(outcome: SampleOutcome) -> StoredAnswer | None:
    """What is kept of an outcome; None: it may be better the next time."""
    if isinstance(outcome, SampleFailure) or outcome.degraded:
        return None
    return StoredAnswer(outcome.outputs, outcome.exit_index)


def reply_of(
    request: UnaryRequest,
    choice: Plan,
    degradation: Degradation | None,
    prepared: Sequence[Row | ServingError],
    outcomes: Sequence[StoredAnswer | SampleOutcome],
) -> UnaryReply:
    """Answers in the order of the items. ``outcomes``: of the rows among ``prepared``.

    Raises: ServingError: every item failed; the first one's.
    """
    remaining = (outcome.error if isinstance(outcome, SampleFailure) else outcome for outcome in outcomes)
    items = [each if isinstance(each, ServingError) else next(remaining) for each in prepared]
    if all(isinstance(outcome, ServingError) for outcome in items):
        raise next(outcome for outcome in items if isinstance(outcome, ServingError))
    answers = tuple(outcome if isinstance(outcome, ServingError) else _read(outcome) for outcome in items)
    return UnaryReply(model=request.model, items=answers, report=_report(request, choice, degradation, outcomes))


def _read(result: StoredAnswer | SampleAnswer) -> UnaryAnswer:
    is_degraded = isinstance(result, SampleAnswer) and result.degraded
    return UnaryAnswer(outputs=unpack(result.outputs), exit=result.exit_index + 1, degraded=is_degraded)


def _report(
    request: UnaryRequest,
    choice: Plan,
    degradation: Degradation | None,
    outcomes: Sequence[StoredAnswer | SampleOutcome],
) -> Report:
    fresh = [outcome for outcome in outcomes if isinstance(outcome, SampleAnswer)]
    hits = sum(isinstance(outcome, StoredAnswer) for outcome in outcomes)
    degraded = (
        request.budget.degraded + choice.degraded + (("exit",) if any(answer.degraded for answer in fresh) else ())
    )
    return Report.of(
        total(answer.spent for answer in fresh),
        operating_point=choice.point.name,
        queue_s=max((answer.queue_s for answer in fresh), default=0.0),
        cache="hit" if hits == len(outcomes) else "partial" if hits else "miss",
        degraded=degraded,
        degradation=degradation,
    )
