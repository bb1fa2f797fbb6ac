"""What a family that chats gives in place of a runner: vLLM batches and generates by itself. Free of torch.

It names these in ``Family.parts``:

    prompts   (variant) -> Prompts
    tiles     (variant, width, height) -> how many squares ``prepare`` cuts a picture of that size into; the same for
              the picture turned by 90 degrees. Raises ValueError: it cannot be cut
    vllm      () -> None: tell vLLM about the architecture; called in each of its processes, perhaps more than once.
              Not where the architecture is vLLM's own
    vllm_image (tiles, grid) -> what the model's processor in vLLM takes; without this part it takes (tiles, grid)
    grids     (variant) -> None, or (height, width) -> the grid of a picture of that size, in place of the one from
              ``prepare``: for what only another process can count. May take long; a gateway calls it from threads.
              Raises ValueError: the model takes no such picture
    boxes     (text) -> list[TextBox]: places in an image that an answer names; only where it can

and ``build`` gives a ChatNetwork, for the plain engine that vLLM is compared with. What all this must keep is in
``models.testing.streams``.

The one knob of scope ``request`` that such a family may have is ``models.io.MAX_TILES``: ``prepare`` and ``tiles``
then get a variant whose io allows no more tiles than the request. Pictures become coarser, and cost fewer tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

Grid: TypeAlias = tuple[int, int]
"""Rows and columns of the tiles that an image was cut into, without its thumbnail."""
Turn: TypeAlias = tuple[str, Sequence[str | None]]
"""Who speaks (system, user or assistant), and what: texts, and None where an image stands."""


class Prompts(Protocol):
    """Tokens of conversations. Threads may share one."""

    @property
    def image_id(self) -> int:
        """The token that stands for an image."""
        ...

    @property
    def end_of_turn_id(self) -> int:
        """The token with which an answer ends."""
        ...

    def build(self, messages: Iterable[Turn]) -> list[int]:
        """Ids with one ``image_id`` per image, and the beginning of an answer. No text becomes a control token.

        Raises: ValueError: the model takes no such conversation; the words are fit for the caller."""
        ...

    def image_tokens(self, grid: Grid) -> int:
        """Tokens of one image, without those that mark its begin and end."""
        ...

    def expand(self, ids: Sequence[int], grids: Sequence[Grid]) -> list[int]:
        """Ids as the model reads them. Raises: ValueError: not one grid per image."""
        ...

    def num_expanded(self, ids: Sequence[int], grids: Sequence[Grid]) -> int:
        """Length of ``expand(ids, grids)``. Raises: ValueError: not one grid per image."""
        ...


class ChatNetwork(Protocol):
    """A network that chats, in plain torch."""

    @property
    def language_model(self) -> Any:
        """A causal language model with the interface of transformers'."""
        ...

    def encode_images(self, tiles: Any, grids: Sequence[Grid]) -> Sequence[Any]:
        """uint8 tiles (T, S, S, 3) of all images, one after another, to one tensor (tokens, width) per image."""
        ...


class TextBox(NamedTuple):
    """A box that a text names: where it is spelt, and its corners as shares of the image's width and height, 0 to 1."""

    start: int
    end: int
    left: float
    top: float
    right: float
    bottom: float
