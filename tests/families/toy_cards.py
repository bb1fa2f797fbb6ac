"""Toy families of each shape that keep the contract: their cards, and false ones. Free of torch, as cards are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from models.contract import ExpertFacts, Family, Knob, LazyRef, Point, Source, Variant, Work
from models.io import ChatIO, ChatTokens, PictureIO, chat_work

SIDE, WIDTH, CLASSES, DEPTH = 8, 16, 5, 3
_NETWORK = "tests.families.toys"

VARIANT = Variant(
    id="toy-1",
    summary="a toy",
    io=PictureIO(input_size=SIDE, num_classes=CLASSES, resize_size=SIDE, num_exits=DEPTH),
    source=Source(licence="Apache-2.0"),
)
DEPTH_KNOB = Knob(
    name="depth",
    default=DEPTH,
    low=1,
    high=DEPTH,
    grid=(1, 2, 3),
    is_integer=True,
    summary="Layers.",
    trades="accuracy",
)


def _macs(layers: int, heads: int) -> int:
    return SIDE * SIDE * 3 * WIDTH + layers * WIDTH * WIDTH + heads * WIDTH * CLASSES


_HELD = SIDE * SIDE * 3 + WIDTH * 4 + DEPTH * CLASSES * 4


def unary_work(variant: Variant, request: object, point: Point) -> Work:
    return Work({"macs": _macs(int(point["depth"]), 1)}, _HELD)


def staged_work(variant: Variant, request: object, point: Point) -> Work:
    return Work({"macs": _macs(DEPTH, DEPTH)}, _HELD)


def job_work(variant: Variant, request: object, point: Point) -> Work:
    steps = int(point["depth"])
    return Work({"macs": steps * WIDTH * WIDTH}, 2 * 4 * WIDTH)


def example(variant: Variant, random: Any) -> Any:
    """A request of the toy job."""
    import torch

    rows = 4 + int(random.integers(1000)) % 5
    return torch.from_numpy(random.integers(0, 256, (1, rows, SIDE, 3), "uint8"))


def _family(shape: Any, runner: str, work: Callable[..., Work], knobs: tuple[Knob, ...]) -> Family:
    return Family(
        name=f"toy-{shape}",
        summary="a toy",
        tasks=("classify",),
        shape=shape,
        resolve=LazyRef(f"{__name__}:resolve"),
        examples=("toy-1",),
        prepare=LazyRef("models.pictures:SquarePicture"),
        build=LazyRef(f"{_NETWORK}:build"),
        runner=LazyRef(f"{_NETWORK}:{runner}"),
        work=LazyRef(f"{__name__}:{work.__name__}"),
        oracle=LazyRef(f"{_NETWORK}:oracle"),
        knobs=knobs,
    )


def resolve(name: str, folder: Path | None = None) -> Variant:
    return VARIANT


UNARY = _family("unary", "UnaryRunner", unary_work, (DEPTH_KNOB,))
STAGED = _family("staged", "StagedRunner", staged_work, ())
JOB = replace(
    _family("job", "JobRunner", job_work, (DEPTH_KNOB,)), parts={"example": LazyRef(f"{__name__}:{example.__name__}")}
)


def expert_facts(variant: Variant) -> ExpertFacts:
    return ExpertFacts(layers=1, experts=2, chosen=1, parameters=2, active_parameters=1)


EXPERTS = replace(
    JOB,
    runner=LazyRef(f"{_NETWORK}:JobOfExperts"),
    parts={**JOB.parts, "experts": LazyRef(f"{__name__}:{expert_facts.__name__}")},
)


def cut(variant: Variant) -> Callable[[Any], Any]:
    """Rows of tiles."""
    side = variant.io.tile_size

    def tiles(rgb: Any) -> tuple[Any, tuple[int, int]]:
        rows, columns = -(-rgb.shape[0] // side), -(-rgb.shape[1] // side)
        full = rgb.repeat(side, 0).repeat(side, 1)[: rows * side, : columns * side]
        cells = full.reshape(rows, side, columns, side, 3).swapaxes(1, 2)
        return cells.reshape(-1, side, side, 3), (rows, columns)

    return tiles


def count_tiles(variant: Variant, width: int, height: int) -> int:
    return -(-width // 32) * -(-height // 32)


def too_few_tiles(variant: Variant, width: int, height: int) -> int:
    return count_tiles(variant, width, height) // 2


CHAT = ChatIO(
    tile_size=32,
    max_tiles=8,
    max_tiles_side=4,
    tokens_per_tile=4,
    max_model_len=100,
    kv_values_per_token=2 * WIDTH // 2,
)
STREAM_PARTS = {"prompts": LazyRef(f"{_NETWORK}:talk"), "tiles": LazyRef(f"{__name__}:{count_tiles.__name__}")}
STREAM = Family(
    name="toy-stream",
    summary="a toy",
    tasks=("chat",),
    shape="stream",
    resolve=LazyRef(f"{__name__}:resolve_chat"),
    examples=("toy-1",),
    prepare=LazyRef(f"{__name__}:{cut.__name__}"),
    build=LazyRef(f"{_NETWORK}:build_chat"),
    work=LazyRef("models.io:chat_work"),
    parts=STREAM_PARTS,
)


def resolve_chat(name: str, folder: Path | None = None) -> Variant:
    return replace(VARIANT, io=CHAT)


# -- false ones


def job_cost_upside_down(variant: Variant, request: object, point: Point) -> Work:
    return Work({"macs": (1 + DEPTH - int(point["depth"])) * WIDTH * WIDTH}, 2 * 4 * WIDTH)


def job_of_no_bytes(variant: Variant, request: object, point: Point) -> Work:
    return replace(job_work(variant, request, point), bytes_held=1)


def chat_of_no_images(variant: Variant, request: ChatTokens, point: Point) -> Work:
    return chat_work(variant, replace(request, image_tokens=0), point)


def chat_of_half_the_bytes(variant: Variant, request: ChatTokens, point: Point) -> Work:
    work = chat_work(variant, request, point)
    return replace(work, bytes_held=work.bytes_held // 2)


def cost_upside_down(variant: Variant, request: object, point: Point) -> Work:
    return Work({"macs": _macs(1 + DEPTH - int(point["depth"]), 1)}, _HELD)


def cost_that_is_flat(variant: Variant, request: object, point: Point) -> Work:
    return Work({"macs": _macs(DEPTH, 1)}, _HELD)


def cost_of_nothing(variant: Variant, request: object, point: Point) -> Work:
    return Work({"macs": 1.0}, _HELD)


def no_bytes_at_all(variant: Variant, request: object, point: Point) -> Work:
    return replace(staged_work(variant, request, point), bytes_held=1)


def mutant(family: Family, part: str, replacement: Callable[..., Any] | type) -> Family:
    """The family with one of its parts replaced by another."""
    false = LazyRef(f"{replacement.__module__}:{replacement.__name__}")
    return replace(family, **({"parts": {**family.parts, part: false}} if part in family.parts else {part: false}))
