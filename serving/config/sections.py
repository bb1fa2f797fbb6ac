"""What a user may write, section by section."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from models.registry import default_variants
from serving.config.models import Auto, Count, ModelSettings, Section
from serving.media.hosts import AllowedHosts

Profile = Literal["local", "gpu", "cluster"]
_SHA256_HEX = r"^[0-9a-f]{64}$"
_ORIGIN = r"^(\*|https?://(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(:[0-9]{1,5})?)$"


class HttpSettings(Section):
    """Where clients connect."""

    host: str = Field("127.0.0.1", description="Address that HTTP and gRPC listen on.")
    port: int = Field(8000, ge=1, le=65535, description="HTTP port.")
    grpc_port: int = Field(9000, ge=1, le=65535, description="gRPC port.")
    metrics: bool = Field(
        True, description="Whether /metrics answers on the HTTP port; else `vireo metrics` serves it."
    )
    metrics_need_key: bool = Field(
        False, description="Whether /metrics asks for an API key; true outside the local profile unless set."
    )
    cors_origins: tuple[Annotated[str, Field(pattern=_ORIGIN)], ...] = Field(
        (),
        strict=False,
        description="Origins whose pages may call the HTTP port from a browser, such as https://app.example.com; '*' "
        "is any. A page sends its key as a header: credentials of the browser are never allowed.",
    )


class TenantSettings(Section):
    """One tenant: who it is and what it may spend."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="Label in metrics and part of cache keys.")
    api_key_sha256: tuple[Annotated[str, Field(pattern=_SHA256_HEX)], ...] = Field(
        (),
        strict=False,
        repr=False,
        description="SHA-256 of each accepted key, in hexadecimal: printf %s KEY | sha256sum.",
    )
    joules_per_s: float = Field(1e6, gt=0, description="Refill of the joule bucket, joules per second.")
    burst_j: float = Field(1e7, gt=0, le=1e15, description="Size of the joule bucket, joules.")
    seconds_per_s: float = Field(1e3, gt=0, description="Refill of the compute bucket, engine seconds per second.")
    burst_s: float = Field(1e4, gt=0, le=1e15, description="Size of the compute bucket, engine seconds.")
    max_joules_per_day: float | None = Field(
        None,
        gt=0,
        le=1e15,
        description="Joules that it may spend in a day of UTC. With a cap it is refused while Redis is away.",
    )
    max_joules_per_month: float | None = Field(
        None, gt=0, le=1e15, description="Joules that it may spend in a month of UTC; as max_joules_per_day."
    )
    weight: float = Field(
        1.0,
        ge=1e-3,
        le=1e3,
        description="Its share of whatever tenants compete for, in proportion to the weights of the others.",
    )
    max_in_flight: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Its requests that one gateway serves at a time; more are refused. Unset: as many as of all.",
    )
    max_jobs: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Its durable jobs that are not over; more are refused. Unset: jobs.max_queued_per_tenant.",
    )
    max_kv_bytes: int | None = Field(
        None,
        ge=1,
        le=1 << 60,
        description="Keys and values that its chats may need on one replica, waiting ones included; more are refused.",
    )
    max_latent_bytes: int | None = Field(
        None,
        ge=1,
        le=1 << 60,
        description="Memory that its durable jobs may hold together, in all, until they are over; more are refused.",
    )
    max_deep_share: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Of its rows to a model with exits, how many may reach the last one; others leave before it.",
    )
    fail_closed: bool = Field(
        False,
        description="Whether it is refused while its account cannot be read. Otherwise each gateway goes on with its "
        "share of what was left, which is charged afterwards.",
    )
    max_priority: Literal["low", "normal", "high"] = Field(
        "normal", description="Highest priority that its requests get; what asks for more is lowered, and says so."
    )
    allow_logprobs: bool = Field(
        False,
        description="Whether chat answers may show and bias probabilities of tokens: they feed black-box attacks.",
    )
    image_logprobs: bool = Field(
        False, description="Whether, where allow_logprobs is set, they are also shown of answers about images."
    )
    guard: Literal["off", "observe", "enforce"] = Field(
        "enforce",
        description="What the guard does to its chats about images that look crafted to be dear: observe only says "
        "what it would do (docs/guard.md).",
    )
    guard_trusted: bool = Field(
        False,
        description="Whether the guard learns from its chats how long answers usually are. Whoever sends crafted "
        "images could teach it.",
    )
    admin: bool = Field(
        False,
        description="Whether its keys see counts of each tenant in /metrics, which adds them up for others, and what "
        "experts are sent.",
    )


class RedisSettings(Section):
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


