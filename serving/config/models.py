"""What is served: one list. A model's options are those of its kind of delivery and its family's deployment knobs.

``ModelSettings`` is what a user writes; ``resolve_models`` turns it into ``ResolvedModel``, which is all that gateways,
replicas and decode workers know of a model. No ``auto`` is left in it, and the variant is in it as plain data: an open
family is asked once, here, and nowhere else.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, Self, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.contract import Family, Shape, Value, Variant, check_licence
from models.registry import find, known_ids
from serving.errors import ConfigError

Auto: TypeAlias = Literal["auto"]
Count = Annotated[int, Field(ge=1, le=64)]


class Section(BaseModel):
    """A misspelt key must fail: ignored, it would quietly lose the setting. So must `yes` where a number belongs."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class UnaryOptions(Section):
    """Of a model that is called: replicas answer batches of samples, exit by exit where there are exits."""

    max_batch: int = Field(32, ge=1, le=1024, description="Samples per engine call.")
    max_queue: int = Field(4096, ge=1, le=1_000_000, description="Samples waiting per replica; more are refused.")
    max_held_bytes: int = Field(1 << 30, ge=1 << 20, description="Bytes that admitted samples may hold.")
    max_ongoing_calls: int = Field(256, ge=1, description="Handle calls that Ray lets into one replica.")
    random_weights: bool = Field(
        False, description="Whether the network runs with random weights: its speed is right, its answers mean nothing."
    )


class StreamOptions(Section):
    """Of a model that generates text: one engine per replica."""

    engine: Literal["auto", "vllm", "torch", "fake"] = Field(
        "auto", description="auto: vllm where it is installed, else torch. fake has no model; for tests of plumbing."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Numbers of weights and KV cache.")
    max_model_len: int | None = Field(
        None, ge=64, le=1 << 20, description="Most tokens of prompt and answer; the model's own limit when absent."
    )
    max_output_tokens: int = Field(512, ge=1, le=1 << 20, description="Most tokens of one answer.")
    max_num_seqs: int = Field(16, ge=1, le=1024, description="Answers generated at a time by one replica.")
    max_queue: int = Field(256, ge=0, le=100_000, description="Answers waiting per replica; more are refused.")
    max_images: int = Field(16, ge=1, le=1024, description="Images of one chat.")
    max_batched_tokens: int = Field(2048, ge=64, le=1 << 20, description="Most tokens of one engine step.")
    kv_cache_mb: int = Field(256, ge=1, description="MiB of KV cache per replica; answers start when they fit.")
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


class JobOptions(Section):
    """Of a model whose replicas pull durable jobs."""

    engine: Literal["torch", "fake"] = Field("torch", description="fake has no model; for tests of plumbing.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Numbers of weights and activations.")
    ranks: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes of one replica, each with cpus and gpus of its own, that share tokens or experts.",
    )
    min_tokens_per_rank: int = Field(
        512,
        ge=1,
        description="A clip with fewer tokens on each rank runs on fewer of them: exchanging would cost more.",
    )
    spare_experts: int = Field(
        0,
        ge=0,
        le=1024,
        description="With ranks, slots of a layer beyond one for each expert: for copies of busy ones.",
    )
    replace_every_s: float = Field(
        60.0,
        gt=0,
        le=86_400,
        description="Seconds after which experts get another target; they move where it pays.",
    )
    max_batch: int = Field(4, ge=1, le=256, description="Jobs that share a denoising step.")
    max_jobs: int = Field(
        16,
        ge=1,
        le=1024,
        description="Jobs that one replica holds at a time; half of them of one tenant, or as many as fill a step.",
    )
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

    @model_validator(mode="after")
    def _has_ranks_to_spread_over(self) -> Self:
        if self.spare_experts and self.ranks == 1:
            raise ValueError(
                f"spare_experts is {self.spare_experts} and ranks is 1; set ranks to have others to move to"
            )
        return self


Options: TypeAlias = UnaryOptions | StreamOptions | JobOptions
OptionsOf = TypeVar("OptionsOf", UnaryOptions, StreamOptions, JobOptions)

OPTIONS: Mapping[Shape, type[Options]] = {
    "unary": UnaryOptions,
    "staged": UnaryOptions,
    "stream": StreamOptions,
    "job": JobOptions,
}


class ModelSettings(Section):
    """One served model: an inner deployment."""

    id: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$",
        description="Model id, see `vireo models list`; family:name; or a name of your own for what is in a folder.",
    )
    model: str | None = Field(
        None, description="Model id, where id is a name of your own; what the folder says that it is when absent."
    )
    checkpoint_dir: Path | None = Field(
        None, strict=False, description="Folder with the weights; the packaged ones when absent."
    )
    accept_licence: bool = Field(
        False, description="Whether weights are loaded whose licence is not an open one, or that name none."
    )
    replicas: int = Field(1, ge=1, le=256, description="Replicas of the deployment.")
    cpus: float = Field(1.0, gt=0, description="CPUs that Ray reserves for each replica.")
    gpus: float = Field(0.0, ge=0, description="GPUs that Ray reserves for each replica.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Torch device; auto: cuda where gpus are.")
    threads: Count | Auto = Field("auto", description="Torch threads per replica, 1 to 64.")
    watts: float = Field(
        6.0,
        gt=0,
        description="Power of a busy replica where none was measured: joules are busy seconds times this.",
    )
    bend: bool = Field(True, description="Whether its quality gives way under load (bending).")
    options: Mapping[str, Any] = Field(
        {}, description="Settings of its kind of delivery, and deployment knobs of its family."
    )


