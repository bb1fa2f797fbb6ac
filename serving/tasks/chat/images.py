"""The images of one chat request, whatever form they came in: fetched, decoded, cut into tiles, or remembered.

    each part   https URL --ImageFetcher--> encoded bytes --hash--> held already? done
                                                          --else--> MediaPool: probe, charge, decode, cut -> kept

All images of a request share one ``MediaBudget`` and are worked on at the same time. The first that fails fails the
request, and ends the work on the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from models.contract import Grid
from serving.errors import InvalidImage, ServingError
from serving.media.fetch import ImageFetcher
from serving.media.image_cache import ProcessedImages, image_key
from serving.media.limits import MediaBudget
from serving.media.pool import Caller, MediaPool
from serving.media.prepare import PreparedImage
from serving.tasks.chat.domain import ImagePart

GridOf = Callable[[int, int], Grid]
"""Height and width of a picture to its grid."""


class ChatImages:
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

    async def prepare(
        self, parts: Sequence[ImagePart], model_id: str, caller: Caller, deadline_s: float
    ) -> list[PreparedImage]:
        """Prepare the images of a request, in their order.

        ``deadline_s`` (monotonic clock) bounds the fetches; bound the whole call yourself.

        Raises:
            ServingError: of the first image that failed; ``param`` is that of its part. See ``ImageFetcher.fetch`` and
                ``MediaPool.prepare``; also ``TooManyImages`` and ``PayloadTooLarge``, before any work is done.
        """
        budget = self._admit(parts)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._prepare_one(part, model_id, caller, deadline_s, budget)) for part in parts
                ]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def stop(self) -> None:
        """Free what the fetcher holds."""
        await self._fetcher.stop()

    def _admit(self, parts: Sequence[ImagePart]) -> MediaBudget:
        """Count what can be counted before anything is fetched or decoded."""
        budget = MediaBudget(self._pool.limits)
        for part in parts:
            try:
                budget.add_image()
                budget.add_bytes(len(part.encoded or b""))
            except ServingError as error:
                error.param = error.param or part.param
                raise
        return budget

    async def _prepare_one(
        self, part: ImagePart, model_id: str, caller: Caller, deadline_s: float, budget: MediaBudget
    ) -> PreparedImage:
        try:
            encoded = part.encoded
            if encoded is None:
                encoded = await self._fetcher.fetch(part.url or "", deadline_s, budget, caller)
            return await self._process(encoded, model_id, caller, budget)
        except ServingError as error:
            error.param = error.param or part.param
            raise

    async def _process(self, encoded: bytes, model_id: str, caller: Caller, budget: MediaBudget) -> PreparedImage:
        """A hit is charged like a miss: what a request may contain does not depend on the cache."""
        self._pool.limits.check_bytes(len(encoded))
        key = await image_key(caller.tenant, model_id, encoded)
        if (held := self._cache.get(key)) is not None:
            budget.add_pixels(held.original_size[0] * held.original_size[1])
            budget.add_tiles(held.num_tiles)
            return held
        image = await self._pool.prepare(encoded, model_id, budget, caller)
        if (grid_of := self._grids.get(model_id)) is not None:
            _, height, width, _ = image.pixels.shape
            try:
                image = replace(image, grid=await asyncio.to_thread(grid_of, height, width))
            except ValueError as error:
                raise InvalidImage(str(error)) from None
        self._cache.put(key, image)
        return image
