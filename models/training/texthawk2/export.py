"""From a training folder to the committed checkpoint: half precision, with processor, without training's own heads.

The log goes along: a run that goes on from the checkpoint on another machine continues it.

python -m models.training.texthawk2.export .cache/texthawk2-nano models/checkpoints/texthawk2-nano
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from transformers import AutoTokenizer

from models.families.texthawk2.auto import register
from models.families.texthawk2.hf_image_processor import TextHawk2ImageProcessor
from models.families.texthawk2.modeling import TextHawk2ForConditionalGeneration
from models.families.texthawk2.processor import TextHawk2Processor
from models.training.log import LOG_FILE


def export(source: Path, out: Path) -> None:
    """Write ``out``. Weights are stored as float16, which rounds them by 1 part in 2,048; they run in float32."""
    register()
    out.mkdir(parents=True, exist_ok=True)
    model = TextHawk2ForConditionalGeneration.from_pretrained(source)
    config = model.config
    model.half().save_pretrained(out)  # type: ignore[no-untyped-call]
    tokenizer = AutoTokenizer.from_pretrained(source)
    images = TextHawk2ImageProcessor(config.tile_size, config.max_tiles, config.max_tiles_side)
    TextHawk2Processor(images, tokenizer, config.tokens_per_tile).save_pretrained(out)
    if (source / LOG_FILE).exists():
        shutil.copy(source / LOG_FILE, out / LOG_FILE)


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]))
