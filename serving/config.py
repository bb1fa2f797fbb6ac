"""Configuration: strict at the edge, resolved once into frozen values, logged in full with secrets masked.

    profile defaults  <-  YAML file (--config or VIREO_CONFIG)  <-  files below VIREO_SECRETS, named section.field
                      <-  VIREO_SET / --set section.field=value
                      ->  Settings (pydantic, extra="forbid")   ->  resolve()  ->  ResolvedConfig (frozen)

Environment variables are read in this file only. ``auto`` never survives ``resolve``.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import stat
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from serving.errors import ConfigError
from serving.media.hosts import AllowedHosts

Profile = Literal["local", "gpu", "cluster"]
Auto = Literal["auto"]
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_SHA256_HEX = r"^[0-9a-f]{64}$"
_Count = Annotated[int, Field(ge=1, le=64)]
SECRET_NAME = "secret"
"""File in ``run_dir``, for this user only."""
MIN_SECRET_CHARS = 16
_MAX_SOCKET_PATH_BYTES = 107
"""What Linux allows for the address of a unix socket."""
DEFAULT_CHAT_MODELS: tuple[str, ...] = ("texthawk2-nano",)
"""Chat models that every profile serves unless told otherwise: those whose weights are in the repository."""
DEFAULT_VIDEO_MODELS: tuple[str, ...] = ("vdit-nano",)
"""Video models that every profile but cluster serves unless told otherwise: those whose weights are here."""


class _Section(BaseModel):
    """A misspelt key must fail: ignored, it would quietly lose the setting. So must `yes` where a number belongs."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class HttpSettings(_Section):
    """Where clients connect."""

    host: str = Field("127.0.0.1", description="Address that HTTP and gRPC listen on.")
    port: int = Field(8000, ge=1, le=65535, description="HTTP port.")
    grpc_port: int = Field(9000, ge=1, le=65535, description="gRPC port.")
    metrics: bool = Field(
        True, description="Whether /metrics answers on the HTTP port; else `vireo metrics` serves it."
    )
    metrics_need_key: bool = Field(False, description="Whether /metrics asks for an API key.")


class TenantSettings(_Section):
    """One tenant: who it is and what it may spend."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="Label in metrics and part of cache keys.")
    api_key_sha256: tuple[Annotated[str, Field(pattern=_SHA256_HEX)], ...] = Field(
        (),
        strict=False,
        repr=False,
        description="SHA-256 of each accepted key, in hexadecimal: printf %s KEY | sha256sum.",
    )
    joules_per_s: float = Field(1e6, gt=0, description="Refill of the joule bucket, joules per second.")
    burst_j: float = Field(1e7, gt=0, description="Size of the joule bucket, joules.")
    seconds_per_s: float = Field(1e3, gt=0, description="Refill of the compute bucket, engine seconds per second.")
    burst_s: float = Field(1e4, gt=0, description="Size of the compute bucket, engine seconds.")
    max_priority: Literal["low", "normal", "high"] = Field(
        "normal", description="Highest priority that its requests get; what asks for more is lowered, and says so."
    )
    allow_logprobs: bool = Field(
        False,
        description="Whether chat answers may show and bias probabilities of tokens: they feed black-box attacks.",
    )


class RedisSettings(_Section):
    """Results, quotas and, later, jobs."""

    url: str = Field(
        "embedded",
        pattern=r"^(embedded|(redis|rediss|unix)://.+)$",
        repr=False,
        description="redis://, rediss:// or unix:// URL; 'embedded' starts a real server. A certificate of one's own "
        "authority: rediss://HOST:PORT/0?ssl_ca_certs=FILE.",
    )
    password: str | None = Field(
        None, min_length=1, repr=False, description="Password, where the URL has none; best in a file (VIREO_SECRETS)."
    )
    timeout_s: float = Field(0.05, gt=0, le=5, description="Seconds for a call, connecting included.")
    cache: bool = Field(True, description="Whether exact results are cached.")
    cache_ttl_s: float = Field(3600.0, gt=0, description="Seconds that a result is kept.")
    secret: str = Field(
        "auto",
        pattern=r"^(auto|.{16,})$",
        repr=False,
        description="Key of the seal on jobs, checkpoints and cached values, 16 characters or more: what was sealed "
        "with another is ignored. 'auto' keeps one in run_dir.",
    )


class GatewaySettings(_Section):
    """The front door."""

    replicas: int = Field(1, ge=1, le=64, description="Gateway replicas.")
    cpus: float = Field(1.0, gt=0, description="CPUs that Ray reserves for each.")
    media_workers: _Count | Auto = Field(
        "auto",
        description="Decode processes per gateway replica, 1 to 64; of 2 or more, one is kept for short decodes.",
    )
    max_in_flight: int = Field(512, ge=1, description="Requests served at a time by one gateway; more are refused.")
    default_deadline_s: float = Field(30.0, gt=0, le=3600, description="Deadline of a request that brings none.")
    calls_in_flight: int = Field(
        2, ge=1, le=64, description="Calls per inner replica on the way at a time; samples beyond share the next call."
    )


class ModelSettings(_Section):
    """One served model: an inner deployment."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$", description="Model id, see `vireo models list`.")
    checkpoint_dir: Path | None = Field(
        None, strict=False, description="Folder with the weights; the packaged ones when absent."
    )
    replicas: int = Field(1, ge=1, le=256, description="Replicas of the deployment.")
    cpus: float = Field(1.0, gt=0, description="CPUs that Ray reserves for each replica.")
    gpus: float = Field(0.0, ge=0, description="GPUs that Ray reserves for each replica.")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="Torch device.")
    threads: _Count | Auto = Field("auto", description="Torch threads per replica, 1 to 64.")
    max_batch: int = Field(32, ge=1, le=1024, description="Samples per engine call.")
    max_queue: int = Field(4096, ge=1, le=1_000_000, description="Samples waiting per replica; more are refused.")
    max_held_bytes: int = Field(1 << 30, ge=1 << 20, description="Bytes that admitted samples may hold.")
    max_ongoing_calls: int = Field(256, ge=1, description="Handle calls that Ray lets into one replica.")


