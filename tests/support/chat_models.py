"""A TextHawk2 folder with random weights, small enough to be made on the spot, and pictures for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import Qwen2Config

from models.families.texthawk2.config import ARCHITECTURE, TextHawk2Config
from models.families.texthawk2.image_processor import cut_tiles
from models.families.texthawk2.modeling import TextHawk2ForConditionalGeneration
from models.families.texthawk2.tiling import TilingLimits
from models.families.texthawk2.tokenizer import build_nano_tokenizer
from models.families.texthawk2.tokens import IMAGE, TURN_END, VISION_END, VISION_START
from serving.delivery.stream.wire import EngineImage

TILE = 64
LIMITS = TilingLimits(tile_size=TILE, max_area=9, max_side=4)
MAX_MODEL_LEN = 512


def make_model_folder(folder: Path, seed: int = 20) -> Path:
    """Write config, weights and tokenizer. Weights are large, so that answers vary and depend on every input."""
    tokenizer = build_nano_tokenizer("你好世界读图")
    tokenizer.save_pretrained(folder)
    ids = tokenizer.get_vocab()
    config = TextHawk2Config(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": TILE,
            "patch_size": 4,
            "vision_use_head": False,
        },
        text_config=Qwen2Config(
            vocab_size=-(-len(tokenizer) // 64) * 64,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=MAX_MODEL_LEN,
            initializer_range=0.15,
            tie_word_embeddings=False,
            eos_token_id=ids[TURN_END],
            architectures=["Qwen2ForCausalLM"],
        ),
        vision_levels=(1, 2),
        resampler_routing=(1, 0),
        resampler_hidden_size=32,
        resampler_num_heads=2,
        resampler_intermediate_size=64,
        max_tiles=LIMITS.max_area,
        max_tiles_side=LIMITS.max_side,
        image_token_id=ids[IMAGE],
        vision_start_token_id=ids[VISION_START],
        vision_end_token_id=ids[VISION_END],
        eos_token_id=ids[TURN_END],
        architectures=[ARCHITECTURE],
    )
    torch.manual_seed(seed)
    TextHawk2ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def make_image(seed: int, height: int = TILE, width: int = TILE) -> EngineImage:
    """Blocks of random colours."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    pixels = np.kron(coarse, np.ones((8, 8, 1), dtype=np.uint8))[:height, :width]
    tiles, grid = cut_tiles(pixels, LIMITS)
    return EngineImage(key=f"{seed:04x}{height:04x}{width:04x}", tiles=tiles, grid=(grid.rows, grid.cols))
