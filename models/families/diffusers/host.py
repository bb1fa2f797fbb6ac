"""Any modular pipeline of diffusers as jobs: each slice runs what comes before its loop, one step of it, or what comes
after, for several requests together.

The pipeline's own blocks do all of it. A request has components of its own: the networks are everybody's, the
scheduler and the guiders its own. Legend: R rows of a request (pictures; 1 for a clip), C channels.
"""

from __future__ import annotations

import copy
import io
import math
import threading
import uuid
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any

import numpy as np
import torch
from diffusers.modular_pipelines.modular_pipeline import LoopSequentialPipelineBlocks, PipelineState
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from models.contract import Figures, JobState, Phase, Point, Variant
from models.families.diffusers import pipelines, solver_state
from models.families.diffusers.anchor import anchor_of, anchored, own
from models.families.diffusers.architecture import Architecture, Grid
from models.families.diffusers.family import check_allowed
from models.families.diffusers.method import Hosted, NetworkCall, make_method
from models.families.diffusers.networks import Components
from models.families.diffusers.rows import Joined, joined, time_of_rows
from models.io import ClipIO
from models.layers.latent_colours import LatentColours
from models.methods.diffusers.knobs import check_spread_point, is_dense_step, leaves_out_tokens
from models.methods.diffusers.request import RequestMethods, check_spread
from models.parallel.degrees import ParallelDegrees
from models.parallel.groups import SequenceGroups
from models.prompt_tokens import check_prompts


class Prepared:
    """What the blocks before the loop have made of a request. Each step copies the state: it changes nothing here."""

    def __init__(self, view: Any, blocks: Any, state: PipelineState, method: RequestMethods | None) -> None:
        self.view, self.state, self.method = view, state, method
        self.loop = next(block for block in blocks if isinstance(block, LoopSequentialPipelineBlocks))
        self.after = _after_loop(blocks)
        self.request_id = uuid.uuid4().hex

    def tensors(self) -> list[Any]:
        """All that is held."""
        own = self.method.tensors() if self.method is not None else []
        return [*(value for value in self.state.values.values() if isinstance(value, Tensor)), *own]

    def with_latents(self, latents: Tensor) -> PipelineState:
        """The state as it is before a step, or after the last."""
        values = {**self.state.values, "latents": latents}
        return PipelineState(values=values, kwargs_mapping=dict(self.state.kwargs_mapping))


