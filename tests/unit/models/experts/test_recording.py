"""Loads of experts are counted by row and layer."""

from __future__ import annotations

import pytest
import torch

from models.methods.experts.recording import LoadRecorder


def test_counts_by_row_layer_and_expert() -> None:
    recorder = LoadRecorder(4)
    layers = [torch.randint(4, (6, 2)) for _ in range(3)]
    for ids in layers:
        recorder.record(ids)
    counts = recorder.counts(2)
    assert counts.shape == (2, 3, 4)
    assert counts.dtype == torch.int64
    for layer, ids in enumerate(layers):
        for row in range(2):
            for expert in range(4):
                assert counts[row, layer, expert] == (ids[row * 3 : row * 3 + 3] == expert).sum()


def test_refuses_what_it_cannot_count() -> None:
    recorder = LoadRecorder(4)
    with pytest.raises(ValueError, match="no layer"):
        recorder.counts(1)
    recorder.record(torch.zeros(6, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="6 tokens"):
        recorder.counts(4)
