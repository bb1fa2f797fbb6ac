"""Every model family that this installation knows, and the way from a model id to its variant.

Families come from the table below and from the entry-point group ``vireo.families``, so that another distribution can
bring one: its entry point names a ``Family``, and it is trusted like any package that is installed. Free of torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from models.contract import Family, LazyRef, Variant
from models.families.texthawk2.tiling import TOKENS_PER_TILE, TilingLimits, num_tiles

GROUP = "vireo.families"

BUILT_IN: Mapping[str, LazyRef] = MappingProxyType(
    {
        "vdit": LazyRef("models.families.vdit.family:FAMILY"),
    }
)


@cache
def families() -> Mapping[str, Family]:
    """All families by name. Read once a process; ``families.cache_clear()`` reads them again.

    Raises: ValueError: two distributions bring one name or one variant id, or an entry point is not a Family.
    """
    found: dict[str, Family] = {}
    references = list(BUILT_IN.items())
    references += [(point.name, LazyRef(point.value)) for point in sorted(entry_points(group=GROUP))]
    for name, reference in references:
        family = reference.load()
        if not isinstance(family, Family) or family.name != name:
            raise ValueError(
                f"{reference.target} in group {GROUP} is not the family {name!r}; it must be a Family of that name"
            )
        if name in found:
            raise ValueError(f"family {name!r} is there twice; {reference.target} is the second")
        found[name] = family
    _check_unique(found)
    return MappingProxyType(found)


def _check_unique(found: Mapping[str, Family]) -> None:
    owners: dict[str, str] = {}
    for family in found.values():
        for variant in family.variants:
            if (other := owners.setdefault(variant.id, family.name)) != family.name:
                raise ValueError(f"variant {variant.id!r} is there twice, of {other} and {family.name}")


def find(model_id: str) -> tuple[Family, Variant]:
    """The family and variant behind a model id: one that is listed, or ``family:name`` of an open family.

    Raises: ValueError: the id is unknown; the message lists the known ones.
    """
    for family in families().values():
        for variant in family.variants:
            if variant.id == model_id:
                return family, variant
    name, colon, rest = model_id.partition(":")
    family_or_none = families().get(name) if colon else None
    if family_or_none is not None and family_or_none.resolve is not None:
        return family_or_none, family_or_none.resolve.load()(rest)
    raise ValueError(f"unknown model {model_id!r}; known models: {', '.join(known_ids())}")


def known_ids(task: str | None = None) -> tuple[str, ...]:
    """Ids of all listed variants, and ``family:...`` for each open family. ``task``: those that are for it alone."""
    chosen = [family for family in families().values() if task is None or task in family.tasks]
    listed = [variant.id for family in chosen for variant in family.variants]
    return (*listed, *(f"{family.name}:..." for family in chosen if family.resolve is not None))


# -- the three specs of before, until their families are ported ------------------------------------------------------

CHECKPOINTS = Path(__file__).parent / "checkpoints"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What a model id stands for.

    ``input_size`` is the side S of the square input in pixels. ``resize_size`` is the length in pixels that the shorter
    side (``fit="crop"``) or the longer side (``fit="pad"``) is brought to before the square is cut out or filled up.
    ``mean`` and ``std`` apply to RGB scaled to 0..1. ``labels`` is None where the class names are not ours to ship.
    ``checkpoint_dir`` is None for a model whose weights the user has to bring (``vireo convert``).
    """

    id: str
    family: str
    variant: str
    input_size: int
    num_classes: int
    num_exits: int
    labels: tuple[str, ...] | None
    checkpoint_dir: Path | None
    resize_size: int
    fit: Literal["crop", "pad"]
    interpolation: Literal["bicubic", "bilinear"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    published_top1: tuple[float, ...] | None = None
    summary: str = ""

    def __post_init__(self) -> None:
        if self.resize_size < self.input_size and self.fit == "crop":
            raise ValueError(f"resize_size {self.resize_size} is below input_size {self.input_size}; raise it")
        if self.labels is not None and len(self.labels) != self.num_classes:
            raise ValueError(f"{len(self.labels)} labels for {self.num_classes} classes; give one per class")

    def with_checkpoint(self, directory: Path) -> ModelSpec:
        """Return the same model with its weights read from ``directory``."""
        return replace(self, checkpoint_dir=directory)

    def label(self, index: int) -> str:
        """Name of class ``index``; ``class-<index>`` where the names are unknown."""
        return self.labels[index] if self.labels is not None else f"class-{index}"


def _published(variant: str, top1: tuple[float, ...], summary: str) -> ModelSpec:
    return ModelSpec(
        id=f"dyn-perceiver-{variant}",
        family="dyn-perceiver",
        variant=variant,
        input_size=224,
        num_classes=1000,
        num_exits=4,
        labels=None,
        checkpoint_dir=None,
        resize_size=256,
        fit="crop",
        interpolation="bicubic",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        published_top1=top1,
        summary=summary,
    )


_NANO = ModelSpec(
    id="dyn-perceiver-nano",
    family="dyn-perceiver",
    variant="nano",
    input_size=32,
    num_classes=10,
    num_exits=4,
    labels=tuple("0123456789"),
    checkpoint_dir=CHECKPOINTS / "dyn-perceiver-nano",
    resize_size=32,
    fit="pad",
    interpolation="bilinear",
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    summary="digits 0-9, 32x32, trained here on scikit-learn's handwritten digits; weights included",
)

_SPECS = (
    _NANO,
    _published("regnety-800mf", (68.62, 78.32, 79.15, 79.86), "ImageNet-1k, RegNetY-800MF with 128 latents"),
    _published("resnet50-x0375", (72.93, 77.52, 74.32, 77.70), "ImageNet-1k, ResNet-50 at 0.375, 128 latents"),
    _published("mobilenetv3-x075", (53.13, 71.65, 71.89, 74.59), "ImageNet-1k, MobileNetV3-L at 0.75, 128 latents"),
)

MODELS: Mapping[str, ModelSpec] = MappingProxyType({spec.id: spec for spec in _SPECS})


def get_spec(model_id: str) -> ModelSpec:
    """Look up a model id.

    Raises:
        ValueError: the id is unknown; the message lists the known ones.
    """
    try:
        return MODELS[model_id]
    except KeyError:
        raise ValueError(f"unknown model {model_id!r}; known models: {', '.join(MODELS)}") from None


@dataclass(frozen=True, kw_only=True)
class ChatModelSpec:
    """What the id of a vision-language model stands for.

    ``tile_size`` is the side S of a tile in pixels. ``max_tiles`` bounds rows x columns of an image's grid, without the
    thumbnail; ``max_tiles_side`` bounds either. ``tokens_per_tile`` reach the language model. ``max_model_len`` is the
    default for tokens of prompt and answer together. ``checkpoint_dir`` is None for a model whose weights the user has
    to bring (``vireo convert texthawk2``).

    Raises:
        ValueError: one image of the largest grid does not fit into ``max_model_len``, or a bound is not positive.
    """

    id: str
    family: str
    variant: str
    checkpoint_dir: Path | None
    tile_size: int = 224
    max_tiles: int = 72
    max_tiles_side: int = 12
    tokens_per_tile: int = TOKENS_PER_TILE
    max_model_len: int
    summary: str = ""

    def __post_init__(self) -> None:
        largest = self.tiling.max_tiles * self.tokens_per_tile
        if self.tokens_per_tile < 1 or largest >= self.max_model_len:
            raise ValueError(
                f"one image may have {largest} tokens and max_model_len is {self.max_model_len}; raise it, or lower "
                "max_tiles"
            )

    @property
    def tiling(self) -> TilingLimits:
        """What grids its images may have."""
        return TilingLimits(tile_size=self.tile_size, max_area=self.max_tiles, max_side=self.max_tiles_side)

    def image_tokens(self, grid: tuple[int, int]) -> int:
        """Tokens of an image of that (rows, columns) grid, without the two that mark its begin and end."""
        return num_tiles(grid) * self.tokens_per_tile

    def with_checkpoint(self, directory: Path) -> ChatModelSpec:
        """Return the same model with its weights read from ``directory``."""
        return replace(self, checkpoint_dir=directory)


_CHAT_SPECS = (
    ChatModelSpec(
        id="texthawk2-nano",
        family="texthawk2",
        variant="nano",
        checkpoint_dir=CHECKPOINTS / "texthawk2-nano",
        max_tiles=12,
        max_tiles_side=6,
        max_model_len=2048,
        summary="reads words, finds shapes in rendered pictures; weights included",
    ),
    ChatModelSpec(
        id="texthawk2-7b",
        family="texthawk2",
        variant="7b",
        checkpoint_dir=None,
        max_model_len=8192,
        summary="SigLIP-SO400M and Qwen2-7B, as published",
    ),
)

CHAT_MODELS: Mapping[str, ChatModelSpec] = MappingProxyType({spec.id: spec for spec in _CHAT_SPECS})


def get_chat_spec(model_id: str) -> ChatModelSpec:
    """Look up the id of a chat model.

    Raises:
        ValueError: the id is unknown; the message lists the known ones.
    """
    try:
        return CHAT_MODELS[model_id]
    except KeyError:
        raise ValueError(f"unknown chat model {model_id!r}; known chat models: {', '.join(CHAT_MODELS)}") from None
