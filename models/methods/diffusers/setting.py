"""The settings ``attention`` and ``cache`` of a request, read. Free of torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from models.methods.attention.setting import AttentionKind, AttentionSetting, parse_attention

_FORMS = (
    "use off, first_block:THRESHOLD (more than 0, at most 1), or taylorseer:INTERVAL or taylorseer:INTERVAL:ORDER "
    "(INTERVAL 2 to 20, ORDER 0 to 3)"
)
_INTERVALS, _ORDERS = range(2, 21), range(4)


class CacheKind(StrEnum):
    """What is reused of earlier denoising steps."""

    OFF = "off"
    FIRST_BLOCK = "first_block"
    TAYLORSEER = "taylorseer"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSetting:
    """``threshold``: how much the first block's output may change, relative to itself, before all blocks run again.
    ``interval``: one step in so many is run in full, the others are predicted by a polynomial of that ``order``."""

    kind: CacheKind
    threshold: float = 0.0
    interval: int = 1
    order: int = 0


def parse_cache(text: str) -> CacheSetting:
    """Read the setting.

    Raises: ValueError: no such form, or a number out of range.
    """
    name, *numbers = text.split(":")
    try:
        kind = CacheKind(name)
        if kind is CacheKind.FIRST_BLOCK:
            (threshold,) = (float(number) for number in numbers)
            if not (math.isfinite(threshold) and 0 < threshold <= 1):
                raise ValueError
            return CacheSetting(kind=kind, threshold=threshold)
        if kind is CacheKind.TAYLORSEER:
            interval, order = (int(number) for number in (*numbers, *["1"][len(numbers) - 1 :]))
            if interval not in _INTERVALS or order not in _ORDERS:
                raise ValueError
            return CacheSetting(kind=kind, interval=interval, order=order)
        () = numbers
    except ValueError:
        raise ValueError(f"cache is {text!r}; {_FORMS}") from None
    return CacheSetting(kind=kind)


def parse_taylorseer(text: str) -> CacheSetting:
    """Read ``off`` or ``taylorseer:INTERVAL:ORDER``, for networks that allow no other cache.

    Raises: ValueError: no such form, or a number out of range.
    """
    setting = parse_cache(text)
    if setting.kind is CacheKind.FIRST_BLOCK:
        raise ValueError(
            f"cache is {text!r}; the blocks of this network cannot be skipped: use off or taylorseer:INTERVAL"
        )
    return setting


def attention_of(text: str) -> AttentionSetting:
    """What a setting comes to: ``ras:1``, which leaves no token out, is dense attention.

    Raises: ValueError: no such form, or a number out of range.
    """
    setting = parse_attention(text)
    is_whole = setting.kind is AttentionKind.RAS and setting.amount == 1
    return AttentionSetting(kind=AttentionKind.DENSE) if is_whole else setting


def check_together(attention: AttentionSetting, cache: CacheSetting) -> None:
    """Pass settings of one request. Raises: ValueError: they do not go together."""
    if attention.kind is AttentionKind.RAS and cache.kind is not CacheKind.OFF:
        raise ValueError(
            f"cache is {cache.kind.value!r} and attention 'ras:{attention.amount:g}': a cache of steps would skip what "
            "has to be kept of all tokens; use cache=off, or another attention"
        )


def parse_clip_attention(text: str) -> AttentionSetting:
    """Read ``dense``, ``tile:K:REST``, ``adaspa:SPARSITY`` or ``ras:SHARE``.

    Raises: ValueError: no such form, or a number out of range.
    """
    return _attention(text, f"use dense, {_TILE}, {_ADASPA} or {_RAS}", frozenset(AttentionKind))


def parse_picture_attention(text: str) -> AttentionSetting:
    """Read ``dense``, ``adaspa:SPARSITY`` or ``ras:SHARE``.

    Raises: ValueError: no such form, or a number out of range.
    """
    return _attention(text, f"use dense, {_ADASPA} or {_RAS}", frozenset(AttentionKind) - {AttentionKind.TILE})


def parse_clip_attention_of_all(text: str) -> AttentionSetting:
    """Read ``dense``, ``tile:K:REST`` or ``adaspa:SPARSITY``, for networks that run all tokens.

    Raises: ValueError: no such form, or a number out of range.
    """
    return _attention_of_all(text, f"use dense, {_TILE} or {_ADASPA}", frozenset(AttentionKind))


def parse_picture_attention_of_all(text: str) -> AttentionSetting:
    """Read ``dense`` or ``adaspa:SPARSITY``, for networks that run all tokens.

    Raises: ValueError: no such form, or a number out of range.
    """
    return _attention_of_all(text, f"use dense or {_ADASPA}", frozenset(AttentionKind) - {AttentionKind.TILE})


_TILE = "tile:K:REST (K reference frames, REST others)"
_ADASPA = "adaspa:SPARSITY (from 0 to below 1)"
_RAS = "ras:SHARE (of tokens run in most steps, above 0, at most 1)"


def _attention_of_all(text: str, forms: str, kinds: frozenset[AttentionKind]) -> AttentionSetting:
    if text.startswith(AttentionKind.RAS):
        raise ValueError(
            f"attention is {text!r}, and this network does not say where its tokens may be cut (_cp_plan): {forms}"
        )
    return _attention(text, forms, kinds - {AttentionKind.RAS})


def _attention(text: str, forms: str, kinds: frozenset[AttentionKind]) -> AttentionSetting:
    try:
        setting = parse_attention(text)
    except ValueError:
        setting = None
    if setting is None or setting.kind not in kinds:
        raise ValueError(f"attention is {text!r}; {forms}")
    return setting
