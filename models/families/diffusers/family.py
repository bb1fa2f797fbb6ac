"""Folders of diffusers, served as they are: the pipeline that ``model_index.json`` names, by its own blocks. Free of
torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from models.contract import Family, Knob, LazyRef, Point, SettingError, Source, Value, Variant, Work
from models.families.diffusers import pipelines
from models.families.diffusers.architecture import IO, Architecture, Configs, Counted
from models.families.diffusers.folder import (
    check_own_unet,
    components_of,
    peek,
    read_configs,
    read_index,
)
from models.families.diffusers.memory import activations
from models.families.diffusers.solvers import num_tensors
from models.files import licence_of
from models.folder import MODEL_INDEX, safetensors_of
from models.folder import components_of as networks_of
from models.io import ClipIO
from models.methods.diffusers.knobs import (
    applicable,
    check_point,
    full_steps,
    kept_pairs,
    leaves_out_tokens,
    method_bytes,
    method_knobs,
    num_active,
    whole_steps,
)
from models.prompt_tokens import PromptCheck

_HERE = "models.families.diffusers"
_GENERATOR_BYTES = 5056
"""Of the state of one of torch's generators on the CPU."""


def recognise(folder: Path) -> str | None:
    """The name for ``resolve`` of a folder that a pipeline of diffusers is in, or None. Reads configurations alone.

    Raises: ValueError: it is one of diffusers, but nothing here runs it step by step, or another UNet lies beside it;
    says which and what is run.
    """
    if not (folder / MODEL_INDEX).is_file():
        return None
    architecture = pipelines.of_folder(peek(folder, read_index(folder)))
    if "unet" in architecture.denoisers:
        check_own_unet(folder)
    return architecture.name


def resolve(name: str, folder: Path | None = None) -> Variant:
    """The variant behind ``diffusers:name``: what ``folder`` holds, whatever the name; without a folder the miniature
    of that architecture, which is there for the checks.

    Raises: ValueError: nothing here runs it step by step; says what is missing.
    """
    if folder is None:
        return _miniature(pipelines.named(name))
    index = read_index(folder)
    architecture = pipelines.of_folder(peek(folder, index))
    configs = read_configs(folder, index, architecture)
    _check(architecture, configs, str(folder))
    networks_of(folder, _files(folder, configs))  # says at once which weights are missing or damaged
    return _variant(
        name,
        architecture,
        architecture.io(configs),
        configs,
        weights=folder,
        source=Source(licence=licence_of(folder)),
    )


def _miniature(architecture: Architecture) -> Variant:
    configs = {"index": {}, **architecture.miniature}
    _check(architecture, configs, architecture.name)
    io = replace(architecture.io(configs), **architecture.miniature_io)
    return _variant(architecture.name, architecture, io, configs)


def weight_files(variant: Variant) -> dict[str, list[Path]]:
    """Of each component that the folder names; none of those that are not read."""
    assert variant.weights is not None
    return _files(variant.weights, variant.config["components"])


def _files(folder: Path, configs: Configs) -> dict[str, list[Path]]:
    return {name: safetensors_of(folder / name) if name in configs else [] for name in components_of(configs["index"])}


def _variant(name: str, architecture: Architecture, io: IO, configs: Configs, **more: Any) -> Variant:
    return Variant(
        id=f"diffusers:{name}",
        summary=architecture.summary,
        io=io,
        config={"architecture": architecture.name, "components": dict(configs)},
        tasks=(architecture.task,),
        knobs=(*architecture.knobs, *_method_knobs(architecture, io, configs)),
        defaults=architecture.defaults(configs),
        **more,
    )


def _method_knobs(architecture: Architecture, io: IO, configs: Configs) -> tuple[Knob, ...]:
    """Attention's points in the order of what a usual request costs, which depends on its tokens and the width."""
    steps = next(int(knob.default) for knob in architecture.knobs if knob.name == "num_inference_steps")
    transformer, tokens = architecture.transformer(configs), math.prod(architecture.grid(io, io.usual))

    def macs(attention: Value) -> float:
        return _macs({"num_inference_steps": steps, "attention": attention}, transformer, tokens)

    return tuple(
        replace(knob, grid=tuple(sorted(knob.grid, key=macs))) if knob.name == "attention" else knob
        for knob in method_knobs(_denoiser(architecture, configs), is_clip=isinstance(io, ClipIO), num_steps=steps)
    )


def _denoiser(architecture: Architecture, configs: Configs) -> str:
    """The class of its networks."""
    return str(configs[architecture.denoisers[0]]["_class_name"])


def facts(variant: Variant) -> Mapping[str, Any]:
    """Which methods apply to its networks, and why the others do not."""
    architecture, is_clip = pipelines.of(variant), isinstance(variant.io, ClipIO)
    said = applicable(_denoiser(architecture, variant.config["components"]), is_clip=is_clip)
    needed = activations(architecture, variant.config["components"], variant.io, variant.io.usual)
    return {
        "activations of a usual request in float32": tuple(
            f"{phase} at most {size / (1 << 20):,.0f} MiB" for phase, size in needed._asdict().items()
        ),
        "methods that apply": tuple(name for name, why_not in said.items() if not why_not),
        "methods that do not": tuple(f"{name} ({why_not})" for name, why_not in said.items() if why_not),
    }


def activation_bytes(variant: Variant, request: Any, itemsize: int) -> int:
    """Most that a request takes besides what it holds between its slices, with numbers of so many bytes."""
    request = variant.io.settled(request) if isinstance(variant.io, ClipIO) else request
    architecture, configs = pipelines.of(variant), variant.config["components"]
    return activations(architecture, configs, variant.io, request, itemsize).peak


