"""What attackers who know the guard add to their loss: that they are not seen.

    EndUnseen       the end is delayed while it stays as probable as a CUSUM over its logarithm lets pass
    JustUnder       the answer grows up to the length bound of its text, and ends there
    squeeze_score   the model's embedding moves little when the picture is coarsened
    screen_score    the pre-screen's score (``screening``)

``EndUnseen`` and ``JustUnder`` are objectives; the others are scores of pixels (``Recipe.avoids``), whose gradient is
added at a weight of its own beside the attack's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional

from loadtest.adversarial.objectives import DelayedEnd, Make, Objective, Weights, with_end
from loadtest.adversarial.purifier import squeezed
from loadtest.adversarial.victim import Answer, Trace, Victim
from models.registry import find
from schedulers.guard.calibration import FILE_NAME, GuardCalibration
from schedulers.guard.stream import EOS_DRIFT, EOS_LIMIT
from schedulers.guard.text import Asked

PixelScore = Callable[[Victim, Tensor], Tensor]
"""Of pictures (B, H, W, 3), one each: higher is stranger. Differentiable."""


@dataclass(frozen=True, kw_only=True)
class EndUnseen:
    """The answer's survival, and ``weight`` times what each token adds to the CUSUM at least, in nats.

    Where the second counts, the end settles at a probability of ``weight`` / (1 + ``weight``): below 1, something else
    may still be said. ``medians``: of the end's log-probability by position, as the attacker's own ordinary answers
    have them; the last one holds for all that follow.
    """

    end_id: int
    weight: float
    medians: tuple[float, ...]

    def forced(self, answer: Answer) -> list[int]:
        """All of it."""
        return with_end(answer, self.end_id)

    def loss(self, trace: Trace, weights: Weights, iteration: int) -> tuple[Tensor, Weights]:
        """Over the positions that decide the answer."""
        survival, weights = DelayedEnd(end_id=self.end_id).loss(trace, weights, iteration)
        logs = trace.logits(trace.predicting_places).log_softmax(-1)[:, self.end_id]
        places = range(len(logs))
        expected = torch.tensor([self.medians[min(place, len(self.medians) - 1)] for place in places])
        return survival + self.weight * (expected - logs - EOS_DRIFT).clamp(0.0, EOS_LIMIT).sum(), weights


def medians_of(ordinary: Sequence[Answer]) -> tuple[float, ...]:
    """By position, of the answers that get that far."""
    longest = max(len(answer.log_p_ends) for answer in ordinary)
    return tuple(
        median(answer.log_p_ends[place] for answer in ordinary if place < len(answer.log_p_ends))
        for place in range(longest)
    )


def end_unseen(weight: float) -> Make:
    """``EndUnseen``, made of ordinary answers."""

    def make(victim: Victim, ordinary: Sequence[Answer]) -> Objective:
        return EndUnseen(end_id=victim.end_id, weight=weight, medians=medians_of(ordinary))

    make.__name__ = f"end_unseen({weight:g})"
    return make


@dataclass(frozen=True, kw_only=True)
class JustUnder:
    """``base`` up to ``goal`` tokens, and the end right there."""

    base: Objective
    goal: int
    end_id: int

    def forced(self, answer: Answer) -> list[int]:
        """Nothing behind the goal but the end."""
        if answer.num_tokens < self.goal:
            return self.base.forced(answer)
        return [*answer.tokens[: self.goal], self.end_id]

    def loss(self, trace: Trace, weights: Weights, iteration: int) -> tuple[Tensor, Weights]:
        """The base's over what comes before the goal, and the end's cross-entropy at the goal if it was reached."""
        before = replace(trace, answer=trace.answer[: self.goal])
        loss, weights = self.base.loss(before, weights, iteration)
        if len(trace.answer) <= self.goal:
            return loss, weights
        logits = trace.logits(trace.predicting_places[self.goal :][:1])
        return loss + functional.cross_entropy(logits, torch.tensor([self.end_id])), weights


def squeeze_score(victim: Victim, pixels: Tensor) -> Tensor:
    """1 - cosine between a picture's embedding and that of its coarse copy, mean over its tokens."""
    coarse = torch.stack([squeezed(picture) for picture in pixels])
    one, other = victim.embedded(pixels), victim.embedded(coarse)
    return 1.0 - functional.cosine_similarity(one, other, dim=-1).mean(-1)


def bounds_of(model_id: str, questions: Sequence[str], cap: int) -> list[int]:
    """How long an answer to each question about one picture may get before the guard's length bound says something;
    tokens, ``cap`` at most.

    Raises: ValueError: the model has no calibration, so there is no bound.
    """
    _, variant = find(model_id)
    path = variant.weights / FILE_NAME if variant.weights is not None else None
    if path is None or not path.is_file():
        raise ValueError(
            f"{model_id} has no {FILE_NAME}, so it has no bound to stay under; `vireo guard calibrate` makes one"
        )
    calibration = GuardCalibration.from_plain(json.loads(path.read_text(encoding="utf-8")))
    return [min(cap, calibration.expected(Asked(text, num_images=1), cap).bound_tokens) for text in questions]
