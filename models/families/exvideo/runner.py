"""Clips as jobs: a slice encodes first frames, denoises once, or decodes eight frames, of several requests together.

Legend: B rows of all states (R of each, unconditional first under guidance), F frames, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from models.contract import Figures, JobState, Phase, Point, SettingError, Variant
from models.families.exvideo.family import check_allowed
from models.families.exvideo.latents import Decoding, as_bytes, decode_next, decoded, euler_step, normalised
from models.families.exvideo.networks import Networks
from models.families.exvideo.overlap import by_windows
from models.families.exvideo.picture import check_picture, pixels_of
from models.families.exvideo.schedule import first_step, levels, starts_late
from models.families.exvideo.shapes import CHUNK, CHUNK_STRIDE, spans
from models.families.exvideo.work import rows_of
from models.io import ClipIO, ClipRequest
from models.layers.latent_colours import LatentColours


class ExVideoRunner:
    """A ``Job``. ``kept``: the step and the latents (1, F, C, h, w), as a scheduler of SVD has them, not as DiffSynth
    keeps them. ``cache``: of the first frame ``image`` (1, 1, D) and ``first`` (1, C, h, w); ``clean`` (the present
    estimate) and ``decoding``.

    Noise is drawn as SVD's pipeline draws it with a CPU generator of the seed: that of the first frame, then that of
    the clip. Without its cache a request encodes its first frame anew, and decodes from the beginning.
    """

    def __init__(self, networks: Networks, variant: Variant) -> None:
        self._networks, self._variant = networks, variant
        self._io: ClipIO = variant.io
        self._device = networks.unet.device

    # -- one request -------------------------------------------------------------------------------------------------

    def open(self, request: ClipRequest, point: Point, seed: int) -> JobState:
        """Draw the noise. Raises: SettingError: a first frame that cannot be read or has another size, or a late start
        without statistics."""
        request = self._io.settled(request)
        check_picture(request)
        check_allowed(self._variant, request, point)
        first = first_step(self._variant, point)
        sigma = levels(self._variant, point)[first]
        frames, rows, columns = self._io.grid(request.num_frames, (request.width, request.height))
        _, noise = _noise(request, seed, (1, frames, self._io.latent_channels, rows, columns))
        if not starts_late(self._variant, point):
            latents = noise * math.sqrt(sigma**2 + 1)
        elif self._networks.analytic is None:
            raise SettingError("start_sigma", "the statistics that a late start needs are not beside the weights")
        else:
            latents = self._networks.analytic.start(noise, sigma)
        kept = {"step": first, "latents": latents.to(self._device)}
        return JobState(request=request, point=point, seed=seed, kept=kept)

    def remaining(self, state: JobState) -> Mapping[Phase, int]:
        """First frame, steps, and pieces to decode."""
        steps = int(state.point["num_inference_steps"]) - state.kept["step"]
        pieces = len(spans(state.request.num_frames, CHUNK, CHUNK_STRIDE))
        done = state.cache["decoding"].num_done if "decoding" in state.cache else 0
        left: dict[Phase, int] = {
            "condition": int(steps > 0 and "image" not in state.cache),
            "denoise": steps,
            "decode": pieces - done,
        }
        return {phase: count for phase, count in left.items() if count}

    def group_key(self, state: JobState) -> Hashable:
        """Phase, length, size, rows and window: the network takes a step of its own for each row."""
        request = state.request
        size = (request.num_frames, request.width, request.height)
        return _phase(self.remaining(state)), size, rows_of(state.point), state.point["window"]

    def close(self, state: JobState) -> Mapping[str, Any]:
        """``frames``: uint8 RGB (F, H, W, 3)."""
        return {"frames": state.cache["decoding"].frames.numpy()}

    @torch.inference_mode()
    def preview(self, state: JobState) -> NDArray[Any]:
        """The middle frame of the present estimate, one pixel for each latent pixel."""
        return self._colours.picture(state.cache.get("clean", state.kept["latents"]).transpose(1, 2))

    # -- slices ------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self, states: Sequence[JobState]) -> Sequence[Figures | None]:
        """One slice of the phase that all of them are in."""
        phase = _phase(self.remaining(states[0]))
        if phase == "denoise":
            return self._denoise(states)
        for state in states:
            (self._condition if phase == "condition" else self._decode)(state)
        return [{} for _ in states]

    def _condition(self, state: JobState) -> None:
        """The embedding of the first frame as it is, and the latents of it with noise."""
        pixels = pixels_of(state.request.picture)
        noise, _ = _noise(state.request, state.seed, (0,))
        strength = float(state.point["noise_aug_strength"])
        state.cache["image"] = self._networks.embed(pixels)
        state.cache["first"] = self._networks.encode(pixels + strength * noise)

    def _denoise(self, states: Sequence[JobState]) -> list[Figures | None]:
        """Nothing of a state changes before all have come out; what is not a number leaves its state as it was."""
        after = [
            euler_step(state.kept["latents"], output, *self._levels(state))
            for state, output in zip(states, self._predict(states), strict=True)
        ]
        return [_accept(state, latents, clean) for state, (latents, clean) in zip(states, after, strict=True)]

    def _predict(self, states: Sequence[JobState]) -> list[Tensor]:
        """v of each, guided: (1, F, C, h, w) in float32."""
        unet, rows, frames = self._networks.unet, rows_of(states[0].point), states[0].request.num_frames
        samples, times, images, ids = [], [], [], []
        for state in states:
            sigma, _ = self._levels(state)
            scaled = state.kept["latents"] / math.sqrt(sigma**2 + 1)
            first, image = state.cache["first"][:, None].expand(-1, frames, -1, -1, -1), state.cache["image"]
            conditions = [(torch.zeros_like(first), torch.zeros_like(image)), (first, image)]
            for latents, shown in conditions[-rows:]:
                samples.append(torch.cat([scaled, latents], dim=2))
                images.append(shown)
                times.append(0.25 * math.log(sigma))
                ids.append(_time_ids(state))
        call = partial(
            _call,
            unet,
            torch.tensor(times, device=self._device),
            torch.cat(images).to(unet.dtype),
            torch.tensor(ids, dtype=unet.dtype, device=self._device),
        )
        sample, window = torch.cat(samples).to(unet.dtype), int(states[0].point["window"])
        output = by_windows(call, sample, window) if 0 < window < frames else call(sample).float()
        return [self._guided(part, state) for part, state in zip(torch.split(output, rows), states, strict=True)]

    def _guided(self, output: Tensor, state: JobState) -> Tensor:
        """SVD's guidance rises along the clip from 1; ExVideo's is the same for all frames."""
        if len(output) == 1:
            return output
        scale, frames = float(state.point["guidance_scale"]), output.shape[1]
        begin = scale if self._variant.config["positions"] else 1.0
        scales = torch.linspace(begin, scale, frames).to(output).view(1, -1, 1, 1, 1)
        without, with_image = output.chunk(2)
        return without + scales * (with_image - without)

    def _decode(self, state: JobState) -> None:
        """The next piece; at the first, ExVideo's clips are brought to one brightness."""
        decoding = state.cache.get("decoding") or _nothing_decoded(state.request)
        contrast, latents = float(self._variant.config["contrast"]), state.kept["latents"]
        latents = normalised(latents, contrast) if contrast else latents
        state.cache["decoding"] = decode_next(self._networks.vae, latents, decoding)

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _levels(self, state: JobState) -> tuple[float, float]:
        """Noise level of the next step, and where it leads."""
        step = state.kept["step"]
        sigma, next_sigma = levels(self._variant, state.point)[step : step + 2]
        return sigma, next_sigma

    @cached_property
    def _colours(self) -> LatentColours:
        """Fitted at the first preview."""
        return LatentColours.fitted(self._decoded_bytes, self._io.latent_channels, self._device)

    def _decoded_bytes(self, latents: Tensor) -> NDArray[Any]:
        return as_bytes(decoded(self._networks.vae, latents[0].transpose(0, 1))).numpy()


