"""What is checked: one variant of a family, examples for it, and comparisons."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from models.contract import Family, Point, SettingError, Staged, Unary, Variant, Work
from models.inputs import Inputs, row_of
from models.io import ChatTokens, ClipIO, ClipRequest, ImageIO, ImageRequest, PictureIO

RELATIVE, ABSOLUTE = 1e-3, 1e-6
"""How far outputs may be apart if only the batch around a row differs: kernels for other sizes round differently."""
SIZES = ((40, 60), (64, 64), (75, 31))
"""(height, width) of example pictures."""
PROMPTS = ("a red circle", "a blue square", "a red circle and a small blue square")
"""Prompts of examples; the last is longer than the others."""

Outputs: TypeAlias = Mapping[str, Tensor]


class Subject:
    """One variant of a family, resolved and built on first use. ``name``: a listed variant, or an example."""

    def __init__(self, family: Family, name: str) -> None:
        self._whole = family
        self.name = name

    @cached_property
    def family(self) -> Family:
        """The family as it is for this variant; the whole of it for the checks of the family itself."""
        return self._whole if self.name == self._whole.name else self._whole.of(self.variant)

    @cached_property
    def variant(self) -> Variant:
        """The variant."""
        for variant in (*self._whole.variants, *self._whole.miniatures):
            if variant.id == self.name:
                return variant
        assert self._whole.resolve is not None, f"{self._whole.name} has no variant {self.name}"
        resolved: Variant = self._whole.resolve.load()(self.name, None)
        return resolved

    @cached_property
    def network(self) -> Any:
        """The network, with random weights where the variant has none."""
        return build(self.family, self.variant)

    @cached_property
    def runner(self) -> Any:
        """The runner."""
        return make_runner(self.family, self.variant, self.network)

    def work(self, point: Point) -> Work:
        """The work that is declared for one example at a point."""
        assert self.family.work is not None, f"{self.family.name} declares no work"
        declared: Work = self.family.work.load()(self.variant, example_request(self), point)
        return declared

    def with_weights(self, variant: Variant) -> Subject:
        """The same subject, with other weights."""
        other = Subject(self._whole, self.name)
        other.variant = variant
        return other


def build(family: Family, variant: Variant) -> Any:
    """The network of a variant."""
    assert family.build is not None, f"{family.name} has nothing that builds it"
    return family.build.load()(variant, "cpu", random_weights=variant.weights is None)


def make_runner(family: Family, variant: Variant, network: Any) -> Any:
    """The runner of a variant."""
    assert family.runner is not None, f"{family.name} has nothing that runs it"
    return family.runner.load()(network, variant)


# -- examples --------------------------------------------------------------------------------------------------------


def example_inputs(subject: Subject, count: int, seed: int = 0) -> Any:
    """Prepared inputs, stacked: from the family's part ``example``, or noise as pictures and a few words as prompts."""
    family, variant = subject.family, subject.variant
    random = np.random.default_rng(seed)
    if "example" in family.parts:
        rows = [family.part("example")(variant, random) for _ in range(count)]
    elif isinstance(variant.io, ImageIO):
        rows = [_image_row(subject, random) for _ in range(count)]
        if isinstance(rows[0], Mapping):
            return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
    else:
        assert isinstance(variant.io, PictureIO), f"{family.name} needs a part 'example': (variant, rng) -> input"
        assert family.prepare is not None, f"{family.name} prepares nothing"
        prepare = family.prepare.load()(variant)
        shapes = [(*SIZES[index % len(SIZES)], 3) for index in range(count)]
        rows = [prepare(random.integers(0, 256, shape, np.uint8)) for shape in shapes]
    return torch.from_numpy(np.stack(rows))


def _image_row(subject: Subject, random: np.random.Generator) -> Inputs:
    picture, size = subject.variant.io, example_size(subject.variant.io)
    noise = random.integers(0, 256, (size.height, size.width, 3), np.uint8)
    prompt = PROMPTS[int(random.integers(len(PROMPTS)))]
    return row_of(
        picture=noise if picture.takes_picture else None,
        prompt=subject.family.part("words")(subject.variant)(prompt) if picture.takes_prompt else None,
        seed=int(random.integers(1 << 31)) if picture.is_seeded else None,
    )


