"""Defaults of each profile: laid under what a user writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serving.config.sections import Profile

PROFILES: Mapping[Profile, Mapping[str, Any]] = {
    "local": {},
    "gpu": {
        "models": [
            {"id": "dyn-perceiver-nano", "gpus": 0.2, "device": "cuda", "options": {"max_batch": 64}},
            # vLLM starts only where nearly all of a GPU's memory is free: more than half, so that no two share one.
            {
                "id": "texthawk2-nano",
                "gpus": 0.8,
                "device": "cuda",
                "options": {"kv_cache_mb": 4096, "max_num_seqs": 64, "enforce_eager": False},
            },
            {"id": "vdit-nano"},
        ],
        "gateway": {"replicas": 2, "media_workers": 4},
        "drain_s": 10.0,
    },
    "cluster": {
        "http": {"host": "0.0.0.0", "metrics": False},
        "redis": {"url": "redis://vireo-redis:6379/0"},
        "gateway": {"replicas": 2, "media_workers": 2},
        # No videos: clips need a store that all nodes reach (jobs.store), which only the operator can name.
        "models": [{"id": "dyn-perceiver-nano", "replicas": 2}, {"id": "texthawk2-nano", "replicas": 2}],
        "drain_s": 30.0,
    },
}
