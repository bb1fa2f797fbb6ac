"""Files that somebody else wrote: a value, or a ValueError that names them."""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from models.files import child, heads, licence_of, peek_json, read_json, read_network_config
from models.folder import components_of, safetensors_of, weight_files


@pytest.mark.parametrize("content", ["[" * 100_000, "{", "[]", "3", '{"a": 1}\xff', "1" * 5000])
def test_what_is_no_json_object_is_refused_by_the_name_of_its_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=r"config\.json"):
        read_json(path)
    assert peek_json(path) == {}


def test_what_never_ends_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    os.mkfifo(tmp_path / "README.md")
    os.mkfifo(tmp_path / "pipe.safetensors")
    assert licence_of(tmp_path) == "none"
    with pytest.raises(ValueError, match="missing or damaged"):
        heads(tmp_path / "pipe.safetensors")
    (tmp_path / "zeros.json").symlink_to("/dev/zero")
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(1 << 40)
    for name, words in (("pipe", "cannot be read"), ("zeros", "cannot be read"), ("large", "the limit for JSON is")):
        with pytest.raises(ValueError, match=f"{name}.json.*{words}"):
            read_json(tmp_path / f"{name}.json")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"num_layers": 2000}, "num_layers is 2e"),
        ({"layers_per_block": [2, 10**30]}, "layers_per_block is 1e"),
        ({"text_config": {"vocab_size": 10**30}}, "vocab_size is 1e"),
        ({"width": 1e308}, "width is 1e"),
        ({"shift": float("nan")}, "shift is nan"),
        ({"deep": [[-(10**30)]]}, "deep is -1e"),
    ],
)
def test_numbers_out_of_all_proportion_are_named(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=words):
        read_network_config(path)


def test_numbers_that_published_networks_have_are_read(tmp_path: Path) -> None:
    config = {
        "vocab_size": 256_384,
        "block_out_channels": [320, 1280],
        "is_layered": True,
        "mask": -3.4028234663852886e38,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_network_config(tmp_path / "config.json") == config


def test_schedulers_config_as_diffusers_writes_it_is_read(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    diffusers.DPMSolverMultistepScheduler().save_pretrained(tmp_path)
    config = read_network_config(tmp_path / "scheduler_config.json")
    assert config["lambda_min_clipped"] == -math.inf


@pytest.mark.parametrize("name", ["../other", "/etc/passwd", "..", ".", "", "a/b", "a\0b", 3, None, ["a"]])
def test_what_lies_elsewhere_is_refused(tmp_path: Path, name: Any) -> None:
    with pytest.raises(ValueError, match="no plain file name"):
        child(tmp_path, name)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(ValueError, match="no plain file name"):
        weight_files(tmp_path)


@pytest.mark.parametrize("name", ["..", "../other", "/tmp"])
def test_component_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({name: ["diffusers", "Net"]}))
    with pytest.raises(ValueError, match="no plain file name"):
        components_of(tmp_path)


@pytest.mark.parametrize("shape", ["ab", [1.5], [-1], [True], [10**30], 3, None, [[1]]])
def test_shapes_that_are_none_are_damage(tmp_path: Path, shape: Any) -> None:
    head = json.dumps({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head)
    with pytest.raises(ValueError, match=r"model\.safetensors is missing or damaged"):
        components_of(tmp_path)


@pytest.mark.parametrize("head", [b"[" * 100_000, b"[]", b"\xff\xff"])
def test_heads_that_are_none_are_damage(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(head)) + head)
    with pytest.raises(ValueError, match="missing or damaged"):
        heads(path)


def test_pickles_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is a pickle, which may run code"):
        safetensors_of(tmp_path)


@pytest.mark.parametrize(
    ("readme", "licence"),
    [
        (None, "none"),
        ("no head", "none"),
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\nlicense: 'other'\nlicense_name: flux-1-dev\n---\n", "flux-1-dev"),
        ("---\nlicense: mit\n---\n" + "x" * (1 << 20), "mit"),
        ("---\nname: \xff\nlicense: mit\n---\n", "mit"),
        ("---\nlicense: other\nlicense_name: qwen-research\n---\n# A model\nlicense: gpl\n", "qwen-research"),
        ("---\ntags: [a]\n---\n# A model\nlicense: gpl\n", "none"),
    ],
)
def test_licence_is_what_the_readme_says(tmp_path: Path, readme: str | None, licence: str) -> None:
    if readme is not None:
        (tmp_path / "README.md").write_bytes(readme.encode("latin-1"))
    assert licence_of(tmp_path) == licence
