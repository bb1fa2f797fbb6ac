"""Which of our methods a diffusers network allows, as knobs and in words, and what they hold. Free of torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from models.contract import Knob, LazyRef, Point, SettingError
from models.methods.attention.memory import AttentionShape, held_bytes
from models.methods.attention.setting import AttentionKind, AttentionSetting
from models.methods.diffusers.networks import NETWORKS
from models.methods.diffusers.setting import (
    CacheKind,
    CacheSetting,
    attention_of,
    check_together,
    parse_cache,
)
from models.methods.ras.config import RasConfig

_CLIP_ATTENTION = LazyRef("models.methods.diffusers.setting:parse_clip_attention")
_PICTURE_ATTENTION = LazyRef("models.methods.diffusers.setting:parse_picture_attention")
_CLIP_ATTENTION_OF_ALL = LazyRef("models.methods.diffusers.setting:parse_clip_attention_of_all")
_PICTURE_ATTENTION_OF_ALL = LazyRef("models.methods.diffusers.setting:parse_picture_attention_of_all")
_ANY_CACHE = LazyRef("models.methods.diffusers.setting:parse_cache")
_TAYLORSEER = LazyRef("models.methods.diffusers.setting:parse_taylorseer")

_INDEX_BYTES = 8
"""Of a token that was chosen."""


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
        "ras": "" if facts.has_plan else f"{network} does not say where its tokens may be cut (_cp_plan)",
        "ranks": "" if facts.text == "none" else "text and picture attend together",
    }


def method_knobs(network: str, *, is_clip: bool, num_steps: int) -> tuple[Knob, ...]:
    """``attention`` and ``cache``, as far as networks of that class have them. ``num_steps``: usually taken; the points
    of a table have region-adaptive sampling where any of them would leave tokens out."""
    allowed = {method for method, reason in applicable(network, is_clip=is_clip).items() if not reason}
    caches = [("taylorseer", "taylorseer:3:1"), ("first_block", "first_block:0.1")]
    grid = [value for method, value in caches if method in allowed]
    is_swept = _dense_steps(num_steps) < num_steps
    attention = _attention_knob(is_clip=is_clip, has_ras="ras" in allowed, is_swept=is_swept)
    knobs = [attention] if "adaspa" in allowed else []
    return (*knobs, *([_cache_knob([*grid, "off"], has_first_block="first_block" in allowed)] if grid else []))


def _attention_knob(*, is_clip: bool, has_ras: bool, is_swept: bool) -> Knob:
    forms = ["dense", *(["tile:K:REST (latent frames)"] if is_clip else [])]
    forms.append("adaspa:SPARSITY (blocks of tokens left out, found while denoising)")
    if has_ras:
        parse = _CLIP_ATTENTION if is_clip else _PICTURE_ATTENTION
        forms.append("ras:SHARE (of tokens that most steps run)")
    else:
        parse = _CLIP_ATTENTION_OF_ALL if is_clip else _PICTURE_ATTENTION_OF_ALL
    return Knob(
        name="attention",
        default="dense",
        parse=parse,
        grid=(
            *(("ras:0.5",) if has_ras and is_swept else ()),
            "adaspa:0.8" if is_clip else "adaspa:0.5",
            "dense",
        ),
        summary=f"{', '.join(forms[:-1])} or {forms[-1]}.",
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
    attention = _attention(point)
    try:
        attention.check_frames(grid[0])
    except ValueError as error:
        raise SettingError("attention", str(error)) from None
    try:
        check_together(attention, _cache(point))
    except ValueError as error:
        raise SettingError("cache", str(error)) from None


def _attention(point: Point) -> AttentionSetting:
    return attention_of(str(point.get("attention", "dense")))


def _cache(point: Point) -> CacheSetting:
    return parse_cache(str(point.get("cache", "off")))


def leaves_out_tokens(point: Point) -> bool:
    """Whether some steps run a part of the tokens, with what earlier ones kept of the others."""
    return _attention(point).kind is AttentionKind.RAS


def check_spread_point(point: Point) -> None:
    """Pass what several ranks can do together. Raises: SettingError."""
    if leaves_out_tokens(point):
        raise SettingError(
            "attention",
            f"attention is {point['attention']!r}, whose few tokens are not spread over several ranks: use dense, tile "
            "or adaspa, or serve the model with one rank",
        )
    if _cache(point).kind is CacheKind.FIRST_BLOCK:
        raise SettingError(
            "cache",
            f"cache is {point['cache']!r}, which decides by the tokens of one rank; ranks would not decide alike: use "
            "taylorseer:3 or off",
        )


def full_steps(point: Point) -> int:
    """Steps of a point that run whole networks; all of them where only the replica can tell."""
    steps, setting = int(point["num_inference_steps"]), _cache(point)
    if setting.kind is not CacheKind.TAYLORSEER:
        return steps
    # As diffusers counts: the first three, then one in ``interval``, beginning with the fifth.
    return min(steps, 3) + len(range(4, steps, setting.interval))


def _dense_steps(num_steps: int) -> int:
    """Of region-adaptive sampling, those that run all tokens."""
    return sum(RasConfig().is_dense(step, num_steps) for step in range(num_steps))


def is_dense_step(step: int, num_steps: int) -> bool:
    """Whether region-adaptive sampling runs all tokens in this step, counted from 0, whatever is kept."""
    return RasConfig().is_dense(step, num_steps)


def num_active(point: Point, tokens: int) -> int:
    """Of the tokens of a latent, those that a sparse step runs."""
    setting = _attention(point)
    return RasConfig(share=setting.amount).num_active(tokens) if setting.kind is AttentionKind.RAS else tokens


def whole_steps(point: Point) -> int:
    """Of ``full_steps``, those that run all tokens."""
    steps = full_steps(point)
    return _dense_steps(steps) if leaves_out_tokens(point) else steps


def kept_pairs(point: Point) -> float:
    """Share of the pairs of tokens that attend in a sparse step, of those that are run with all."""
    setting = _attention(point)
    if setting.kind is AttentionKind.RAS:
        return 1.0
    if setting.kind is AttentionKind.TILE:
        frames, others = setting.references + setting.others, setting.others
        return 1 - others * max(0, others - 1) / frames**2
    return 1 - setting.amount


def method_bytes(
    point: Point, config: Mapping[str, Any], *, tokens: int, text_tokens: int, branches: int, itemsize: int
) -> int:
    """Most that a point's methods hold between two steps of a request. ``config``: of the network, as diffusers writes
    it. ``tokens``: of the latents. ``text_tokens``: those that attend together with them. ``branches``: of guidance."""
    attention, cache = _attention(point), _cache(point)
    is_ras = attention.kind is AttentionKind.RAS
    if attention.kind is not AttentionKind.ADASPA and not is_ras and cache.kind is CacheKind.OFF:
        return 0  # of any network
    more_layers = len(config.get("dual_attention_layers", ())) + config.get("num_single_layers", 0)
    shape = AttentionShape(
        num_layers=config["num_layers"] + more_layers,
        num_heads=config["num_attention_heads"],
        head_dim=config["attention_head_dim"],
        tokens=tokens if is_ras else tokens + text_tokens,
        rows=branches,
        patch_values=_patch_values(config),
        itemsize=itemsize,
    )
    held = held_bytes(attention, int(point["num_inference_steps"]), shape)
    held += _INDEX_BYTES * num_active(point, tokens) if is_ras else 0
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
