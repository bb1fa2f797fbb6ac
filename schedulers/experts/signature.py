"""Which experts a request wakes, as a few numbers that can be compared.

A *signature* says by layer and expert which share of a request's tokens goes there. A model that denoises has a table
of them for each checkpoint, by how far the picture is (``StepTable``): which class is drawn hardly matters, and nothing
has to be captured while it runs. A model that reads a prompt shows its signature once that is read (``prompt_shares``),
and keeps it: what a prompt wakes, its answer wakes as well.

Signatures are compared as *sketches*: a count sketch (M. Charikar, K. Chen, M. Farach-Colton, "Finding frequent items
in data streams", 2002) adds each share, with a sign, to one of a few numbers, both chosen by a hash of layer and
expert. It is linear, so means of sketches are sketches of means, and it keeps products of vectors up to an error of
about 1 / sqrt(``SIZE``) of their lengths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import mul
from typing import Protocol, TypeAlias

Signature: TypeAlias = Sequence[Sequence[float]]
"""By layer and expert. The shares of a layer add up to 1."""
Sketch: TypeAlias = tuple[float, ...]
"""``SIZE`` numbers."""
SIZE = 128
_ODD = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


class Signed(Protocol):
    """What can say which experts its next slices wake."""

    def sketch(self, done: float) -> Sketch | None:
        """When so large a share of its slices is over; None while that is not known."""
        ...


def sketch_of(signature: Signature) -> Sketch:
    """Compress a signature: 6,144 numbers of 48 layers and 128 experts, say, to ``SIZE``."""
    sums = [0.0] * SIZE
    for layer, shares in enumerate(signature):
        for expert, share in enumerate(shares):
            if share:
                mixed = _mixed(layer << 32 | expert)
                sums[mixed % SIZE] += share if mixed >> 63 else -share
    return tuple(sums)


def _mixed(number: int) -> int:
    """A number of 64 bits that looks random (the finaliser of SplitMix64)."""
    number = (number + 1) * _ODD & _MASK
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    number = (number ^ number >> 27) * 0x94D049BB133111EB & _MASK
    return number ^ number >> 31


def dot(one: Sequence[float], other: Sequence[float]) -> float:
    """The product of two sketches."""
    product: float = sum(map(mul, one, other))
    return product


def similarity(one: Sketch, other: Sketch, usual: Sketch) -> float:
    """-1 to 1: the cosine of what two sketches have beyond the ``usual`` one, the mean of all requests. Without taking
    that away, the experts that everybody wakes hide the difference. 0 where one of them is just as usual."""
    a = [number - mean for number, mean in zip(one, usual, strict=True)]
    b = [number - mean for number, mean in zip(other, usual, strict=True)]
    norms = math.sqrt(dot(a, a) * dot(b, b))
    return max(-1.0, min(1.0, dot(a, b) / norms)) if norms > 0.0 else 0.0


def mean_sketch(sketches: Sequence[Sketch]) -> Sketch:
    """Raises: ValueError: of nothing."""
    if not sketches:
        raise ValueError("there is no mean of no sketch; give at least one")
    return tuple(math.fsum(numbers) / len(sketches) for numbers in zip(*sketches, strict=True))


def prompt_shares(*kinds: Sequence[Sequence[int]]) -> Signature:
    """The signature of a prompt, from the tokens that went to each expert by layer, image tokens and text tokens apart:
    each kind that has tokens weighs the same, or those of images, which are many, would be all that counts."""
    present = [counts for counts in kinds if any(map(any, counts))]
    return [
        [math.fsum(row[expert] / max(1, sum(row)) for row in layer) / len(present) for expert in range(len(layer[0]))]
        for layer in zip(*present, strict=True)
    ]


class StepTable:
    """Signatures of one checkpoint by how far a picture is. ``shares``: by bucket, layer and expert; bucket b of B has
    the denoising steps from b/B to (b+1)/B of all (``models.routing_table``).

    Raises: ValueError: no bucket.
    """

    def __init__(self, shares: Sequence[Signature]) -> None:
        if not shares:
            raise ValueError("a table of signatures needs at least one bucket")
        self.shares = shares
        self._sketches = [sketch_of(one) for one in shares]
        self.usual = mean_sketch(self._sketches)

    def sketch(self, done: float) -> Sketch:
        """Of the step that comes when so large a share of the steps is over; see ``Signed``."""
        buckets = len(self._sketches)
        return self._sketches[min(buckets - 1, max(0, int(done * buckets)))]
