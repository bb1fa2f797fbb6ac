"""Clips as jobs: each slice encodes the text, denoises once, or decodes, for several requests together.

Legend: B rows of the batch (R of each request, in order; unconditional first under guidance), C channels, S text
tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models.contract import Figures, JobState, Phase, Point, Variant
from models.families.vdit.networks import Networks
from models.families.vdit.pipeline import Frames
from models.families.vdit.work import rows_of
from models.io import ClipIO, ClipRequest, SamplerRange
from models.layers.latent_colours import LatentColours
from models.methods.attention.setting import parse_attention
from models.methods.attention.thinned import AttentionState, ModelCall, make_attention
from models.methods.packing.forward import packed_forward
from models.methods.ras.config import RasConfig
from models.methods.samplers.base import Sampler, step_generator
from models.methods.samplers.make import make_sampler
from models.parallel.degrees import ParallelDegrees
from models.parallel.forward import ShardedTransformer, VideoTransformer
from models.parallel.groups import SequenceGroups
from models.prompt_tokens import check_prompts


class VditRunner:
    """A ``Job``. ``kept``: the step and the latents (1, C, t, h, w). ``cache``: ``text`` (R, S, C) and its mask,
    ``attention`` and ``transformer`` of the request, ``clean`` (the present estimate) and ``frames``.

    Without its cache a request encodes its text anew; attention that searches or caches is dense in the next step.
    """

    def __init__(self, networks: Networks, variant: Variant, ras: RasConfig | None = None) -> None:
        self._networks = networks
        self._io: ClipIO = variant.io
        self._ras = ras or RasConfig()
        self._shard: Callable[[VideoTransformer, int], VideoTransformer] = lambda whole, num_tokens: whole
        self._packs = True
        self._colours: LatentColours | None = None

    def spread(self, degrees: ParallelDegrees, groups_of: Callable[[int], SequenceGroups]) -> None:
        """See ``Parallel``."""
        for transformer in self._networks.transformers.values():
            degrees.check_heads(transformer.config.num_attention_heads)
        self._shard = lambda whole, num_tokens: ShardedTransformer(whole, groups_of(num_tokens))
        self._packs = False  # each length has groups of ranks of its own

    # -- one request -------------------------------------------------------------------------------------------------

    def open(self, request: ClipRequest, point: Point, seed: int) -> JobState:
        """Draw the noise, on the CPU: the same on every device. Raises: SettingError: a prompt that is too long."""
        check_prompts(request, self._networks.count_tokens, self._io.max_text_tokens)
        _, h, w = self._io.vae_stride
        frames = self._io.grid(request.num_frames)[0]
        shape = (1, self._io.latent_channels, frames, self._io.height // h, self._io.width // w)
        noise = torch.randn(shape, generator=step_generator(seed, -1))
        latents = self._sampler(point).initial(noise).to(self._networks.device)
        return JobState(request=request, point=point, seed=seed, kept={"step": 0, "latents": latents})

    def remaining(self, state: JobState) -> Mapping[Phase, int]:
        """Text, steps, decoder."""
        steps = int(state.point["num_inference_steps"]) - state.kept["step"]
        left: dict[Phase, int] = {
            "condition": int(steps > 0 and "text" not in state.cache),
            "denoise": steps,
            "decode": int("frames" not in state.cache),
        }
        return {phase: count for phase, count in left.items() if count}

    def group_key(self, state: JobState) -> Hashable:
        """Same weights: lengths, guidance, steps and attention may differ. Where the attention has a schedule, which
        runs its own choice of tokens or of blocks in each step, or where ranks share the tokens: same length, attention
        and guidance as well, and with a schedule the same step of as many."""
        phase = _phase(self.remaining(state))
        if phase != "denoise":
            return (phase,)
        point, attention = state.point, state.cache["attention"]
        weights, has_schedule = self._made(point).weights, attention.setting.has_schedule
        if self._packs and not has_schedule:
            return (phase, weights)
        when = (state.kept["step"], point["num_inference_steps"]) if has_schedule else None
        return (state.request.num_frames, rows_of(point), weights, point["attention"], when, attention.is_warm)

    def close(self, state: JobState) -> Mapping[str, Any]:
        """``frames``: uint8 RGB (T, H, W, 3)."""
        return {"frames": state.cache["frames"]}

    @torch.inference_mode()
    def preview(self, state: JobState) -> Frames:
        """The middle frame of the present estimate, one pixel for each latent pixel."""
        latents = state.cache.get("clean", state.kept["latents"])
        if self._colours is None:
            self._colours = LatentColours.fitted(self._networks.decode, latents.shape[1], self._networks.device)
        return self._colours.picture(latents)

    # -- slices ------------------------------------------------------------------------------------------------------

    def step(self, states: Sequence[JobState]) -> Sequence[Figures | None]:
        """One slice of the phase that all of them are in."""
        phase = _phase(self.remaining(states[0]))
        if phase == "denoise":
            return self._denoise(states)
        for state in states:
            (self._condition if phase == "condition" else self._decode)(state)
        return [{} for _ in states]

    @torch.inference_mode()
    def _condition(self, state: JobState) -> None:
        request, point, networks = state.request, state.point, self._networks
        transformer = networks.transformers[self._made(point).weights]
        grid = self._io.grid(request.num_frames)
        texts = [request.negative_prompt, request.prompt][-rows_of(point) :]
        text, mask = _trimmed(*networks.encode_text(texts))
        state.cache |= {
            "transformer": self._shard(transformer, self._io.num_tokens(request.num_frames)),
            "attention": make_attention(
                parse_attention(str(point["attention"])),
                num_steps=int(point["num_inference_steps"]),
                guidance_scale=float(point["guidance_scale"]),
                num_layers=transformer.config.num_layers,
                grid=grid,
                ras=self._ras,
            ),
            "mask": mask.to(networks.device, torch.bool),
            "text": text.to(networks.device, networks.dtype),
        }

    def _denoise(self, states: Sequence[JobState]) -> list[Figures | None]:
        """Nothing of a state changes before all have come out; what is not a number leaves its state as it was."""
        after = self._run_batch(states)
        if self._networks.device.type == "cuda":  # for this step; not for a decode, which is on a stream of its own
            torch.cuda.current_stream(self._networks.device).synchronize()
        return [_accept(state, latents, clean) for state, (latents, clean) in zip(states, after, strict=True)]

    @torch.inference_mode()
    def _run_batch(self, states: Sequence[JobState]) -> list[tuple[Tensor, Tensor]]:
        """Latents and estimate of each after its next step."""
        runs = _runs(states)
        longest = max(state.cache["text"].shape[1] for state in states)
        calls = [self._call(run, longest) for run in runs]
        if len(runs) == 1:
            attention: list[AttentionState] = [state.cache["attention"] for state in states]
            outputs = [attention[0].forward(calls[0], attention)]
        else:
            of_runs = [run[0].cache["attention"].attention for run in runs]
            outputs = packed_forward(states[0].cache["transformer"], calls, of_runs)
        parts = {
            id(state): part
            for run, output in zip(runs, outputs, strict=True)
            for state, part in zip(run, torch.split(output.float(), [rows_of(one.point) for one in run]), strict=True)
        }
        return [_advance(state, self._sampler(state.point), parts[id(state)]) for state in states]

    def _call(self, states: Sequence[JobState], text_tokens: int) -> ModelCall:
        """Of states of one length. Steps differ where the attention has no schedule."""
        latents, timesteps = [], []
        for state in states:
            sampler, step, rows = self._sampler(state.point), state.kept["step"], rows_of(state.point)
            latents += [sampler.scale_input(state.kept["latents"], step)] * rows
            timesteps += [sampler.timestep(step)] * rows
        text, mask = _joined_text(states, text_tokens)
        return ModelCall(
            transformer=states[0].cache["transformer"],
            latents=torch.cat(latents).to(self._networks.dtype),
            timestep=torch.tensor(timesteps, device=text.device),
            text=text,
            text_mask=mask,
            step=states[0].kept["step"],
        )

    def _decode(self, state: JobState) -> None:
        device, latents = self._networks.device, state.kept["latents"]
        if device.type != "cuda":
            state.cache["frames"] = self._networks.decode(latents)
            return
        with torch.cuda.stream(torch.cuda.Stream(device)):  # type: ignore[no-untyped-call]
            state.cache["frames"] = self._networks.decode(latents)  # the last step has waited for these latents

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _made(self, point: Point) -> SamplerRange:
        return self._io.check_sampler(str(point["sampler"]), int(point["num_inference_steps"]))

    def _sampler(self, point: Point) -> Sampler:
        made, steps = self._made(point), int(point["num_inference_steps"])
        return _sampler(str(point["sampler"]), steps, made.multiple)


@lru_cache(maxsize=64)
def _sampler(name: str, num_steps: int, segments: int) -> Sampler:
    """Has no state but tables of its own, which are made when they are first asked for."""
    return make_sampler(name, num_steps, segments=segments)


def _phase(remaining: Mapping[Phase, int]) -> Phase | None:
    return next(iter(remaining), None)


def _trimmed(text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Without the padding at the end that all rows have: (R, S, C) and (R, S)."""
    longest = int(mask.any(0).nonzero().max()) + 1
    return text[:, :longest].clone(), mask[:, :longest].clone()