class VlmSettings(_Section):
    """One served chat model: an inner deployment, one engine per replica."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$", description="Model id, see `vireo models list`.")
    checkpoint_dir: Path | None = Field(
        None, strict=False, description="Folder with the weights; the packaged ones when absent."
    )
    engine: Literal["auto", "vllm", "torch", "fake"] = Field(
        "auto", description="auto: vllm where it is installed, else torch. fake has no model; for tests of plumbing."
    )
    replicas: int = Field(1, ge=1, le=256, description="Replicas of the deployment.")
    cpus: float = Field(1.0, gt=0, description="CPUs that Ray reserves for each replica.")
    gpus: float = Field(0.0, ge=0, description="GPUs that Ray reserves for each replica.")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda)$", description="Torch device.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Numbers of weights and KV cache.")
    threads: _Count | Auto = Field("auto", description="Torch threads per replica, 1 to 64.")
    max_model_len: int | None = Field(
        None, ge=64, le=1 << 20, description="Most tokens of prompt and answer; the model's own limit when absent."
    )
    max_output_tokens: int = Field(512, ge=1, le=1 << 20, description="Most tokens of one answer.")
    max_num_seqs: int = Field(16, ge=1, le=1024, description="Answers generated at a time by one replica.")
    max_queue: int = Field(256, ge=0, le=100_000, description="Answers waiting per replica; more are refused.")
    max_images: int = Field(16, ge=1, le=1024, description="Images of one chat.")
    max_batched_tokens: int = Field(2048, ge=64, le=1 << 20, description="Most tokens of one engine step.")
    kv_cache_mb: int = Field(256, ge=1, description="MiB of KV cache per replica, taken at the start.")
    image_cache_mb: int = Field(256, ge=0, description="MiB of tiles that one replica keeps for repeated images.")
    encoder_cache_tokens: int = Field(16_384, ge=0, description="Image tokens whose embeddings one replica keeps.")
    enforce_eager: bool = Field(True, description="Whether vLLM runs without compiling; compiling starts slowly.")
    stream_interval_ms: float = Field(
        20.0,
        ge=0,
        le=1000,
        description="Between its first token and its end, an answer is sent on so often at most; 0: at every step.",
    )
    stuck_after_s: float = Field(
        120.0,
        gt=0,
        le=3600,
        description="Seconds without a step, with requests there, after which a replica is replaced.",
    )
    watts: float = Field(
        6.0, gt=0, description="Power of a busy replica, an assumption: joules are busy seconds times this."
    )


class VideoModelSettings(_Section):
    """One served video model: an inner deployment whose replicas pull durable jobs."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$", description="Model id, see `vireo models list`.")
    checkpoint_dir: Path | None = Field(
        None, strict=False, description="Folder with the weights; the packaged ones when absent."
    )
    engine: Literal["torch", "fake"] = Field("torch", description="fake has no model; for tests of plumbing.")
    replicas: int = Field(1, ge=1, le=256, description="Replicas of the deployment.")
    ranks: int = Field(1, ge=1, le=64, description="Sequence-parallel ranks of one replica, each with its own CPUs.")
    min_tokens_per_rank: int = Field(
        512,
        ge=1,
        description="A clip with fewer tokens on each rank runs on fewer of them: exchanging would cost more.",
    )
    cpus: float = Field(1.0, gt=0, description="CPUs that Ray reserves for each replica, or for each rank.")
    gpus: float = Field(0.0, ge=0, description="GPUs that Ray reserves for each replica, or for each rank.")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda)$", description="Torch device.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Numbers of weights and activations.")
    threads: _Count | Auto = Field("auto", description="Torch threads per replica, 1 to 64.")
    max_batch: int = Field(4, ge=1, le=256, description="Jobs that share a denoising step.")
    max_jobs: int = Field(8, ge=1, le=1024, description="Jobs that one replica holds at a time.")
    max_held_bytes: int = Field(1 << 30, ge=1 << 20, description="Bytes that held jobs may take, activations included.")
    max_attempts: int = Field(3, ge=1, le=100, description="Attempts at a job before it fails.")
    lease_s: float = Field(6.0, ge=0.5, le=600, description="Seconds after which the jobs of a dead replica are taken.")
    checkpoint_every: int = Field(5, ge=1, le=1000, description="Steps between two checkpoints of latents.")
    checkpoint_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Most of the time in which a checkpoint may be being written: to a slow store they go less often.",
    )
    stuck_after_s: float = Field(
        300.0, gt=0, le=86_400, description="Seconds in one engine call after which a replica is replaced."
    )
    watts: float = Field(
        6.0, gt=0, description="Power of a busy replica, an assumption: joules are busy seconds times this."
    )


