"""What attackers with the weights descend: each objective turns a teacher-forced pass into one number.

Kept apart by name, because published code and published paper differ (Verbose Images, ICLR 2024, arXiv 2401.11170;
code KuofengGao/Verbose_Images @ 8658c87):

    verbose-released      the losses as its code has them: at most 32 text tokens, the picture's positions too,
                          KL(uniform || p) summed, mean probability of the end over all positions, nuclear norm of
                          absolute hidden states of all layers
    verbose-strengthened  the same three over the whole answer, at the positions that decide it, and KL(p || uniform)
    delayed-eos           the answer's survival alone: -sum log(1 - p(end)), whose gradient does not fade where the end
                          is certain
    lingoloop             LingoLoop (ICLR 2026, arXiv 2506.14493) in its manner: the end's probability, weighted by how
                          likely it is after the kind of token before, and the mean norm of hidden states
    special-tail          Hidden Tail (arXiv 2508.18805) in its manner: the ordinary answer, then special tokens

Legend: N positions, L layers + 1, D width, V tokens.
"""

from __future__ import annotations

import math
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from loadtest.adversarial.victim import Answer, Trace, Victim

RELEASED_TEXT_TOKENS = 32
MOMENTUM = 0.9
"""Of the weights between losses, from one iteration to the next."""
TAIL_TOKENS = 48
Weights = list[float]
"""Between the losses of one picture; empty before the first iteration."""


class Objective(Protocol):
    """Falls as answers get longer, or dearer."""

    def forced(self, answer: Answer) -> list[int]:
        """The text of the next pass, given the last answer."""
        ...

    def loss(self, trace: Trace, weights: Weights, iteration: int) -> tuple[Tensor, Weights]:
        """The number, and the weights that it was made with. ``iteration`` counts from 0."""
        ...


def with_end(answer: Answer, end_id: int) -> list[int]:
    """Its tokens, with the end if it was reached."""
    return [*answer.tokens, end_id] if answer.is_ended else list(answer.tokens)


# -- Verbose Images --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class VerboseReleased:
    """As its code runs."""

    end_id: int

    def forced(self, answer: Answer) -> list[int]:
        """The end is put behind the text whether or not it was said; what is over the limit is cut off."""
        return [*answer.tokens, self.end_id][:RELEASED_TEXT_TOKENS]

    def loss(self, trace: Trace, weights: Weights, iteration: int) -> tuple[Tensor, Weights]:
        """Over the picture's positions and the text's own."""
        places = torch.cat([trace.image_places, trace.answer_places])
        logits = trace.logits(places)
        uniform = torch.full_like(logits, 1.0 / logits.shape[1])
        uncertainty = functional.kl_div(logits.log_softmax(-1), uniform, reduction="sum")
        return _three(trace, places, uncertainty, logits.softmax(-1)[:, self.end_id].mean(), weights, iteration)


@dataclass(frozen=True, kw_only=True)
class VerboseStrengthened:
    """The whole answer, at the positions that decide it; KL in the paper's direction."""

    end_id: int

    def forced(self, answer: Answer) -> list[int]:
        """All of it."""
        return with_end(answer, self.end_id)

    def loss(self, trace: Trace, weights: Weights, iteration: int) -> tuple[Tensor, Weights]:
        """Over the positions that decide the answer."""
        places = trace.predicting_places
        logs = trace.logits(places).log_softmax(-1)
        uncertainty = (logs.exp() * (logs + math.log(logs.shape[1]))).sum()
        return _three(trace, places, uncertainty, logs.exp()[:, self.end_id].mean(), weights, iteration)


def _three(
    trace: Trace, places: Tensor, uncertainty: Tensor, end: Tensor, weights: Weights, iteration: int
) -> tuple[Tensor, Weights]:
    """Uncertainty, end and diversity, weighted so that none drowns the others as time goes on."""
    diversity = -nuclear_norm(trace.hidden[:, places].abs().flatten(0, 1))
    log_t = math.log(iteration + 1)
    ratios = (10.0 * log_t - 20.0, 0.5 * log_t + 1.0)
    now = [float((uncertainty / loss / r).detach().abs()) for loss, r in zip((end, diversity), ratios, strict=True)]
    weights = smoothed(weights, now)
    return uncertainty + weights[0] * end + weights[1] * diversity, weights


def smoothed(before: Weights, now: Weights) -> Weights:
    """Exponential average; the first value counts whole."""
    if not before:
        return now
    return [MOMENTUM * old + (1.0 - MOMENTUM) * new for old, new in zip(before, now, strict=True)]


def nuclear_norm(matrix: Tensor) -> Tensor:
    """Sum of singular values of (N, D), from the eigenvalues of its Gram matrix: cheap where N is far above D.

    In float64, because squares lose half of the digits.
    """
    wide = matrix.double()
    gram = wide.T @ wide if wide.shape[0] > wide.shape[1] else wide @ wide.T
    values = torch.linalg.eigvalsh(gram)
    # Values at rounding level have no direction: their roots would have gradients without bound.
    kept = values[values > 1e-10 * values[-1].detach()]
    total: Tensor = kept.sqrt().sum().to(matrix.dtype)
    return total


