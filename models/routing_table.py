"""Where a checkpoint's gates send tokens on the way from noise to a picture: its shape, reading it, writing it.

The file lies beside the weights and is written by ``vireo calibrate`` (``models.training.routing``). Free of torch: a
scheduler looks up in it which experts the next slice of a request will wake (``schedulers.experts.signature``).
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec

from models.contract import Variant
from models.identity import checkpoint_sha256
from models.operating_points import source_commit

ROUTING_FILE = "routing.json"
_ROUNDING = 1e-3
_Share: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]
Shares: TypeAlias = tuple[tuple[tuple[_Share, ...], ...], ...]


class RoutingTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file, under ``ROUTING_FILE``.

    ``shares``: by bucket, layer and expert, what part of the tokens of that layer went there; those of a layer add up
    to 1. Bucket b of B covers the denoising steps from b/B to (b+1)/B of all. ``tokens``: of one picture in one step,
    times the experts that each is sent to, guidance included. ``rows``: pictures that were counted.

    Raises: ValueError: not a full table, or shares that do not add up to 1.
    """

    version: Literal[1] = 1
    model: Annotated[str, msgspec.Meta(min_length=1)]
    checkpoint_sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    created: str
    commit: str | None
    rows: _Count
    tokens: _Count
    shares: Annotated[Shares, msgspec.Meta(min_length=1)]

    def __post_init__(self) -> None:
        shapes = {tuple(len(layer) for layer in bucket) for bucket in self.shares}
        if len(shapes) > 1 or len(shape := set(next(iter(shapes)))) != 1 or shape == {0}:
            raise ValueError("shares need the same layers in every bucket and the same experts in every layer")
        for number, bucket in enumerate(self.shares):
            for place, layer in enumerate(bucket):
                if abs(sum(layer) - 1.0) > _ROUNDING:
                    raise ValueError(f"shares of bucket {number}, layer {place} add up to {sum(layer):.4f}; need 1")


def read_routing(variant: Variant) -> RoutingTable | None:
    """The table of a model's checkpoint, None where there is none.

    Raises: ValueError: it is damaged, or of another model or other weights; the message names the command that makes
    one.
    """
    path = None if variant.weights is None else variant.weights / ROUTING_FILE
    if path is None or variant.weights is None or not path.is_file():
        return None
    remedy = f"run `vireo calibrate {variant.id}`"
    try:
        table = msgspec.json.decode(path.read_bytes(), type=RoutingTable)
    except (OSError, ValueError) as error:  # msgspec's errors are ValueErrors
        raise ValueError(f"the routing table at {path} cannot be used ({error}): {remedy}") from None
    if table.model != variant.id:
        raise ValueError(f"the routing table at {path} is of model {table.model}, not {variant.id}: {remedy}")
    if table.checkpoint_sha256 != checkpoint_sha256(variant.weights):
        raise ValueError(f"the routing table at {path} was counted with other weights than those there: {remedy}")
    return table


def write_routing(variant: Variant, counts: Sequence[Sequence[Sequence[int]]], *, rows: int, tokens: int) -> Path:
    """Write what was counted, by bucket, layer and expert, whole or not at all; returns the path.

    Raises: ValueError: a layer of a bucket has no tokens, or the table would not be read back.
    """
    assert variant.weights is not None
    table = RoutingTable(
        model=variant.id,
        checkpoint_sha256=checkpoint_sha256(variant.weights),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        commit=source_commit(),
        rows=rows,
        tokens=tokens,
        shares=tuple(tuple(_shares(layer) for layer in bucket) for bucket in counts),
    )
    content = msgspec.json.encode(table)
    msgspec.json.decode(content, type=RoutingTable)
    path = variant.weights / ROUTING_FILE
    draft = path.with_name(f".{ROUTING_FILE}.{os.getpid()}")
    draft.write_bytes(msgspec.json.format(content, indent=0) + b"\n")
    draft.replace(path)
    return path


def _shares(counts: Sequence[int]) -> tuple[float, ...]:
    total = sum(counts)
    if not total:
        raise ValueError("a layer of a bucket has no tokens: count more steps, or make fewer buckets")
    return tuple(round(count / total, 5) for count in counts)
