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

from models.contract import Family, LazyRef, Variant
from models.families.texthawk2.tiling import TOKENS_PER_TILE, TilingLimits, num_tiles
from models.identity import CHECKPOINTS

GROUP = "vireo.families"

BUILT_IN: Mapping[str, LazyRef] = MappingProxyType(
    {
        "dyn-perceiver": LazyRef("models.families.dyn_perceiver.family:FAMILY"),
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


def find(model_id: str, weights: Path | None = None) -> tuple[Family, Variant]:
    """The family and variant behind a model id: one that is listed, or ``family:name`` of an open family.

    ``weights``: a folder to read them from instead of the usual one.

    Raises: ValueError: the id is unknown; the message lists the known ones.
    """
    family, variant = _find(model_id)
    return family, variant if weights is None else variant.with_weights(weights)


def _find(model_id: str) -> tuple[Family, Variant]:
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


# -- the specs of before, until their families are ported ------------------------------------------------------


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
