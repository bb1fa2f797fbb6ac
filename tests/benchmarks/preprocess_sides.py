"""What ``bench_preprocess`` compares: pictures, the usual pipeline in two forms, and ours stage by stage."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from models.families.texthawk2.image_processor import cut_tiles
from models.families.texthawk2.tiling import best_grid
from serving.media.decode import decode
from serving.media.limits import MediaLimits
from serving.media.prepare import content_sha256
from serving.media.worker import _keep_freed_memory
from tests.support import media_files as files

MODEL = "texthawk2-nano"
SIDE = 224
LIMITS = MediaLimits(tiny_pixels=0, decode_timeout_s=30)
SIZES = ((448, 224), (1344, 896), (2688, 1344), (1600, 1200))
"""(width, height). The last one fits no grid and has to be resized."""
Floats: TypeAlias = npt.NDArray[np.float32]


def photo(width: int, height: int) -> files.Array:
    """Between noise and a flat field: compresses like a photograph."""
    small = Image.fromarray(files.noise(height // 8, width // 8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def page(width: int, height: int) -> files.Array:
    """Dark words on a light ground: compresses like a screenshot or a scan."""
    image = Image.new("RGB", (width, height), (250, 249, 245))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(20)
    for line, top in enumerate(range(8, height - 20, 28)):
        words = " ".join(f"word{(line * 37 + k * 11) % 997}" for k in range(width // 70))
        draw.text((10, top), words, font=font, fill=(20, 22, 60))
    return np.asarray(image)


def payloads() -> dict[str, tuple[tuple[int, int], bytes]]:
    """Name to size and file."""
    made = {}
    for width, height in SIZES:
        made[f"{width}x{height} JPEG"] = (width, height), files.encode(photo(width, height), "JPEG", quality=90)
        made[f"{width}x{height} PNG"] = (width, height), files.encode(page(width, height))
    return made


# -- the usual pipeline ----------------------------------------------------------------------------------------------


def plain(data: bytes) -> Floats:
    """Decode, convert, resize, crop tiles, scale and normalise each in float32, stack: (T, 3, S, S)."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    rows, cols = best_grid(image.height, image.width)
    resized = image.resize((cols * SIDE, rows * SIDE), Image.Resampling.BICUBIC)
    boxes = [(x, y, x + SIDE, y + SIDE) for y in range(0, rows * SIDE, SIDE) for x in range(0, cols * SIDE, SIDE)]
    tiles = [resized.crop(box) for box in boxes]
    if len(tiles) > 1:
        tiles.insert(0, image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    mean, std = np.float32(0.5), np.float32(0.5)
    scaled = [np.asarray(tile).astype(np.float32) * np.float32(1 / 255) for tile in tiles]
    return np.stack([((tile - mean) / std).transpose(2, 0, 1) for tile in scaled])


def library() -> Callable[[bytes], Floats]:
    """The same task by transformers' own tiling processor for PIL and NumPy (GOT-OCR 2), decoded with PIL.

    It chooses grids by its own rule, which differs for some sizes.
    """
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    processor = GotOcr2ImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        crop_to_patches=True,
        min_patches=1,
        max_patches=72,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )

    def run(data: bytes) -> Floats:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        values: Floats = processor(image, return_tensors="np")["pixel_values"]
        return values

    return run


# -- ours, stage by stage --------------------------------------------------------------------------------------------


def measure_stages(names: list[str], repeats: int) -> dict[str, dict[str, float]]:
    """Median ms of each stage of our pipeline, in a process with a decode worker's memory policy.

    ``normalise`` is what the model does afterwards, here with torch on one CPU thread; on a GPU it is on the GPU.
    ``faults_*``: page faults per image with and without the policy.
    """
    import torch

    from models.families.texthawk2.vision import normalise

    torch.set_num_threads(1)
    files_by_name, result = payloads(), {}
    for name in names:
        data = files_by_name[name][1]
        result[name] = {"faults_before": _faults(data, repeats)}
    _keep_freed_memory()
    for name in names:
        data = files_by_name[name][1]
        rgb = decode(data, LIMITS).rgb
        tiles = torch.from_numpy(cut_tiles(rgb)[0])
        stages: dict[str, Callable[[], object]] = {
            "decode": partial(decode, data, LIMITS),
            "hash": partial(content_sha256, rgb),
            "tile": partial(cut_tiles, rgb),
            "normalise": partial(normalise, tiles),
        }
        result[name] |= {f"{stage}_ms": _median_ms(run, repeats) for stage, run in stages.items()}
        result[name]["faults_after"] = _faults(data, repeats)
    return result


def _median_ms(run: Callable[[], object], repeats: int) -> float:
    run()
    times = []
    for _ in range(repeats):
        started_s = time.perf_counter()
        run()
        times.append((time.perf_counter() - started_s) * 1e3)
    return round(float(np.median(times)), 3)


def _faults(data: bytes, repeats: int) -> float:
    import resource

    def work() -> None:
        cut_tiles(decode(data, LIMITS).rgb)

    work()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(repeats):
        work()
    return round((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / repeats)


def bytes_moved(size: tuple[int, int], file_bytes: int) -> int:
    """Bytes that our pipeline reads and writes per image, from the file to the tiles in the caller's process.

    Counts each pass over a buffer once for reading and once for writing; tables, and what a codec does inside, not.
    """
    width, height = size
    grid = best_grid(height, width)
    pixels, out = width * height, grid.rows * grid.cols * SIDE * SIDE
    many = grid.rows * grid.cols > 1
    moved = file_bytes + 4 * pixels  # decode into Pillow's four bytes a pixel
    moved += 7 * pixels  # copy out as three bytes
    moved += 3 * pixels  # hash
    moved += (7 + 4) * pixels if many else 0  # back into Pillow, read for the thumbnail
    if pixels != out:
        moved += 4 * pixels + 2 * 4 * out // grid.rows // SIDE * height + 4 * out + 7 * out  # two passes, copy out
    moved += 6 * out  # cut
    moved += 2 * file_bytes + 4 * 3 * (out + many * SIDE * SIDE)  # through the socket, twice two copies
    return moved


def copy_bandwidth(repeats: int = 9) -> float:
    """Bytes per second, read plus written, of NumPy copying 128 MiB within memory that it already has; the median."""
    source, target = np.ones(128 << 20, np.uint8), np.ones(128 << 20, np.uint8)
    rates = []
    for _ in range(repeats):
        started_s = time.perf_counter()
        np.copyto(target, source)
        rates.append(2 * source.nbytes / (time.perf_counter() - started_s))
    return float(np.median(rates))


def median_of(rows: list[dict[str, Any]], key: str) -> float:
    """Median of one figure over rounds."""
    return float(np.median([row[key] for row in rows]))