# -- the end alone, loops, tails -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DelayedEnd:
    """-log of the probability that no step ends the answer."""

    end_id: int

    def forced(self, answer: Answer) -> list[int]:
        """All of it."""
        return with_end(answer, self.end_id)

    def loss(self, trace: Trace, weights: Weights, iteration: int) -> tuple[Tensor, Weights]:
        """Over the positions that decide the answer."""
        logits = trace.logits(trace.predicting_places)
        end = logits[:, self.end_id]
        others = logits.clone()
        others[:, self.end_id] = -torch.inf
        # -log(1 - p) = softplus(log odds), exact also where p is 1 in float32.
        return functional.softplus(end - others.logsumexp(-1)).sum(), weights


@dataclass(frozen=True, kw_only=True)
class LingoLoop:
    """The end's probability by the kind of token before, and small hidden states, in which answers go round.

    Differs from the released code: kinds of tokens are those of ``kind_of``, for parts of speech mean nothing where a
    token is a letter; the position that decides the end counts; and the first loss is not multiplied by 1e5, beside
    which the second one vanishes there.
    """

    end_id: int
    kind_of: Callable[[int], str]
    weight_of: Mapping[str, float]
    usual: float
    """Of the first token, and of kinds that were not met."""

    def forced(self, answer: Answer) -> list[int]:
        """All of it."""
        return with_end(answer, self.end_id)

    def loss(self, trace: Trace, weights: Weights, iteration: int) -> tuple[Tensor, Weights]:
        """Both losses, the second at the weight of the first."""
        before = [self.weight_of.get(self.kind_of(token), self.usual) for token in trace.answer[:-1]]
        shares = torch.tensor([self.usual, *before])
        places = trace.predicting_places
        end = (shares * trace.logits(places).softmax(-1)[:, self.end_id]).sum() / shares.sum()
        norm = trace.hidden[:, places].norm(dim=-1).mean()
        weights = smoothed(weights, [float((end / norm).detach().abs()) / abs(10.0 * math.log(iteration + 1) - 20.0)])
        return end + weights[0] * norm, weights


def end_weights(answers: Sequence[Answer], kind_of: Callable[[int], str]) -> tuple[dict[str, float], float]:
    """Mean probability of the end after each kind of token in ordinary answers, adding up to 1, and their median."""
    seen: dict[str, list[float]] = defaultdict(list)
    for answer in answers:
        for token, end in zip(answer.tokens, answer.end_probabilities[1:], strict=False):
            seen[kind_of(token)].append(end)
    means = {kind: sum(values) / len(values) for kind, values in seen.items()}
    total = sum(means.values())
    if not total:
        return {}, 1.0
    shares = {kind: mean / total for kind, mean in means.items()}
    return shares, sorted(shares.values())[len(shares) // 2]


def kind_of_text(text: str) -> str:
    """letter, digit, space, punctuation or symbol, by its last character; ``special`` for tokens like ``<box>``."""
    if len(text) > 2 and text[0] == "<" and text[-1] == ">":
        return "special"
    category = unicodedata.category(text[-1])[0] if text else "C"
    return {"L": "letter", "N": "digit", "Z": "space", "P": "punctuation", "S": "symbol"}.get(category, "other")


@dataclass(frozen=True, kw_only=True)
class SpecialTail:
    """The ordinary answer as it is, and behind it special tokens instead of the end."""

    tail_id: int
    tail: int = TAIL_TOKENS

    def forced(self, answer: Answer) -> list[int]:
        """The answer and a tail; of the ordinary answer, whatever came out since (``Recipe.keeps_text``)."""
        return [*answer.tokens, *[self.tail_id] * self.tail]

    def loss(self, trace: Trace, weights: Weights, iteration: int) -> tuple[Tensor, Weights]:
        """Cross-entropies of the answer and of the tail, each a mean."""
        losses = functional.cross_entropy(
            trace.logits(trace.predicting_places), torch.tensor(trace.answer), reduction="none"
        )
        body, tail = losses[: -self.tail], losses[-self.tail :]
        return tail.mean() + (body.mean() if len(body) else 0.0), weights


# -- by name ---------------------------------------------------------------------------------------------------------

Make = Callable[[Victim, Sequence[Answer]], Objective]


def verbose_released(victim: Victim, _: Sequence[Answer]) -> Objective:
    """``VerboseReleased``."""
    return VerboseReleased(end_id=victim.end_id)


def verbose_strengthened(victim: Victim, _: Sequence[Answer]) -> Objective:
    """``VerboseStrengthened``."""
    return VerboseStrengthened(end_id=victim.end_id)


def delayed_end(victim: Victim, _: Sequence[Answer]) -> Objective:
    """``DelayedEnd``."""
    return DelayedEnd(end_id=victim.end_id)


def lingoloop(victim: Victim, ordinary: Sequence[Answer]) -> Objective:
    """``LingoLoop``, its weights from ordinary answers."""

    def kind_of(token: int) -> str:
        return kind_of_text(victim.prompts.decode([token], skip_control=False))

    weight_of, usual = end_weights(ordinary, kind_of)
    return LingoLoop(end_id=victim.end_id, kind_of=kind_of, weight_of=weight_of, usual=usual)


def special_tail(victim: Victim, _: Sequence[Answer]) -> Objective:
    """``SpecialTail`` of the token that opens a turn, which readers of the answer never see."""
    return SpecialTail(tail_id=victim.prompts.build([("user", ())])[0])
