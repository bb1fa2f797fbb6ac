"""From what a caller asks for to a clip, a point and a prediction without a gap: length, size, operating point, seed.

The points (``VideoPoints``) are asked with everything that the caller has fixed; they say what a clip will take.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from models.contract import SettingError, Value
from models.io import ClipIO, ClipRequest
from schedulers.plan import Load
from serving.bending import degradation_of
from serving.delivery.job.base import JobPlan
from serving.errors import UnsupportedVideo
from serving.refusals import refused, uncounted
from serving.service import Card
from serving.tasks.videos.limits import GUIDANCE, SAMPLER, STEPS, ClipLimits
from serving.tasks.videos.points import VideoPoints
from serving.tasks.videos.rules import VideoRequest
from serving.tasks.videos.schemas import KNOBS, VideoBody

_MAX_STRETCH = 2.0
"""A clip that would be longer or shorter than asked for by more than this factor is refused."""


@dataclass(frozen=True, kw_only=True)
class ClipPlanner:
    """Plans the clips of one model: ``serving.delivery.job.base.JobModel.plan``."""

    card: Card
    limits: ClipLimits
    points: VideoPoints
    check_prompts: Callable[[ClipRequest], None] = uncounted

    def __call__(self, request: VideoRequest, seed: int, load: Load) -> JobPlan:
        """Decide everything that the request leaves open. ``load``: what waits before it.

        Raises: UnsupportedVideo, PromptTooLong, BudgetInfeasible; DeadlineUnreachable: only for those that wait.
        """
        asked, io = request.asked, self.limits.io
        fps = asked.fps or io.fps
        width, height = request.size or (asked.width or 0, asked.height or 0)
        clip = io.settled(
            ClipRequest(
                prompt=asked.prompt,
                negative_prompt=asked.negative_prompt or "",
                num_frames=_num_frames(asked, io, fps),
                width=width,
                height=height,
                fps=fps,
                picture=request.picture,
            )
        )
        direct = {name: value for name in KNOBS if (value := getattr(asked, name)) is not None}
        fixed = {**request.budget.settings, **direct}
        self._check_asked(clip, fixed)
        with refused(io):
            self.check_prompts(clip)
        chosen = self.points.choose(clip, fixed, request.budget, load)
        point = self.limits.check(clip, chosen.point.settings)
        _, sampler = self.limits.sampler_of(point)
        assert sampler is not None, "it was checked"
        work = self.limits.work(clip, point)
        return JobPlan(
            request=clip,
            point=point,
            seed=seed if asked.seed is None else asked.seed,
            num_steps=int(point.get(STEPS, round(work.units.get("slices", 1)))),
            name=self.points.name_of(chosen),
            predicted_s=chosen.busy_s,
            predicted_j=chosen.energy_j,
            most_s=chosen.latency_s,
            held_bytes=work.bytes_held,
            degraded=chosen.degraded,
            degradation=degradation_of(chosen),
            output={"format": asked.output_format or "mp4", "fps": fps},
            shown={"variant": sampler.weights, "user": asked.user or ""},
        )

    def _check_asked(self, clip: ClipRequest, fixed: Mapping[str, Value]) -> None:
        """Refuse what no point could do, before one is looked for: the message is about the field, not the budget."""
        name = str(fixed.get(SAMPLER) or self._sampler_for(fixed.get(STEPS)))
        made = self.limits.samplers.get(name)
        usual: dict[str, Value] = {} if made is None else {SAMPLER: name, STEPS: made.default_steps}
        self.limits.check(clip, {**self.limits.point(**usual, **self._unguided()), **fixed})

    def _unguided(self) -> dict[str, Value]:
        """As little guidance as there can be."""
        knob = next((knob for knob in self.limits.family.knobs if knob.name == GUIDANCE), None)
        return {} if knob is None or knob.low is None else {GUIDANCE: max(1.0, knob.low)}

    def _sampler_for(self, steps: Value | None) -> str:
        """One that takes so many steps; the first if none does."""
        samplers = self.limits.samplers
        fitting = (name for name, made in samplers.items() if steps is None or made.takes(int(steps)))
        return next(fitting, next(iter(samplers)))


def _num_frames(asked: VideoBody, io: ClipIO, fps: int) -> int:
    """Raises: UnsupportedVideo: no length is near, or frames and seconds contradict each other."""
    seconds = asked.seconds
    if seconds is None:
        return asked.num_frames or io.frame_counts[0]
    assert isinstance(seconds, float), "as the rules have left it"
    wanted = seconds * fps
    lengths = _lengths(io, wanted)
    nearest = min(lengths, key=lambda frames: (abs(frames - wanted), frames))
    if asked.num_frames is not None:
        if asked.num_frames != nearest and _is_possible(io, asked.num_frames):
            raise UnsupportedVideo(
                f"num_frames is {asked.num_frames} and seconds {seconds:g} at {fps} fps are {nearest} "
                "frames; send one of them",
                param="seconds",
            )
        return asked.num_frames
    if not nearest / _MAX_STRETCH <= wanted <= nearest * _MAX_STRETCH:
        possible = ", ".join(f"{frames / fps:g}" for frames in sorted(io.frame_counts))
        if io.max_frames:
            possible = f"{1 / fps:g} to {max(lengths) / fps:g}"
        raise UnsupportedVideo(
            f"seconds is {seconds:g}; at {fps} fps this model makes {possible} seconds", param="seconds"
        )
    return nearest


def _is_possible(io: ClipIO, frames: int) -> bool:
    try:
        io.check_frames(frames)
    except SettingError:
        return False
    return True


def _lengths(io: ClipIO, wanted: float) -> tuple[int, ...]:
    """Lengths that a checkpoint makes; of those that are any up to a limit, the ones around what is wanted, and it."""
    step, most = io.vae_stride[0], max(0, io.max_frames - 1) // io.vae_stride[0]
    below = min(most, max(0, int((wanted - 1) // step)))
    near = {below, min(most, below + 1), most} if io.max_frames else set()
    return tuple({*io.frame_counts, *(1 + step * latents for latents in near)})
