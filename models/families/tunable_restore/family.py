"""Tunable restoration as Vireo knows it: two strengths that cost nothing. Free of torch."""

from __future__ import annotations

from models.contract import Family, Knob, LazyRef, Point, Source, Variant, Work
from models.identity import CHECKPOINTS
from models.io import ImageIO, ImageRequest

STRENGTHS = ("denoise", "sharpen")
"""Knobs that the network is tuned by, in its order."""

_HERE = "models.families.tunable_restore"
_TRAINING = "models.training.tunable_restore"


def work(variant: Variant, request: ImageRequest | None, point: Point) -> Work:
    """Of one picture: the same whatever the strengths."""
    size = request or variant.io.largest
    blocks = -(-size.width // 4) * -(-size.height // 4)
    half, quarter = variant.config["network"]["widths"]
    down, bottom, up = variant.config["network"]["depths"]
    at_half = 9 * (2 * 12 * half + 2 * (down + up) * half**2)
    at_quarter = 4 * half * quarter + 18 * bottom * quarter**2 + 4 * half * quarter
    return Work({"macs": blocks * (4 * at_half + at_quarter)}, bytes_held=2 * 3 * size.width * size.height)


def _strength(name: str, default: float, summary: str) -> Knob:
    return Knob(name=name, default=default, low=0.0, high=1.0, grid=(0.0, 0.5, 1.0), summary=summary)


FAMILY = Family(
    name="tunable-restore",
    summary="removes noise and sharpens, as much as each request asks for: tunable convolutions",
    tasks=("images", "infer"),
    shape="unary",
    variants=(
        Variant(
            id="tunable-restore-nano",
            summary="pictures of up to 512x512 pixels in, of the same size out; trained here, weights included",
            io=ImageIO(takes_picture=True, min_side=8, max_side=512),
            config={"network": {"widths": (24, 40), "depths": (2, 3, 2), "num_kernels": 4}},
            source=Source(
                paper="https://arxiv.org/abs/2304.00898",
                url="https://github.com/sybahk/tunable-convolution-pytorch",
                commit="58abe3e4c3c00b766c5e8ab4d20cb1de06827fa9",
                licence="Apache-2.0",
            ),
            weights=CHECKPOINTS / "tunable-restore-nano",
            is_nano=True,
        ),
    ),
    build=LazyRef(f"{_HERE}.network:build"),
    runner=LazyRef(f"{_HERE}.network:Runner"),
    oracle=LazyRef(f"{_HERE}.oracle:compare"),
    work=LazyRef(f"{_HERE}.family:work"),
    knobs=(
        _strength("denoise", 1.0, "Share of the noise that is taken out."),
        _strength("sharpen", 0.0, "Share of the detail lost to blur that is put back."),
    ),
    parts={"train": LazyRef(f"{_TRAINING}.train:train_variant")},
)
