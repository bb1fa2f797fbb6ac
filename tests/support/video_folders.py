"""Video checkpoints on disk, with random weights and the nano model's words."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import torch

from models.contract import Variant
from models.families.vdit.causal_vae import CausalVae
from models.families.vdit.loading import save_network
from models.families.vdit.transformer import OpenSoraT2V
from models.registry import find
from models.training.vdit.nano import nano_transformer, nano_vae
from models.training.vdit.words import small_encoder, word_tokenizer


def write_checkpoint(folder: Path, *variants: str) -> Variant:
    """A folder as published, of two layers and little width, and the variant that goes with it."""
    torch.manual_seed(0)
    config = replace(
        nano_transformer(), num_layers=2, num_attention_heads=2, attention_head_dim=24, cross_attention_dim=48
    )
    for variant in variants:
        save_network(OpenSoraT2V(config), config.to_dict(), folder / variant, torch.float32)
    vae = replace(nano_vae(), hidden_size=8, hidden_size_mult=(1, 1, 1, 1))
    save_network(CausalVae(vae), asdict(vae), folder / "vae", torch.float32)
    tokenizer = word_tokenizer()
    small_encoder(len(tokenizer)).save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "text_encoder")
    nano = find("vdit-nano")[1]
    return replace(nano, config={**nano.config, "num_layers": 2, "num_heads": 2, "head_dim": 24}, weights=folder)
