"""Pure rules: logits -> confidence -> leave or go on. Source: arXiv 2306.11248, Sec. 3.4 (maximum softmax)."""

from __future__ import annotations

import torch
from torch import Tensor


def confidence(logits: Tensor) -> Tensor:
    """Logits (B, K) -> largest softmax probability (B,), float32."""
    return torch.softmax(logits.float(), -1).amax(-1)


def should_exit(logits: Tensor, threshold: float) -> Tensor:
    """Logits (B, K) -> bool (B,): confidence reaches ``threshold``."""
    return confidence(logits) >= threshold
