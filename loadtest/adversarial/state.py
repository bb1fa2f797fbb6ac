"""How far an attack is. A state that is written and read goes on exactly as if nothing had happened."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from loadtest.adversarial.objectives import Weights
from loadtest.adversarial.victim import Answer, Pictures


@dataclass(kw_only=True)
class State:
    """Of a batch of B pictures. Rows of lists are pictures.

    ``label``: of what attack on which pictures. ``theta``: parameters of the perturbation, float32. ``momentum``: of
    its gradient. ``ordinary``: answers to the clean pictures. ``best``: bytes (B, H, W, 3) of the longest so far, and
    its length in the attack's own measure; ``last``: answers that the next pass is made of. ``losses``: a row for each
    iteration, None where a picture had reached the cap before. ``lengths``: (iteration, a row). ``num_queries``:
    answers that were asked for.
    """

    theta: Tensor
    label: str
    ordinary: list[Answer]
    last: list[Answer]
    best: Pictures
    best_length: list[float]
    momentum: Tensor
    weights: list[Weights]
    iteration: int = 0
    num_queries: int = 0
    cpu_s: float = 0.0
    losses: list[list[float | None]] = field(default_factory=list)
    lengths: list[tuple[int, list[float]]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write whole or not at all."""
        arrays: dict[str, Any] = {"theta": self.theta.numpy(), "momentum": self.momentum.numpy(), "best": self.best}
        plain = {name: value for name, value in vars(self).items() if name not in arrays}
        plain |= {name: [asdict(answer) for answer in plain[name]] for name in ("ordinary", "last")}
        content = io.BytesIO()
        np.savez(content, plain=np.array(json.dumps(plain)), **arrays)
        draft = path.with_suffix(".draft")
        draft.write_bytes(content.getvalue())
        draft.replace(path)

    @classmethod
    def load(cls, path: Path) -> State:
        """Raises: OSError, ValueError, KeyError: not a state."""
        with np.load(path, allow_pickle=False) as file:
            plain: dict[str, Any] = json.loads(str(file["plain"]))
            theta, momentum, best = (file[name] for name in ("theta", "momentum", "best"))
        plain |= {name: [Answer(**answer) for answer in plain[name]] for name in ("ordinary", "last")}
        plain["lengths"] = [(int(iteration), row) for iteration, row in plain["lengths"]]
        return cls(theta=torch.from_numpy(theta), momentum=torch.from_numpy(momentum), best=best, **plain)