class GatewaySettings(Section):
    """The front door."""

    replicas: int = Field(1, ge=1, le=64, description="Gateway replicas.")
    cpus: float = Field(1.0, gt=0, description="CPUs that Ray reserves for each.")
    media_workers: Count | Auto = Field(
        "auto",
        description="Decode processes per gateway replica, 1 to 64; of 2 or more, one is kept for short decodes.",
    )
    max_in_flight: int = Field(
        512,
        ge=1,
        description="Requests served at a time by one gateway; beyond, tenants with less than their share wait and "
        "others are refused.",
    )
    default_deadline_s: float = Field(30.0, gt=0, le=3600, description="Deadline of a request that brings none.")
    calls_in_flight: int = Field(
        2, ge=1, le=64, description="Calls per inner replica on the way at a time; samples beyond share the next call."
    )


class BendingSettings(Section):
    """When quality bends under load (docs/scheduler.md). Seconds of predicted work that wait for a model."""

    enabled: bool = Field(True, description="Whether a queue makes answers cheaper before any is refused.")
    rows_after_s: float = Field(0.5, gt=0, le=3600, description="For models that are called, images among them.")
    chat_after_s: float = Field(
        1.0, gt=0, le=3600, description="For models that chat; at least as long as an answer takes by itself."
    )
    jobs_after_s: float = Field(30.0, gt=0, le=86_400, description="For models whose replicas pull durable jobs.")


class JobSettings(Section):
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
    max_queued_per_tenant: int = Field(
        64, ge=1, le=1_000_000, description="Jobs of one tenant that are not over, where its max_jobs is not set."
    )
    redis_timeout_s: float = Field(
        2.0, gt=0, le=60, description="Seconds for a call on the index: jobs never fail open."
    )


class MediaSettings(Section):
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


class EnergySettings(Section):
    """How joules are found (serving/energy)."""

    meter: str = Field(
        "auto",
        pattern=r"^(auto|device|nvml|rapl|estimate|replay:.+)$",
        description="device, and auto: the counter of the GPUs (nvml) or processors (rapl) that each replica finds "
        "where it runs, else the estimate; replay:FILE plays a recording.",
    )


class GuardSettings(Section):
    """What is done about chats whose images look crafted to be dear (docs/guard.md), a switch for each layer. It needs
    a model's guard.json, and does to a tenant what its field guard says."""

    screen: bool = Field(True, description="Whether images are looked at before they reach a model.")
    replay: bool = Field(
        True, description="Whether images that were caught, and series of almost equal ones, are known again."
    )
    length: bool = Field(
        True, description="Whether an answer counts as strange that is longer than its text leads to expect."
    )
    repeat: bool = Field(True, description="Whether one does that goes over the same tokens again and again.")
    special: bool = Field(True, description="Whether one does that has runs of tokens that no reader sees.")
    eos: bool = Field(True, description="Whether one does whose end becomes less and less likely.")
    squeeze: bool = Field(
        True, description="Whether the model's view of a suspect's image is compared with that of a coarser copy."
    )
    confirm: bool = Field(
        True, description="Whether a suspect is asked again about a changed copy. If not, only a known image is capped."
    )
    watch_at: float = Field(
        0.05, gt=0, lt=1, description="Watched: as strange as at most this share of benign requests."
    )
    suspect_at: float = Field(0.01, gt=0, lt=1, description="Suspect: the same.")
    learning_rate: float = Field(
        0.005,
        ge=0,
        le=0.5,
        description="By how much each answer to a trusted tenant moves the bound on length; 0 learns nothing.",
    )
    quarantine_s: float = Field(
        7 * 86_400.0, ge=60, le=365 * 86_400, description="Seconds that an image that was caught is remembered."
    )

    @model_validator(mode="after")
    def _suspects_are_rarer(self) -> Self:
        if self.suspect_at > self.watch_at:
            raise ValueError(
                f"guard.suspect_at is {self.suspect_at} and guard.watch_at {self.watch_at}; suspects are rarer"
            )
        return self


class LimitSettings(Section):
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


class Settings(Section):
    """What a user may write."""

    profile: Profile = Field("local", description="local, gpu or cluster: the defaults of everything below.")
    http: HttpSettings = HttpSettings()
    tenants: tuple[TenantSettings, ...] = Field(
        (), strict=False, description="None: loopback callers only, tenant 'local'."
    )
    redis: RedisSettings = RedisSettings()
    gateway: GatewaySettings = GatewaySettings()
    models: tuple[ModelSettings, ...] = Field(
        default_factory=lambda: tuple(ModelSettings(id=variant.id) for _, variant in default_variants()),
        strict=False,
        min_length=1,
        description="What is served; the small models that come with Vireo where nothing is said.",
    )
    bending: BendingSettings = BendingSettings()
    jobs: JobSettings = JobSettings()
    media: MediaSettings = MediaSettings()
    limits: LimitSettings = LimitSettings()
    guard: GuardSettings = GuardSettings()
    energy: EnergySettings = EnergySettings()
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe line logged.")
    run_dir: str = Field("auto", description="Folder for sockets, logs and state of this start; keep its path short.")
    drain_s: float = Field(2.0, ge=0, le=600, description="Seconds that a stopping gateway still takes requests.")

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


def _check_unique(what: str, names: list[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{what} repeat: {', '.join(repeated)}")
