"""What a model needs in memory, beside what this machine has. Free of torch: sizes are read from heads of files."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from models.contract import Family, Variant
from models.folder import Component, components_of
from serving.config import JobOptions, ResolvedConfig, ResolvedModel, StreamOptions
from serving.errors import ConfigError
from serving.operating_points import usual_request

BYTES_PER_NUMBER = {"float32": 4, "bfloat16": 2, "float16": 2}
_CGROUP = Path("/sys/fs/cgroup/memory.max")
_GIB = float(1 << 30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Bytes of one process that serves a model. ``beside``: of what it holds besides its weights: a usual request, or
    the cache of a chat model."""

    weights: int
    beside: int

    @property
    def total(self) -> int:
        """Both."""
        return self.weights + self.beside


def components(family: Family, variant: Variant) -> tuple[Component, ...]:
    """The networks of a variant's folder; none where it has no weights here. Raises: ValueError: damaged files."""
    if variant.weights is None or not variant.weights.is_dir():
        return ()
    files = family.part("weight_files")(variant) if "weight_files" in family.parts else None
    return components_of(variant.weights, files)


def request_bytes(family: Family, variant: Variant) -> int:
    """The most that one usual request holds at a time, as the family reckons."""
    if family.work is None:
        return 0
    work = family.work.load()(variant, usual_request(variant.io), family.check_point({}))
    return int(work.bytes_held)


