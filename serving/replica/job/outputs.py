"""What jobs have made, as files in the shared store: outputs by name, thumbnails, previews on the way.

``ENCODERS`` says what becomes of an output, by the name that the family's ``close`` gives it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from models.contract import Value
from serving.errors import StoreUnavailable
from serving.replica.job.base import Frames, Outputs
from serving.replica.job.encode import Encoded, encode_clip, encode_picture, encode_thumbnail
from serving.stores.artefacts import ArtefactStore
from serving.stores.jobs.base import Artefact, JobRecord, Lease, folder, preview_key

_THUMBNAIL_SIDE = 320
_SUFFIX = {"video/mp4": "mp4", "image/gif": "gif", "image/png": "png"}

Encoder: TypeAlias = Callable[[Any, Mapping[str, Value]], Mapping[str, Encoded]]
"""An output, and how the record says that it is written (``JobRecord.output``), to files by name."""


def _clip(frames: Frames, how: Mapping[str, Value]) -> Mapping[str, Encoded]:
    return {
        "video": encode_clip(frames, int(how["fps"]), str(how["format"])),
        "thumbnail": encode_thumbnail(frames[len(frames) // 2], _THUMBNAIL_SIDE),
    }


def _pictures(pictures: Frames, how: Mapping[str, Value]) -> Mapping[str, Encoded]:
    """One picture, or several of one size: the first is ``image``, the others ``image-2`` and so on."""
    each = pictures[None] if pictures.ndim == 3 else pictures
    return {"image" if not row else f"image-{row + 1}": encode_picture(picture) for row, picture in enumerate(each)}


ENCODERS: Final[Mapping[str, Encoder]] = {"frames": _clip, "image": _pictures, "images": _pictures}


class OutputFiles:
    """One per worker. Names hold the lease's token: of two attempts that overlap, the index names one's files only."""

    def __init__(self, store: ArtefactStore, encoders: Mapping[str, Encoder] = ENCODERS) -> None:
        self._store = store
        self._encoders = encoders

    async def encode(self, job: JobRecord, outputs: Outputs) -> dict[str, Encoded]:
        """Make the files, by name; what has no encoder is left out. Raises: ValueError: nothing is left."""
        files: dict[str, Encoded] = {}
        for name in outputs.keys() & self._encoders.keys():
            files |= await asyncio.to_thread(self._encoders[name], outputs[name], job.output)
        if not files:
            raise ValueError(f"outputs are {sorted(outputs)}; there are encoders for {sorted(self._encoders)}")
        return files

    async def store(self, job: JobRecord, lease: Lease, files: Mapping[str, Encoded]) -> dict[str, Artefact]:
        """Store the files. May be tried again: the names are the same. Raises: StoreUnavailable."""
        return {
            name: await self._store.put(_key(job, lease, name, file), file.data, file.media_type)
            for name, file in files.items()
        }

    async def remove(self, artefacts: Mapping[str, Artefact]) -> None:
        """Take files back that the index does not name. What cannot be removed goes with the folder of the job."""
        for artefact in artefacts.values():
            with contextlib.suppress(StoreUnavailable):
                await self._store.delete(artefact.key)

    async def put_preview(self, job: JobRecord, frames: Frames) -> None:
        """Replace the job's preview by the first of ``frames``. Raises: StoreUnavailable."""
        preview = await asyncio.to_thread(encode_thumbnail, frames[0], _THUMBNAIL_SIDE)
        await self._store.put(preview_key(job.id), preview.data, preview.media_type)


def _key(job: JobRecord, lease: Lease, name: str, file: Encoded) -> str:
    return f"{folder(job.id)}/{name}-{lease.token[:12]}.{_SUFFIX.get(file.media_type, 'jpg')}"