def _runs(states: Sequence[JobState]) -> list[list[JobState]]:
    """States of one length and attention, which are a batch; several of them are packed."""
    runs: dict[Hashable, list[JobState]] = {}
    for state in states:
        runs.setdefault((state.request.num_frames, state.point["attention"]), []).append(state)
    return list(runs.values())


def _joined_text(states: Sequence[JobState], length: int) -> tuple[Tensor, Tensor]:
    """Embeddings (B, length, C) and mask (B, length); shorter ones are padded and masked."""
    pads = [length - state.cache["text"].shape[1] for state in states]
    text = [F.pad(state.cache["text"], (0, 0, 0, pad)) for state, pad in zip(states, pads, strict=True)]
    mask = [F.pad(state.cache["mask"], (0, pad), value=False) for state, pad in zip(states, pads, strict=True)]
    return torch.cat(text), torch.cat(mask)


def _advance(state: JobState, sampler: Sampler, output: Tensor) -> tuple[Tensor, Tensor]:
    """``output`` (R, C or more, t, h, w): what is more than the latents' channels is variance, and not used."""
    step, latents = state.kept["step"], state.kept["latents"]
    output = output[:, : latents.shape[1]]
    if len(output) == 2:
        output = output[:1] + float(state.point["guidance_scale"]) * (output[1:] - output[:1])
    clean = sampler.denoised(latents, output, step)
    return sampler.step(latents, output, step, step_generator(state.seed, step)), clean


def _accept(state: JobState, latents: Tensor, clean: Tensor) -> Figures | None:
    if not bool(torch.isfinite(latents).all()):
        return None
    state.kept = {"step": state.kept["step"] + 1, "latents": latents}
    state.cache["clean"] = clean
    attention: AttentionState = state.cache["attention"]
    return {"sparsity": attention.sparsity, "search_s": attention.search_s}
