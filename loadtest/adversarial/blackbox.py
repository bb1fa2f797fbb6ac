"""An attacker without weights: natural evolution strategies on answers (VLMInferSlow, ACL 2025, arXiv 2506.15755).

It sees what ``Ask`` returns and nothing else: lengths and, where a server gives them, the probability of the end and
the most probable tokens' at each step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loadtest.adversarial.perturbation import Space, quantised
from loadtest.adversarial.victim import Answer, Pictures

Ask = Callable[[Pictures, Sequence[int]], list[Answer]]
"""Answers to pictures (N, H, W, 3), each under the question of the row that is named beside it."""
DIRECTIONS = 4
SMOOTHING = 4 / 255
"""Standard deviation of the directions, of a pixel: what is below half a grey level, a file does not hold."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """length - ``end_weight`` * sum_i p_i(end) * ``fading`` ^ (n - 1 - i) - ``top_weight`` * mean KL(uniform || top).

    Without probabilities: the length. The weights are ours; the paper's are for other vocabularies.
    """

    uses_probabilities: bool
    end_weight: float = 10.0
    top_weight: float = 1.0
    fading: float = 0.9

    def __call__(self, answer: Answer) -> float:
        """Of one answer; higher is dearer."""
        length = float(answer.num_tokens)
        if not self.uses_probabilities:
            return length
        count = len(answer.end_probabilities)
        ends = sum(p * self.fading ** (count - 1 - i) for i, p in enumerate(answer.end_probabilities))
        return length - self.end_weight * ends - self.top_weight * sum(answer.top_divergences) / count


def ascent(
    ask: Ask, score: Score, space: Space, clean: Tensor, theta: Tensor, rows: Sequence[int], seed: int
) -> tuple[Tensor, list[float], Pictures, list[list[Answer]]]:
    """Estimate the gradient of the score at ``theta`` for the pictures ``rows`` by antithetic directions.

    Returns the estimates (rows, H, W, 3), each row's mean score, and everything that was asked (rows, 2 * directions,
    H, W, 3) with its answers: all lie within the space, so the longest may be kept.
    """
    picked = clean[list(rows)]
    directions = torch.stack(
        [torch.randn((DIRECTIONS, *picked.shape[1:]), generator=torch.Generator().manual_seed(seed + r)) for r in rows]
    )
    both = torch.cat([directions, -directions], dim=1)
    moved = theta[list(rows)][:, None] + SMOOTHING * both
    held = picked[:, None].expand_as(moved)
    moved = space.project(held, moved)
    asked = quantised(space.pixels(held, moved))
    flat = asked.reshape(-1, *asked.shape[2:])
    answers = ask(flat, [row for row in rows for _ in range(2 * DIRECTIONS)])
    scores = torch.tensor([score(answer) for answer in answers]).view(len(rows), 2, DIRECTIONS)
    slopes = (scores[:, 0] - scores[:, 1]) / (4.0 * SMOOTHING)
    estimates = (slopes[..., None, None, None] * directions).sum(1)
    by_row = [answers[i : i + 2 * DIRECTIONS] for i in range(0, len(answers), 2 * DIRECTIONS)]
    return estimates, scores.flatten(1).mean(1).tolist(), asked, by_row