def _call(unet: Any, times: Tensor, images: Tensor, ids: Tensor, sample: Tensor) -> Tensor:
    """The network on (B, F, 2C, h, w)."""
    output: Tensor = unet(sample, times, encoder_hidden_states=images, added_time_ids=ids, return_dict=False)[0]
    return output


def _noise(request: ClipRequest, seed: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Of the first frame, and of the clip."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn((1, 3, request.height, request.width), generator=generator)
    return first, torch.randn(shape, generator=generator)


def _time_ids(state: JobState) -> list[float]:
    """Frames a second less 1, as the network was trained; how much moves; the noise on the first frame."""
    point = state.point
    return [state.request.fps - 1.0, float(point["motion_bucket_id"]), float(point["noise_aug_strength"])]


def _nothing_decoded(request: ClipRequest) -> Decoding:
    return Decoding(torch.zeros(request.num_frames, request.height, request.width, 3, dtype=torch.uint8))


def _accept(state: JobState, latents: Tensor, clean: Tensor) -> Figures | None:
    if not bool(torch.isfinite(latents).all()):
        return None
    state.kept = {"step": state.kept["step"] + 1, "latents": latents}
    state.cache["clean"] = clean
    return {}


def _phase(remaining: Mapping[Phase, int]) -> Phase | None:
    return next(iter(remaining), None)
