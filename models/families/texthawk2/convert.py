"""Assemble a TextHawk2 folder from a published SigLIP and a published Qwen2.

Tensors are copied one at a time from safetensors to safetensors: a 7B model is assembled in about 5 GB of memory. The
authors of TextHawk2 published neither code nor weights, so the connector between the two parts starts fresh, from
``seed``: the folder is where training begins, not where it ends.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, Qwen2Config, SiglipVisionConfig

from models.contract import OnProgress, Variant
from models.families.texthawk2.config import ARCHITECTURE, TextHawk2Config
from models.families.texthawk2.connector import Connector
from models.families.texthawk2.hf_image_processor import TextHawk2ImageProcessor
from models.families.texthawk2.modeling import TextHawk2ForConditionalGeneration
from models.families.texthawk2.processor import TextHawk2Processor
from models.families.texthawk2.tokenizer import add_texthawk_tokens
from models.families.texthawk2.tokens import BOX_START, IMAGE, TURN_END, VISION_END, VISION_START

SHARD_BYTES = 4 << 30
VOCAB_MULTIPLE = 128
"""The embedding grows to a multiple of this, as tensor-parallel engines like it."""
_PUBLISHED_LEVELS = (14, 18, 22, 26)
_PUBLISHED_DEPTH = 27
_EMBEDDINGS = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")


def convert(
    variant: Variant,
    *,
    vision: Annotated[Path, "Folder of a SigLIP model (whole, or its vision tower) in Hugging Face's form."],
    language: Annotated[Path, "Folder of a Qwen2 model in Hugging Face's form."],
    out: Annotated[Path, "Folder for the assembled model."],
    seed: Annotated[int, "Seed of the connector's fresh weights."] = 0,
    on_progress: OnProgress,
) -> list[str]:
    """Assemble a TextHawk2 model from a published SigLIP and a published Qwen2. Its own weights were never published:
    the connector between the two starts fresh and has to be trained.

    ``out`` gets config, tokenizer, processor and weights, in the dtype of the language model's.

    Raises:
        ValueError: a folder is not of that kind, or a tensor is missing, left over or of a wrong shape.
    """
    vision_config, text_config = _configs(vision, language)
    tokenizer = AutoTokenizer.from_pretrained(language)
    add_texthawk_tokens(tokenizer)
    config = _joined(vision_config, text_config, tokenizer)
    out.mkdir(parents=True, exist_ok=True)
    tensors = _tensors(vision, language, config, seed)
    expected = _expected_shapes(config)
    _write_shards(_checked(tensors, expected, on_progress), out)
    config.save_pretrained(out)
    images = TextHawk2ImageProcessor(config.tile_size, config.max_tiles, config.max_tiles_side)
    TextHawk2Processor(images, tokenizer, config.tokens_per_tile).save_pretrained(out)
    levels = ", ".join(map(str, config.vision_levels))
    return [
        f"written to {out}: reads layers {levels} of the tower, {config.tokens_per_tile} tokens a tile",
        "the connector's weights are fresh: train it before you serve this model",
    ]


def _configs(vision: Path, language: Path) -> tuple[SiglipVisionConfig, Qwen2Config]:
    for folder in (vision, language):
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} has no config.json; pass the folder of a downloaded model")
    vision_config = AutoConfig.from_pretrained(vision)
    vision_config = getattr(vision_config, "vision_config", vision_config)
    text_config = AutoConfig.from_pretrained(language)
    if not isinstance(vision_config, SiglipVisionConfig):
        raise ValueError(f"{vision} holds a {vision_config.model_type} model; --vision must be a SigLIP model")
    if not isinstance(text_config, Qwen2Config):
        raise ValueError(f"{language} holds a {text_config.model_type} model; --language must be a Qwen2 model")
    return vision_config, text_config


def _joined(vision_config: SiglipVisionConfig, text_config: Qwen2Config, tokenizer: Any) -> TextHawk2Config:
    depth = int(vision_config.num_hidden_layers)
    levels = tuple(sorted({max(1, round(level * depth / _PUBLISHED_DEPTH)) for level in _PUBLISHED_LEVELS}))
    vocab_size = max(int(text_config.vocab_size), -(-len(tokenizer) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE)
    token: Callable[[str], int] = tokenizer.convert_tokens_to_ids
    return TextHawk2Config(
        vision_config={**vision_config.to_dict(), "vision_use_head": False},
        text_config={
            **text_config.to_dict(),
            "vocab_size": vocab_size,
            "eos_token_id": token(TURN_END),
            "architectures": ["Qwen2ForCausalLM"],
        },
        vision_levels=levels,
        resampler_routing=tuple(reversed(range(len(levels)))),
        resampler_hidden_size=int(vision_config.hidden_size),
        resampler_num_heads=int(vision_config.num_attention_heads),
        resampler_intermediate_size=int(vision_config.intermediate_size),
        image_token_id=token(IMAGE),
        vision_start_token_id=token(VISION_START),
        vision_end_token_id=token(VISION_END),
        box_start_token_id=token(BOX_START),
        architectures=[ARCHITECTURE],
        dtype=str(text_config.dtype or torch.bfloat16).removeprefix("torch."),
    )


def _tensors(vision: Path, language: Path, config: TextHawk2Config, seed: int) -> Iterator[tuple[str, Tensor]]:
    dtype = getattr(torch, str(config.dtype).removeprefix("torch."))
    for name, tensor in _read(vision):
        # A whole SigLIP model has a text side and a pooling head besides; older files nest the tower.
        short = name.removeprefix("vision_model.")
        if short.startswith(("embeddings.", "encoder.", "post_layernorm.")) and not short.endswith("position_ids"):
            yield f"vision_tower.{short}", tensor.to(dtype)
    for name, tensor in _read(language):
        renamed = f"language_model.{name}"
        if renamed in _EMBEDDINGS:
            tensor = grow(tensor, int(config.text_config.vocab_size))
        if renamed == _EMBEDDINGS[1] and config.text_config.tie_word_embeddings:
            continue
        yield renamed, tensor.to(dtype)
    yield from _fresh_connector(config, dtype, seed)


def _read(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a folder's safetensors files. Pickles are not read: they can run code."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} has no .safetensors file; download that form of the weights")
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a dict)
                yield name, opened.get_tensor(name)


def grow(embedding: Tensor, rows: int) -> Tensor:
    """Append rows to (vocabulary, width): the mean of the others, so that a new token starts as an average word."""
    missing = rows - embedding.shape[0]
    if missing <= 0:
        return embedding
    mean = embedding.float().mean(0, keepdim=True).to(embedding.dtype)
    return torch.cat([embedding, mean.expand(missing, -1)])


def _fresh_connector(config: TextHawk2Config, dtype: torch.dtype, seed: int) -> Iterator[tuple[str, Tensor]]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        connector = Connector(config)
        initialiser = _meta_model(config)
        for module in connector.modules():
            initialiser._init_weights(module)
    for name, tensor in connector.state_dict().items():
        yield f"connector.{name}", tensor.to(dtype)


def _meta_model(config: TextHawk2Config) -> TextHawk2ForConditionalGeneration:
    with torch.device("meta"):
        return TextHawk2ForConditionalGeneration(config)


def _expected_shapes(config: TextHawk2Config) -> dict[str, tuple[int, ...]]:
    shapes = {name: tuple(tensor.shape) for name, tensor in _meta_model(config).state_dict().items()}
    if config.text_config.tie_word_embeddings:
        shapes.pop(_EMBEDDINGS[1], None)
    return shapes


def _checked(
    tensors: Iterator[tuple[str, Tensor]],
    expected: dict[str, tuple[int, ...]],
    on_progress: OnProgress,
) -> Iterator[tuple[str, Tensor]]:
    missing = dict(expected)
    for name, tensor in tensors:
        shape = missing.pop(name, None)
        if shape != tuple(tensor.shape):
            raise ValueError(
                f"tensor {name} has shape {tuple(tensor.shape)}; the model has {shape or 'no such tensor'}"
            )
        yield name, tensor
        on_progress("tensors", len(expected) - len(missing), len(expected))
    if missing:
        raise ValueError(f"{len(missing)} tensors are missing, the first is {next(iter(missing))}")


def _write_shards(tensors: Iterator[tuple[str, Tensor]], out: Path) -> None:
    """``model.safetensors``, or numbered shards and their index, as transformers names them."""
    shards: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    size = total = 0
    for name, tensor in tensors:
        if pending and size + tensor.nbytes > SHARD_BYTES:
            shards.append(_write_shard(pending, out, len(shards)))
            pending, size = {}, 0
        pending[name] = tensor.contiguous()
        size += tensor.nbytes
        total += tensor.nbytes
    shards.append(_write_shard(pending, out, len(shards)))
    _name_shards(shards, total, out)


def _write_shard(tensors: dict[str, Tensor], out: Path, index: int) -> list[str]:
    save_file(tensors, out / f"part-{index}.safetensors", metadata={"format": "pt"})
    return list(tensors)


def _name_shards(shards: list[list[str]], total: int, out: Path) -> None:
    if len(shards) == 1:
        (out / "part-0.safetensors").rename(out / "model.safetensors")
        return
    weight_map = {}
    for index, names in enumerate(shards):
        file = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        (out / f"part-{index}.safetensors").rename(out / file)
        weight_map.update(dict.fromkeys(names, file))
    index_text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1)
    (out / "model.safetensors.index.json").write_text(index_text, encoding="utf-8")