@dataclass(frozen=True, kw_only=True)
class ResolvedModel(Generic[OptionsOf]):
    """One served model as every process of the system knows it."""

    id: str
    """What clients call it. The variant has the id of what it was made from."""
    family: str
    shape: Shape
    tasks: tuple[str, ...]
    variant: Variant
    """With the folder of its weights, wherever they are: None where none are here."""
    checkpoint_dir: Path | None
    accept_licence: bool
    replicas: int
    cpus: float
    gpus: float
    device: Literal["cpu", "cuda"]
    threads: int
    watts: float
    bend: bool
    """Whether its quality gives way under load."""
    options: OptionsOf
    knobs: Mapping[str, Value]
    """Complete: every deployment knob of the family."""

    @property
    def num_ranks(self) -> int:
        """Processes of one replica, each with ``cpus`` and ``gpus``."""
        return self.options.ranks if isinstance(self.options, JobOptions) else 1

    def decided(self) -> ModelSettings:
        """The settings that say the same without an ``auto``."""
        return ModelSettings(
            id=self.id,
            model=None if self.variant.id == self.id else self.variant.id,
            checkpoint_dir=self.checkpoint_dir,
            accept_licence=self.accept_licence,
            replicas=self.replicas,
            cpus=self.cpus,
            gpus=self.gpus,
            device=self.device,
            threads=self.threads,
            watts=self.watts,
            bend=self.bend,
            options={**self.options.model_dump(exclude_none=True), **self.knobs},
        )


def named_model(word: str) -> dict[str, Any]:
    """The fields of ``ModelSettings`` that a command line means by ``ID``, ``ID=FOLDER``, ``NAME=FOLDER`` or
    ``NAME=ID@FOLDER``."""
    name, separator, folder = word.partition("=")
    if not separator:
        return {"id": name}
    model, at, rest = folder.partition("@")
    has_model = bool(at) and "/" not in model  # folders, too, may have an @ in their names
    path = str(Path(rest if has_model else folder).expanduser().resolve())
    return {"id": name, "checkpoint_dir": path, **({"model": model} if has_model else {})}


def find_named(word: str) -> tuple[Family, Variant]:
    """What ``named_model`` means. Raises: ValueError: unknown, or a folder that nobody recognises."""
    named = named_model(word)
    folder = named.get("checkpoint_dir")
    return find(named.get("model", named["id"]), None if folder is None else Path(folder))


def resolve_models(models: Sequence[ModelSettings]) -> tuple[ResolvedModel[Any], ...]:
    """Find each model's family and decide every ``auto``.

    Raises: ConfigError: an unknown model, or an option that there is not or that has a wrong value.
    """
    return tuple(resolve_model(model, f"models.{place}") for place, model in enumerate(models))


def resolve_model(model: ModelSettings, place: str = "models") -> ResolvedModel[Any]:
    """See ``resolve_models``. ``place`` is where messages say that the mistake is."""
    try:
        family, variant = find(model.model or model.id, model.checkpoint_dir)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if model.id != variant.id and model.id in known_ids():
        raise ConfigError(f"{place}.id: {model.id} is the id of another model than {variant.id}; give another name")
    device: Literal["cpu", "cuda"] = ("cuda" if model.gpus else "cpu") if model.device == "auto" else model.device
    options, knobs = _checked(model, family, f"{place}.options")
    if variant.weights is not None and not getattr(options, "random_weights", False):
        try:
            check_licence(variant, is_accepted=model.accept_licence)
        except ValueError as error:
            raise ConfigError(f"{place}: {error}") from None
    return ResolvedModel(
        id=model.id,
        family=family.name,
        shape=family.shape,
        tasks=family.tasks,
        variant=variant,
        checkpoint_dir=model.checkpoint_dir,
        accept_licence=model.accept_licence,
        replicas=model.replicas,
        cpus=model.cpus,
        gpus=model.gpus,
        device=device,
        threads=max(1, round(model.cpus)) if model.threads == "auto" else model.threads,
        watts=model.watts,
        bend=model.bend,
        options=options,
        knobs=knobs,
    )


def _checked(model: ModelSettings, family: Family, place: str) -> tuple[Options, dict[str, Value]]:
    kind = OPTIONS[family.shape]
    knobs = {knob.name for knob in family.knobs if knob.scope == "deployment"}
    if unknown := sorted(set(model.options) - set(kind.model_fields) - knobs):
        known = ", ".join((*kind.model_fields, *sorted(knobs)))
        raise ConfigError(
            f"configuration is wrong: {place}.{unknown[0]}: {model.id} has no such option; its options are: {known}"
        )
    try:
        options = kind.model_validate({name: value for name, value in model.options.items() if name not in knobs})
    except ValidationError as error:
        lines = [f"{place}.{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise ConfigError("configuration is wrong: " + "; ".join(lines)) from None
    if isinstance(options, StreamOptions) and options.engine == "auto":
        engine = "vllm" if importlib.util.find_spec("vllm") is not None else "torch"
        options = options.model_copy(update={"engine": engine})
    written = {name: value for name, value in model.options.items() if name in knobs}
    try:
        return options, family.check_point(written, scope="deployment")
    except ValueError as error:
        raise ConfigError(f"configuration is wrong: {place}: {error}") from None