class JobSettings(_Section):
    """Durable jobs and what they leave behind."""

    store: str = Field(
        "auto",
        description="Where clips are kept: a folder, or a URL that fsspec knows (s3://bucket/prefix); 'auto' is a "
        "folder in run_dir.",
    )
    ttl_s: float = Field(24 * 3600.0, gt=0, description="Seconds that a finished clip and its record are kept.")
    store_patience_s: float = Field(
        900.0,
        ge=0,
        le=86_400,
        description="Seconds that a replica tries to deliver a clip to a store that is full or away.",
    )
    max_queued: int = Field(256, ge=1, le=1_000_000, description="Jobs that wait, of all tenants; more are refused.")
    max_queued_per_tenant: int = Field(64, ge=1, le=1_000_000, description="Jobs of one tenant that are not over.")
    redis_timeout_s: float = Field(
        2.0, gt=0, le=60, description="Seconds for a call on the index: jobs never fail open."
    )


class MediaSettings(_Section):
    """Bounds on untrusted images (serving/media/limits.py)."""

    max_bytes_per_image: int = Field(20 << 20, ge=1, description="Encoded bytes of one image.")
    max_pixels: int = Field(16 << 20, ge=1, description="Pixels of one image.")
    max_pixels_per_request: int = Field(64 << 20, ge=1, description="Pixels of all images of one request.")
    max_tiles_per_request: int = Field(
        256, ge=1, description="Tiles of all images of one request to a chat model, thumbnails included."
    )
    max_scans: int = Field(100, ge=1, description="Times that a JPEG may go over its pixels; encoders use about ten.")
    decode_timeout_s: float = Field(5.0, gt=0, description="Seconds after which a decode is killed.")
    watts: float = Field(
        6.0, gt=0, description="Power of a busy decode worker, an assumption: joules are decode seconds times this."
    )
    allowed_hosts: tuple[str, ...] = Field(
        (),
        strict=False,
        description="Hosts whose https image URLs are fetched for chat: example.org, .example.org for all names below "
        "it, example.org:8443. None: every URL is refused.",
    )
    fetch_timeout_s: float = Field(10.0, gt=0, le=600, description="Seconds for an image URL, redirects included.")
    fetch_connect_timeout_s: float = Field(3.0, gt=0, le=60, description="Seconds to connect to one address of a host.")
    max_fetches: int = Field(16, ge=1, le=1024, description="Image URLs fetched at a time by one gateway.")
    cache_bytes: int = Field(
        256 << 20, ge=0, description="Bytes of processed images that one gateway holds for chat; 0 turns that off."
    )

    @field_validator("allowed_hosts")
    @classmethod
    def _hosts_are_names(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        AllowedHosts(hosts)
        return hosts


class LimitSettings(_Section):
    """Bounds on one request (serving/limits.py)."""

    max_body_bytes: int = Field(64 << 20, ge=1024, description="Bytes of one request.")
    max_encoded_bytes: int = Field(
        32 << 20, ge=1024, description="Bytes of one gRPC message with encoded images; pixel tensors may be longer."
    )
    max_images: int = Field(64, ge=1, le=1024, description="Images of one request.")
    body_timeout_s: float = Field(
        30.0, gt=0, le=600, description="Seconds in which the body of an HTTP request must arrive."
    )
    max_messages: int = Field(256, ge=1, le=4096, description="Messages of one chat.")
    max_text_chars: int = Field(1 << 18, ge=1, le=1 << 24, description="Characters of all messages of one chat.")
    max_choices: int = Field(8, ge=1, le=128, description="Answers of one chat, its field n.")


class Settings(_Section):
    """What a user may write."""

    profile: Profile = Field("local", description="local, gpu or cluster: the defaults of everything below.")
    http: HttpSettings = HttpSettings()
    tenants: tuple[TenantSettings, ...] = Field(
        (), strict=False, description="None: loopback callers only, tenant 'local'."
    )
    redis: RedisSettings = RedisSettings()
    gateway: GatewaySettings = GatewaySettings()
    models: tuple[ModelSettings, ...] = Field(
        (ModelSettings(id="dyn-perceiver-nano"),), strict=False, min_length=1, description="What is served."
    )
    chat_models: tuple[VlmSettings, ...] = Field(
        tuple(VlmSettings(id=name) for name in DEFAULT_CHAT_MODELS),
        strict=False,
        description="Chat models served; [] switches chat off.",
    )
    video_models: tuple[VideoModelSettings, ...] = Field(
        tuple(VideoModelSettings(id=name) for name in DEFAULT_VIDEO_MODELS),
        strict=False,
        description="Video models served; [] switches video generation off.",
    )
    jobs: JobSettings = JobSettings()
    media: MediaSettings = MediaSettings()
    limits: LimitSettings = LimitSettings()
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe line logged.")
    run_dir: str = Field("auto", description="Folder for sockets, logs and state of this start; keep its path short.")
    drain_s: float = Field(2.0, ge=0, le=600, description="Seconds that a stopping gateway still takes requests.")

    @property
    def model_ids(self) -> tuple[str, ...]:
        """Everything that is served."""
        classifiers, chats, videos = self.models, self.chat_models, self.video_models
        return (*(one.id for one in classifiers), *(one.id for one in chats), *(one.id for one in videos))

    @field_validator("tenants")
    @classmethod
    def _tenants_differ(cls, tenants: tuple[TenantSettings, ...]) -> tuple[TenantSettings, ...]:
        _check_unique("tenant names", [tenant.name for tenant in tenants])
        digests = [digest for tenant in tenants for digest in tenant.api_key_sha256]
        if len(set(digests)) != len(digests):
            raise ValueError("an API key is listed twice; each belongs to one tenant")
        return tenants

    @field_validator("models")
    @classmethod
    def _models_differ(cls, models: tuple[ModelSettings, ...]) -> tuple[ModelSettings, ...]:
        _check_unique("model ids", [model.id for model in models])
        return models

    @field_validator("chat_models")
    @classmethod
    def _chat_models_differ(cls, models: tuple[VlmSettings, ...]) -> tuple[VlmSettings, ...]:
        _check_unique("chat model ids", [model.id for model in models])
        return models

    @field_validator("video_models")
    @classmethod
    def _video_models_differ(cls, models: tuple[VideoModelSettings, ...]) -> tuple[VideoModelSettings, ...]:
        _check_unique("video model ids", [model.id for model in models])
        return models


def _check_unique(what: str, names: list[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{what} repeat: {', '.join(repeated)}")


PROFILES: Mapping[Profile, Mapping[str, Any]] = {
    "local": {},
    "gpu": {
        "models": [{"id": "dyn-perceiver-nano", "gpus": 0.2, "device": "cuda", "max_batch": 64}],
        # vLLM starts only where nearly all of a GPU's memory is free: more than half, so that no two share one.
        "chat_models": [
            {"id": name, "gpus": 0.8, "device": "cuda", "kv_cache_mb": 4096, "max_num_seqs": 64, "enforce_eager": False}
            for name in DEFAULT_CHAT_MODELS
        ],
        "gateway": {"replicas": 2, "media_workers": 4},
        "drain_s": 10.0,
    },
    "cluster": {
        "http": {"host": "0.0.0.0", "metrics": False},
        "redis": {"url": "redis://vireo-redis:6379/0"},
        "gateway": {"replicas": 2, "media_workers": 2},
        "models": [{"id": "dyn-perceiver-nano", "replicas": 2}],
        "chat_models": [{"id": name, "replicas": 2} for name in DEFAULT_CHAT_MODELS],
        # Clips need a store that all nodes reach (jobs.store), which only the operator can name.
        "video_models": [],
        "drain_s": 30.0,
    },
}


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig:
    """Settings without a single ``auto``, and what follows from them. The only form that the system sees."""

    settings: Settings
    run_dir: Path
    redis_url: str | None = field(repr=False)
    """None: the embedded server, whose socket is ``redis_socket``."""
    secret: str = field(repr=False)
    media_workers: int
    allow_anonymous_loopback: bool
    has_own_secret: bool = field(compare=False)
    """Whether nobody has set one."""

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return self.settings.http.host in _LOOPBACK

    @property
    def redis_socket(self) -> Path:
        """Socket of the embedded server."""
        return self.run_dir / "redis" / "redis.sock"

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
        described = {**asdict(self), "settings": self.settings.model_dump(mode="json"), "secret": "***"}
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


def load(
    path: Path | None = None,
    overrides: Iterable[str] = (),
    profile: str | None = None,
    args: Mapping[str, Any] | None = None,
) -> Settings:
    """Read the settings. VIREO_SECRETS names a folder of files, each the value of the field that it is named after.
    ``overrides`` are ``section.field=value`` strings; VIREO_SET holds more, separated by ``;``. ``args``, shaped as a
    file, come last.

    Raises: ConfigError: unreadable file, unknown field, wrong type; the message names the field.
    """
    path = path or (Path(os.environ["VIREO_CONFIG"]) if "VIREO_CONFIG" in os.environ else None)
    written: dict[str, Any] = _read_yaml(path) if path else {}
    if folder := os.environ.get("VIREO_SECRETS"):
        _apply_files(written, Path(folder))
    from_env = [item for item in os.environ.get("VIREO_SET", "").split(";") if item.strip()]
    for override in (*from_env, *overrides):
        _apply(written, override)
    written = _merge(written, args or {})
    name = profile or written.get("profile") or os.environ.get("VIREO_PROFILE", "local")
    return from_mapping({**written, "profile": name})


def from_mapping(written: Mapping[str, Any]) -> Settings:
    """Lay what a user wrote over the defaults of its profile, strictly.

    Raises: ConfigError: unknown profile or field, wrong type.
    """
    name = written.get("profile", "local")
    if name not in tuple(PROFILES):
        raise ConfigError(f"unknown profile {name!r}; choose one of {', '.join(PROFILES)}")
    try:
        return Settings.model_validate(_merge(PROFILES[name], written))
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise ConfigError("configuration is wrong: " + "; ".join(lines)) from None


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
    if settings.profile == "cluster" and settings.redis.secret == "auto":
        raise ConfigError("profile 'cluster' needs redis.secret: gateways must agree on it (openssl rand -hex 32)")
    if settings.profile == "cluster" and settings.video_models and settings.jobs.store == "auto":
        raise ConfigError("profile 'cluster' needs jobs.store: gateways on several nodes must read the same clips")
    if settings.http.port == settings.http.grpc_port:
        raise ConfigError(f"http.port and http.grpc_port are both {settings.http.port}; give each its own")
    decided = _decide(settings)
    config = ResolvedConfig(
        settings=decided,
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


def _with_password(redis: RedisSettings) -> str:
    if redis.password is None:
        return redis.url
    scheme, _, rest = redis.url.partition("://")
    if "@" in rest:
        raise ConfigError("redis.url names a user or a password, and redis.password is set: keep one of the two")
    return f"{scheme}://:{quote(redis.password, safe='')}@{rest}"


def _decide(settings: Settings) -> Settings:
    """A copy of the settings without ``auto``."""
    run_dir = _run_dir(settings)
    secret = _kept_secret(run_dir) if settings.redis.secret == "auto" else settings.redis.secret
    store = str(run_dir / "artefacts") if settings.jobs.store == "auto" else settings.jobs.store
    return settings.model_copy(
        update={
            "redis": settings.redis.model_copy(update={"secret": secret}),
            "gateway": settings.gateway.model_copy(update={"media_workers": _media_workers(settings)}),
            "models": tuple(_decide_model(model) for model in settings.models),
            "chat_models": tuple(_decide_vlm(model) for model in settings.chat_models),
            "video_models": tuple(_decide_video(model) for model in settings.video_models),
            "jobs": settings.jobs.model_copy(update={"store": store}),
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


def _decide_model(model: ModelSettings) -> ModelSettings:
    """Ray shows a replica the GPUs that are reserved for it, and no others."""
    device = ("cuda" if model.gpus else "cpu") if model.device == "auto" else model.device
    return model.model_copy(update={"device": device, "threads": threads_for(model)})


def _decide_vlm(model: VlmSettings) -> VlmSettings:
    device = ("cuda" if model.gpus else "cpu") if model.device == "auto" else model.device
    engine = model.engine
    if engine == "auto":
        engine = "vllm" if importlib.util.find_spec("vllm") is not None else "torch"
    return model.model_copy(update={"device": device, "engine": engine, "threads": threads_for(model)})


def _decide_video(model: VideoModelSettings) -> VideoModelSettings:
    device = ("cuda" if model.gpus else "cpu") if model.device == "auto" else model.device
    return model.model_copy(update={"device": device, "threads": threads_for(model)})


def _media_workers(settings: Settings) -> int:
    workers = settings.gateway.media_workers
    return max(2, min(4, (os.cpu_count() or 2) // 2)) if workers == "auto" else workers


def threads_for(model: ModelSettings | VlmSettings | VideoModelSettings) -> int:
    """Torch threads of a replica: its share of the machine, one at the least."""
    return max(1, round(model.cpus)) if model.threads == "auto" else model.threads


def _run_dir(settings: Settings) -> Path:
    if settings.run_dir != "auto":
        return Path(settings.run_dir).resolve()
    base = os.environ.get("VIREO_RUN_DIR") or str(Path(tempfile.gettempdir()) / f"vireo-{os.getuid()}")
    return Path(base) / str(settings.http.port)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read configuration {path}: {error}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"configuration {path} must be a mapping of sections")
    return loaded


def _apply(written: dict[str, Any], override: str) -> None:
    name, separator, text = override.partition("=")
    if not separator:
        raise ConfigError(f"--set {name[:100]!r} has no '='; write section.field=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {name}: the value is not YAML; put it in quotes") from None
    _put(written, name.strip(), value, f"--set {name}")


def _apply_files(written: dict[str, Any], folder: Path) -> None:
    """Names that begin with a dot are what Kubernetes uses to exchange all files at once."""
    try:
        texts = {path.name: path.read_text("utf-8") for path in folder.iterdir() if not path.name.startswith(".")}
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"cannot read VIREO_SECRETS: {error}") from None
    for name, text in sorted(texts.items()):
        # A password that looks like a number is still text; `tenants` alone is more than a text.
        value = _parsed_list(name, text) if name == "tenants" else text.removesuffix("\n")
        _put(written, name, value, f"{folder / name}")


def _parsed_list(name: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"the secret file {name} is not YAML or JSON") from None


def _put(written: dict[str, Any], name: str, value: Any, source: str) -> None:
    *sections, leaf = name.split(".")
    for section in sections:
        if written.get(section) is None:
            written[section] = {}
        written = written[section]
        if not isinstance(written, dict):
            raise ConfigError(f"{source}: {section} is not a section; give a list whole, as {section}=[...]")
    written[leaf] = value


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        inner = merged.get(key)
        merged[key] = _merge(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return merged
