"""Which of our methods a diffusers network allows, as knobs and in words, and what they hold. Free of torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from models.contract import Knob, LazyRef, Point, SettingError
from models.methods.attention.memory import AttentionShape, held_bytes
from models.methods.attention.setting import AttentionKind, parse_attention
from models.methods.diffusers.networks import NETWORKS
from models.methods.diffusers.setting import CacheKind, CacheSetting, parse_cache

_CLIP_ATTENTION = LazyRef("models.methods.diffusers.setting:parse_clip_attention")
_PICTURE_ATTENTION = LazyRef("models.methods.diffusers.setting:parse_picture_attention")
_ANY_CACHE = LazyRef("models.methods.diffusers.setting:parse_cache")
_TAYLORSEER = LazyRef("models.methods.diffusers.setting:parse_taylorseer")


def applicable(network: str, *, is_clip: bool) -> dict[str, str]:
    """Of each method, "" where it applies to networks of that class, or why it does not."""
    facts = NETWORKS.get(network)
    if facts is None:
        return dict.fromkeys(
            ("adaspa", "tile", "first_block", "taylorseer", "ras", "ranks"), f"nobody has tried it on {network}"
        )
    no_cache = "" if facts.has_cache else f"{network} takes none of diffusers' caches"
    no_skipping = (
        "" if facts.has_first_block else f"diffusers does not know what the blocks of {network} take and return"
    )
    return {
        "adaspa": "",
        "tile": "" if is_clip else "a picture has one frame",
        "first_block": no_cache or no_skipping,
        "taylorseer": no_cache,
        "ras": "not there yet for diffusers' transformers, which run all tokens of a latent",
        "ranks": "" if facts.text == "none" else "text and picture attend together",
    }


def method_knobs(network: str, *, is_clip: bool) -> tuple[Knob, ...]:
    """``attention`` and ``cache``, as far as networks of that class have them."""
    allowed = {method for method, reason in applicable(network, is_clip=is_clip).items() if not reason}
    caches = [("taylorseer", "taylorseer:3:1"), ("first_block", "first_block:0.1")]
    grid = [value for method, value in caches if method in allowed]
    knobs = [_attention_knob(is_clip=is_clip)] if "adaspa" in allowed else []
    return (*knobs, *([_cache_knob([*grid, "off"], has_first_block="first_block" in allowed)] if grid else []))


def _attention_knob(*, is_clip: bool) -> Knob:
    tile = "tile:K:REST (latent frames), " if is_clip else ""
    return Knob(
        name="attention",
        default="dense",
        parse=_CLIP_ATTENTION if is_clip else _PICTURE_ATTENTION,
        grid=("adaspa:0.8", "dense") if is_clip else ("adaspa:0.5", "dense"),
        summary=f"dense, {tile}or adaspa:SPARSITY (blocks of tokens left out, found while denoising).",
        trades="fine motion" if is_clip else "fine detail",
    )


def _cache_knob(grid: list[str], *, has_first_block: bool) -> Knob:
    first = "first_block:THRESHOLD (steps whose first block changes less are skipped), " if has_first_block else ""
    return Knob(
        name="cache",
        default="off",
        parse=_ANY_CACHE if has_first_block else _TAYLORSEER,
        grid=tuple(grid),
        summary=f"off, {first}or taylorseer:INTERVAL:ORDER (steps between are predicted).",
        trades="detail that changes between steps",
    )


def check_point(point: Point, grid: tuple[int, int, int]) -> None:
    """Pass what fits latents of ``grid`` frames, rows and columns of patches. Raises: SettingError."""
    try:
        parse_attention(str(point.get("attention", "dense"))).check_frames(grid[0])
    except ValueError as error:
        raise SettingError("attention", str(error)) from None


def check_spread_cache(point: Point) -> None:
    """Pass what several ranks can do together. Raises: SettingError."""
    if parse_cache(str(point.get("cache", "off"))).kind is CacheKind.FIRST_BLOCK:
        raise SettingError(
            "cache",
            f"cache is {point['cache']!r}, which decides by the tokens of one rank; ranks would not decide alike: use "
            "taylorseer:3 or off",
        )


def full_steps(point: Point) -> int:
    """Steps of a point that run whole networks; all of them where only the replica can tell."""
    steps, setting = int(point["num_inference_steps"]), parse_cache(str(point.get("cache", "off")))
    if setting.kind is not CacheKind.TAYLORSEER:
        return steps
    # As diffusers counts: the first three, then one in ``interval``, beginning with the fifth.
    return min(steps, 3) + len(range(4, steps, setting.interval))


def kept_pairs(point: Point) -> float:
    """Share of the pairs of tokens that attend in a sparse step."""
    setting = parse_attention(str(point.get("attention", "dense")))
    if setting.kind is AttentionKind.TILE:
        frames, others = setting.references + setting.others, setting.others
        return 1 - others * max(0, others - 1) / frames**2
    return 1 - setting.amount


def method_bytes(
    point: Point, config: Mapping[str, Any], *, tokens: int, text_tokens: int, branches: int, itemsize: int
) -> int:
    """Most that a point's methods hold between two steps of a request. ``config``: of the network, as diffusers writes
    it. ``tokens``: of the latents. ``text_tokens``: those that attend together with them. ``branches``: of guidance."""
    attention = parse_attention(str(point.get("attention", "dense")))
    cache = parse_cache(str(point.get("cache", "off")))
    if attention.kind is not AttentionKind.ADASPA and cache.kind is CacheKind.OFF:
        return 0  # of any network
    more_layers = len(config.get("dual_attention_layers", ())) + config.get("num_single_layers", 0)
    shape = AttentionShape(
        num_layers=config["num_layers"] + more_layers,
        num_heads=config["num_attention_heads"],
        head_dim=config["attention_head_dim"],
        tokens=tokens + text_tokens,
        rows=branches,
        patch_values=_patch_values(config),
        itemsize=itemsize,
    )
    held = held_bytes(attention, int(point["num_inference_steps"]), shape)
    return held + _cache_bytes(cache, shape, tokens, text_tokens)


def _cache_bytes(setting: CacheSetting, shape: AttentionShape, tokens: int, text_tokens: int) -> int:
    if setting.kind is CacheKind.FIRST_BLOCK:  # what the first block puts out and adds, and what all others add
        return shape.rows * (3 * tokens + 2 * text_tokens) * shape.width * shape.itemsize
    if setting.kind is CacheKind.TAYLORSEER:
        return shape.rows * (setting.order + 1) * tokens * shape.patch_values * shape.itemsize
    return 0


def _patch_values(config: Mapping[str, Any]) -> int:
    size = config.get("patch_size", 1)
    area = size * size * config.get("patch_size_t", 1) if isinstance(size, int) else math.prod(size)
    return int(area * (config.get("out_channels") or config["in_channels"]))
