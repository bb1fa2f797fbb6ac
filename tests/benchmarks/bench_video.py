"""Clips: what fewer steps, sparse attention, caches, fewer tokens, packing and an extension buy, each by itself.

    make bench-video                                            # all parts but gpu
    python -m tests.benchmarks.bench_video --only packing       # one part anew, the others as they were
    python -m tests.benchmarks.bench_video --only gpu           # published sizes, on a GPU

A part has ``measure(name, quick=...)``, a document, and ``lines``, what of it a reader wants. It says itself what its
sides are; they take turns in one run. Load: before, and the cores that other processes kept busy meanwhile.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from typing import Any

import torch

from tests.benchmarks.common import ForeignLoad, add_output_options, out_dir, provenance
from tests.benchmarks.video_clips import Missing

#: Name on the command line -> module and heading.
PARTS = {
    "steps": ("video_quality", "Fewer steps"),
    "sparsity": ("video_quality", "Sparse attention"),
    "ras": ("video_quality", "Fewer tokens: region-adaptive sampling"),
    "cache": ("video_cache", "Step caches"),
    "packing": ("video_packing", "Clips of different lengths in one batch"),
    "exvideo": ("video_exvideo", "40 frames: extended, and by windows of 8"),
    "memory": ("video_memory", "Memory of a frame"),
    "gpu": ("video_gpu", "Published sizes on a GPU"),
}
USUAL = [part for part in PARTS if part != "gpu"]


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, help="do these parts, keep the others")
    parser.add_argument("--threads", type=int, default=1)
    add_output_options(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folder = out_dir(args)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "video.json"
    document = json.loads(path.read_text()) if path.exists() else {}
    for part in args.only or USUAL:
        origin, started_s = provenance("video"), time.perf_counter()
        try:
            with ForeignLoad() as others:
                measured = _module(part).measure(part, quick=args.quick)
        except Missing as error:
            if args.only:
                raise SystemExit(f"{part}: {error}") from None
            print(f"\n{part} is left out: {error}", flush=True)
            continue
        took = {"took_s": round(time.perf_counter() - started_s), "foreign_cores": round(others.cores, 2)}
        document[part] = {**origin, **took, "threads": args.threads, **measured}
        print(f"\n## {PARTS[part][1]}\n", *_module(part).lines(document[part]), sep="\n", flush=True)
        # After each: a later one that fails loses nothing.
        path.write_text(json.dumps({name: document[name] for name in PARTS if name in document}, indent=1) + "\n")
    (folder / "video.md").write_text("\n".join(_page(document)) + "\n")


def _page(document: dict[str, Any]) -> list[str]:
    page = []
    for part, (_, heading) in PARTS.items():
        if part in document:
            its = document[part]
            hardware = its["hardware"]
            origin = (
                f"{its['date']}, commit {its['commit']}, {its['threads']} of {hardware['cores']} cores of "
                f"{hardware['cpu']}, torch {hardware['torch']}, load before {hardware['load_average_before']}, others "
                f"kept {its['foreign_cores']} cores busy, {its['took_s']} s; `{its['command']}`"
            )
            page += [f"## {heading}", "", origin, "", *_module(part).lines(its), ""]
    return page[:-1]


def _module(part: str) -> Any:
    return importlib.import_module(f"tests.benchmarks.{PARTS[part][0]}")


if __name__ == "__main__":
    main()
