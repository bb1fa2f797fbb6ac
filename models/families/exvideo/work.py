"""What a clip takes, before it is made: multiplications, and bytes held. Free of torch.

Legend: R rows of the request (2 under guidance), F frames, C channels, P places of a frame's grid.
"""

from __future__ import annotations

from collections.abc import Iterator

from models.contract import Point, Variant, Work
from models.families.exvideo.schedule import first_step
from models.families.exvideo.shapes import CHUNK, CHUNK_STRIDE, has_attention, spans
from models.io import ClipIO, ClipRequest

_FLOAT_BYTES = 4
_WIDE_COPIES, _FULL_COPIES, _LOOKED_COPIES = 28, 8, 4
"""Most tensors alive at a time. Of the widest level, in its channels: the feed-forward's projection, gate and product
(16), residuals and norms around it, what goes across to the way up, and what attention keeps beside them. Of the
autoencoder's last level, in its channels: what a residual block gets, what it convolves and what it adds. Of the
picture as CLIP looks at it: while it is resized."""
_LOOKED = 3 * 224**2


def work(variant: Variant, request: ClipRequest, point: Point) -> Work:
    """Of one clip, in float32. Pieces of a decode overlap: the pixels of both count. The first frame is one token."""
    io: ClipIO = variant.io
    request = io.settled(request)
    frames, rows, columns = io.grid(request.num_frames, (request.width, request.height))
    steps = int(point["num_inference_steps"]) - first_step(variant, point)
    passes = rows_of(point) * sum(
        sum(_macs(variant, stop - start, rows, columns)) for start, stop in windows_of(frames, point)
    )
    decoded = spans(frames, CHUNK, CHUNK_STRIDE)
    units = {
        "macs": float(steps * passes),
        "slices": float(steps),
        "pixels": float(sum(stop - start for start, stop in decoded) * request.width * request.height),
        "image_tokens": 1.0,
        "token_steps": float(steps * frames * rows * columns),
    }
    return Work(units, held_bytes(variant, request, point))


def rows_of(point: Point) -> int:
    """R."""
    return 2 if float(point["guidance_scale"]) > 1 else 1


def windows_of(frames: int, point: Point) -> list[tuple[int, int]]:
    """Which frames the network sees at a time."""
    length = int(point["window"]) or frames
    return spans(frames, length, max(1, length // 5))


def held_bytes(variant: Variant, request: ClipRequest, point: Point) -> int:
    """Kept between slices, and the most that a look at the picture, a step or a piece of the decode adds to it, by
    formula."""
    io, unet, vae = variant.io, variant.config["unet"], variant.config["vae"]
    frames, rows, columns = io.grid(request.num_frames, (request.width, request.height))
    pixels, latents = request.width * request.height, io.latent_channels * rows * columns
    kept = 2 * frames * latents + latents + int(unet["cross_attention_dim"])
    decoding = 3 * pixels * (frames // _FLOAT_BYTES + 1 + CHUNK_STRIDE) + CHUNK
    longest = min(frames, int(point["window"]) or frames)
    step = rows_of(point) * longest * rows * columns * _WIDE_COPIES * unet["block_out_channels"][0]
    piece = min(frames, CHUNK) * pixels * _FULL_COPIES * vae["block_out_channels"][0]
    return int(_FLOAT_BYTES * (kept + max(_LOOKED_COPIES * _LOOKED, step, decoding + piece)))


def _macs(variant: Variant, frames: int, rows: int, columns: int) -> Iterator[float]:
    """Of one pass, block by block."""
    unet = variant.config["unet"]
    channels, layers = unet["block_out_channels"], unet["layers_per_block"]
    layers = [layers] * len(channels) if isinstance(layers, int) else list(layers)
    time, context = 4 * channels[0], int(unet["cross_attention_dim"])
    is_extended, last = bool(variant.config["positions"]), len(channels) - 1

    def attention(width: int, places: int) -> float:
        """Spatial and temporal transformer; the temporal one has two feed-forwards."""
        tokens = frames * places
        projections = 2 + (4 + 2 + 12) + (12 + 4 + 2 + 12) + (27 if is_extended else 0)
        scores = 2 * width * (places + frames)
        return float(tokens * (projections * width**2 + scores) + 2 * (places + frames) * context * width)

    def residual(wide_in: int, width: int, places: int) -> float:
        """Spatial and temporal residual block."""
        shortcut = wide_in * width if wide_in != width else 0
        spatial = 9 * (wide_in * width + width**2) + shortcut
        return float(frames * (places * (spatial + 6 * width**2) + 2 * time * width))

    def places_of(level: int) -> int:
        return int(-(-rows // 2**level) * -(-columns // 2**level))

    yield frames * rows * columns * 9 * channels[0] * (unet["in_channels"] + unet["out_channels"])
    skips = [channels[0]]
    before = channels[0]
    for level, (width, kind) in enumerate(zip(channels, unet["down_block_types"], strict=True)):
        for _ in range(layers[level]):
            yield residual(before, width, places_of(level))
            yield attention(width, places_of(level)) if has_attention(kind) else 0.0
            before = width
            skips.append(width)
        if level < last:
            yield frames * places_of(level + 1) * 9 * width**2
            skips.append(width)
    yield 2 * residual(before, before, places_of(last)) + attention(before, places_of(last))
    for number, (width, kind) in enumerate(zip(reversed(channels), unet["up_block_types"], strict=True)):
        level = last - number
        for _ in range(layers[level] + 1):
            yield residual(before + skips.pop(), width, places_of(level))
            yield attention(width, places_of(level)) if has_attention(kind) else 0.0
            before = width
        if level:
            yield frames * places_of(level - 1) * 9 * width**2
