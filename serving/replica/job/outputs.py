"""What jobs have made, as files in the shared store: outputs by name, thumbnails, previews on the way.

``ENCODERS`` says what becomes of an output, by the name that the family's ``close`` gives it: H.264 in MP4 or an
animated GIF, with a thumbnail; PNG, JPEG or WebP. Legend: T frames, H rows, W columns.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, TypeAlias

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from PIL import Image

from models.contract import Value
from serving.errors import EngineFailed, StoreUnavailable
from serving.media.clip_timing import gif_times
from serving.replica.job.base import Frames, Outputs
from serving.stores.artefacts import ArtefactStore
from serving.stores.jobs.base import Artefact, JobRecord, Lease, folder, preview_key

_THUMBNAIL_SIDE = 320
_SUFFIX = {"video/mp4": "mp4", "image/gif": "gif", "image/png": "png", "image/webp": "webp"}
MP4_TYPE, GIF_TYPE, JPEG_TYPE = "video/mp4", "image/gif", "image/jpeg"
_CRF = 16
"""Constant quality of x264, 0 (lossless) to 51: small clips are cheap, and blocks in them are seen."""
_JPEG_QUALITY = 85
_MAX_SIDE = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A file and what it is."""

    data: bytes
    media_type: str


def encode_clip(frames: Frames, fps: int, output_format: str) -> Encoded:
    """Encode a clip (T, H, W, 3) as its request says.

    Raises: ValueError: not frames, no such format, or no frame rate.
    """
    _check(frames, fps)
    if output_format not in _CLIPS:
        raise ValueError(f"format is {output_format!r}; need one of {', '.join(_CLIPS)}")
    encode, media_type = _CLIPS[output_format]
    return Encoded(data=encode(frames, fps), media_type=media_type)


def encode_picture(picture: Frames, output_format: str = "png", quality: int = 95) -> Encoded:
    """Encode one picture (H, W, 3) as PNG, JPEG or WebP; ``quality`` is of the latter two."""
    _check(picture[None], 1)
    buffer = io.BytesIO()
    options = {} if output_format == "png" else {"quality": quality}
    Image.fromarray(picture).save(buffer, output_format, **options)
    return Encoded(data=buffer.getvalue(), media_type=f"image/{output_format}")


def encode_thumbnail(frame: Frames, max_side: int | None = None) -> Encoded:
    """Encode one picture (H, W, 3) as JPEG, scaled down to ``max_side`` if it is larger."""
    _check(frame[None], 1)
    image = Image.fromarray(frame)
    if max_side is not None:
        image.thumbnail((max_side, max_side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return Encoded(data=buffer.getvalue(), media_type=JPEG_TYPE)


def _check(frames: Frames, fps: int) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or frames.size == 0:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}; need uint8 (T, H, W, 3), at least one")
    if max(frames.shape[1:3]) > _MAX_SIDE:
        raise ValueError(f"frames are {frames.shape[2]}x{frames.shape[1]}; limit of a side is {_MAX_SIDE}")
    if fps < 1:
        raise ValueError(f"fps is {fps}; need at least 1")


def _mp4(frames: Frames, fps: int) -> bytes:
    """The index comes first (faststart), so that a player may begin before it has the whole file; to put it there, the
    muxer opens again what it has written, which takes a name. The file is in memory: no disk need have room for it."""
    descriptor = os.memfd_create("clip.mp4")
    try:
        _write_mp4(f"/proc/self/fd/{descriptor}", _even(frames), fps)
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    finally:
        os.close(descriptor)


def _write_mp4(path: str, frames: Frames, fps: int) -> None:
    """Lengths of the movie and of the edit that leaves out the decoder's delay are in the movie's own units, which are
    milliseconds unless told otherwise, and would be rounded: frames then, in which all is whole."""
    options = {"movflags": "+faststart", "movie_timescale": str(fps)}
    with av.open(path, "w", format="mp4", options=options) as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": str(_CRF), "threads": "1"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _even(frames: Frames) -> Frames:
    """Colour has half the resolution in each direction: an odd side gets its last row or column twice."""
    height, width = frames.shape[1:3]
    return np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _gif(frames: Frames, fps: int) -> bytes:
    """See ``clip_timing``. Equal frames that follow each other become one that lasts as long."""
    times = gif_times(len(frames), fps)
    durations_ms = [10 * (end - start) for start, end in pairwise(times.starts_cs)]
    images = [Image.fromarray(frames[index]).quantize(256, dither=Image.Dither.NONE) for index in times.frames]
    buffer = io.BytesIO()
    images[0].save(
        buffer, "GIF", save_all=True, append_images=images[1:], duration=durations_ms, loop=0, optimize=False
    )
    return buffer.getvalue()


_CLIPS = {"mp4": (_mp4, MP4_TYPE), "gif": (_gif, GIF_TYPE)}


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
    output_format, quality = str(how.get("format", "png")), int(how.get("quality", 95))
    files = [encode_picture(picture, output_format, quality) for picture in each]
    return {"image" if not row else f"image-{row + 1}": file for row, file in enumerate(files)}


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

    async def inputs(self, job: JobRecord) -> dict[str, bytes]:
        """What went in as files. Raises: StoreUnavailable; EngineFailed: a file is gone, or somebody has changed it."""
        try:
            return {name: await self._store.read_artefact(artefact) for name, artefact in job.inputs.items()}
        except FileNotFoundError:
            raise EngineFailed("a file of the request is gone; send it again") from None

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
