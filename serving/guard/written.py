"""Writes ``guard.json`` beside the weights that it is of, and says how it was made."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.operating_points import source_commit
from schedulers.guard.calibration import FILE_NAME, GuardCalibration

_TOKENIZER = "tokenizer.json"


def special_ids(folder: Path) -> frozenset[int]:
    """Tokens that no reader of an answer sees, as the checkpoint's tokenizer has them; none where that is another file
    than ``tokenizer.json``.

    Raises: ValueError: not a tokenizer.
    """
    path = folder / _TOKENIZER
    if not path.is_file():
        return frozenset()
    try:
        added = json.loads(path.read_text(encoding="utf-8")).get("added_tokens", [])
        return frozenset(int(token["id"]) for token in added if token["special"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is no tokenizer of the tokenizers library") from None


def write_calibration(calibration: GuardCalibration, folder: Path, made: Mapping[str, Any]) -> Path:
    """Whole or not at all. ``made``: of what and how; date and commit are added. Returns the path."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    plain = calibration.to_plain()
    plain["provenance"] = {"date": today, "commit": source_commit(), **made}
    path = folder / FILE_NAME
    draft = path.with_suffix(".draft")
    draft.write_text(_lines(plain), encoding="utf-8")
    draft.replace(path)
    return path


def _lines(plain: Mapping[str, Any]) -> str:
    """JSON with a line for each list of numbers, so that a change can be read."""
    groups = {
        name: "{\n" + ",\n".join(f"   {json.dumps(key)}: {_short(value)}" for key, value in group.items()) + "\n  }"
        for name, group in plain["groups"].items()
    }
    parts = [
        f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}"
        for key, value in plain.items()
        if key != "groups"
    ]
    parts.append(
        ' "groups": {\n' + ",\n".join(f"  {json.dumps(name)}: {group}" for name, group in groups.items()) + "\n }"
    )
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _short(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