def prompt_check(variant: Variant) -> PromptCheck:
    """What counts the tokens of a prompt."""
    assert variant.weights is not None
    name, limit = pipelines.of(variant).prompted
    return PromptCheck(variant.weights / name, limit)


def _check(architecture: Architecture, configs: Configs, where: str) -> None:
    """Pass a folder whose pipeline can be stopped after each step and resumed. Raises: ValueError."""
    if refusal := architecture.refusal(configs):
        raise ValueError(f"{where}: {architecture.pipeline} cannot be run step by step: {refusal}")
    scheduler = configs["scheduler"]
    if scheduler.get("stochastic_sampling"):
        raise ValueError(f"{where}: the scheduler draws from torch's global generator (stochastic_sampling)")
    for key in ("solver_p", "algorithm_type"):
        if "sde" in str(scheduler.get(key) or "") or (key == "solver_p" and scheduler.get(key)):
            raise ValueError(f"{where}: the scheduler's {key} {scheduler[key]!r} cannot be stopped and resumed")
    num_tensors(scheduler["_class_name"], int(scheduler.get("solver_order", 2)))


def check_allowed(variant: Variant, request: Any, point: Point) -> None:
    """Pass what the pipeline can do. Raises: SettingError."""
    io: IO = variant.io
    if isinstance(io, ClipIO):
        request = io.settled(request)
        check_point(point, io.grid(request.num_frames, (request.width, request.height)))
        return
    try:
        io.check_size(request.width, request.height)
    except ValueError as error:
        raise SettingError("size", str(error)) from None
    check_point(point, pipelines.of(variant).grid(io, request))


def work(variant: Variant, request: Any, point: Point) -> Work:
    """Of a whole request. Held: latents, what the scheduler remembers of them, embeddings, what its methods keep, what
    is decoded; and, in a slice, activations."""
    architecture, configs = pipelines.of(variant), variant.config["components"]
    io: IO = variant.io
    request = io.settled(request) if isinstance(io, ClipIO) else request
    steps, rows = int(point["num_inference_steps"]), int(getattr(request, "count", 1))
    frames, height, width = architecture.grid(io, request)
    tokens = rows * frames * height * width
    guidances = [float(point[knob]) for knob in architecture.guiders if knob in point]
    passes = steps * (sum(1 + (each != 1) for each in guidances) / len(guidances) if guidances else 1)
    pixels = rows * getattr(request, "num_frames", 1) * request.height * request.width
    one_row = 1
    for side in architecture.latents(configs, io, request):
        one_row *= side
    scheduler, transformer = configs["scheduler"], architecture.transformer(configs)
    held = rows * method_bytes(
        point,
        configs[architecture.denoisers[0]],
        tokens=tokens // rows,
        text_tokens=transformer.text_tokens if transformer.joint else 0,
        branches=2 if any(each != 1 for each in guidances) else 1,
        itemsize=4,
    )
    solver = num_tensors(scheduler["_class_name"], int(scheduler.get("solver_order", 2)))
    states = 2 if leaves_out_tokens(point) else 1  # with the one that it is taken up from
    return Work(
        {
            "macs": rows * passes / steps * _macs(point, transformer, tokens // rows),
            "slices": passes,
            "pixels": pixels,
            "token_steps": tokens * steps,
        },
        bytes_held=rows * (4 * (1 + states * (1 + solver)) * one_row + states * _GENERATOR_BYTES)
        + 4 * rows * architecture.held_numbers(configs, io, request)
        + 8 * (steps + 1)
        + 3 * pixels
        + held
        + activations(architecture, configs, io, request).peak,
    )


def _macs(point: Point, transformer: Counted, tokens: int) -> float:
    """Of one pass in each step, over so many tokens of a latent. Those that are run attend to all."""
    whole = whole_steps(point)
    macs = whole * transformer.macs(tokens, kept_pairs(point))
    if sparse := full_steps(point) - whole:
        active, text = num_active(point, tokens), transformer.text_tokens if transformer.joint else 0
        macs += sparse * transformer.macs(active, (tokens + text) / (active + text))
    return macs


FAMILY = Family(
    name="diffusers",
    summary="pipelines of diffusers from a folder: " + ", ".join(a.name for a in pipelines.ARCHITECTURES),
    tasks=("videos", "images"),
    shape="job",
    resolve=LazyRef(f"{_HERE}.family:resolve"),
    build=LazyRef(f"{_HERE}.networks:build"),
    runner=LazyRef(f"{_HERE}.host:DiffusersRunner"),
    oracle=LazyRef(f"{_HERE}.oracle:compare"),
    work=LazyRef(f"{_HERE}.family:work"),
    allowed=LazyRef(f"{_HERE}.family:check_allowed"),
    examples=tuple(architecture.name for architecture in pipelines.ARCHITECTURES),
    parts=MappingProxyType(
        {
            "recognise": LazyRef(f"{_HERE}.family:recognise"),
            "weight_files": LazyRef(f"{_HERE}.family:weight_files"),
            "save": LazyRef(f"{_HERE}.networks:save"),
            "example": LazyRef(f"{_HERE}.example:example"),
            "activation_bytes": LazyRef(f"{_HERE}.family:activation_bytes"),
            "facts": LazyRef(f"{_HERE}.family:facts"),
            "check_spread": LazyRef("models.methods.diffusers.knobs:check_spread_point"),
            "prompt_check": LazyRef(f"{_HERE}.family:prompt_check"),
        }
    ),
)
