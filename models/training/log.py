"""One JSON object per line: what training said of itself, for curves and for whoever watches."""

from __future__ import annotations

import json
import time
from pathlib import Path

LOG_FILE = "training_log.jsonl"


class TrainingLog:
    """Appends to a file and prints."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._started_s = time.monotonic()

    def write(self, **values: float | str) -> None:
        """Append one record, with the seconds since the start."""
        rounded = {key: round(value, 5) if isinstance(value, float) else value for key, value in values.items()}
        record = {"seconds": round(time.monotonic() - self._started_s, 1), **rounded}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(" ".join(f"{key} {value}" for key, value in record.items()), flush=True)
