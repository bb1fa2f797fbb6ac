"""From frames to files in the store of clips: the clip, a thumbnail, previews on the way."""

from __future__ import annotations

import asyncio

from serving.engines.video.base import Frames
from serving.jobs.artefacts import ArtefactStore
from serving.jobs.base import Lease
from serving.video.domain import Artefact, VideoJob
from serving.video.encode import Encoded, encode_clip, encode_thumbnail
from serving.video.names import folder, preview_key

_THUMBNAIL_SIDE = 320
_SUFFIX = {"video/mp4": "mp4", "image/gif": "gif"}


class Delivery:
    """One per worker. Names hold the lease's token: of two attempts that overlap, the index names one's files only."""

    def __init__(self, store: ArtefactStore) -> None:
        self._store = store

    async def deliver(self, job: VideoJob, lease: Lease, frames: Frames) -> dict[str, Artefact]:
        """Encode and store a clip and its thumbnail. Raises: StoreUnavailable, ValueError."""
        settings = job.settings
        clip, thumbnail = await asyncio.gather(
            asyncio.to_thread(encode_clip, frames, settings.fps, settings.output_format),
            asyncio.to_thread(encode_thumbnail, frames[len(frames) // 2], _THUMBNAIL_SIDE),
        )
        name = f"{folder(job.id)}/clip-{lease.token[:12]}"
        video = await self._put(f"{name}.{_SUFFIX[clip.media_type]}", clip)
        return {"video": video, "thumbnail": await self._put(f"{name}.jpg", thumbnail)}

    async def put_preview(self, job: VideoJob, frames: Frames) -> None:
        """Replace the job's preview by the first of ``frames``. Raises: StoreUnavailable."""
        await self._put(preview_key(job.id), await asyncio.to_thread(encode_thumbnail, frames[0], _THUMBNAIL_SIDE))

    async def _put(self, key: str, file: Encoded) -> Artefact:
        return await self._store.put(key, file.data, file.media_type)
