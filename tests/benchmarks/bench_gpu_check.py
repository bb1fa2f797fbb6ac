"""Everything of ours that only a GPU can show, in minutes, on a machine that has torch and Triton and little else.

    scripts/gpu_check.sh                                     # eight minutes; docs/benchmarks/gpu-check.{json,md,png}
    python -m tests.benchmarks.bench_gpu_check --device cpu  # tries the script: small shapes, Triton's interpreter

Parts run one after the other, each in a process of its own, and are stopped when their time is over: what a part has
written by then counts, and the others still run. Neither Ray nor vLLM is imported, nor anything of ``serving``.

``kernels``: each Triton kernel against its plain twin at the shapes of Open-Sora-Plan and HunyuanVideo, bfloat16, two
heads. ``attention``: ``bench_attention`` at those shapes with all heads. ``steps``: denoising steps of Open-Sora-Plan
v1.2 at 29x720p, dense and sparse, random weights. ``exits``: RegNetY-800MF of Dynamic Perceiver, stage by stage.
``experts``: grouped SwiGLU against the published loop. ``training``: what is left of the time goes into
``texthawk2-nano``, from the committed weights; the folder ``reader`` beside the results can be trained on, or exported.
Where transformers, Pillow or the fonts are missing, it is left out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.benchmarks.bench_attention import search_shares
from tests.benchmarks.common import ROOT, markdown_table, out_dir, parser_of, provenance, write_results

SHARES = {"kernels": 0.2, "attention": 0.4, "steps": 0.2, "exits": 0.08, "experts": 0.07, "training": 0.05}
"""Of the time, at most; what a part leaves is there for the next."""
AIMS = {"tile 2:6": 1.7, "tile 3:21": 3.3, "adaspa 0.8": 3.0}
_PART = "VIREO_GPU_CHECK_PART"


def main() -> None:
    """Command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together (default 8)")
    parser.add_argument("--only", choices=list(SHARES), action="append", help="this part (may be repeated)")
    args = parser.parse_args()
    if part := os.environ.get(_PART):
        run_part(part, args.device, 60.0 * args.minutes, out_dir(args))
        return
    document = {**provenance("gpu_check"), "benchmark": "gpu-check", "device": args.device, "minutes": args.minutes}
    folder = out_dir(args)
    document["parts"] = carried_out(args.only or list(SHARES), args.device, 60.0 * args.minutes, folder)
    write_results(folder, document, shown(document["parts"]))
    if find_spec("matplotlib") is not None:
        plot(document["parts"], folder / "gpu-check.png")
    if any(part["problem"] for part in document["parts"].values()):
        sys.exit(1)


def carried_out(chosen: list[str], device: str, seconds: float, folder: Path) -> dict[str, Any]:
    """Rows and the problem, if there was one, of each part."""
    began_s, found = time.monotonic(), {}
    for place, part in enumerate(chosen):
        left_s = seconds - (time.monotonic() - began_s)
        ours = SHARES[part] / sum(SHARES[one] for one in chosen[place:])
        found[part] = _in_a_process(part, device, left_s * ours, folder)
        print(f"{part}: {found[part]['problem'] or 'done'} ({found[part]['seconds']:.0f} s)", flush=True)
    return found


def _in_a_process(part: str, device: str, limit_s: float, folder: Path) -> dict[str, Any]:
    """One part. Its rows are lines of JSON on its standard output, so that a part that is stopped has said some."""
    environment = {**os.environ, _PART: part}
    if device == "cpu":
        environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.benchmarks.bench_gpu_check", "--device", device]
    command += ["--minutes", str(limit_s / 60), "--out", str(folder)]
    began_s, problem = time.monotonic(), ""
    try:
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit_s)
        said = run.stdout
        if run.returncode:
            problem = (run.stderr.strip().splitlines() or [f"ended with {run.returncode}"])[-1]
    except subprocess.TimeoutExpired as late:
        said = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
        problem = f"stopped after {limit_s:.0f} s"
    rows = [json.loads(line) for line in said.splitlines() if line.startswith("{") and line.endswith("}")]
    if not problem and (wrong := sum(row.get("ok") is False for row in rows)):
        problem = f"{wrong} of {len(rows)} differ from their plain twin"
    return {"rows": rows, "problem": problem, "seconds": round(time.monotonic() - began_s, 1)}


def run_part(part: str, device: str, limit_s: float, folder: Path) -> None:
    """In its own process. Raises: ImportError: the machine lacks what the part needs."""
    from tests.benchmarks import gpu_check_parts

    is_training = part == "training"
    rows = gpu_check_parts.training(device, limit_s, folder) if is_training else gpu_check_parts.PARTS[part](device)
    for row in rows:
        print(json.dumps(row), flush=True)


def aims(rows: Sequence[dict[str, Any]]) -> list[list[object]]:
    """What attention was meant to reach, and the least of what it reached; a dash where it was not measured."""
    table: list[list[object]] = []
    for mask, least in AIMS.items():
        found = [row["speedup"] for row in rows if row["mask"] == mask and row["side"].startswith("ours")]
        table.append([f"{mask}, times as fast as dense", f">= {least}", min(found, default=None)])
    shares = [share for *_, share in search_shares(list(rows))]
    return [*table, ["search, share of all attention", "<= 5%", max(shares, default=None, key=_percent)]]


def _percent(text: object) -> float:
    return float(str(text).rstrip("%"))


def shown(parts: Mapping[str, Any]) -> str:
    """The aims, and a table a part."""
    page = []
    if rows := parts.get("attention", {"rows": []})["rows"]:
        page += ["## aims", "", markdown_table(["of", "aim", "worst"], aims(rows)), ""]
    for name, part in parts.items():
        page += [f"## {name}", "", part["problem"] or f"{part['seconds']:.0f} s", ""]
        if rows := part["rows"]:
            header = list(dict.fromkeys(key for row in rows for key in row))
            page += [markdown_table(header, [[row.get(key) for key in header] for row in rows]), ""]
    return "\n".join(page)


def plot(parts: Mapping[str, Any], path: Path) -> None:
    """Speed-ups over dense attention beside their limits."""
    from matplotlib.figure import Figure

    rows = [row for row in parts.get("attention", {"rows": []})["rows"] if "speedup" in row]
    if not rows:
        return
    figure = Figure(figsize=(8, 0.3 * len(rows) + 1.5), layout="constrained")
    axes = figure.subplots()
    names = [f"{row.get('shape', row['tokens'])} {row['mask']} {row['side']}" for row in rows]
    axes.barh(names, [row["limit"] for row in rows], color="0.85", label="limit")
    axes.barh(names, [row["speedup"] for row in rows], height=0.5, label="measured")
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xlabel("times as fast as dense attention")
    axes.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
