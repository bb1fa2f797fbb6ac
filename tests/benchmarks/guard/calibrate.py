"""Writes the ``guard.json`` of the nano models from the traces of the corpus' calibration part.

python -m tests.benchmarks.guard.calibrate --model texthawk2-nano

``vireo guard calibrate`` does the same for any model from recorded requests, with an engine that answers one after
another. Here hundreds share a batch, in the way of ``loadtest.adversarial.victim``, whose tests hold it to the served
one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from loadtest.adversarial.victim import load_victim
from models.registry import find
from serving.guard.fit import fit
from serving.guard.written import special_ids, write_calibration
from tests.benchmarks.guard.corpus import HARD_SHARE, MAX_TOKENS, MODELS, SEEDS
from tests.benchmarks.guard.evidence import Kept, benign_of, benign_subjects, evidence_file, squeeze
from tests.benchmarks.guard.traces import OUT, read


def calibrate(model: str, num_squeezed: int) -> Path:
    """From all traces that are there; the first ``num_squeezed`` are squeezed. Returns the path."""
    torch.set_num_threads(1)
    victim, folder = load_victim(model), find(model)[1].weights
    assert folder is not None, "the victim was loaded from it"
    traces = read(OUT / model / "calibration.jsonl")
    subjects = benign_subjects(traces, model, "calibration", victim)
    kept = Kept(OUT / model / evidence_file(victim.weights))
    squeeze(subjects[:num_squeezed], kept, victim)
    calibration = fit(
        [benign_of(one, kept[one.key]) for one in subjects],
        model=model,
        checkpoint_sha256=victim.weights,
        special_ids=special_ids(folder),
    )
    made = {
        "by": "python -m tests.benchmarks.guard.calibrate",
        "corpus": "tests/benchmarks/guard/corpus.py, part calibration",
        "seed": SEEDS["calibration"],
        "places": len(traces),
        "hard_share": HARD_SHARE,
        "max_tokens": MAX_TOKENS,
        "mean_tokens": round(float(np.mean([trace.length for trace in traces])), 1),
        "numpy": np.__version__,
        "torch": torch.__version__,
    }
    return write_calibration(calibration, folder, made)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, action="append", help="default: all")
    parser.add_argument("--squeezed", type=int, default=0, help="pictures whose embedding is squeezed; default none")
    args = parser.parse_args()
    for model in args.model or MODELS:
        print(calibrate(model, args.squeezed))


if __name__ == "__main__":
    main()
