"""Which experts a token goes to, and with what weight.

Legend: T tokens, E experts, k experts a token, B samples of S tokens, C tokens an expert.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from models.methods.experts.dispatch import Dispatch, by_expert


class Routing(NamedTuple):
    """``ids``: int64 (T, k), the experts of each token, no expert twice. ``weights``: (T, k)."""

    ids: Tensor
    weights: Tensor


def softmax_top_k(logits: Tensor, k: int) -> Routing:
    """Each token's k most probable experts of (T, E), best first, weighted by their probabilities as they are: the sum
    stays below one. Fewer experts than the network was trained with are the best of those, their weights unchanged.

    Raises: ValueError: not from 1 to E experts.
    """
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"a token cannot go to {k} of {logits.shape[-1]} experts")
    weights, ids = logits.softmax(dim=-1).topk(k, dim=-1)
    return Routing(ids, weights)


def expert_choice(scores: Tensor, capacity_factor: float, scale: float = 1.0) -> Dispatch:
    """Each expert takes the tokens of each sample that score highest for it: ``scores`` (B, S, E), positive.

    Experts are equally loaded; a token may be taken by many or by none. What it gets is weighted by its scores, which
    sum to ``scale`` over the experts that took it. The dispatch is of B * S tokens.
    """
    batch, num_tokens, num_experts = scores.shape
    capacity = max(1, math.ceil(capacity_factor * num_tokens / num_experts))
    taken, chosen = scores.transpose(1, 2).topk(min(capacity, num_tokens), dim=-1)
    first = torch.arange(0, batch * num_tokens, num_tokens, device=scores.device).view(batch, 1, 1)
    tokens = (chosen + first).transpose(0, 1).flatten(1)
    taken = taken.transpose(0, 1).flatten(1)
    sums = taken.new_zeros(batch * num_tokens).index_add(0, tokens.flatten(), taken.flatten())
    weights = taken / (sums[tokens] + 1e-12) * scale
    return by_expert(tokens, weights, batch * num_tokens)
