"""What the system sees: settings without a single ``auto``, and what follows from them."""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from serving.config.models import OptionsOf, ResolvedModel, resolve_models
from serving.config.sections import RedisSettings, Settings
from serving.errors import ConfigError

SECRET_NAME = "secret"
"""File in ``run_dir``, for this user only."""
MIN_SECRET_CHARS = 16
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_MAX_SOCKET_PATH_BYTES = 107
"""What Linux allows for the address of a unix socket."""


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig:
    """Settings without a single ``auto``, and what follows from them. The only form that the system sees."""

    settings: Settings
    models: tuple[ResolvedModel[Any], ...]
    run_dir: Path
    redis_url: str | None = field(repr=False)
    """None: the embedded server, whose socket is ``redis_socket``."""
    secret: str = field(repr=False)
    media_workers: int
    allow_anonymous_loopback: bool
    has_own_secret: bool = field(compare=False)
    """Whether nobody has set one."""

    def models_with(self, options: type[OptionsOf]) -> tuple[ResolvedModel[OptionsOf], ...]:
        """Those of one kind of delivery."""
        return tuple(model for model in self.models if isinstance(model.options, options))

    def models_for(self, task: str) -> tuple[str, ...]:
        """Ids of those that can be asked for that task."""
        return tuple(model.id for model in self.models if task in model.tasks)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return self.settings.http.host in _LOOPBACK

    @property
    def redis_socket(self) -> Path:
        """Socket of the embedded server."""
        return _socket_in(self.run_dir)

    @property
    def store_url(self) -> str:
        """Where the stores connect."""
        return self.redis_url or f"unix://{self.redis_socket}"

    @property
    def artefact_url(self) -> str:
        """Where clips are kept."""
        return self.settings.jobs.store

    def keep_secret(self) -> None:
        """Leave a secret that nobody has set to the next start: what outlives this one in Redis is sealed with it."""
        if not self.has_own_secret:
            return
        path = self.run_dir / SECRET_NAME
        draft = path.with_name(f".{SECRET_NAME}.{os.getpid()}")
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(self.secret)
        draft.replace(path)

    @property
    def metrics_dir(self) -> Path:
        """Files of prometheus-client's multiprocess mode."""
        return self.run_dir / "metrics"

    def describe(self) -> dict[str, Any]:
        """Everything, for the log, with secrets masked."""
        plain = {name: value for name, value in vars(self).items() if name not in ("settings", "models")}
        models = [f"{model.id} ({model.family}, {model.shape})" for model in self.models]
        described = {**plain, "models": models, "settings": self.settings.model_dump(mode="json"), "secret": "***"}
        described["settings"]["redis"]["secret"] = "***"
        described["settings"]["redis"]["password"] = "***" if self.settings.redis.password else None
        described["redis_url"] = mask_url(self.redis_url)
        described["settings"]["redis"]["url"] = mask_url(self.settings.redis.url)
        for tenant in described["settings"]["tenants"]:
            tenant["api_key_sha256"] = [f"{digest[:6]}***" for digest in tenant["api_key_sha256"]]
        return {key: str(value) if isinstance(value, Path) else value for key, value in described.items()}


def mask_url(url: str | None) -> str | None:
    """The URL without user, password and query, any of which may hold a secret."""
    if url is None:
        return None
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url if url == "embedded" else "***"
    user, at, address = rest.rpartition("@")
    if "?" in user:  # a password with a question mark, or a query with an at sign: which, cannot be told
        return f"{scheme}://***"
    host, question, _query = address.partition("?")
    return f"{scheme}://{'***@' if at else ''}{host}{'?***' if question else ''}"


