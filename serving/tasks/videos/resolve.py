"""From what a caller asks for to a clip, a point and a prediction without a gap: length, size, operating point, seed.

The points (``VideoPoints``) are asked with everything that the caller has fixed; they say what a clip will take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.contract import Value
from models.io import ClipRequest
from schedulers.plan import Load
from serving.delivery.job.base import JobPlan, JobRequest
from serving.errors import UnsupportedVideo
from serving.service import Card
from serving.tasks.videos.limits import ClipLimits
from serving.tasks.videos.points import VideoPoints
from serving.tasks.videos.schemas import VideoBody

_MAX_STRETCH = 2.0
"""A clip that would be longer or shorter than asked for by more than this factor is refused."""
_KNOBS = ("num_inference_steps", "guidance_scale", "sampler", "attention")


@dataclass(frozen=True, kw_only=True)
class ClipPlanner:
    """Plans the clips of one model: ``serving.delivery.job.base.JobModel.plan``."""

    card: Card
    limits: ClipLimits
    points: VideoPoints

    def __call__(self, request: JobRequest[VideoBody], seed: int, load: Load) -> JobPlan:
        """Decide everything that the request leaves open. ``load``: what waits before it.

        Raises: UnsupportedVideo, PromptTooLong, BudgetInfeasible; DeadlineUnreachable: only for those that wait.
        """
        asked, io = request.asked, self.limits.io
        fps = asked.fps or self.card.io.fps
        size = (asked.width or io.width, asked.height or io.height)
        clip = ClipRequest(
            prompt=asked.prompt,
            negative_prompt=asked.negative_prompt or "",
            num_frames=_num_frames(asked, self.card, fps),
        )
        fixed = {name: value for name in _KNOBS if (value := getattr(asked, name)) is not None}
        self._check_asked(clip, fixed, size, fps)
        chosen = self.points.choose(clip, fixed, request.budget, load)
        point = dict(self.limits.check(clip, chosen.point.settings, size=size, fps=fps))
        return JobPlan(
            request=clip,
            point=point,
            seed=seed if asked.seed is None else asked.seed,
            num_steps=int(point["num_inference_steps"]),
            name=self.points.name_of(chosen),
            predicted_s=chosen.busy_s,
            predicted_j=chosen.energy_j,
            degraded=chosen.degraded,
            output={"format": asked.output_format or "mp4", "fps": fps},
            shown={
                "width": size[0],
                "height": size[1],
                "variant": self.limits.samplers[str(point["sampler"])].weights,
                "user": asked.user or "",
            },
        )

    def _check_asked(self, clip: ClipRequest, fixed: Mapping[str, Value], size: tuple[int, int], fps: int) -> None:
        """Refuse what no point could do, before one is looked for: the message is about the field, not the budget."""
        steps = fixed.get("num_inference_steps")
        name = str(fixed.get("sampler") or self._sampler_for(steps))
        made = self.limits.samplers.get(name)
        least: dict[str, Value] = {
            "sampler": name,
            "num_inference_steps": made.default_steps if made else 1,
            "guidance_scale": 1.0,
            "attention": "dense",
        }
        self.limits.check(clip, {**least, **fixed}, size=size, fps=fps)

    def _sampler_for(self, steps: Any) -> str:
        """One that takes so many steps; the first if none does."""
        samplers = self.limits.samplers
        fitting = (name for name, made in samplers.items() if steps is None or made.takes(steps))
        return next(fitting, next(iter(samplers)))


def _num_frames(asked: VideoBody, card: Card, fps: int) -> int:
    """Raises: UnsupportedVideo: no length is near, or frames and seconds contradict each other."""
    seconds = asked.seconds
    lengths: Sequence[int] = card.io.frame_counts
    if seconds is None:
        return asked.num_frames or lengths[0]
    assert isinstance(seconds, float), "as the rules have left it"
    wanted = seconds * fps
    nearest = min(lengths, key=lambda frames: (abs(frames - wanted), frames))
    if asked.num_frames is not None:
        if asked.num_frames in lengths and asked.num_frames != nearest:
            raise UnsupportedVideo(
                f"num_frames is {asked.num_frames} and seconds {seconds:g} at {fps} fps are {nearest} "
                "frames; send one of them",
                param="seconds",
            )
        return asked.num_frames
    if not nearest / _MAX_STRETCH <= wanted <= nearest * _MAX_STRETCH:
        possible = ", ".join(f"{frames / fps:g}" for frames in lengths)
        raise UnsupportedVideo(
            f"seconds is {seconds:g}; at {fps} fps this model makes {possible} seconds", param="seconds"
        )
    return nearest
