"""Makes transformers' Auto classes load TextHawk2 folders: no remote code, our package is the code."""

from __future__ import annotations


def register() -> None:
    """Tell ``AutoConfig``, ``AutoModelForImageTextToText``, ``AutoTokenizer``, ``AutoImageProcessor`` and
    ``AutoProcessor`` about ``model_type`` texthawk2. May be called again. Imports transformers and torch.
    """
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModelForImageTextToText,
        AutoProcessor,
        AutoTokenizer,
        PreTrainedTokenizerFast,
    )

    from models.families.texthawk2.config import MODEL_TYPE, TextHawk2Config
    from models.families.texthawk2.hf_image_processor import TextHawk2ImageProcessor
    from models.families.texthawk2.modeling import TextHawk2ForConditionalGeneration
    from models.families.texthawk2.processor import TextHawk2Processor

    AutoConfig.register(MODEL_TYPE, TextHawk2Config, exist_ok=True)
    AutoModelForImageTextToText.register(TextHawk2Config, TextHawk2ForConditionalGeneration, exist_ok=True)
    AutoTokenizer.register(TextHawk2Config, fast_tokenizer_class=PreTrainedTokenizerFast, exist_ok=True)  # type: ignore[no-untyped-call]
    AutoImageProcessor.register(
        TextHawk2Config, image_processor_classes={"pil": TextHawk2ImageProcessor}, exist_ok=True
    )
    AutoProcessor.register(TextHawk2Config, TextHawk2Processor, exist_ok=True)  # type: ignore[no-untyped-call]