def resolve(settings: Settings) -> ResolvedConfig:
    """Decide every ``auto`` and check what no single field can.

    Raises: ConfigError: a public address without API keys; a profile that needs an external Redis and has none.
    """
    loopback = settings.http.host in _LOOPBACK
    has_keys = any(tenant.api_key_sha256 for tenant in settings.tenants)
    if not has_keys and not loopback:
        raise ConfigError(
            f"refusing to listen on {settings.http.host} without API keys: set tenants[].api_key_sha256 in the "
            "configuration, or http.host to 127.0.0.1"
        )
    embedded = settings.redis.url == "embedded"
    if embedded and settings.redis.password is not None:
        raise ConfigError("redis.password is set, but the embedded server has none: set redis.url, too")
    if embedded and settings.profile == "cluster":
        raise ConfigError("profile 'cluster' needs redis.url: gateways on several nodes must share one server")
    if settings.profile == "cluster" and settings.http.cors_origins:
        raise ConfigError("profile 'cluster' has no http.cors_origins: allow them in what stands before the Service")
    if settings.profile == "cluster" and settings.redis.secret == "auto":
        raise ConfigError("profile 'cluster' needs redis.secret: gateways must agree on it (openssl rand -hex 32)")
    models = resolve_models(settings.models)
    if (
        settings.profile == "cluster"
        and any(model.shape == "job" for model in models)
        and settings.jobs.store == "auto"
    ):
        raise ConfigError("profile 'cluster' needs jobs.store: gateways on several nodes must read the same clips")
    if settings.http.port == settings.http.grpc_port:
        raise ConfigError(f"http.port and http.grpc_port are both {settings.http.port}; give each its own")
    decided = _decide(settings, models)
    config = ResolvedConfig(
        settings=decided,
        models=models,
        run_dir=Path(decided.run_dir),
        redis_url=None if embedded else _with_password(decided.redis),
        secret=decided.redis.secret,
        media_workers=_media_workers(settings),
        allow_anonymous_loopback=not has_keys,
        has_own_secret=settings.redis.secret == "auto",
    )
    length = len(os.fsencode(config.redis_socket))
    if embedded and length > _MAX_SOCKET_PATH_BYTES:
        raise ConfigError(
            f"the path {config.redis_socket} has {length} bytes; limit of a socket is {_MAX_SOCKET_PATH_BYTES}: "
            "set a shorter run_dir"
        )
    return config


def store_of(settings: Settings, run_dir: Path) -> tuple[str, str]:
    """Where the stores of a system are that has been started with these settings, and their secret.

    Raises: ConfigError: the secret is not here.
    """
    url = _with_password(settings.redis) if settings.redis.url != "embedded" else f"unix://{_socket_in(run_dir)}"
    if settings.redis.secret != "auto":
        return url, settings.redis.secret
    if not (run_dir / SECRET_NAME).exists():
        raise ConfigError(
            f"redis.secret is not set and {run_dir} has none: name the configuration that the system was started with "
            "(--config, VIREO_CONFIG, VIREO_SECRETS)"
        )
    return url, _kept_secret(run_dir)


def _socket_in(run_dir: Path) -> Path:
    return run_dir / "redis" / "redis.sock"


def _with_password(redis: RedisSettings) -> str:
    if redis.password is None:
        return redis.url
    scheme, _, rest = redis.url.partition("://")
    if "@" in rest:
        raise ConfigError("redis.url names a user or a password, and redis.password is set: keep one of the two")
    return f"{scheme}://:{quote(redis.password, safe='')}@{rest}"


def _decide(settings: Settings, models: tuple[ResolvedModel[Any], ...]) -> Settings:
    """A copy of the settings without ``auto``."""
    run_dir = run_dir_of(settings)
    secret = _kept_secret(run_dir) if settings.redis.secret == "auto" else settings.redis.secret
    meter = "device" if settings.energy.meter == "auto" else settings.energy.meter
    store = str(run_dir / "artefacts") if settings.jobs.store == "auto" else settings.jobs.store
    return settings.model_copy(
        update={
            "redis": settings.redis.model_copy(update={"secret": secret}),
            "gateway": settings.gateway.model_copy(update={"media_workers": _media_workers(settings)}),
            "models": tuple(model.decided() for model in models),
            "jobs": settings.jobs.model_copy(update={"store": store}),
            "energy": settings.energy.model_copy(update={"meter": meter}),
            "run_dir": str(run_dir),
        }
    )


def _kept_secret(run_dir: Path) -> str:
    """That of the start before, or a new one.

    Raises: ConfigError: others can read or replace it.
    """
    path = run_dir / SECRET_NAME
    try:
        status, secret = path.lstat(), path.read_text()
    except FileNotFoundError:
        return secrets.token_hex(32)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"cannot read the secret at {path} ({type(error).__name__}); remove it") from None
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise ConfigError(
            f"others may read or replace the secret at {path}: remove it; jobs of earlier starts are lost"
        )
    return secret if len(secret) >= MIN_SECRET_CHARS else secrets.token_hex(32)


def _media_workers(settings: Settings) -> int:
    workers = settings.gateway.media_workers
    return max(2, min(4, (os.cpu_count() or 2) // 2)) if workers == "auto" else workers


def run_dir_of(settings: Settings) -> Path:
    """Folder of this start, by its port unless it is named."""
    if settings.run_dir != "auto":
        return Path(settings.run_dir).resolve()
    base = os.environ.get("VIREO_RUN_DIR") or str(Path(tempfile.gettempdir()) / f"vireo-{os.getuid()}")
    return Path(base) / str(settings.http.port)
