"""``vireo convert texthawk2``: published parts in, one folder out, every tensor where it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipConfig,
    SiglipModel,
    SiglipVisionModel,
)

from models.families.texthawk2 import convert as module
from models.families.texthawk2.auto import register
from models.families.texthawk2.convert import grow
from models.families.texthawk2.family import SEVEN_B
from models.families.texthawk2.tokenizer import build_nano_tokenizer
from models.families.texthawk2.vision import normalise, read_levels

CHARACTERS = "的一是"


def convert(vision: Path, language: Path, out: Path, seed: int = 0) -> None:
    told: list[tuple[int, int]] = []
    lines = module.convert(
        SEVEN_B,
        vision=vision,
        language=language,
        out=out,
        seed=seed,
        on_progress=lambda _what, done, total: told.append((done, total)),
    )
    assert str(out) in lines[0]
    assert told[-1][0] == told[-1][1] == len(told)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A whole SigLIP with its text side, and a Qwen2, both small and random, saved by transformers."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sources")
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2}
    siglip = SiglipConfig(
        text_config={**small, "vocab_size": 40, "max_position_embeddings": 8},
        vision_config={**small, "image_size": 112, "patch_size": 14},
    )
    SiglipModel(siglip).save_pretrained(folder / "siglip")
    tokenizer = build_nano_tokenizer(CHARACTERS)
    qwen = Qwen2Config(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=False,
    )
    Qwen2ForCausalLM(qwen).save_pretrained(folder / "qwen")
    tokenizer.save_pretrained(folder / "qwen")
    return folder / "siglip", folder / "qwen"


@pytest.fixture(scope="module")
def converted(sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted")
    convert(*sources, out, seed=3)
    return out


def test_the_tower_sees_what_the_published_one_sees(sources: tuple[Path, Path], converted: Path) -> None:
    register()
    model = AutoModelForImageTextToText.from_pretrained(converted).eval()
    published = SiglipVisionModel.from_pretrained(sources[0]).eval()
    tiles = torch.randint(0, 256, (2, 112, 112, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected = published(normalise(tiles), output_hidden_states=True).hidden_states
        seen = read_levels(model.vision_tower, normalise(tiles), model.config.vision_levels)
    assert model.config.vision_levels == [2, 3, 4]
    for level, features in zip(model.config.vision_levels, seen, strict=True):
        torch.testing.assert_close(features, expected[level], rtol=1e-5, atol=1e-5)


def test_the_language_model_says_what_the_published_one_says(sources: tuple[Path, Path], converted: Path) -> None:
    register()
    model = AutoModelForImageTextToText.from_pretrained(converted).eval()
    published = Qwen2ForCausalLM.from_pretrained(sources[1]).eval()
    ids = torch.tensor([[1, 5, 9, 200, 17]])
    with torch.no_grad():
        torch.testing.assert_close(
            model(input_ids=ids).logits[..., :300], published(input_ids=ids).logits, rtol=1e-5, atol=1e-5
        )
    assert model.config.text_config.vocab_size == 1280
    assert model.config.text_config.vocab_size >= len(build_nano_tokenizer(CHARACTERS))


def test_the_folder_answers_a_question_about_a_picture(converted: Path) -> None:
    from PIL import Image

    register()
    processor = AutoProcessor.from_pretrained(converted)
    model = AutoModelForImageTextToText.from_pretrained(converted).eval()
    inputs = processor(text=["<image>Read."], images=[Image.new("RGB", (112, 112), "red")], return_tensors="pt")
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == model.config.tokens_per_tile
    made = model.generate(
        input_ids=inputs["input_ids"],
        pixel_values=inputs["pixel_values"],
        grids=inputs["grids"],
        max_new_tokens=4,
        do_sample=False,
    )
    assert made.shape[1] > inputs["input_ids"].shape[1]


def test_the_connector_is_fresh_and_reproducible(sources: tuple[Path, Path], converted: Path, tmp_path: Path) -> None:
    convert(*sources, tmp_path, seed=3)
    once, again = load_file(converted / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert {name: tensor.tolist() for name, tensor in once.items()} == {
        name: tensor.tolist() for name, tensor in again.items()
    }
    assert once["connector.out_proj.weight"].std() > 0


def test_large_models_are_written_in_shards(
    sources: tuple[Path, Path], converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARD_BYTES", 100_000)
    convert(*sources, tmp_path, seed=3)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    whole = load_file(converted / "model.safetensors")
    assert set(index["weight_map"]) == set(whole)
    assert len(set(index["weight_map"].values())) > 1
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], whole[name])
    register()
    AutoModelForImageTextToText.from_pretrained(tmp_path)


def test_new_tokens_start_as_the_mean() -> None:
    grown = grow(torch.tensor([[1.0, 3.0], [3.0, 5.0]]), 4)
    assert grown.tolist() == [[1, 3], [3, 5], [2, 4], [2, 4]]


@pytest.mark.parametrize(
    ("swap", "message"), [((1, 1), "--vision must be a SigLIP"), ((0, 0), "--language must be a Qwen2")]
)
def test_wrong_folders_are_told(
    sources: tuple[Path, Path], tmp_path: Path, swap: tuple[int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        convert(sources[swap[0]], sources[swap[1]], tmp_path)


def test_a_missing_folder_and_missing_weights_are_told(sources: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json"):
        convert(tmp_path, sources[1], tmp_path / "out")
    (tmp_path / "config.json").write_text((sources[0] / "config.json").read_text())
    with pytest.raises(ValueError, match=r"has no \.safetensors file"):
        convert(tmp_path, sources[1], tmp_path / "out")
    tensors = load_file(sources[0] / "model.safetensors")
    name = next(name for name in tensors if "post_layernorm.weight" in name and "vision" in name)
    save_file({key: value for key, value in tensors.items() if key != name}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 tensors are missing, the first is vision_tower\.post_layernorm\.weight"):
        convert(tmp_path, sources[1], tmp_path / "out")
    save_file({**tensors, name: torch.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"has shape \(3,\); the model has \(32,\)"):
        convert(tmp_path, sources[1], tmp_path / "out")
