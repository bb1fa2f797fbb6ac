"""A family whose clips begin with a picture: other knobs than vdit's, several sizes, any length up to a limit.

It has no network: served systems run it on the engine without a model.
"""

from __future__ import annotations

from types import MappingProxyType

from models.contract import Family, Knob, LazyRef, Point, SettingError, Variant, Work
from models.io import ClipIO, ClipRequest, SamplerRange

MODEL, WORDS, EITHER = "flipbook-tiny", "flipbook-words", "flipbook-either"
_STEPS = SamplerRange(weights="flipbook", min_steps=2, max_steps=50, default_steps=6)


def _io(*, takes_prompt: bool, picture_is_optional: bool = False) -> ClipIO:
    return ClipIO(
        takes_prompt=takes_prompt,
        takes_picture=True,
        picture_is_optional=picture_is_optional,
        width=64,
        height=36,
        sizes=((36, 64), (48, 48)),
        frame_counts=(8,),
        max_frames=40,
        fps=7,
        samplers=MappingProxyType({"pages": _STEPS}),
        default_guidance=2.0,
        vae_stride=(1, 2, 2),
    )


def work(variant: Variant, request: ClipRequest, point: Point) -> Work:
    """Each step looks at each pixel. Raises: ValueError: the request leaves something open."""
    if not (request.width and request.height and request.fps):
        raise ValueError(f"{request} leaves something open")
    steps, pixels = int(point["num_inference_steps"]), request.num_frames * request.width * request.height
    return Work({"macs": float(steps * pixels), "slices": float(steps), "pixels": float(pixels)}, 3 * pixels)


def check_allowed(variant: Variant, request: ClipRequest, point: Point) -> None:
    """Raises: SettingError: much motion in few frames."""
    if int(point["motion"]) > 200 and request.num_frames < 4:
        raise SettingError("motion", f"motion is {point['motion']}; {request.num_frames} frames have room for 200")


FAMILY = Family(
    name="flipbook",
    summary="a picture that moves",
    tasks=("videos",),
    shape="job",
    variants=(
        Variant(id=MODEL, summary="from a picture", io=_io(takes_prompt=False)),
        Variant(id=WORDS, summary="from a picture and words", io=_io(takes_prompt=True)),
        Variant(id=EITHER, summary="with or without a picture", io=_io(takes_prompt=True, picture_is_optional=True)),
    ),
    knobs=(
        Knob(
            name="num_inference_steps",
            default=6,
            low=1,
            high=100,
            grid=(2, 6),
            is_integer=True,
            summary="Steps.",
            trades="detail",
        ),
        Knob(name="motion", default=127, low=0, high=255, is_integer=True, summary="How much moves."),
        Knob(name="is_looped", default=False, values=(False, True), summary="Whether the end meets the beginning."),
    ),
    work=LazyRef("tests.support.flipbook:work"),
    allowed=LazyRef("tests.support.flipbook:check_allowed"),
)