class DiffusersRunner:
    """A ``Job``. ``kept``: the step, the latents (R, ...) as the loop has them, what the scheduler remembers, and the
    states of the generators. ``cache``: ``prepared``, ``clean`` (the present estimate) and ``outputs``, of which there
    is one for each row. Without its cache a request encodes its prompt and its picture anew, and where its steps leave
    tokens out goes back to the last one that ran all of them.

    A prompt, a preview and a finished clip may be at work on threads of their own. Networks are shared, and some
    autoencoders (Wan's, Qwen-Image's) keep what they have seen of a clip in themselves: they serve one at a time."""

    def __init__(self, components: Components, variant: Variant) -> None:
        self._components, self._variant = components, variant
        self._pipeline = components.pipeline
        self._architecture = pipelines.of(variant)
        self._configs = variant.config["components"]
        self._io = variant.io
        self._denoisers: dict[str, Any] = {name: components.networks[name] for name in self._architecture.denoisers}
        self._device: torch.device = next(iter(self._denoisers.values())).device
        self._autoencoder = threading.Lock()
        self._colours = self._fitted_colours()
        # Asked at each decision; there are as many as the setting has values.
        self._experts: Callable[[int], tuple[str, ...]] = cache(self._experts_of)
        self._groups_of: Callable[[int], SequenceGroups | None] = lambda num_tokens: None
        self._is_spread = False

    def spread(self, degrees: ParallelDegrees, groups_of: Callable[[int], SequenceGroups]) -> None:
        """See ``Parallel``."""
        for network in self._denoisers.values():
            check_spread(network)
            degrees.check_heads(network.config.num_attention_heads)
        self._groups_of, self._is_spread = groups_of, degrees.sequence > 1

    # -- one request -------------------------------------------------------------------------------------------------

    def open(self, request: Any, point: Point, seed: int) -> JobState:
        """Nothing is drawn yet: the pipeline's own blocks do. Raises: SettingError."""
        request = self._settled(request)
        check_allowed(self._variant, request, point)
        self._check_prompts(request)
        if self._is_spread:
            check_spread_point(point)
        latents = torch.zeros(self._shape(request), dtype=self._latents_dtype, device=self._device)
        kept = {
            "step": 0,
            "latents": latents,
            "generators": _states(_generators(seed, _rows(request))),
            **solver_state.fresh(self._pipeline.scheduler, latents),
        }
        kept = anchored(kept, kept) if leaves_out_tokens(point) else kept
        return JobState(request=request, point=point, seed=seed, kept=kept)

    def remaining(self, state: JobState) -> Mapping[Phase, int]:
        """Prompt and picture, steps, and the rows to decode, one at a time."""
        steps = int(state.point["num_inference_steps"]) - state.kept["step"]
        rows = _rows(state.request) - len(state.cache.get("outputs", ()))
        left: dict[Phase, int] = {
            "condition": int("prepared" not in state.cache and (steps > 0 or rows > 0)),
            "denoise": steps,
            "decode": rows,
        }
        return {phase: count for phase, count in left.items() if count}

    def group_key(self, state: JobState) -> Hashable:
        """Same phase; then the same size and length, and the same settings and step. Where a pass takes a time for each
        of its rows, guidance alone has to be the same."""
        phase = next(iter(self.remaining(state)), None)
        if phase != "denoise":
            return (phase,)
        prepared, grid = state.cache["prepared"], self.grid(state.request)
        if prepared.method is None and self._architecture.times_by_row:
            return phase, grid, tuple(state.point[knob] for knob in self._architecture.guiders)
        company = None if prepared.method is None or prepared.method.is_shared else prepared.request_id
        has_picture = bool(getattr(state.request, "picture", b""))
        rate = getattr(state.request, "fps", 0)
        return phase, grid, state.kept["step"], tuple(sorted(state.point.items())), has_picture, rate, company

    def expert_phase(self, state: JobState) -> Hashable:
        """Which of the denoisers the next step wakes: see ``ExpertPhases``."""
        names = self._architecture.denoisers
        if len(names) == 1:
            return names[0]
        experts = self._experts(int(state.point["num_inference_steps"]))
        step: int = state.kept["step"]
        return experts[min(step, len(experts) - 1)]

    def _experts_of(self, num_steps: int) -> tuple[str, ...]:
        """The denoiser of each of so many steps."""
        scheduler, names = self._scheduler(), self._architecture.denoisers
        scheduler.set_timesteps(num_steps)
        boundary = self._pipeline.config.boundary_ratio * scheduler.config.num_train_timesteps
        return tuple(names[int(time < boundary)] for time in scheduler.timesteps)

    def close(self, state: JobState) -> Mapping[str, Any]:
        """``frames`` of a clip, uint8 RGB (T, H, W, 3), or ``image``, (R, H, W, 3)."""
        if (prepared := state.cache.get("prepared")) is not None and prepared.method is not None:
            prepared.method.release()
        outputs = state.cache["outputs"]
        return {"frames": outputs[0]} if isinstance(self._io, ClipIO) else {"image": np.stack(outputs)}

    @torch.inference_mode()
    def preview(self, state: JobState) -> NDArray[np.uint8]:
        """The middle frame of the present estimate, one pixel for each latent pixel."""
        latents = state.cache.get("clean", state.kept["latents"])[:1]
        unpacked = self._architecture.unpacked(latents, self.grid(state.request))
        return self._colours.picture(unpacked)

    # -- slices ------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self, states: Sequence[JobState]) -> Sequence[Figures | None]:
        """One slice of the phase that all of them are in."""
        phase = next(iter(self.remaining(states[0])))
        if phase == "denoise":
            return self._denoise(states)
        for state in states:
            (self._condition if phase == "condition" else self._decode)(state)
        return [{} for _ in states]

    def _condition(self, state: JobState) -> None:
        """All blocks before the loop, on a fresh state; they draw the noise."""
        request, rows = state.request, _rows(state.request)
        generators = _generators(state.seed, rows)
        inputs = blocks_input(self._architecture, request, state.point)
        inputs["generator"] = generators if rows > 1 else generators[0]
        view, pipeline_state = self._view(state.point), PipelineState()
        for parameter in self._pipeline.blocks.inputs:
            value = inputs.get(parameter.name, parameter.default)
            if parameter.name:
                pipeline_state.set(parameter.name, value, parameter.kwargs_type)
        chosen = self._pipeline.blocks.get_execution_blocks(**inputs)
        blocks = list(chosen.sub_blocks.values())
        encoding = self._encoding(view)
        with self._autoencoder if "image" in inputs else nullcontext():
            for block in blocks:
                if isinstance(block, LoopSequentialPipelineBlocks):
                    break
                block(encoding, pipeline_state)
        method = make_method(state.point, self._groups_of(math.prod(self.grid(request))))
        latents = pipeline_state.values.pop("latents")
        for name in ("generator", "image", "resized_image"):
            pipeline_state.values.pop(name, None)
        state.cache["prepared"] = Prepared(view, blocks, pipeline_state, method)
        if not state.kept["step"]:
            drawn = {**state.kept, "latents": latents, "generators": _states(generators)}
            state.kept = anchored(drawn, drawn) if anchor_of(drawn) else drawn
        elif anchor := anchor_of(state.kept):
            state.kept = self._taken_up(state, anchor)

    def _taken_up(self, state: JobState, anchor: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a request with nothing in its cache goes on from."""
        step, steps = state.kept["step"], int(state.point["num_inference_steps"])
        return state.kept if step >= steps or is_dense_step(step, steps) else anchored(anchor, anchor)

    def _denoise(self, states: Sequence[JobState]) -> list[Figures | None]:
        """Nothing of a state changes before all have come out; what is not a number leaves its state as it was."""
        prepared = [state.cache["prepared"] for state in states]
        steps, counts = [state.kept["step"] for state in states], [_rows(state.request) for state in states]
        generators = [_restored(state.kept["generators"]) for state in states]
        schedulers = [self._at_step(state) for state in states]
        before = [
            one.loop.get_block_state(one.with_latents(state.kept["latents"]))
            for one, state in zip(prepared, states, strict=True)
        ]
        times = [each.timesteps[step] for each, step in zip(before, steps, strict=True)]
        architecture = self._architecture
        together = joined([each.as_dict() for each in before], counts, architecture.alone, architecture.padded)
        values = {name: make() for name, make in architecture.loop_values.items()}
        block_state = type(before[0])(**together, **values)
        view = copy.copy(prepared[0].view)
        view.scheduler = schedulers[0] if len(states) == 1 else Joined(schedulers, counts, times, generators)
        if hasattr(block_state, "generator"):
            block_state.generator = generators[0] if len(generators[0]) > 1 else generators[0][0]
        self._announce(view, states[0], steps[0], sum(counts))
        prepared[0].loop.loop_step(view, block_state, i=steps[0], t=time_of_rows(times, counts))
        after = zip(torch.split(block_state.latents, counts), torch.split(block_state.noise_pred, counts), strict=True)
        return [
            self._accept(state, latents, predicted, scheduler, own)
            for state, (latents, predicted), scheduler, own in zip(states, after, schedulers, generators, strict=True)
        ]

    def _accept(
        self, state: JobState, latents: Tensor, predicted: Tensor, scheduler: Any, generators: list[torch.Generator]
    ) -> Figures | None:
        method = state.cache["prepared"].method
        clean = _estimate(state.kept, latents, predicted, scheduler)
        if not bool(torch.isfinite(latents).all()):
            return None
        before, anchor = own(state.kept), anchor_of(state.kept)
        after = {
            "step": before["step"] + 1,
            "latents": latents.clone() if latents._base is not None else latents,
            "generators": _states(generators),
            **solver_state.remembered(scheduler, before),
        }
        state.kept = anchored(after, before if method.needed_nothing else anchor) if anchor else after
        state.cache["clean"] = clean
        return method.figures() if method is not None else {}

    def _decode(self, state: JobState) -> None:
        """The next row, by the blocks after the loop."""
        prepared: Prepared = state.cache["prepared"]
        done = state.cache.get("outputs", [])
        after = prepared.with_latents(self._as_decoder(state.kept["latents"][len(done) : len(done) + 1]))
        after.values["generator"] = _restored(state.kept["generators"])[len(done)]
        after.values["output_type"] = "np"
        with self._autoencoder:
            for block in prepared.after:
                block(prepared.view, after)
        state.cache["outputs"] = [*done, as_bytes(after.values[self._architecture.output][0])]

    # -- components of one request -----------------------------------------------------------------------------------

    def _view(self, point: Point) -> Any:
        """The pipeline's components with a scheduler and guiders of its own."""
        view = copy.copy(self._pipeline)
        view.scheduler = self._scheduler()
        with_guidance(view, self._architecture, point)
        return view

    def _encoding(self, view: Any) -> Any:
        """The same for the blocks before the loop: some of them fail where no negative prompt is asked for."""
        guider: Any = getattr(view, "guider", None)
        if not self._architecture.always_negative or guider.num_conditions > 1:
            return view
        encoding = copy.copy(view)
        encoding.guider = _guider(guider, 2.0)
        return encoding

    def _scheduler(self) -> Any:
        shared = self._pipeline.scheduler
        return type(shared).from_config(shared.config)

    def _at_step(self, state: JobState) -> Any:
        """The request's scheduler as it is before its next step; a copy, so that a step may come to nothing."""
        scheduler = copy.copy(state.cache["prepared"].view.scheduler)
        for name in ("model_outputs", "timestep_list"):
            if hasattr(scheduler, name):
                setattr(scheduler, name, list(getattr(scheduler, name)))
        solver_state.restore(scheduler, state.kept, state.kept["step"])
        return scheduler

    def _announce(self, view: Any, state: JobState, step: int, rows: int) -> None:
        prepared: Prepared = state.cache["prepared"]
        if prepared.method is None:
            return
        steps = int(state.point["num_inference_steps"])
        guided = [float(state.point[knob]) for knob in self._architecture.guiders]
        for number, (name, network) in enumerate(self._denoisers.items()):
            guidance = guided[min(number, len(guided) - 1)] if guided else 1.0
            call = NetworkCall(name, step, steps, 0, guidance, self.grid(state.request), prepared.request_id)
            setattr(view, name, Hosted(network, prepared.method, call, rows, self._architecture.alone))

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _settled(self, request: Any) -> Any:
        return self._io.settled(request) if isinstance(self._io, ClipIO) else request

    def _shape(self, request: Any) -> tuple[int, ...]:
        return _rows(request), *self._architecture.latents(self._configs, self._io, request)

    @property
    def _latents_dtype(self) -> torch.dtype:
        own: torch.dtype = next(iter(self._denoisers.values())).dtype
        return torch.float32 if self._architecture.latents_in_float32 else own

    def grid(self, request: Any) -> Grid:
        """Frames, rows and columns of patches of a settled request."""
        return self._architecture.grid(self._io, request)

    def _as_decoder(self, latents: Tensor) -> Tensor:
        """In the type of the autoencoder: the blocks of pictures leave it to the pipeline that both have one."""
        vae: Any = self._components.networks["vae"]
        return latents.to(vae.dtype)

    def _check_prompts(self, request: Any) -> None:
        name, limit = self._architecture.prompted
        tokenizer = self._components.parts[name]
        check_prompts(request, lambda text: len(tokenizer(text).input_ids), limit)

    @torch.inference_mode()
    def _fitted_colours(self) -> LatentColours:
        """Before the first request: previews are made beside slices, and two threads must not be in one autoencoder,
        since some keep in themselves what they have seen of a clip."""
        usual = self._io.usual
        latents = torch.empty(self._shape(usual), device="meta")
        channels = self._architecture.unpacked(latents, self.grid(usual)).shape[1]
        return LatentColours.fitted(self._decoded, channels, self._device)

    def _decoded(self, latents: Tensor) -> NDArray[np.uint8]:
        """What the blocks after the loop make of unpacked latents (1, C, t, h, w): uint8 (T, H, W, 3)."""
        architecture = self._architecture
        blocks = list(self._pipeline.blocks.get_execution_blocks().sub_blocks.values())
        stride = architecture.stride(self._configs)
        state = PipelineState(values={parameter.name: parameter.default for parameter in self._pipeline.blocks.inputs})
        state.values |= {
            "latents": self._as_decoder(architecture.packed(latents)),
            "num_frames": (latents.shape[2] - 1) * stride[0] + 1,
            "height": latents.shape[3] * stride[1],
            "width": latents.shape[4] * stride[2],
            "dtype": torch.float32,
            "batch_size": 1,
            "generator": torch.Generator().manual_seed(0),
            "output_type": "np",
        }
        with self._autoencoder:
            for block in _after_loop(blocks):
                block(self._pipeline, state)
        made = as_bytes(state.values[architecture.output][0])
        return made if made.ndim == 4 else made[None]


def blocks_input(architecture: Architecture, request: Any, point: Point) -> dict[str, Any]:
    """What the blocks are given of a request, but the generator."""
    inputs = dict(architecture.inputs(request, point))
    if getattr(request, "picture", b""):
        inputs["image"] = Image.open(io.BytesIO(request.picture)).convert("RGB")
    return inputs


def with_guidance(view: Any, architecture: Architecture, point: Point) -> None:
    """Give components guiders of their own."""
    for knob, name in architecture.guiders.items():
        setattr(view, name, _guider(getattr(view, name), float(point[knob])))


def _rows(request: Any) -> int:
    return int(getattr(request, "count", 1))


def _guider(shared: Any, scale: float) -> Any:
    own = copy.copy(shared)
    own.guidance_scale = scale
    return own


def _generators(seed: int, rows: int) -> list[torch.Generator]:
    """On the CPU: the same on every device. Row r has the seed plus r."""
    return [torch.Generator().manual_seed(seed + row) for row in range(rows)]


def _states(generators: Sequence[torch.Generator]) -> Tensor:
    return torch.stack([generator.get_state() for generator in generators])


def _restored(states: Tensor) -> list[torch.Generator]:
    generators = [torch.Generator() for _ in states]
    for generator, state in zip(generators, states.cpu(), strict=True):
        generator.set_state(state.clone())  # it is read from the beginning of its storage
    return generators


def _after_loop(blocks: Sequence[Any]) -> list[Any]:
    return [*blocks[[isinstance(block, LoopSequentialPipelineBlocks) for block in blocks].index(True) + 1 :]]


def as_bytes(made: Any) -> NDArray[np.uint8]:
    """Numbers from 0 to 1 as diffusers makes pictures of them."""
    rounded: NDArray[np.uint8] = np.rint(np.asarray(made) * 255).astype(np.uint8)
    return rounded


def _estimate(before: Mapping[str, Any], after: Tensor, predicted: Tensor, scheduler: Any) -> Tensor:
    """What the step took the clean latents to be; where what it predicts is not noise times sigma, the latents."""
    predicts = scheduler.config.get("prediction_type", "flow_prediction")
    is_flow = predicts == "flow_prediction"
    if not (is_flow or (predicts == "epsilon" and "Euler" in type(scheduler).__name__)):
        return after
    latents: Tensor = before["latents"]
    return latents - float(scheduler.sigmas[before["step"]]) * predicted.to(latents)
