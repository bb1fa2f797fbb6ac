"""The nano model's captions: a tokenizer of whole words, and a small mT5 encoder."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase, Replace, Sequence
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import MT5Config, MT5EncoderModel, PreTrainedTokenizerFast

from models.training.vdit.nano import CAPTION_CHANNELS
from models.training.vdit.scenes import vocabulary

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One id per word of the vocabulary; other words and signs are left out. The end is marked, as mT5 does."""
    words = "|".join(vocabulary())
    ids = {word: index for index, word in enumerate((PAD, END, UNKNOWN, *vocabulary()))}
    tokenizer = Tokenizer(WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = Sequence([Lowercase(), Replace(Regex(rf"\b(?!(?:{words})\b)\w+|[^\w\s]"), "")])
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single=f"$A {END}", special_tokens=[(END, ids[END])])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN
    )


def small_encoder(vocab_size: int) -> MT5EncoderModel:
    """Two layers of width ``CAPTION_CHANNELS``, fresh."""
    config = MT5Config(
        vocab_size=vocab_size,
        d_model=CAPTION_CHANNELS,
        d_kv=24,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        tie_word_embeddings=False,
    )
    return MT5EncoderModel(config)
