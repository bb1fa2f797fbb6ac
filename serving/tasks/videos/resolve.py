"""From what a caller asks for to settings without a gap: length, size, operating point, seed.

The point table (``PointTable``) is asked with everything that the caller has fixed; it says what a clip will take.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from serving.errors import BudgetInfeasible, DeadlineUnreachable, PromptTooLong, UnsupportedVideo
from serving.service import VideoModelCard
from serving.tasks.videos.domain import VideoRequest, VideoSettings
from serving.tasks.videos.limits import ClipLimits

_MAX_STRETCH = 2.0
"""A clip that would be longer or shorter than asked for by more than this factor is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a point must do: ``None`` leaves it to the point. ``allowed_s``: engine seconds that the latency leaves."""

    width: int
    height: int
    num_frames: int
    num_steps: int | None
    guidance_scale: float | None
    sampler: str | None
    attention: str | None
    allowed_s: float | None
    energy_j: float | None
    quality_floor: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenPoint:
    """What was chosen, the caller's own settings included, and what it is expected to take.

    ``degraded``: what was reduced to meet the budget, as in a report.
    """

    name: str
    variant: str
    sampler: str
    attention: str
    num_steps: int
    guidance_scale: float
    predicted_s: float
    predicted_j: float
    degraded: tuple[str, ...] = ()


class PointTable(Protocol):
    """The operating points of one checkpoint."""

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, best first."""
        ...

    def choose(self, wish: Wish) -> ChosenPoint:
        """The best point that does what is wished for.

        Raises: BudgetInfeasible: none does; the message names the nearest that would.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class ServedVideo:
    """A video model. ``count_tokens`` counts those of a prompt, where that needs no model."""

    card: VideoModelCard
    limits: ClipLimits
    points: PointTable
    replicas: int = 1
    count_tokens: Callable[[str], int] | None = None
    max_prompt_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """What the job will be."""

    settings: VideoSettings
    point: ChosenPoint


def resolve(request: VideoRequest, served: ServedVideo, *, seed: int, wait_s: float) -> Resolved:
    """Decide everything that the request leaves open. ``wait_s``: how long the job is expected to wait first.

    Raises: UnsupportedVideo, PromptTooLong, BudgetInfeasible; DeadlineUnreachable: only for those that wait.
    """
    fps = request.fps or served.card.fps
    width, height = request.width, request.height
    if width is None or height is None:
        width, height = served.limits.io.width, served.limits.io.height
    num_frames = _num_frames(request, served.card, fps)
    _check_prompts(request, served)
    point = _choose(request, served, (width, height), num_frames, wait_s)
    settings = VideoSettings(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        width=width,
        height=height,
        num_frames=num_frames,
        fps=fps,
        num_steps=point.num_steps,
        guidance_scale=point.guidance_scale,
        seed=seed if request.seed is None else request.seed,
        sampler=point.sampler,
        attention=point.attention,
        variant=point.variant,
        output_format=request.output_format.value,
    )
    served.limits.check(settings)
    return Resolved(settings=settings, point=point)


def _num_frames(request: VideoRequest, card: VideoModelCard, fps: int) -> int:
    """Raises: UnsupportedVideo: no length is near, or frames and seconds contradict each other."""
    if request.seconds is None:
        return request.num_frames or card.num_frames[0]
    wanted = request.seconds * fps
    nearest = min(card.num_frames, key=lambda frames: (abs(frames - wanted), frames))
    if request.num_frames is not None:
        if request.num_frames in card.num_frames and request.num_frames != nearest:
            raise UnsupportedVideo(
                f"num_frames is {request.num_frames} and seconds {request.seconds:g} at {fps} fps are {nearest} "
                "frames; send one of them",
                param="seconds",
            )
        return request.num_frames
    if not nearest / _MAX_STRETCH <= wanted <= nearest * _MAX_STRETCH:
        lengths = ", ".join(f"{frames / fps:g}" for frames in card.num_frames)
        raise UnsupportedVideo(
            f"seconds is {request.seconds:g}; at {fps} fps this model makes {lengths} seconds", param="seconds"
        )
    return nearest


def _check_prompts(request: VideoRequest, served: ServedVideo) -> None:
    for name, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt)):
        limit = served.limits.io.max_prompt_chars
        if len(text) > limit:
            raise PromptTooLong(f"{name} has {len(text)} characters; limit is {limit}; shorten it", param=name)
        if served.count_tokens is not None and (tokens := served.count_tokens(text)) > served.max_prompt_tokens:
            raise PromptTooLong(
                f"{name} has {tokens} tokens; limit is {served.max_prompt_tokens}; shorten it", param=name
            )


def _choose(
    request: VideoRequest, served: ServedVideo, size: tuple[int, int], num_frames: int, wait_s: float
) -> ChosenPoint:
    budget = request.budget
    latency_s = None if budget.latency_ms is None else budget.latency_ms / 1e3

    def wish(allowed_s: float | None) -> Wish:
        return Wish(
            width=size[0],
            height=size[1],
            num_frames=num_frames,
            num_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            sampler=request.sampler,
            attention=request.attention,
            allowed_s=allowed_s,
            energy_j=budget.energy_j,
            quality_floor=budget.quality_floor,
        )

    _check_asked(request, served, size, num_frames)
    if latency_s is None or wait_s <= 0:
        return served.points.choose(wish(latency_s))
    try:
        return served.points.choose(wish(max(0.0, latency_s - wait_s)))
    except BudgetInfeasible:
        served.points.choose(wish(latency_s))
        raise DeadlineUnreachable(
            f"the jobs that wait take {wait_s:.1f} s, which leaves too little of latency_ms {budget.latency_ms:g}; "
            "allow more, or retry later",
            param="vireo.latency_ms",
            retry_after_s=wait_s,
        ) from None


def _check_asked(request: VideoRequest, served: ServedVideo, size: tuple[int, int], num_frames: int) -> None:
    """Refuse what no point could do, before one is looked for: the message is about the field, not the budget."""
    limits, steps = served.limits, request.num_inference_steps
    if request.sampler is not None and request.sampler not in limits.samplers:
        names = ", ".join(limits.samplers)
        raise UnsupportedVideo(f"sampler is {request.sampler}; this model does {names}", param="sampler")
    name = request.sampler or _sampler_for(served, steps)
    made = limits.samplers[name]
    limits.check(
        VideoSettings(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            width=size[0],
            height=size[1],
            num_frames=num_frames,
            fps=request.fps or served.card.fps,
            num_steps=made.default_steps if steps is None else steps,
            guidance_scale=1.0 if request.guidance_scale is None else request.guidance_scale,
            seed=request.seed or 0,
            sampler=name,
            variant=made.weights,
            attention=request.attention or "dense",
        )
    )


def _sampler_for(served: ServedVideo, steps: int | None) -> str:
    """One that takes so many steps; the first if none does."""
    samplers = served.limits.samplers
    for name, made in samplers.items():
        if steps is None or made.takes(steps):
            return name
    return next(iter(samplers))
