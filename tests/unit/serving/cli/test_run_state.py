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

from serving.cli import system_commands
from serving.cli.run_state import FILE_NAME, RunState
from serving.cli.up import announce
from serving.config import ResolvedConfig, from_mapping, resolve
from tests.support.ports import free_port

CHAT = {"id": "texthawk2-nano", "engine": "fake"}


def state(run_dir: Path, **changes: Any) -> RunState:
    fields: dict[str, Any] = {
        "pid": os.getpid(),
        "created_s": psutil.Process().create_time(),
        "run_dir": str(run_dir),
        "http_url": f"http://127.0.0.1:{free_port()}",
        "grpc_address": "127.0.0.1:1",
        "profile": "local",
        "models": ("dyn-perceiver-nano", "texthawk2-nano"),
        "chat_models": ("texthawk2-nano",),
    }
    return RunState(**{**fields, **changes})


def test_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = state(tmp_path, ready=True)
    written.write()
    assert RunState.read(tmp_path) == written
    assert written.is_running()


def test_state_of_a_version_without_chat_is_read(tmp_path: Path) -> None:
    state(tmp_path).write()
    path = tmp_path / FILE_NAME
    fields = json.loads(path.read_text())
    del fields["chat_models"]
    path.write_text(json.dumps(fields))
    found = RunState.read(tmp_path)
    assert found is not None
    assert found.chat_models == ()


def settings(tmp_path: Path, chat_models: list[dict[str, Any]], **more: Any) -> ResolvedConfig:
    return resolve(from_mapping({"run_dir": str(tmp_path), "chat_models": chat_models, **more}))


def announced(config: ResolvedConfig) -> str:
    out = io.StringIO()
    announce(config, Console(file=out, width=80), 12.0)
    return out.getvalue()


def test_a_served_chat_model_is_named_and_can_be_tried(tmp_path: Path) -> None:
    said = announced(settings(tmp_path, [CHAT]))
    assert "models dyn-perceiver-nano, texthawk2-nano, vdit-nano\n" in said
    assert 'vireo video "a red circle moves left" -o clip.mp4' in said
    assert 'vireo chat "Read the text." --image examples/word-en.png\n' in said
    assert "vireo classify examples/digit-7.png" in said


def test_chat_is_not_offered_where_none_is_served(tmp_path: Path) -> None:
    said = announced(settings(tmp_path, [], video_models=[]))
    assert "models dyn-perceiver-nano\n" in said
    assert "vireo chat" not in said
    assert "vireo video" not in said
    assert "vireo read" not in said


def test_every_example_that_is_announced_is_there(tmp_path: Path) -> None:
    words = announced(settings(tmp_path, [CHAT])).split()
    named = [word for word in words if word.startswith("examples/")]
    assert len(named) == 3
    assert all((Path(__file__).parents[4] / name).is_file() for name in named)


@pytest.mark.parametrize("chat_models", [(), ("texthawk2-nano",)])
def test_status_names_the_chat_models(
    chat_models: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("VIREO_RUN_DIR", str(tmp_path))
    folder = tmp_path / str(port)
    folder.mkdir()
    state(folder, chat_models=chat_models).write()
    app = typer.Typer()
    system_commands.register(app)
    result = CliRunner().invoke(app, ["status", "--port", str(port), "--json"])
    assert result.exit_code == 1  # nothing answers on its port
    shown = json.loads(result.output)
    assert shown["running"] is True
    assert shown["ready"] is False
    assert shown["chat_models"] == list(chat_models)
    assert shown["models"] == ["dyn-perceiver-nano", "texthawk2-nano"]
