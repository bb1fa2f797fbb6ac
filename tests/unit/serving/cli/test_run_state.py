"""What `vireo up` says, what it leaves for other commands, and what `vireo status` makes of that."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import psutil
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from models.registry import default_variants
from serving.cli import system_commands
from serving.cli.parts import deployment_of
from serving.cli.run_state import FILE_NAME, RunState
from serving.cli.up import announce
from serving.client.exits import Exit
from serving.config import ResolvedConfig, from_mapping, resolve
from tests.support.ports import free_port

SQUARE = "examples/red-square.png"


def state(run_dir: Path, **changes: Any) -> RunState:
    fields: dict[str, Any] = {
        "pid": os.getpid(),
        "created_s": psutil.Process().create_time(),
        "run_dir": str(run_dir),
        "http_url": f"http://127.0.0.1:{free_port()}",
        "grpc_address": "127.0.0.1:1",
        "profile": "local",
        "models": ("dyn-perceiver-nano", "texthawk2-nano"),
        "tasks": {"classify": ("dyn-perceiver-nano",), "chat": ("texthawk2-nano",)},
    }
    return RunState(**{**fields, **changes})


def test_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = state(tmp_path, ready=True)
    written.write()
    assert RunState.read(tmp_path) == written
    assert written.is_running()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pid": 1}', '{"tasks": {}}'])
def test_state_that_is_none_is_no_state(text: str, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    assert RunState.read(tmp_path) is None


def settings(tmp_path: Path, *served: str) -> ResolvedConfig:
    return resolve(from_mapping({"run_dir": str(tmp_path), "models": [{"id": name} for name in served]}))


def announced(config: ResolvedConfig) -> str:
    out = io.StringIO()
    announce(config, Console(file=out, width=80), 12.0)
    return out.getvalue()


def test_a_served_chat_model_is_named_and_can_be_tried(tmp_path: Path) -> None:
    said = announced(settings(tmp_path, *(variant.id for _, variant in default_variants())))
    assert "models dyn-perceiver-nano, texthawk2-nano, vdit-nano, dit-moe-nano\n" in said
    assert 'vireo video "a red circle moves left" -o clip.mp4' in said
    assert 'vireo chat "Read the text." --image examples/word-en.png\n' in said
    assert "vireo classify examples/digit-7.png" in said
    assert 'vireo image "a green 7" -o seven.png' in said


@pytest.mark.parametrize(
    ("served", "offered"),
    [
        ("dyn-perceiver-nano", {"classify"}),
        ("texthawk2-nano", {"chat", "read"}),
        ("vdit-nano", {"video"}),
        ("dit-moe-nano", {"image"}),
    ],
)
def test_only_what_is_served_is_offered(served: str, offered: set[str], tmp_path: Path) -> None:
    said = announced(settings(tmp_path, served))
    assert f"models {served}\n" in said
    assert {verb for verb in ("classify", "chat", "read", "video", "image") if f"vireo {verb} " in said} == offered
    assert said.count("  try    vireo") == 1


def test_model_that_takes_a_picture_is_tried_with_one(tmp_path: Path) -> None:
    said = announced(settings(tmp_path, "exvideo-nano", "vdit-nano", "tunable-restore-nano"))
    named = [line.split("vireo ", 1)[1] for line in said.splitlines() if "examples/red-square.png" in line]
    assert named == [f"image --image {SQUARE} -o changed.png", f"video --image {SQUARE} -o clip.mp4"]
    assert (Path(__file__).parents[4] / SQUARE).is_file()


def test_model_that_needs_words_and_a_picture_is_tried_with_both(tmp_path: Path) -> None:
    said = announced(settings(tmp_path, "diffusers:wan-i2v"))
    assert f'vireo video "it moves" --image {SQUARE} -o clip.mp4' in said


def test_every_example_that_is_announced_is_there(tmp_path: Path) -> None:
    words = announced(settings(tmp_path, *(variant.id for _, variant in default_variants()))).split()
    named = [word for word in words if word.startswith("examples/")]
    assert len(named) == 3
    assert all((Path(__file__).parents[4] / name).is_file() for name in named)


def test_status_names_the_models_and_what_they_are_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("VIREO_RUN_DIR", str(tmp_path))
    folder = tmp_path / str(port)
    folder.mkdir()
    state(folder, http_url=f"http://127.0.0.1:{port}").write()
    app = typer.Typer()
    system_commands.register(app)
    result = CliRunner().invoke(app, ["status", "--port", str(port), "--json"])
    assert result.exit_code == Exit.FAILED  # nothing answers on its port
    shown = json.loads(result.output)
    assert shown["running"] is True
    assert shown["ready"] is False
    assert shown["tasks"] == {"classify": ["dyn-perceiver-nano"], "chat": ["texthawk2-nano"]}
    assert shown["models"] == ["dyn-perceiver-nano", "texthawk2-nano"]


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("ray::ServeReplica:vireo:dyn-perceiver-nano", "dyn-perceiver-nano"),
        ("ray::ServeReplica:vireo:dyn-perceiver-nano.run()", "dyn-perceiver-nano"),
        ("ray::ServeReplica:vireo:timm:resnet50.a1_in1k", "timm:resnet50.a1_in1k"),
        ("ray::ServeReplica:vireo:timm:resnet50.a1_in1k.run", "timm:resnet50.a1_in1k"),
        ("ray::ServeReplica:vireo:timm:resnet50.run", "timm:resnet50"),
        ("ray::ServeReplica:vireo:timm:resnet50d", None),
    ],
)
def test_replica_is_told_by_its_title_though_ids_have_dots(title: str, name: str | None) -> None:
    served = ("Gateway", "dyn-perceiver-nano", "timm:resnet50", "timm:resnet50.a1_in1k")
    assert deployment_of(title, served) == name
