"""The calls to chat replicas, through a Ray Serve handle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from ray.serve.handle import DeploymentHandle

from serving.delivery.replicas import is_replica_lost
from serving.delivery.stream.links import OpenCall, Route
from serving.delivery.stream.wire import ChoiceStart


class HandleCalls:
    """``ReplicaCalls`` on a handle of ``serving.replica.chat.deployment.Vlm``. Keyword arguments are for the router."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._open = handle.options(stream=True).open
        self._cancel = handle.cancel

    def open(self, gateway: str, session: int, starts: list[ChoiceStart], route: Route) -> OpenCall:
        """See ``ReplicaCalls``."""
        call = self._open.remote(
            gateway, session, starts, key=route.key, predicted_s=route.predicted_s, avoid=route.avoid
        )
        return cast(OpenCall, call)

    async def cancel(self, replica_id: str, gateway: str, ids: list[int]) -> Mapping[int, float]:
        """See ``ReplicaCalls``."""
        return cast(Mapping[int, float], await self._cancel.remote(gateway, ids, replica=replica_id))

    def is_lost(self, error: BaseException) -> bool:
        """See ``ReplicaCalls``."""
        return is_replica_lost(error)
