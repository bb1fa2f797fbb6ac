"""nitrofusion: which folders are its own. All else is generic."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.contract import check_licence
from models.families.nitrofusion.family import resolve
from models.families.nitrofusion.networks import build, save
from models.registry import find


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sdxl") / "folder"
    variant = resolve("realism")
    save(build(variant, random_weights=True), variant, path)
    return path


def test_folder_says_everything(folder: Path) -> None:
    family, variant = find("nitrofusion:realism", folder)
    assert (family.name, variant.weights, variant.io.size) == ("nitrofusion", folder, (32, 32))
    assert (variant.io.min_side, variant.io.max_side, variant.io.multiple) == (16, 48, 2)
    assert variant.config["shift"] == 250
    assert resolve("vibrant").config["shift"] == 500


@pytest.mark.parametrize(("name", "licence"), [("realism", "cc-by-nc-4.0"), ("vibrant", "openrail")])
def test_licence_must_be_accepted(name: str, licence: str) -> None:
    variant = resolve(name)
    with pytest.raises(ValueError, match=licence):
        check_licence(variant, is_accepted=False)
    check_licence(variant, is_accepted=True)


def test_other_checkpoint_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"nitrosd-vibrant_unet\.safetensors.* it has nitrosd-realism_unet"):
        resolve("vibrant", folder)
    with pytest.raises(ValueError, match="realism, vibrant"):
        resolve("photographic", folder)


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionPipeline"}, "_class_name is StableDiffusionPipeline"),
        ("unet/config.json", {"addition_embed_type": None}, "addition_embed_type is None"),
        ("unet/config.json", {"cross_attention_dim": 41}, "cross_attention_dim is 41; NitroFusion needs 40"),
        (
            "unet/config.json",
            {"projection_class_embeddings_input_dim": 9},
            "projection_class_embeddings_input_dim is 9",
        ),
        ("vae/config.json", {"latent_channels": 16}, "in_channels is 4; NitroFusion needs 16"),
        ("text_encoder_2/config.json", None, "cannot be read"),
    ],
)
def test_folder_of_something_else_is_refused(
    folder: Path, file: str, change: dict[str, Any] | None, told: str, tmp_path: Path
) -> None:
    _copy(folder, tmp_path, lambda name, text: _changed(text, change) if name == file else text)
    with pytest.raises(ValueError, match=told):
        resolve("realism", tmp_path)


def _copy(folder: Path, target: Path, change: Callable[[str, str], str]) -> None:
    for path in folder.rglob("*.json"):
        name = path.relative_to(folder)
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(change(str(name), path.read_text()))


def _changed(text: str, change: dict[str, Any] | None) -> str:
    return "" if change is None else json.dumps({**json.loads(text), **change})
