"""What models need in memory, and that `vireo up` refuses what cannot fit before it starts anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from models.registry import find
from serving.cli import memory
from serving.config import JobOptions, ResolvedConfig, from_mapping, resolve
from serving.errors import ConfigError

NANO, VIDEO, CHAT = "dyn-perceiver-nano", "vdit-nano", "texthawk2-nano"


def served(*models: dict[str, Any]) -> ResolvedConfig:
    return resolve(from_mapping({"models": list(models)}))


def test_models_that_cannot_fit_together_are_refused_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    memory.check_fits(served({"id": NANO}, {"id": VIDEO}, {"id": CHAT}))
    monkeypatch.setattr(memory, "machine_bytes", lambda: 60 << 20)
    memory.check_fits(served({"id": VIDEO}))
    told = (
        r"this machine has 60\.0 MiB of memory, and vdit-nano needs 34\.6 MiB for its weights in float32 and 1\.7 MiB"
    )
    with pytest.raises(
        ConfigError, match=told + r".* in each of 2 replicas; --option vdit-nano\.dtype=bfloat16 halves"
    ):
        memory.check_fits(served({"id": VIDEO, "replicas": 2}))
    with pytest.raises(ConfigError, match="34\\.6 MiB"):
        memory.check_fits(served({"id": VIDEO}, {"id": CHAT, "options": {"engine": "vllm"}}))
    memory.check_fits(served({"id": VIDEO}, {"id": CHAT, "options": {"engine": "fake"}}))
    with pytest.raises(ConfigError, match="69\\.3 MiB for its weights"):
        memory.check_fits(served({"id": VIDEO, "options": {"ranks": 2}}))


def test_model_must_fit_on_the_largest_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu = {"id": VIDEO, "gpus": 1, "options": {"dtype": "bfloat16"}}
    monkeypatch.setattr(memory, "gpu_bytes", lambda: (16 << 20, 8 << 20))
    with pytest.raises(ConfigError, match=r"the largest GPU here has 16\.0 MiB$"):
        memory.check_fits(served(on_gpu))
    monkeypatch.setattr(memory, "gpu_bytes", lambda: ())
    memory.check_fits(served(on_gpu))


def test_limit_that_keeps_requests_apart_is_told_with_the_option_that_lets_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert memory.small_limits(served({"id": NANO}, {"id": VIDEO})) == []
    small = served({"id": VIDEO, "options": {"max_held_bytes": 2 << 20}})
    (line,) = memory.small_limits(small)
    assert line.startswith(
        "vdit-nano: a usual request counts as 1.7 MiB and max_held_bytes is 2.0 MiB, so 1 is held at a"
    )
    option = line.partition("--option vdit-nano.max_held_bytes=")[2].partition(" ")[0]
    assert line.endswith("lets 4 share a step")
    assert memory.small_limits(served({"id": VIDEO, "options": {"max_held_bytes": int(option)}})) == []
    monkeypatch.setattr(memory, "machine_bytes", lambda: 37 << 20)
    assert memory.small_limits(small) == [], "there is no room for a second one"
    monkeypatch.setattr(memory, "machine_bytes", lambda: 39 << 20)
    assert memory.small_limits(small)[0].endswith("lets 2 share a step")


def test_limit_of_a_model_on_a_gpu_is_told_by_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "gpu_bytes", lambda: (141 << 30,))
    on_gpu = {"gpus": 1, "options": {"dtype": "bfloat16", "max_held_bytes": 2 << 20}}
    assert memory.small_limits(served({"id": VIDEO, **on_gpu}))[0].endswith("lets 4 share a step")
    monkeypatch.setattr(memory, "gpu_bytes", lambda: (18 << 20,))
    assert memory.small_limits(served({"id": VIDEO, **on_gpu})) == []


def test_limit_is_told_by_what_the_scheduler_counts_and_room_by_what_is_needed() -> None:
    options = JobOptions(max_held_bytes=10 << 20)
    (line,) = memory._small_limit("my-wan", options, counted=8 << 20, needed=4 << 20, left=9 << 20)
    assert line.endswith(f"--option my-wan.max_held_bytes={3 * (8 << 20)} lets 3 share a step")
    enough = JobOptions(max_held_bytes=3 * (8 << 20))
    assert memory._small_limit("my-wan", enough, counted=8 << 20, needed=4 << 20, left=9 << 20) == []


def test_damaged_weights_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"?")
    with pytest.raises(
        ConfigError, match=r"model dyn-perceiver-nano cannot be used: .*model\.safetensors is missing or"
    ):
        memory.check_fits(served({"id": NANO, "checkpoint_dir": str(tmp_path)}))
    save_file({"x": torch.zeros(3)}, tmp_path / "model.safetensors")
    memory.check_fits(served({"id": NANO, "checkpoint_dir": str(tmp_path)}))


def test_activations_that_are_bounds_refuse_nothing_that_may_fit() -> None:
    """They count by the type of their numbers, and half: what lives is at most that much less."""
    family, variant = find("diffusers:wan-t2v")
    whole = memory.request_bytes(family, variant)
    in_full, in_half = (memory.needed_bytes(family, variant, dtype) for dtype in ("float32", "bfloat16"))
    assert whole / 2 < in_full < whole
    assert in_half < in_full
    of_video = find(VIDEO)
    assert memory.needed_bytes(*of_video, "bfloat16") == memory.request_bytes(*of_video)


def test_sizes_are_written_as_people_do() -> None:
    assert [memory.in_gib(size) for size in (1 << 20, 1 << 30, 126 << 30)] == ["1.0 MiB", "1.0 GiB", "126.0 GiB"]
    assert memory.machine_bytes() > 1 << 30
    assert "no weights" in memory.in_words(
        {"weights_bytes": None, "request_bytes": 1, "machine_bytes": 1 << 30, "gpu_bytes": ()}
    )
