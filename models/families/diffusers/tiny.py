"""Parts that miniatures have in common: text encoders and the like with random weights, for checks. Free of torch.

A tokenizer of a miniature is made in code (``tokenizers.py``); its configuration says only which.
"""

from __future__ import annotations

from typing import Any

LETTERS = 98
"""Words of the T5 miniature: marks, a space, and printable ASCII."""

T5: dict[str, dict[str, Any]] = {
    "text_encoder": {
        "_class_name": "T5EncoderModel",
        "vocab_size": LETTERS,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 37,
        "num_layers": 2,
        "num_heads": 4,
        "relative_attention_num_buckets": 8,
        "dropout_rate": 0.0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    },
    "tokenizer": {"_class_name": "T5TokenizerFast"},
}
CLIP_VISION: dict[str, dict[str, Any]] = {
    "image_encoder": {
        "_class_name": "CLIPVisionModelWithProjection",
        "hidden_size": 4,
        "projection_dim": 4,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "intermediate_size": 16,
        "patch_size": 8,
    },
    "image_processor": {"_class_name": "CLIPImageProcessor", "size": 32, "crop_size": 32},
}
