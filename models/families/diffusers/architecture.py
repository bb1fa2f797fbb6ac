"""What the host knows of one pipeline of diffusers: one value, data and small functions. Free of torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from models.contract import Knob, Point, Value
from models.io import ClipIO, ImageIO

Configs: TypeAlias = Mapping[str, Mapping[str, Any]]
"""The configuration of each component by its name, and the folder's index as ``index``."""
IO: TypeAlias = ClipIO | ImageIO
Grid: TypeAlias = tuple[int, int, int]


class Transformer(NamedTuple):
    """What a pass of a denoiser is made of, to count it: blocks, their width and that of their feed-forward layers,
    and the tokens of text that each of them meets. ``joint``: text runs through the blocks as pictures do; otherwise
    they look at it by cross-attention."""

    layers: int
    width: int
    feed_forward: int
    text_tokens: int
    joint: bool = False

    def macs(self, tokens: int, kept_pairs: float = 1.0) -> float:
        """Multiply-accumulates of one pass over so many tokens of a latent, embeddings left out. ``kept_pairs``: share
        of the pairs of tokens that attend to each other."""
        width, text = self.width, self.text_tokens
        if self.joint:
            tokens += text
        each = 4 * tokens * width**2 + 2 * kept_pairs * tokens**2 * width + 2 * tokens * width * self.feed_forward
        if not self.joint:
            each += 2 * tokens * width**2 + 2 * text * width**2 + 2 * tokens * text * width
        return float(self.layers * each)


class Counted(Protocol):
    """What a pass of a denoiser costs."""

    @property
    def text_tokens(self) -> int:
        """Of a prompt."""
        ...

    @property
    def joint(self) -> bool:
        """Whether text runs through the blocks as pictures do."""
        ...

    def macs(self, tokens: int, kept_pairs: float = 1.0) -> float:
        """Multiply-accumulates of one pass over so many tokens of a latent."""
        ...


class Prompted(NamedTuple):
    """A tokenizer, and how many tokens of a prompt reach the networks. ``marks``: tokens that it adds itself."""

    tokenizer: str
    limit: int


def no_defaults(configs: Configs) -> Mapping[str, Value]:
    """Of a pipeline whose folders say nothing of its settings."""
    return {}


def nothing_refused(configs: Configs) -> str:
    """Of a pipeline all of whose folders can be run."""
    return ""


def unpacked_already(latents: Any, grid: Grid) -> Any:
    """Latents of a pipeline that does not pack them."""
    return latents


def not_packed(latents: Any) -> Any:
    """The same, the other way round."""
    return latents


def grid_of_clip(io: Any, request: Any) -> Grid:
    """Latent frames, rows and columns of patches."""
    grid: Grid = io.grid(request.num_frames, (request.width, request.height))
    return grid


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One kind of pipeline.

    ``name``: of its miniature, and in ``Variant.config``. ``pipeline``: the class that ``model_index.json`` names;
    ``pipeline_with_picture``: the one that it may name as well, and that makes clips from a picture with the same
    folder; ``is_for``: whether this entry is the one for a folder, where several share a class. ``modular``,
    ``blocks``: the modular pipeline and its blocks, by their names in diffusers, or ``module:name`` of our own.
    ``denoisers``: its networks, in the order in which steps wake them. ``components``: what a folder must have, and
    the classes that each may be of; with "" among them it may be missing. ``schedulers``: classes of the scheduler.
    ``refusal``: why a folder cannot be run step by step, or "". ``io``: sizes, lengths and rates as published.
    ``defaults``: of knobs, where the folder says them. ``guiders``: knob of guidance -> the component that it sets.
    ``inputs``: (request, point) -> what the blocks are given, besides generator and picture. ``output``: the name of
    what the last block makes. ``prompted``: for the length of prompts.

    ``latents``: (configs, io, request) -> shape of the noise of one row, as the loop has it. ``stride``: frames, rows
    and columns of pixels for one of latents. ``grid``: (io, request) -> frames, rows and columns of patches.
    ``unpacked``: latents as the loop has them, and the grid -> (1, C, t, h, w), and ``packed`` back.

    ``in_float32``: components that compute in float32 whatever the others do. ``latents_in_float32``: else in the type
    of the denoiser. ``always_negative``: text blocks that fail unless a negative prompt is encoded too.
    ``times_by_row``: whether the loop's blocks take a time for each row, so that requests at different steps share a
    pass. ``alone``: names in the blocks' state whose first dimension is no row. ``padded``: those of texts of any
    length, and of their masks. ``loop_values``: what the loop itself, and none of its blocks, puts into the state
    before its first step. ``classic_tolerance``: how far latents of the classic pipeline may be from those of the
    modular one, where it has the prompt and the negative one in one pass. ``transformer``: what a pass is made of.
    ``held_numbers``: most numbers that a request holds of text and pictures. ``miniature``: configurations of a tiny
    one, by component, with ``_class_name`` as in a folder; ``miniature_io``: what its io has in place of the usual.
    """

    name: str
    summary: str
    task: Literal["videos", "images"]
    pipeline: str
    pipeline_with_picture: str = ""
    is_for: Callable[[Configs], bool] = lambda configs: True
    modular: str
    blocks: str
    denoisers: tuple[str, ...] = ("transformer",)
    components: Mapping[str, tuple[str, ...]]
    schedulers: tuple[str, ...]
    refusal: Callable[[Configs], str] = nothing_refused
    io: Callable[[Configs], IO]
    knobs: tuple[Knob, ...]
    defaults: Callable[[Configs], Mapping[str, Value]] = no_defaults
    guiders: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({"guidance_scale": "guider"}))
    inputs: Callable[[Any, Point], Mapping[str, Any]]
    output: str = "videos"
    prompted: Prompted
    latents: Callable[[Configs, Any, Any], tuple[int, ...]]
    stride: Callable[[Configs], Grid]
    grid: Callable[[Any, Any], Grid] = grid_of_clip
    unpacked: Callable[[Any, Grid], Any] = unpacked_already
    packed: Callable[[Any], Any] = not_packed
    in_float32: tuple[str, ...] = ()
    latents_in_float32: bool = True
    always_negative: bool = False
    times_by_row: bool = False
    alone: tuple[str, ...] = ("timesteps", "sigmas")
    padded: tuple[str, ...] = ()
    loop_values: Mapping[str, Callable[[], Any]] = field(default_factory=lambda: MappingProxyType({}))
    classic_tolerance: float = 0.0
    transformer: Callable[[Configs], Counted]
    held_numbers: Callable[[Configs, Any, Any], int]
    miniature: Configs
    miniature_io: Mapping[str, Any]


def steps_knob(default: int, most: int = 100) -> Knob:
    """How many steps are taken."""
    return Knob(
        name="num_inference_steps",
        default=default,
        low=1,
        high=most,
        grid=tuple(sorted({4, 8, 16, 25, default})),
        is_integer=True,
        summary="Denoising steps.",
        trades="detail and faithfulness to the prompt",
    )


def guidance_knob(default: float, name: str = "guidance_scale", summary: str = "") -> Knob:
    """How much the prompt counts."""
    return Knob(
        name=name,
        default=default,
        low=1.0,
        high=20.0,
        grid=(1.0, default) if default > 1 else (1.0,),
        summary=summary or "How much the prompt counts; above 1 each step takes two passes.",
        trades="faithfulness to the prompt" if default > 1 else "",
    )
