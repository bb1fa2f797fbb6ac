"""Which experts a token goes to, and with what weight.

Legend: T tokens, E experts, k experts a token.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


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
