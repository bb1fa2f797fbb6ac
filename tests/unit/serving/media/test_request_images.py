"""The images of a chat request: data and URLs together, one budget, and nothing done twice."""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from serving.config import MediaSettings
from serving.domain import ImagePart
from serving.errors import (
    DecodeTimeout,
    ImageFetchFailed,
    ImageTooLarge,
    ImageUrlRefused,
    InvalidImage,
    PayloadTooLarge,
    ServingError,
    TooManyImages,
)
from serving.gateway.parts import build_request_images
from serving.media.fetch import FetchLimits, ImageFetcher
from serving.media.image_cache import ProcessedImages
from serving.media.limits import MediaLimits
from serving.media.pool import Caller, MediaPool
from serving.media.prepare import PreparedImage
from serving.media.request_images import RequestImages
from serving.telemetry.events import ignore
from tests.support import media_files as files
from tests.support.media_processors import make_processor, strips
from tests.support.tls_server import PictureServer, answer, write_certificate
from tests.support.waiting import turns

ACME = Caller("acme")
LIMITS = MediaLimits(
    max_images=3,
    max_bytes_per_image=60_000,
    max_bytes_per_request=150_000,
    max_pixels_per_request=40_000,
    max_tiles_per_request=8,
    decode_timeout_s=2.0,
    tiny_pixels=64 * 64,
)
PICTURES = [files.noise(100, 120, seed) for seed in range(4)]
ENCODED = [files.encode(picture) for picture in PICTURES]
NAME = "pictures.test"


def strip_counter(model_id: str, width: int, height: int, max_tiles: int | None = None) -> int:
    return 3 if model_id == "strips" else 1


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_certificate(tmp_path_factory.mktemp("tls"), NAME)


@pytest.fixture
async def pool() -> AsyncIterator[MediaPool]:
    pool = MediaPool(LIMITS, 2, make_processor, tile_counter=strip_counter)
    await pool.start()
    yield pool
    await pool.stop()


@pytest.fixture
async def server(certificate: Path) -> AsyncIterator[PictureServer]:
    server = PictureServer(certificate)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def images(pool: MediaPool, server: PictureServer, certificate: Path) -> RequestImages:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    fetcher = ImageFetcher(
        {f"{NAME}:{server.port}"},
        FetchLimits(max_bytes=LIMITS.max_bytes_per_image),
        resolver=resolve,
        is_allowed_address=lambda address: address.is_loopback,
        tls=ssl.create_default_context(cafile=str(certificate)),
    )
    return RequestImages(pool, fetcher, ProcessedImages(1 << 20))


async def prepare(images: RequestImages, parts: Sequence[ImagePart], model: str, caller: Caller) -> list[PreparedImage]:
    return await images.prepare(await images.fetch(parts, caller, math.inf), model, caller)


def part(index: int, param: str = "") -> ImagePart:
    return ImagePart(encoded=ENCODED[index], param=param or f"messages[{index}]")


async def test_data_and_urls_come_back_in_order(images: RequestImages, server: PictureServer) -> None:
    server.scripts["/1.png"] = answer(ENCODED[1])
    url = ImagePart(url=f"https://{NAME}:{server.port}/1.png")
    prepared = await prepare(images, [part(0), url], "strips", ACME)
    for image, picture in zip(prepared, PICTURES, strict=False):
        np.testing.assert_array_equal(image.pixels, strips(picture)[0])
        assert image.grid == (1, 2)
    assert len(prepared) == 2


async def test_request_without_images_needs_nothing(images: RequestImages) -> None:
    assert await prepare(images, [], "strips", ACME) == []


async def test_repeated_image_is_not_decoded_again_by_whatever_way_it_comes(
    images: RequestImages, pool: MediaPool, server: PictureServer
) -> None:
    (first,) = await prepare(images, [part(0)], "strips", ACME)
    server.scripts["/0.png"] = answer(ENCODED[0])
    url = ImagePart(url=f"https://{NAME}:{server.port}/0.png")
    again, fetched = await prepare(images, [part(0), url], "strips", ACME)
    assert pool.stats.decoded_in_workers == 1
    assert again.pixels is fetched.pixels is first.pixels
    assert again.content_sha256 == first.content_sha256
    assert first.decode_ms > 0 == again.decode_ms


@pytest.mark.parametrize(("model", "tenant"), [("corner", "acme"), ("strips", "umbrella")])
async def test_another_model_or_tenant_does_its_own_work(
    images: RequestImages, pool: MediaPool, model: str, tenant: str
) -> None:
    await prepare(images, [part(0)], "strips", ACME)
    await prepare(images, [part(0)], model, Caller(tenant))
    assert pool.stats.decoded_in_workers == 2


