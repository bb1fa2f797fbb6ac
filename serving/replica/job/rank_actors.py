"""The other ranks as Ray actors, in the placement group of the replica whose first rank is the replica itself."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from models.parallel.launch import RankConfig
from serving.errors import EngineFailed
from serving.replica.job.rank import Rank, RankRecipe

_PORTS = range(20_000, 25_000)
"""Where first ranks listen: below Ray's own (``serving.system.ray_env``) and those that Linux deals out for outgoing
connections, one of which could take a port between now and the moment at which it is bound."""


def _free_port(host: str) -> int:
    """Raises: EngineFailed: all are taken."""
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((host, port))
            return port
    raise EngineFailed(f"no free port from {_PORTS.start} to {_PORTS.stop - 1} for the ranks of a model")


@dataclass(frozen=True, kw_only=True)
class RankActors:
    """``num_ranks`` counts the first one, which is this process. ``placement_group`` has one bundle for each rank in
    order, the first one perhaps left out; without one, actors go wherever there is room. They end with this process."""

    num_ranks: int
    cpus: float = 1.0
    gpus: float = 0.0
    backend: str = "gloo"
    timeout_s: float = 60.0
    placement_group: PlacementGroup | None = None

    def world(self) -> RankConfig:
        """The world as the first rank sees it: it listens on a free port of this node."""
        host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        return RankConfig(
            rank=0,
            world_size=self.num_ranks,
            init_method=f"tcp://{host}:{_free_port(host)}",
            backend=self.backend,
            timeout_s=self.timeout_s,
        )

    def start(self, recipe: RankRecipe, world: RankConfig) -> Sequence[Any]:
        """Handles of ``Rank`` for the ranks from 1 on."""
        return [self._make(recipe, replace(world, rank=rank)) for rank in range(1, self.num_ranks)]

    def _make(self, recipe: RankRecipe, config: RankConfig) -> Any:
        options: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_restarts": 0}
        if self.placement_group is not None:
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                placement_group=self.placement_group,
                placement_group_bundle_index=config.rank - (self.num_ranks - self.placement_group.bundle_count),
            )
        return ray.remote(Rank).options(**options).remote(recipe, config)

    def stop(self, ranks: Sequence[Any]) -> None:
        """End them, whatever they do."""
        for rank in ranks:
            ray.kill(rank)
