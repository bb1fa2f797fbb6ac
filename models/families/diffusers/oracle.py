"""The pipeline's own output for the same seed: that of diffusers' modular pipeline, and of its classic one."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.modular_pipelines import LoopSequentialPipelineBlocks, SequentialPipelineBlocks
from torch import Tensor

from models.contract import Parity, Point, Variant
from models.families.diffusers import pipelines
from models.families.diffusers.example import example, with_noise
from models.families.diffusers.family import FAMILY
from models.families.diffusers.host import DiffusersRunner, as_bytes, blocks_input, with_guidance
from models.families.diffusers.networks import Components, build

_SEED = 7


def compare(variant: Variant, official: Path | None) -> Iterator[Parity]:
    """Latents and what is decoded of them, to the bit, of one request in few steps with the usual guidance, and of the
    same without a picture where that is optional. Where the classic pipeline differs from the modular one, the card
    says how."""
    components = build(variant, random_weights=variant.weights is None)
    point = FAMILY.of(variant).check_point({"num_inference_steps": 4})
    classic_tolerance = pipelines.of(variant).classic_tolerance
    for request, words in _requests(variant):
        latents, made = _ours(components, variant, request, point)
        for name, reference, tolerance in (("modular", modular, 0.0), ("classic", classic, classic_tolerance)):
            their_latents, theirs = reference(components, variant, request, point, _SEED)
            yield Parity(f"latents, {name} pipeline{words}", latents, their_latents, tolerance)
            yield Parity(f"decoded, {name} pipeline{words}", made, theirs, float(tolerance > 0))


def _requests(variant: Variant) -> Iterator[tuple[Any, str]]:
    """With what is to be said of each."""
    random = np.random.default_rng(0)
    request = example(variant, random)
    if not getattr(variant.io, "picture_is_optional", False):
        yield request, ""
        return
    yield replace(request, picture=b""), ", no picture"
    yield with_noise(request, random), ", a picture"


def _ours(components: Components, variant: Variant, request: Any, point: Point) -> tuple[Tensor, Tensor]:
    runner = DiffusersRunner(components, variant)
    state = runner.open(request, point, _SEED)
    while runner.remaining(state):
        runner.step([state])
    (made,) = runner.close(state).values()
    return state.kept["latents"], torch.from_numpy(made)


@torch.inference_mode()
def modular(components: Components, variant: Variant, request: Any, point: Point, seed: int) -> tuple[Tensor, Tensor]:
    """What diffusers' modular pipeline makes of a request as a whole."""
    architecture, pipeline = pipelines.of(variant), copy.copy(components.pipeline)
    pipeline.scheduler = copy.deepcopy(pipeline.scheduler)
    with_guidance(pipeline, architecture, point)
    asked, made = blocks_input(architecture, request, point), []
    until_loop = copy.copy(pipeline)
    until_loop._blocks = _until_loop(pipeline.blocks.get_execution_blocks(**asked))
    later = {each.name for each in pipeline.blocks.inputs} - {each.name for each in until_loop.blocks.inputs}
    for each, output in ((until_loop, "latents"), (pipeline, architecture.output)):
        form = {"output_type": "np"} if each is pipeline else {}
        given = asked if each is pipeline else {name: value for name, value in asked.items() if name not in later}
        made.append(each(**given, **form, generator=torch.Generator().manual_seed(seed), output=output))
    return made[0], _as_decoded(made[1])


@torch.inference_mode()
def classic(components: Components, variant: Variant, request: Any, point: Point, seed: int) -> tuple[Tensor, Tensor]:
    """What the class makes that the folder's ``model_index.json`` names."""
    architecture = pipelines.of(variant)
    other = architecture.pipeline_with_picture if getattr(request, "picture", b"") else ""
    kind = getattr(diffusers, other or architecture.pipeline)
    index = variant.config["components"]["index"]
    takes = inspect.signature(kind.__init__).parameters
    parts: Mapping[str, Any] = {**dict.fromkeys(takes.keys() & {"image_encoder"}), **index, **components.parts}
    parts = {name: part for name, part in parts.items() if name in takes}
    for name, parameter in takes.items():
        if name not in parts and name not in ("self", "kwargs") and parameter.default is inspect.Parameter.empty:
            parts = {**parts, name: None}
    pipeline = kind(**{**parts, "scheduler": copy.deepcopy(parts["scheduler"])})
    if "guider" in parts:
        with_guidance(pipeline, architecture, point)
    pipeline.set_progress_bar_config(disable=True)
    known = inspect.signature(pipeline.__call__).parameters
    guidance = {name: point[name] for name in architecture.guiders}
    if "true_cfg_scale" in known and guidance:
        guidance = {"true_cfg_scale": guidance["guidance_scale"]}
    asked = {**blocks_input(architecture, request, point), **guidance}
    asked = {name: value for name, value in asked.items() if name in known}
    latents, made = (
        pipeline(**asked, generator=torch.Generator().manual_seed(seed), output_type=kind, return_dict=False)[0]
        for kind in ("latent", "np")
    )
    return latents, _as_decoded(made)


def _until_loop(blocks: SequentialPipelineBlocks) -> SequentialPipelineBlocks:
    """All that makes latents: some decoders overwrite them."""
    chosen = dict(blocks.sub_blocks)
    while not isinstance(list(chosen.values())[-1], LoopSequentialPipelineBlocks):
        chosen.popitem()
    list(chosen.values())[-1].set_progress_bar_config(disable=True)
    return SequentialPipelineBlocks.from_blocks_dict(chosen)


def _as_decoded(made: Any) -> Tensor:
    """As a runner has it: the one clip, or all pictures."""
    found = np.asarray(made)
    return torch.from_numpy(as_bytes(found[0] if found.ndim == 5 else found))