async def test_refused_image_is_refused_again(images: RequestImages, pool: MediaPool) -> None:
    broken = ImagePart(encoded=ENCODED[0][:-40], param="messages[0].content[1]")
    for _ in range(2):
        with pytest.raises(InvalidImage) as caught:
            await prepare(images, [broken], "strips", ACME)
        assert caught.value.param == "messages[0].content[1]"
    assert pool.stats.refused == 2


# -- budgets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "error", "says", "param"),
    [
        ([part(0)] * 4, TooManyImages, "more than 3 images", "messages[0]"),
        ([ImagePart(encoded=bytes(50_001), param=f"p{i}") for i in range(3)], PayloadTooLarge, "150003 bytes", "p2"),
        ([ImagePart(encoded=bytes(60_001), param="p")], ImageTooLarge, "60001 bytes; the limit is 60000", "p"),
        ([ImagePart(encoded=b"", param="p")], InvalidImage, "empty", "p"),
    ],
)
async def test_what_can_be_counted_is_counted_before_any_work(
    images: RequestImages, pool: MediaPool, parts: list[ImagePart], error: type[ServingError], says: str, param: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        await prepare(images, parts, "strips", ACME)
    assert caught.value.param == param
    assert (pool.stats.decoded_in_workers, pool.stats.decoded_in_place) == (0, 0)


@pytest.mark.parametrize("is_warm", [False, True], ids=["fresh", "remembered"])
async def test_tiles_of_all_images_count_also_those_that_are_remembered(images: RequestImages, is_warm: bool) -> None:
    if is_warm:
        for index in range(3):
            await prepare(images, [part(index)], "strips", ACME)
    with pytest.raises(ImageTooLarge, match="9 tiles or more; the limit is 8"):
        await prepare(images, [part(index) for index in range(3)], "strips", ACME)


@pytest.mark.parametrize("is_warm", [False, True], ids=["fresh", "remembered"])
async def test_pixels_of_all_images_count_also_those_that_are_remembered(images: RequestImages, is_warm: bool) -> None:
    large = [ImagePart(encoded=files.encode(np.full((130, 130, 3), fill, np.uint8))) for fill in range(3)]
    if is_warm:
        for one in large:
            await prepare(images, [one], "corner", ACME)
    with pytest.raises(ImageTooLarge, match="50700 pixels or more; the limit is 40000"):
        await prepare(images, large, "corner", ACME)


async def test_bytes_of_urls_count_together_with_those_of_data(images: RequestImages, server: PictureServer) -> None:
    server.scripts["/big"] = answer(bytes(59_000))
    url = ImagePart(url=f"https://{NAME}:{server.port}/big", param="messages[1]")
    filler = ImagePart(encoded=ENCODED[0] + bytes(59_000 - len(ENCODED[0])))
    with pytest.raises(PayloadTooLarge, match="images of this request") as caught:
        await prepare(images, [filler, filler, url], "strips", ACME)
    assert caught.value.param == "messages[1]"


# -- failures --------------------------------------------------------------------------------------------------------


async def test_first_failure_ends_the_work_on_the_others(images: RequestImages, pool: MediaPool) -> None:
    refused = ImagePart(url="https://evil.test/", param="messages[0].content[2]")
    with pytest.raises(ImageUrlRefused) as caught:
        await prepare(images, [part(0), refused], "sleep", ACME)
    assert caught.value.param == "messages[0].content[2]"
    assert pool.stats.timeouts == 0, "the stuck decode was not waited for"


async def test_failed_fetch_and_stuck_decode_name_their_parts(images: RequestImages, server: PictureServer) -> None:
    server.scripts["/gone"] = answer(b"", status="410 Gone")
    url = ImagePart(url=f"https://{NAME}:{server.port}/gone", param="here")
    with pytest.raises(ImageFetchFailed, match="status 410") as gone:
        await prepare(images, [url], "strips", ACME)
    with pytest.raises(DecodeTimeout) as stuck:
        await prepare(images, [part(1)], "sleep", ACME)
    assert (gone.value.param, stuck.value.param) == ("here", "messages[1]")


async def test_cancelled_request_leaves_no_task_behind(images: RequestImages) -> None:
    before = asyncio.all_tasks()
    task = asyncio.create_task(prepare(images, [part(0), part(1)], "sleep", ACME))
    await turns()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    left = asyncio.all_tasks() - before
    assert not [one for one in left if "RequestImages" in repr(one)]


async def test_path_is_built_as_configured(pool: MediaPool) -> None:
    images = build_request_images(MediaSettings(), pool, ignore, {})
    with pytest.raises(ImageUrlRefused, match=r"media\.allowed_hosts is empty"):
        await prepare(images, [ImagePart(url="https://example.org/")], "strips", ACME)
    await images.stop()
    listed = build_request_images(MediaSettings(allowed_hosts=("no-such-host.invalid",)), pool, ignore, {})
    with pytest.raises(ImageFetchFailed, match="was not found"):
        await listed.fetch([ImagePart(url="https://no-such-host.invalid/")], ACME, math.inf)
    await listed.stop()
