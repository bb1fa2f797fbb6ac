"""The Gateway node: the Ray Serve ingress deployment. HTTP and gRPC come in here, behind HAProxy.

It owns what the front door needs, one of each per replica: decode workers, the Redis client, and a dispatcher per
served model. Policy lives in the tasks' services; this file only puts the pieces together and takes them apart.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import structlog
from ray import serve
from ray.serve.handle import DeploymentHandle

from serving.config import ResolvedConfig
from serving.front.auth import Authenticator, Credentials
from serving.front.http.json_body import JsonReader
from serving.gateway.grpc import GrpcMethods
from serving.limits import IngressLimits
from serving.system.process import freeze_start_up
from serving.telemetry import setup
from serving.tenants import LiveTenants, Tenants

if TYPE_CHECKING:
    from fastapi import FastAPI

_log = structlog.get_logger(__name__)


@serve.ingress()
class Gateway(GrpcMethods):
    """Ray Serve deployment class. The handles lead to the inner deployment of each model id."""

    def __init__(self, config: ResolvedConfig, handles: dict[str, DeploymentHandle[Any]]) -> None:
        tell = setup(config.metrics_dir, config.settings.log_level)
        from serving.gateway.parts import build_parts

        self._parts = build_parts(config, handles, tell)
        self._http = config.settings.http
        self._front: dict[str, Any] = {
            "service": self._parts.service,
            "authenticator": build_authenticator(config, self._parts.tenants),
            "limits": build_limits(config),
            "tell": tell,
        }
        super().__init__(**self._front)
        self._json = JsonReader()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve once the constructor is through."""
        from serving.gateway.http import build_http_app
        from serving.telemetry.exposition import exposition

        app = build_http_app(
            **self._front,
            metrics_page=exposition if self._http.metrics else None,
            metrics_needs_key=self._http.metrics_need_key,
            adds_request_id=False,
            json_reader=self._json,
        )
        app.router.lifespan_context = self._lifespan
        return app

    @asynccontextmanager
    async def _lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        await self._parts.start()
        freeze_start_up()
        _log.info("gateway ready", models=self._parts.model_ids)
        try:
            yield
        finally:
            self.end_watches()
            await self._parts.stop()
            self._json.close()


def build_authenticator(config: ResolvedConfig, tenants: LiveTenants) -> Authenticator:
    """Keys to tenants, as they are from time to time."""
    keys = {tenant.name: tenant.api_key_sha256 for tenant in config.settings.tenants}
    origins = config.settings.http.cors_origins
    authenticator = Authenticator(keys, config.allow_anonymous_loopback, origins=origins)
    tenants.each(lambda now: authenticator.use(_credentials(now)))
    return authenticator


def _credentials(tenants: Tenants) -> Credentials:
    settings = tenants.settings.values()
    return Credentials(
        tenants.keys,
        needs_key=tenants.needs_key,
        logprobs=frozenset(tenant.name for tenant in settings if tenant.allow_logprobs),
        image_logprobs=frozenset(tenant.name for tenant in settings if tenant.image_logprobs),
        admins=frozenset(tenant.name for tenant in settings if tenant.admin),
    )


def build_limits(config: ResolvedConfig) -> IngressLimits:
    """Bounds of the front door."""
    max_bytes_per_image = config.settings.media.max_bytes_per_image
    return IngressLimits(**config.settings.limits.model_dump(), max_bytes_per_image=max_bytes_per_image)