def example_size(picture: ImageIO) -> ImageRequest:
    """A small size that the network takes."""
    if picture.size is not None:
        return ImageRequest(width=picture.size[0], height=picture.size[1])
    side = min(picture.max_side, max(picture.min_side, -(-48 // picture.multiple) * picture.multiple))
    return ImageRequest(width=side, height=side)


def example_request(subject: Subject, seed: int = 0) -> Any:
    """An example of a request. For a job, one from its part ``example``, or else a short prompt; for others that make
    pictures, a size; for a stream, counts of tokens; None for all others."""
    family = subject.family
    if family.shape == "job" and "example" in family.parts:
        return family.part("example")(subject.variant, np.random.default_rng(seed))
    if isinstance(subject.variant.io, ImageIO):
        size = example_size(subject.variant.io)
        return replace(size, prompt=PROMPTS[seed % len(PROMPTS)]) if family.shape == "job" else size
    if family.shape == "stream":
        return ChatTokens(text_tokens=20 + seed, image_tokens=16, max_tokens=8)
    if family.shape != "job":
        return None
    clip = subject.variant.io
    assert isinstance(clip, ClipIO), f"{family.name} needs a part 'example': (variant, rng) -> request"
    lengths = clip.frame_counts  # seeds 0 and 1 have the usual one, 2 another
    return ClipRequest(prompt=PROMPTS[seed % len(PROMPTS)], num_frames=lengths[seed // 2 % len(lengths)])


def example_points(family: Family) -> list[dict[str, Any]]:
    """The default point, and one point for each value of each knob of scope ``request``."""
    found = [family.check_point({})]
    for knob in (knob for knob in family.knobs if knob.scope == "request"):
        found += [point for value in knob.points if (point := family.check_point({knob.name: value})) not in found]
    return found


def can(subject: Subject, point: Point) -> bool:
    """Whether the variant supports this point."""
    if subject.family.allowed is None:
        return True
    try:
        subject.family.allowed.load()(subject.variant, example_request(subject), point)
    except SettingError:
        return False
    return True


# -- what comes out --------------------------------------------------------------------------------------------------


@torch.inference_mode()
def forward(runner: Any, inputs: Any, points: Sequence[Point]) -> Outputs:
    """All outputs of a full run of rows; for a staged family, those of each exit."""
    if not isinstance(runner, Staged):
        assert isinstance(runner, Unary), f"{type(runner).__name__} is neither unary nor staged"
        return runner.forward(inputs, points)
    state = runner.begin(inputs, points)
    _, passed, confidence = runner.run(state, 0, runner.num_stages)
    named = {f"{name} of exit {k + 1}": tensor for k, outputs in enumerate(passed) for name, tensor in outputs.items()}
    return {**named, "confidence": confidence}


def expect_close(found: Outputs, expected: Outputs, what: str) -> None:
    """Expect outputs that are equal except for rounding."""
    assert found.keys() == expected.keys(), f"{what}: outputs are {sorted(found)}, not {sorted(expected)}"
    for name, tensor in found.items():
        theirs = expected[name]
        assert tensor.shape == theirs.shape, f"{what}: {name} is {tuple(tensor.shape)}, not {tuple(theirs.shape)}"
        worst = (tensor.double() - theirs.double()).abs() - RELATIVE * theirs.double().abs()
        allowed = ABSOLUTE if tensor.is_floating_point() else 1  # a pixel may be rounded the other way
        assert float(worst.max()) <= allowed, f"{what}: {name} is off by {float(worst.max()):.2g}"


def expect_same(found: Outputs, expected: Outputs, what: str) -> None:
    """Expect outputs that are equal to the bit."""
    assert found.keys() == expected.keys(), f"{what}: outputs are {sorted(found)}, not {sorted(expected)}"
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), f"{what}: {name} is another one"


def picked(tree: Any, rows: Sequence[int]) -> Any:
    """These rows of each tensor."""
    return mapped(lambda tensor: tensor[list(rows)], tree)


# -- trees of tensors ------------------------------------------------------------------------------------------------


def written_and_read(state: Any) -> Any:
    """Write to bytes and read back, as a snapshot is: only tensors and plain values survive."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def leaves(tree: Any) -> Iterator[Tensor]:
    """Every tensor of a tree."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from leaves(value)
    elif isinstance(tree, tuple | list):
        for value in tree:
            yield from leaves(value)


def mapped(change: Callable[..., Tensor], tree: Any, *others: Any) -> Any:
    """The tree with ``change`` applied to each tensor, and to those in the same place of the other trees."""
    if isinstance(tree, Tensor):
        return change(tree, *others)
    if isinstance(tree, Mapping):
        return {key: mapped(change, value, *(other[key] for other in others)) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(mapped(change, *items) for items in zip(tree, *others, strict=True))
    return tree
