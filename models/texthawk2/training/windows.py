"""In training only: each token of the connector names the characters that it covers."""

from __future__ import annotations

from torch import Tensor, nn

from models.texthawk2.config import TextHawk2Config


class WindowHead(nn.Module):
    """Linear from one token to the classes of its patches.

    A token is ``merge_width`` neighbouring queries, each of 2x2 patches: 2 rows and 2 * merge_width columns.
    """

    def __init__(self, config: TextHawk2Config, num_classes: int) -> None:
        super().__init__()
        self.side = config.patches_side
        self.columns = 2 * config.merge_width
        self.patches = 2 * self.columns
        self.num_classes = num_classes
        self.fc = nn.Linear(config.text_config.hidden_size, self.patches * num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens of single tiles (B, N, width) to logits (B, N, patches of a window, classes)."""
        normed = nn.functional.layer_norm(tokens, tokens.shape[-1:])
        logits: Tensor = self.fc(normed)
        return logits.view(*tokens.shape[:2], self.patches, self.num_classes)

    def arrange(self, labels: Tensor) -> Tensor:
        """Labels of patches (B, side * side), row by row, to (B, N, patches of a window), window by window."""
        windows = labels.view(-1, self.side // 2, 2, self.side // self.columns, self.columns)
        return windows.transpose(2, 3).reshape(len(labels), -1, self.patches)
