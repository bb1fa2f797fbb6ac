"""Teaches the text encoder which words belong together: a further loss, whose weights are not kept.

Of each word of an object, a linear layer has to tell that object's colour, shape, direction and speed. Without it, the
word for a shape knew its colour, but not its direction (docs/experiments.md), and cross-attention cannot bind what the
text does not.

Legend: B batch, S words, C channels of the text.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from models.training.vdit.nano import CAPTION_CHANNELS
from models.training.vdit.scenes import COLOURS, DIRECTIONS, SHAPES, SPEEDS

ATTRIBUTES = (COLOURS, SHAPES, DIRECTIONS, SPEEDS)


class Binding(nn.Module):
    """A linear layer for each attribute."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self._ids = [torch.tensor(tokenizer.convert_tokens_to_ids(list(words))) for words in ATTRIBUTES]
        self._and, self._on = (int(tokenizer.vocab[word]) for word in ("and", "on"))
        self._special = torch.tensor(tokenizer.all_special_ids)
        self.heads = nn.ModuleList(nn.Linear(CAPTION_CHANNELS, len(words)) for words in ATTRIBUTES)

    def forward(self, text: Tensor, ids: Tensor) -> Tensor:
        """Mean cross-entropy over the words of objects; text (B, S, C), ids (B, S). 0 where there are none."""
        number = self._object_numbers(ids)
        losses = []
        for head, words in zip(self.heads, self._ids, strict=True):
            rows, places, targets = _targets(ids, number, words)
            if len(rows):
                losses.append(F.cross_entropy(head(text[rows, places].float()), targets))
        return torch.stack(losses).mean() if losses else text.new_zeros(())

    def _object_numbers(self, ids: Tensor) -> Tensor:
        """(B, S): of the object that each word is about, from 0; -1 where it is about none."""
        number = (ids == self._and).cumsum(1)
        is_behind = (ids == self._on).cumsum(1) > 0
        is_none = is_behind | (ids == self._and) | torch.isin(ids, self._special)
        return number.masked_fill(is_none, -1)


def _targets(ids: Tensor, number: Tensor, words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where to look (rows, places) and which of ``words`` that place's object has; objects that have none are out."""
    said = ids[..., None] == words
    same = (number[:, :, None] == number[:, None, :]) & (number >= 0)[:, :, None]
    of_object = torch.einsum("bst,btw->bsw", same.float(), said.float())  # (B, S, words)
    rows, places = torch.nonzero(of_object.sum(-1) == 1, as_tuple=True)
    return rows, places, of_object[rows, places].argmax(-1)