def needed_bytes(family: Family, variant: Variant, dtype: str) -> int:
    """What one usual request needs for certain. Where a family tells its activations apart, which it bounds from above,
    they count by the type of the numbers, and half: what lives is at most that much less."""
    if "activation_bytes" not in family.parts:
        return request_bytes(family, variant)
    of = family.part("activation_bytes")
    usual = usual_request(variant.io)
    beside = request_bytes(family, variant) - of(variant, usual, BYTES_PER_NUMBER["float32"])
    return int(beside + of(variant, usual, BYTES_PER_NUMBER[dtype]) // 2)


def weight_bytes(parts: tuple[Component, ...], dtype: str) -> int:
    """Of all networks in memory."""
    return sum(part.bytes_as(BYTES_PER_NUMBER[dtype]) for part in parts)


def machine_bytes() -> int:
    """Memory and swap, or what the container may have of it."""
    whole = int(psutil.virtual_memory().total + psutil.swap_memory().total)
    try:
        return min(whole, int(_CGROUP.read_text()))
    except (OSError, ValueError):  # no cgroup of our own, or "max"
        return whole


def gpu_bytes() -> tuple[int, ...]:
    """Of each GPU, as the driver's own tool tells; nothing where there is none."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    if shutil.which(command[0]) is None:
        return ()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return tuple(int(line) << 20 for line in done.stdout.split())
    except (OSError, ValueError, subprocess.SubprocessError):
        return ()


def facts(family: Family, variant: Variant) -> dict[str, Any]:
    """For a program. Raises: ValueError: damaged files."""
    parts = components(family, variant)
    return {
        "weights_bytes": {dtype: weight_bytes(parts, dtype) for dtype in ("float32", "bfloat16")} if parts else None,
        "request_bytes": request_bytes(family, variant),
        "machine_bytes": machine_bytes(),
        "gpu_bytes": gpu_bytes(),
    }


def in_words(found: Mapping[str, Any]) -> str:
    """``facts`` in a line."""
    weights = found["weights_bytes"]
    needed = " or ".join(f"{in_gib(size)} in {dtype}" for dtype, size in weights.items()) if weights else "no weights"
    gpus = "".join(f", a GPU with {in_gib(size)}" for size in found["gpu_bytes"])
    return (
        f"memory: weights {needed}; a usual request {in_gib(found['request_bytes'])}; this machine has "
        f"{in_gib(found['machine_bytes'])}{gpus}"
    )


def in_gib(size: int) -> str:
    """As people write it."""
    return f"{size / _GIB:.1f} GiB" if size >= _GIB / 10 else f"{size / (1 << 20):.1f} MiB"


def check_fits(config: ResolvedConfig) -> None:
    """Pass models that may fit into this machine: better now than when one of its processes is killed.

    Raises: ConfigError: their weights and one usual request of each are more than it has.
    """
    needs = {model.id: need for model in config.models if (need := _need(model)) is not None}
    here = machine_bytes()
    gpus = gpu_bytes()
    on_cpu = 0
    for model in config.models:
        if (need := needs.get(model.id)) is None:
            continue
        if model.device == "cuda":
            if gpus and need.total > max(gpus):
                raise ConfigError(
                    f"{_told(model, need)}, and the largest GPU here has {in_gib(max(gpus))}{_remedy(model)}"
                )
        else:
            on_cpu += model.replicas * need.total
    if on_cpu > here:
        on = [model for model in config.models if model.id in needs and model.device == "cpu"]
        told = "; ".join(_told(model, needs[model.id]) for model in on)
        raise ConfigError(f"this machine has {in_gib(here)} of memory, and {told}{''.join(map(_remedy, on))}")


def small_limits(config: ResolvedConfig) -> list[str]:
    """What keeps usual requests of a model of jobs from sharing a step though memory is there: a line for each model,
    with the option that lets them."""
    from models.registry import family_for

    needs = {model.id: need for model in config.models if (need := _need(model)) is not None}
    on_cpu = [model for model in config.models if model.id in needs and model.device != "cuda"]
    free = machine_bytes() - sum(model.replicas * needs[model.id].total for model in on_cpu)
    lines = []
    for model in config.models:
        if not isinstance(model.options, JobOptions) or model.id not in needs:
            continue
        need = needs[model.id]
        left = max(gpu_bytes(), default=0) - need.total if model.device == "cuda" else free // model.replicas
        counted = request_bytes(family_for(model.family, model.variant), model.variant)  # by the scheduler
        lines += _small_limit(model.id, model.options, counted, need.beside, left)
    return lines


def _small_limit(model_id: str, options: JobOptions, counted: int, needed: int, left: int) -> list[str]:
    """``counted``: bytes of a request as the scheduler has them; ``needed``: for certain, as ``needed_bytes``;
    ``left``: beside the first request."""
    held = max(1, options.max_held_bytes // max(1, counted))
    possible = min(options.max_batch, 1 + max(0, left) // max(1, needed))
    if held >= possible:
        return []
    return [
        f"{model_id}: a usual request counts as {in_gib(counted)} and max_held_bytes is "
        f"{in_gib(options.max_held_bytes)}, so {held} {'is' if held == 1 else 'are'} held at a time; "
        f"--option {model_id}.max_held_bytes={possible * counted} lets {possible} share a step"
    ]


def _need(model: ResolvedModel[Any]) -> Need | None:
    """Of one replica; ranks share its experts, or else each has all weights."""
    from models.registry import family_for

    options = model.options
    if getattr(options, "engine", "") == "fake" or getattr(options, "random_weights", False):
        return None
    family = family_for(model.family, model.variant)
    try:
        parts = components(family, model.variant)
    except ValueError as error:
        raise ConfigError(f"model {model.id} cannot be used: {error}") from None
    if not parts:
        return None
    copies = 1 if "experts" in family.parts or model.device == "cuda" else model.num_ranks
    dtype = getattr(options, "dtype", "float32")
    weights = copies * weight_bytes(parts, dtype)
    is_chat = isinstance(options, StreamOptions)
    beside = options.kv_cache_mb << 20 if is_chat else needed_bytes(family, model.variant, dtype)
    return Need(weights=weights, beside=beside)


def _told(model: ResolvedModel[Any], need: Need) -> str:
    replicas = f" in each of {model.replicas} replicas" if model.replicas > 1 else ""
    return (
        f"{model.id} needs {in_gib(need.weights)} for its weights in {getattr(model.options, 'dtype', 'float32')} and "
        f"{in_gib(need.beside)} for a usual request{replicas}"
    )


def _remedy(model: ResolvedModel[Any]) -> str:
    is_wide = isinstance(model.options, JobOptions | StreamOptions) and model.options.dtype == "float32"
    return f"; --option {model.id}.dtype=bfloat16 halves its weights" if is_wide else ""
