"""Folders under names of the user's own: which family knows what is in one."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from models.folder import components_of, seen_in, weight_files
from models.registry import find, recognise
from serving.config import from_mapping, load, resolve
from serving.errors import ConfigError

RESNET = {"architecture": "test_resnet", "num_classes": 10, "pretrained_cfg": {"tag": "r160_in1k"}}


def folder(base: Path, **files: Any) -> Path:
    base.mkdir(exist_ok=True)
    for name, content in files.items():
        (base / name.replace("__", ".")).write_text(json.dumps(content))
    return base


def sdxl(base: Path, *names: str) -> Path:
    for name in names:
        folder(base, model_index__json={"_class_name": "OtherPipeline"})
        (base / f"nitrosd-{name}_unet.safetensors").write_bytes(b"")
    return base


@pytest.mark.parametrize(
    ("config", "known_as"),
    [
        (RESNET, ("timm:test_resnet.r160_in1k",)),
        ({"architecture": "test_resnet"}, ("timm:test_resnet",)),
        ({"architectures": ["Idefics3ForConditionalGeneration"]}, ("vllm:Idefics3ForConditionalGeneration",)),
        ({"architectures": ["CLIPTextModel"]}, ()),
        ({"architectures": "LlamaForCausalLM"}, ()),
        ({"architecture": 3, "architectures": [3, None]}, ()),
        ([], ()),
    ],
)
def test_config_says_whose_a_folder_is(tmp_path: Path, config: Any, known_as: tuple[str, ...]) -> None:
    assert recognise(folder(tmp_path, config__json=config)) == known_as


def test_unet_beside_sdxl_says_which_nitrofusion_it_is(tmp_path: Path) -> None:
    assert "nitrofusion:vibrant" in recognise(sdxl(tmp_path / "one", "vibrant"))
    with pytest.raises(ValueError, match=r"NAME=nitrofusion:realism@.* or NAME=nitrofusion:vibrant@"):
        recognise(sdxl(tmp_path / "both", "realism", "vibrant"))


def test_name_of_ones_own_is_what_its_folder_is(tmp_path: Path) -> None:
    family, variant = find("my-classifier", folder(tmp_path, config__json=RESNET))
    assert (family.name, variant.id, variant.weights) == ("timm", "timm:test_resnet.r160_in1k", tmp_path)


def test_folder_that_nobody_knows_is_refused_with_what_was_looked_at(tmp_path: Path) -> None:
    strange = folder(tmp_path, config__json={"architectures": ["X"]})
    with pytest.raises(ValueError, match=r"no family recognises .*: config\.json names X\. .*timm, vllm"):
        find("my-wan", strange)
    with pytest.raises(ValueError, match="did you mean vdit-nano"):
        find("vdit-nanno", strange)
    with pytest.raises(ValueError, match="there is no folder"):
        find("my-wan", tmp_path / "none")
    with pytest.raises(ValueError, match="unknown model 'no-family:my-wan'"):
        find("no-family:my-wan", strange)


def test_pipeline_that_cannot_be_run_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="NoSuchPipeline"):
        find("my-wan", folder(tmp_path, model_index__json={"_class_name": "NoSuchPipeline"}))


def test_folder_without_such_files_is_described_by_its_files(tmp_path: Path) -> None:
    assert "it has no files" in seen_in(tmp_path)
    for number in range(9):
        (tmp_path / str(number)).touch()
    assert "it has 0, 1, 2, 3, 4, 5, 6, 7, ..." in seen_in(tmp_path)


def test_folder_of_several_families_is_asked_about(tmp_path: Path) -> None:
    both = folder(tmp_path, config__json={**RESNET, "architectures": ["LlamaForCausalLM"]})
    with pytest.raises(ValueError, match=r"my-net=timm:test_resnet\.r160_in1k@.* or my-net=vllm:LlamaForCausalLM@"):
        find("my-net", both)


def test_two_folders_of_one_family_are_served_under_two_names(tmp_path: Path) -> None:
    one, other = (folder(tmp_path / name, config__json=RESNET) for name in ("one", "other"))
    settings = load(models=[f"first={one}", f"second=timm:test_resnet@{other}"], options=["second.replicas=2"])
    served = resolve(
        settings.model_copy(
            update={"models": tuple(m.model_copy(update={"accept_licence": True}) for m in settings.models)}
        )
    )
    assert [model.id for model in served.models] == ["first", "second"]
    assert [model.variant.id for model in served.models] == ["timm:test_resnet.r160_in1k", "timm:test_resnet"]
    assert [model.variant.weights for model in served.models] == [one, other]
    assert [model.replicas for model in served.models] == [1, 2]
    assert pickle.loads(pickle.dumps(served)) == served
    assert resolve(served.settings).models == served.models, "what was decided is decided so again"


def test_a_name_may_stand_for_a_listed_model_but_for_no_other() -> None:
    (named,) = resolve(from_mapping({"models": [{"id": "digits", "model": "dyn-perceiver-nano"}]})).models
    assert (named.id, named.family, named.variant.id) == ("digits", "dyn-perceiver", "dyn-perceiver-nano")
    with pytest.raises(ConfigError, match=r"models\.0\.id: vdit-nano is the id of another model"):
        resolve(from_mapping({"models": [{"id": "vdit-nano", "model": "dyn-perceiver-nano"}]}))
    with pytest.raises(ConfigError, match="unknown model 'my-wan'"):
        resolve(from_mapping({"models": [{"id": "my-wan"}]}))
    with pytest.raises(ConfigError, match="unknown model 'no-such'"):
        resolve(from_mapping({"models": [{"id": "my-wan", "model": "no-such"}]}))


def test_folder_with_an_at_sign_is_a_folder(tmp_path: Path) -> None:
    (model,) = load(models=[f"my-net={tmp_path}/a@b"]).models
    assert (model.model, model.checkpoint_dir) == (None, tmp_path / "a@b")


def write_weights(path: Path, **tensors: torch.Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


def test_networks_are_counted_from_the_heads_of_their_files(tmp_path: Path) -> None:
    index = {"_class_name": "P", "net": ["diffusers", "Net"], "text": ["transformers", "Text"], "tokenizer": ["t", "T"]}
    folder(tmp_path, model_index__json={**index, "absent": [None, None]})
    write_weights(tmp_path / "net" / "a-1.safetensors", x=torch.zeros(3, 4))
    write_weights(tmp_path / "net" / "a-2.safetensors", y=torch.zeros(5, dtype=torch.bfloat16), n=torch.tensor(1))
    write_weights(tmp_path / "net" / "other.safetensors", z=torch.zeros(99))
    weight_map = {"x": "a-1.safetensors", "y": "a-2.safetensors", "n": "a-2.safetensors"}
    (tmp_path / "net" / "a.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    write_weights(tmp_path / "text" / "model.safetensors", w=torch.zeros(7))
    write_weights(tmp_path / "text" / "model.fp16.safetensors", w=torch.zeros(7, dtype=torch.float16))
    write_weights(tmp_path / "beside" / "model.safetensors", w=torch.zeros(8))
    net, text = components_of(tmp_path)
    assert (net.name, net.kind, net.numbers) == ("net", "Net", {"F32": 12, "BF16": 5, "I64": 1})
    assert (net.parameters, net.bytes_as(2), net.bytes_as(4)) == (18, 2 * 17 + 8, 4 * 17 + 8)
    assert (text.kind, text.parameters) == ("Text", 7)
    assert components_of(tmp_path, {"text": [tmp_path / "beside" / "model.safetensors"]})[1].parameters == 8


def test_folder_of_one_network_and_of_folders(tmp_path: Path) -> None:
    folder(tmp_path, config__json={"architectures": ["One"]})
    write_weights(tmp_path / "model.safetensors", w=torch.zeros(3))
    write_weights(tmp_path / "vae" / "model.safetensors", w=torch.zeros(4))
    assert [(part.name, part.kind, part.parameters) for part in components_of(tmp_path)] == [
        ("", "One", 3),
        ("vae", "", 4),
    ]


def test_pickles_count_by_their_size_and_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "net.pth").write_bytes(b"12345")
    (part,) = components_of(tmp_path)
    assert (part.parameters, part.bytes_as(2)) == (None, 5)
    for content in (b"", b"\0" * 8, b"\xff" * 9, b"\2\0\0\0\0\0\0\0{]"):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.safetensors is missing or damaged"):
            components_of(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="names no files"):
        weight_files(tmp_path)


def test_family_that_refuses_a_folder_is_not_heard_where_another_knows_it(tmp_path: Path) -> None:
    both = sdxl(tmp_path, "realism", "vibrant")
    folder(both, config__json=RESNET)
    assert recognise(both) == ("timm:test_resnet.r160_in1k",)
