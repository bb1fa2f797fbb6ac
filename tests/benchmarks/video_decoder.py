"""What a decode of the nano model's clips takes: as it was done, and as it is, by turns.

Each side is a process of its own tree, with its own code and weights, that decodes one clip when it is told to.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from tests.benchmarks.common import ROOT, checked_out, markdown_table

BEFORE = "230611e3d1f7"
"""The last commit without the fast routes of a CPU (models/families/vdit/cpu_conv3d.py)."""
PAIRS = 25
SIDE = """
import json, sys, time
from pathlib import Path
import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count
from models.families.vdit.loading import load_vae
torch.set_num_threads(1)
vae = load_vae(Path("models/checkpoints/vdit-nano/vae"))
latents = torch.randn(1, 8, 8, 8, 8, generator=torch.Generator().manual_seed(0))
direct = {torch.ops.aten.mkldnn_convolution: lambda x, w, *_, out_shape, **__: conv_flop_count(x, w, out_shape)}
with torch.inference_mode():
    with FlopCounterMode(display=False, custom_mapping=direct) as counted:
        vae.decode(latents)
    parameters = sum(p.numel() for p in vae.decoder.parameters())
    print(json.dumps({"macs": counted.get_total_flops() // 2, "parameters": parameters}), flush=True)
    for _ in sys.stdin:
        started_s = time.perf_counter()
        vae.decode(latents)
        print(time.perf_counter() - started_s, flush=True)
"""


class Side:
    """A process that decodes; ``facts``: multiplications and parameters of its decoder."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.facts: dict[str, int] = json.loads(self._line())

    def decode_s(self) -> float:
        """Seconds of one decode."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


def measure(name: str, *, quick: bool) -> dict[str, Any]:
    """Both sides of each pair, and the median of their ratios."""
    with checked_out(BEFORE) as old, side_of(old) as before, side_of(ROOT) as after:
        for side in (before, after):
            side.decode_s()  # to warm up
        pairs = [(before.decode_s(), after.decode_s()) for _ in range(3 if quick else PAIRS)]
        sides = {"before": before.facts, "after": after.facts}
    return {
        "before": BEFORE,
        "sides": sides,
        "seconds": [[round(one, 5) for one in pair] for pair in pairs],
        "ratio": _spread([before_s / after_s for before_s, after_s in pairs]),
    }


@contextmanager
def side_of(root: Path) -> Iterator[Side]:
    """A process that runs in a tree."""
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", SIDE], cwd=root, env=environment, **pipes) as process:
        yield Side(process)


def _spread(values: list[float]) -> dict[str, float]:
    low, _, high = quantiles(values, n=4)
    return {"median": round(median(values), 2), "lower_quartile": round(low, 2), "upper_quartile": round(high, 2)}


def lines(document: dict[str, Any]) -> list[str]:
    """A table of both sides, and the ratio."""
    rows = []
    for column, side in enumerate(("before", "after")):
        facts, times = document["sides"][side], [pair[column] for pair in document["seconds"]]
        rows.append([side, facts["parameters"], round(facts["macs"] / 1e9, 2), round(1000 * median(times), 1)])
    macs = [document["sides"][side]["macs"] for side in ("before", "after")]
    ratio = document["ratio"]
    return [
        markdown_table(["decoder, 29 frames of 64x64", "parameters", "GMAC", "ms, median"], rows),
        "",
        f"{len(document['seconds'])} pairs by turns on one thread: {ratio['median']} times as fast (quartiles "
        f"{ratio['lower_quartile']} to {ratio['upper_quartile']}), {macs[0] / macs[1]:.2f} times fewer "
        f"multiplications. Before: commit {document['before']}.",
    ]
