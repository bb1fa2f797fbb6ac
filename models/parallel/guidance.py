"""The guidance axis: the branch with the prompt and the one without, on different ranks."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from models.parallel.collectives import all_gather
from models.parallel.groups import SequenceGroups

NO_PROMPT, PROMPT = 0, 1


def guided(predict: Callable[[int], Tensor], scale: float, groups: SequenceGroups) -> Tensor:
    """Guided prediction, the same bits on every rank.

    ``predict(branch)`` is the model's output (B, ...) for ``NO_PROMPT`` or ``PROMPT``. With a cfg degree of 2 each rank
    computes the branch of its number and they exchange; otherwise this rank computes both, one after the other.
    """
    cfg = groups.cfg
    if cfg.size == 1:
        no_prompt, prompt = predict(NO_PROMPT), predict(PROMPT)
    else:
        mine = predict(cfg.rank)
        no_prompt, prompt = all_gather(mine, [len(mine)] * 2, cfg).chunk(2)
    return combine(prompt, no_prompt, scale)


def combine(prompt: Tensor, no_prompt: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: away from the prediction without prompt, ``scale`` times the way to that with."""
    return no_prompt + scale * (prompt - no_prompt)
