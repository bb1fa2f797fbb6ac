"""Captions to embeddings: an mT5 encoder and its tokenizer, from a folder, through transformers.

Open-Sora-Plan v1.2 uses google/mt5-xxl with 512 tokens; the nano model has a small encoder of the same class.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, MT5EncoderModel

from models.checkpoint import load_pretrained


class TextEncoder:
    """Frozen. ``max_tokens`` is the length that every caption is padded to (OSP v1.2: 512)."""

    def __init__(self, model: MT5EncoderModel, tokenizer: Any, max_tokens: int) -> None:
        self.model = model.eval().requires_grad_(False)  # type: ignore[no-untyped-call]
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens

    @classmethod
    def load(cls, folder: Path, max_tokens: int, dtype: torch.dtype = torch.float32) -> TextEncoder:
        """Read a Hugging Face folder. Nothing is fetched, no remote code is run.

        Raises: OSError: no such folder, or no weights in it; ValueError: those of another model.
        """
        model = load_pretrained(MT5EncoderModel, folder, dtype, unused=("decoder.", "lm_head."))
        return cls(model, AutoTokenizer.from_pretrained(folder, local_files_only=True), max_tokens)

    def count_tokens(self, prompt: str) -> int:
        """Tokens of a caption, its end included."""
        return len(self.tokenizer(prompt)["input_ids"])

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Embeddings (B, max_tokens, caption channels) and a mask (B, max_tokens), True = a token.

        Raises: ValueError: a caption that is too long; the message counts.
        """
        for prompt in prompts:
            if (count := self.count_tokens(prompt)) > self.max_tokens:
                raise ValueError(f"the prompt has {count} tokens; limit is {self.max_tokens}: shorten it")
        tokens = self.tokenizer(list(prompts), padding="max_length", max_length=self.max_tokens, return_tensors="pt")
        ids, mask = tokens["input_ids"].to(self.model.device), tokens["attention_mask"].to(self.model.device)
        return self.model(input_ids=ids, attention_mask=mask).last_hidden_state, mask.bool()
