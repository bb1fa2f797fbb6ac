"""Detection head: in training only, boxes are also regressed, which gives coordinates a metric."""

from __future__ import annotations

from torch import Tensor, nn


class DetectionHead(nn.Module):
    """MLP and sigmoid on the hidden state at a box's open tag (TextHawk2, arXiv 2410.05261, section 3.3).

    It runs beside the language model's head, is trained with an L1 loss, and is left out of saved checkpoints.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, 4)

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, width) to boxes (N, 4): x1, y1, x2, y2 in 0..1."""
        boxes: Tensor = self.fc2(nn.functional.gelu(self.fc1(hidden))).sigmoid()
        return boxes
