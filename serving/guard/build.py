"""Puts the guard of one gateway together, as configured."""

from __future__ import annotations

from collections.abc import Mapping

from schedulers.guard.calibration import GuardCalibration
from serving.config import ResolvedConfig
from serving.guard.fingerprints import Fingerprints
from serving.guard.gateway import ChatGuard
from serving.guard.pictures import Pictures
from serving.guard.screen import shipped_screen
from serving.guard.store import Quarantine
from serving.stores.breaker import BreakerConfig
from serving.stores.connection import RedisConfig
from serving.telemetry.events import Sink
from serving.tenants import LiveTenants


def build_guard(
    config: ResolvedConfig, calibrations: Mapping[str, GuardCalibration], tenants: LiveTenants, tell: Sink
) -> ChatGuard:
    """``calibrations``: by model, of those that have one."""
    settings, secret = config.settings.guard, config.secret.encode()
    redis = RedisConfig(url=config.store_url, timeout_s=config.settings.redis.timeout_s, breaker=BreakerConfig())
    pictures = Pictures(
        shipped_screen(secret) if settings.screen else None,
        Quarantine(redis, secret, ttl_s=settings.quarantine_s, tell=tell) if settings.replay else None,
        Fingerprints(secret),
        tell,
    )
    return ChatGuard(
        calibrations,
        settings,
        pictures,
        modes=tenants.view(lambda tenant: tenant.guard),
        trusted=tenants.view(lambda tenant: tenant.guard_trusted),
        tell=tell,
    )
