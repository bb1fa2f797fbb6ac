"""From frames to files in the store of clips: the clip, a thumbnail, previews on the way."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

from serving.errors import StoreUnavailable
from serving.replica.video.base import Frames
from serving.replica.video.encode import Encoded, encode_clip, encode_thumbnail
from serving.stores.artefacts import ArtefactStore
from serving.stores.jobs.base import Lease
from serving.tasks.videos.domain import Artefact, VideoJob, folder, preview_key

_THUMBNAIL_SIDE = 320
_SUFFIX = {"video/mp4": "mp4", "image/gif": "gif"}


class Delivery:
    """One per worker. Names hold the lease's token: of two attempts that overlap, the index names one's files only."""

    def __init__(self, store: ArtefactStore) -> None:
        self._store = store

    async def encode(self, job: VideoJob, frames: Frames) -> dict[str, Encoded]:
        """Make the files of a clip, by variant. Raises: ValueError."""
        settings = job.settings
        clip, thumbnail = await asyncio.gather(
            asyncio.to_thread(encode_clip, frames, settings.fps, settings.output_format),
            asyncio.to_thread(encode_thumbnail, frames[len(frames) // 2], _THUMBNAIL_SIDE),
        )
        return {"video": clip, "thumbnail": thumbnail}

    async def store(self, job: VideoJob, lease: Lease, files: Mapping[str, Encoded]) -> dict[str, Artefact]:
        """Store the files. May be tried again: the names are the same. Raises: StoreUnavailable."""
        return {
            variant: await self._store.put(_key(job, lease, file), file.data, file.media_type)
            for variant, file in files.items()
        }

    async def remove(self, artefacts: Mapping[str, Artefact]) -> None:
        """Take files back that the index does not name. What cannot be removed goes with the folder of the job."""
        for artefact in artefacts.values():
            with contextlib.suppress(StoreUnavailable):
                await self._store.delete(artefact.key)

    async def put_preview(self, job: VideoJob, frames: Frames) -> None:
        """Replace the job's preview by the first of ``frames``. Raises: StoreUnavailable."""
        preview = await asyncio.to_thread(encode_thumbnail, frames[0], _THUMBNAIL_SIDE)
        await self._store.put(preview_key(job.id), preview.data, preview.media_type)


def _key(job: VideoJob, lease: Lease, file: Encoded) -> str:
    return f"{folder(job.id)}/clip-{lease.token[:12]}.{_SUFFIX.get(file.media_type, 'jpg')}"
