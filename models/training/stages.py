"""Stages of a training that may be interrupted: one that has ended is kept, and a long one goes on where it was.

What is written appears in one move, so that a kill at any moment leaves a whole file or none.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from models.training.log import TrainingLog


def stage_parser(about: str | None, *, minutes: float, lr: float, seed: int = 1) -> argparse.ArgumentParser:
    """The options of every stage that trains for some minutes into a folder; with these defaults."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=minutes)
    parser.add_argument("--lr", type=float, default=lr)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=seed)
    return parser


def once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Make ``folder``, under the name of a part until it is whole; nothing is done where it is there."""
    if not folder.is_dir():
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        log_file(folder.parent, folder.name).unlink(missing_ok=True)
        make(part)
        part.rename(folder)
    return folder


def log_file(work: Path, stage: str) -> Path:
    """Where a stage's records are."""
    return work / f"{stage}_log.jsonl"


def log_of(work: Path, stage: str) -> TrainingLog:
    """For a stage to write."""
    return TrainingLog(log_file(work, stage))


def records(work: Path, stage: str) -> list[dict[str, Any]]:
    """What a stage said of itself, in order."""
    return [json.loads(line) for line in log_file(work, stage).read_text(encoding="utf-8").splitlines()]


def save_state(path: Path, config: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write what a run has to remember. ``config``: what makes it this run and no other."""
    temporary = path.with_name(f"{path.name}.part")
    torch.save({**state, "config": json.dumps(config)}, temporary)
    os.replace(temporary, path)


def saved_state(path: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What an interrupted run has saved, or None: there was none.

    Raises: ValueError: it was of another configuration.
    """
    if not path.is_file():
        return None
    state: dict[str, Any] = torch.load(path, weights_only=True)
    if state.get("config") != json.dumps(config):
        raise ValueError(f"{path} belongs to a run with another configuration; remove it or choose another folder")
    return state
