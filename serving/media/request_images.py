"""The images of one chat or of one clip, whatever form they came in: fetched, decoded, cut into tiles, or remembered.

    fetch     each part   https URL --ImageFetcher--> encoded bytes
    (into how many tiles they may be cut is decided here, from what their headers say)
    prepare   each part   hash --> held already? done
                               --else--> MediaPool: probe, charge, decode, cut -> kept

All images of a request share one ``MediaBudget`` and are worked on at the same time. The first that fails fails the
request, and ends the work on the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from models.contract import Grid
from serving.domain import ImagePart
from serving.errors import InvalidImage, ServingError
from serving.media.fetch import ImageFetcher
from serving.media.image_cache import ProcessedImages, image_key
from serving.media.limits import MediaBudget
from serving.media.pool import Caller, MediaPool
from serving.media.prepare import PreparedImage
from serving.media.probe import probe

GridOf = Callable[[int, int], Grid]
"""Height and width of a picture to its grid."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FetchedImage:
    """A part of a request and its file. ``budget``: that of all images of the request."""

    part: ImagePart
    encoded: bytes
    budget: MediaBudget


class RequestImages:
    """Turns image parts into a model's input. Owns the fetcher and the cache; the pool is shared with others.

    ``grids``: by model, the part of that name where its family has one.
    """

    def __init__(
        self,
        pool: MediaPool,
        fetcher: ImageFetcher,
        cache: ProcessedImages,
        grids: Mapping[str, GridOf | None] | None = None,
    ) -> None:
        self._pool = pool
        self._fetcher = fetcher
        self._cache = cache
        self._grids = grids or {}

    async def fetch(self, parts: Sequence[ImagePart], caller: Caller, deadline_s: float) -> list[FetchedImage]:
        """The files of a request's images, in their order. ``deadline_s`` (monotonic clock) bounds the fetches.

        Raises:
            ServingError: of the first image that failed; ``param`` is that of its part. See ``ImageFetcher.fetch``;
                also ``TooManyImages`` and ``PayloadTooLarge``, before any work is done.
        """
        budget = self._admit(parts)

        async def fetch(part: ImagePart) -> FetchedImage:
            with _blamed(part):
                encoded = part.encoded
                if encoded is None:
                    encoded = await self._fetcher.fetch(part.url or "", deadline_s, budget, caller)
                return FetchedImage(part, encoded, budget)

        return await _together([fetch(part) for part in parts])

    def count_tiles(self, images: Sequence[FetchedImage], model_id: str, choices: Sequence[int]) -> dict[int, int]:
        """Tiles of all images, for each number of tiles that one may be cut into; by what their headers say.

        Raises: InvalidImage and its kinds: of the first that the model does not take; ``param`` is that of its part.
        """
        counts = dict.fromkeys(choices, 0)
        for image in images:
            with _blamed(image.part):
                header = probe(image.encoded, self._pool.limits)
                for most in choices:
                    counts[most] += self._pool.count_tiles(model_id, header, image.part.most_tiles(most))
        return counts

    async def prepare(
        self, images: Sequence[FetchedImage], model_id: str, caller: Caller, max_tiles: int | None = None
    ) -> list[PreparedImage]:
        """Prepare the images of a request, in their order, each in no more tiles than that. Bound the call yourself.

        Raises:
            ServingError: of the first image that failed; ``param`` is that of its part. See ``MediaPool.prepare``.
        """

        async def prepare(image: FetchedImage) -> PreparedImage:
            with _blamed(image.part):
                return await self._process(image, model_id, caller, image.part.most_tiles(max_tiles))

        return await _together([prepare(image) for image in images])

    async def stop(self) -> None:
        """Free what the fetcher holds."""
        await self._fetcher.stop()

    def _admit(self, parts: Sequence[ImagePart]) -> MediaBudget:
        """Count what can be counted before anything is fetched or decoded."""
        budget = MediaBudget(self._pool.limits)
        for part in parts:
            with _blamed(part):
                budget.add_image()
                budget.add_bytes(len(part.encoded or b""))
        return budget

    async def _process(
        self, fetched: FetchedImage, model_id: str, caller: Caller, max_tiles: int | None
    ) -> PreparedImage:
        """A hit is charged like a miss: what a request may contain does not depend on the cache."""
        encoded, budget = fetched.encoded, fetched.budget
        self._pool.limits.check_bytes(len(encoded))
        key = await image_key(caller.tenant, model_id, max_tiles, encoded)
        if (held := self._cache.get(key)) is not None:
            budget.add_pixels(held.original_size[0] * held.original_size[1])
            budget.add_tiles(held.num_tiles)
            return held
        image = await self._pool.prepare(encoded, model_id, budget, caller, max_tiles)
        if (grid_of := self._grids.get(model_id)) is not None:
            _, height, width, _ = image.pixels.shape
            try:
                image = replace(image, grid=await asyncio.to_thread(grid_of, height, width))
            except ValueError as error:
                raise InvalidImage(str(error)) from None
        self._cache.put(key, image)
        return image


@contextmanager
def _blamed(part: ImagePart) -> Iterator[None]:
    """What goes wrong here is this part's fault."""
    try:
        yield
    except ServingError as error:
        error.param = error.param or part.param
        raise


async def _together(work: Sequence[Coroutine[None, None, T]]) -> list[T]:
    """All results, in order; the first failure ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
