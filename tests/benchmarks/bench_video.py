"""Clips: what fewer steps, sparse attention, caches, fewer tokens, packing, an extension and faster decoding buy.

    make bench-video                                            # all parts but gpu
    python -m tests.benchmarks.bench_video --only packing       # one part anew, the others as they were
    python -m tests.benchmarks.bench_video --only gpu           # published sizes, on a GPU

A part has ``measure(name, quick=...)``, a document, and ``lines``, what of it a reader wants. It says itself what its
sides are; they take turns in one run. Load: before, and the cores that other processes kept busy meanwhile.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from tests.benchmarks.common import ForeignLoad, out_dir, parser_of, provenance
from tests.benchmarks.parts import Parts, module_of, run_parts

#: Name on the command line -> module and heading.
PARTS: Parts = {
    "steps": ("video_quality", "Fewer steps"),
    "sparsity": ("video_quality", "Sparse attention"),
    "ras": ("video_quality", "Fewer tokens: region-adaptive sampling"),
    "cache": ("video_cache", "Step caches"),
    "packing": ("video_packing", "Clips of different lengths in one batch"),
    "exvideo": ("video_exvideo", "40 frames: extended, and by windows of 8"),
    "decoder": ("video_decoder", "Decoding: faster routes on a CPU"),
    "memory": ("video_memory", "Memory of a frame"),
    "gpu": ("video_gpu", "Published sizes on a GPU"),
}
USUAL = [part for part in PARTS if part != "gpu"]


def main() -> None:
    """Measure what is asked for."""
    parser = parser_of(__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, help="do these parts, keep the others")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    def measure(part: str) -> dict[str, Any]:
        origin, started_s = provenance("video"), time.perf_counter()
        with ForeignLoad() as others:
            measured = module_of(PARTS, part).measure(part, quick=args.quick)
        took = {"took_s": round(time.perf_counter() - started_s), "foreign_cores": round(others.cores, 2)}
        return {**origin, **took, "threads": args.threads, **measured}

    run_parts("video", PARTS, args.only or USUAL, measure, out_dir(args), must=bool(args.only))


if __name__ == "__main__":
    main()
