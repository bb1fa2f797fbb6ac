"""Weights in and out: what is refused, and the round trip of a published file."""

from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from models.checkpoint import (
    check_against,
    checkpoint_sha256,
    load_into,
    load_official,
    read_weights,
    save_weights,
)
from models.families.dyn_perceiver.load import build_meta, load_model, random_model
from models.registry import find

NANO = find("dyn-perceiver-nano")[1]


class RunsCode:
    """Unpickling this creates the file named in it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def official_file(path: Path, **content: object) -> Path:
    torch.save({"optimizer": {"state": {}}, "epoch": 299, **content}, path)
    return path


def test_official_file_round_trips_to_the_same_logits(tmp_path: Path) -> None:
    source = random_model(NANO, seed=4)
    path = official_file(tmp_path / "published.pth", model={f"module.{k}": v for k, v in source.state_dict().items()})
    save_weights(load_official(path), tmp_path / "out")
    loaded = load_model(NANO.with_weights(tmp_path / "out"), fold=False)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for ours, theirs in zip(loaded(images), source.eval()(images), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)  # weights are channels last in one of the two


def test_a_file_as_the_official_script_saves_it_is_read(tmp_path: Path) -> None:
    weights = {"w": torch.ones(3)}
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=1e-3)
    optimizer.param_groups[0]["lr"] = np.float64(0.25)  # its schedule is a NumPy array
    parameter.grad = torch.ones(3)
    optimizer.step()
    arguments = argparse.Namespace(lr=1e-3, depth_factor=[1, 1, 1, 2], output_dir="out", resume=None)
    content = {"optimizer": optimizer.state_dict(), "epoch": 299, "scaler": {}, "args": arguments}
    torch.save({"model": weights, **content}, tmp_path / "checkpoint-299.pth")
    assert load_official(tmp_path / "checkpoint-299.pth")["w"].tolist() == [1, 1, 1]


def test_averaged_weights_are_preferred_unless_declined(tmp_path: Path) -> None:
    path = official_file(tmp_path / "x.pth", model={"w": torch.zeros(1)}, model_ema={"w": torch.ones(1)})
    assert load_official(path)["w"].item() == 1
    assert load_official(path, prefer_ema=False)["w"].item() == 0


def test_bare_state_dict_is_accepted(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "bare.pth")
    assert load_official(tmp_path / "bare.pth")["w"].tolist() == [1, 1]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "plain pickle"])
def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path: Path, legacy: bool) -> None:
    trap = tmp_path / "created"
    path = tmp_path / "evil.pth"
    content = {"model": {"w": torch.ones(1)}, "payload": RunsCode(trap)}
    if legacy:
        path.write_bytes(pickle.dumps({"payload": RunsCode(trap)}, protocol=2))
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match="not loaded, because unpickling them may run code"):
        load_official(path)
    assert not trap.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04broken"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "damaged.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged\.pth"):
        load_official(path)


@pytest.mark.parametrize("content", [[1, 2], {"model": {"w": 3}}, {"epoch": 3}, {}])
def test_a_file_without_weights_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"expected a state dict|holds no state dict"):
        load_official(tmp_path / "x.pth")


def test_missing_unexpected_and_misshapen_tensors_are_all_named() -> None:
    state = random_model(NANO).state_dict()
    del state["latent"]
    state["surplus.weight"] = torch.ones(1)
    state["classifier_att.bias"] = torch.ones(11)
    with pytest.raises(ValueError, match="weights do not fit DynPerceiver") as caught:
        check_against(build_meta(NANO), state)
    message = str(caught.value)
    assert "1 missing: latent" in message
    assert "1 unexpected: surplus.weight" in message
    assert "classifier_att.bias (11,) (need (10,))" in message


def test_a_long_list_of_problems_is_cut() -> None:
    with pytest.raises(ValueError, match=r"and \d+ more"):
        check_against(build_meta(NANO), {})


def test_weights_of_another_variant_do_not_fit() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        load_into(build_meta(find("dyn-perceiver-resnet50-x0375")[1]), random_model(NANO).state_dict())


def test_missing_and_damaged_weights_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"vireo train.*vireo convert"):
        read_weights(tmp_path)
    with pytest.raises(ValueError, match=r"vireo train"):
        checkpoint_sha256(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0garbage")
    with pytest.raises(ValueError, match="is damaged"):
        read_weights(tmp_path)


def test_hash_follows_the_content(tmp_path: Path) -> None:
    save_weights({"w": torch.zeros(3)}, tmp_path / "a")
    save_weights({"w": torch.zeros(3)}, tmp_path / "b")
    save_weights({"w": torch.ones(3)}, tmp_path / "c")
    a, b, c = (checkpoint_sha256(tmp_path / name) for name in "abc")
    assert a == b != c
    assert len(a) == 64
