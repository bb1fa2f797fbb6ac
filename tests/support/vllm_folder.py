"""A folder as Hugging Face publishes them, of a tiny Idefics3 with random weights: vLLM serves it by its own code."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor, PreTrainedTokenizerFast
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

TILE = 32
"""Side of a tile in pixels: 4 x 4 patches, of which 4 tokens are left."""
TOKENS_PER_TILE = 4
LONGEST_EDGE = 4 * TILE
MAX_MODEL_LEN = 1024
_START, _END = "<|im_start|>", "<end_of_utterance>"
_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'] and message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
_README = "---\nlicense: {}\nlibrary_name: transformers\n---\n# Tiny, with random weights\n"


def make_folder(folder: Path, licence: str = "apache-2.0") -> Path:
    """Fill ``folder``, a few hundred kilobytes; the same at each call."""
    tokenizer = _tokenizer()
    pictures = Idefics3ImageProcessorPil(
        size={"longest_edge": LONGEST_EDGE}, max_image_size={"longest_edge": TILE}, do_image_splitting=True
    )
    processor = Idefics3Processor(pictures, tokenizer, image_seq_len=TOKENS_PER_TILE, chat_template=_TEMPLATE)
    processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    network = Idefics3ForConditionalGeneration(_config(tokenizer)).float()
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.3)  # else every answer is the same token over and over
    network.save_pretrained(folder)
    (folder / "README.md").write_text(_README.format(licence), encoding="utf-8")
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and the tokens with which Idefics3 marks its tiles."""
    letters = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = [_START, _END, "<image>", "<fake_token_around_image>", "<global-img>"]
    marks += [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=_START, eos_token=_END, pad_token=_END, model_max_length=MAX_MODEL_LEN
    )


def _config(tokenizer: PreTrainedTokenizerFast) -> Idefics3Config:
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    ends["pad_token_id"] = tokenizer.pad_token_id
    return Idefics3Config(
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": TILE,
            "patch_size": 8,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": MAX_MODEL_LEN,
            **ends,
        },
        tie_word_embeddings=False,
        **ends,
    )
