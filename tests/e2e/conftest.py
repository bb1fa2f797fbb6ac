"""One default system for the whole session, and the pictures that it is asked about."""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image

from models.dyn_perceiver.evaluation import held_out_sets
from tests.e2e.surfaces import Door, opened
from tests.support.media_files import encode
from tests.support.system import MODEL, System, running_system

Picture = tuple[bytes, str]
"""A PNG and its true label."""


@pytest.fixture(scope="session")
def system() -> Iterator[System]:
    with running_system() as running:
        yield running


@pytest.fixture(scope="session")
def door(system: System) -> Iterator[Door]:
    with opened(system) as opened_door:
        yield opened_door


@pytest.fixture(scope="session")
def digits() -> list[Picture]:
    """Held-out digits, one of each class, as PNG files of the model's own size."""
    pictures = held_out_sets("test")["clean"]
    firsts = [int(np.flatnonzero(pictures.labels == label)[0]) for label in range(10)]
    return [(encode(pictures.images[index]), str(label)) for label, index in enumerate(firsts)]


@pytest.fixture(scope="session")
def new_picture(digits: list[Picture]) -> Callable[[], Picture]:
    """Returns digits that were never sent before, so that no cache knows them: a number is written into dark pixels."""
    arrays = [(np.array(Image.open(io.BytesIO(data)).convert("RGB")), label) for data, label in digits]
    count = itertools.count()  # its next() is atomic: several threads may call

    def make() -> Picture:
        number = next(count)
        pixels, label = arrays[number % len(arrays)]
        pixels = pixels.copy()
        pixels[0, :6, 0] = [(number >> shift) & 15 for shift in range(0, 24, 4)]
        return encode(pixels), label

    return make


KEYS = {"alpha": "alpha-key-5f1c7e0d", "beta": "beta-key-93ab02cc"}


@pytest.fixture(scope="session")
def strict() -> Iterator[System]:
    """A system with two tenants and with bounds so tight that tests can reach them."""
    tenants = [
        {"name": name, "api_key_sha256": [hashlib.sha256(key.encode()).hexdigest()]} for name, key in KEYS.items()
    ]
    with running_system(
        "gateway.max_in_flight=4",
        "limits.max_body_bytes=1048576",
        "limits.body_timeout_s=1",
        f"models=[{{id: {MODEL}, max_queue: 8}}]",
        tenants=tenants,
    ) as running:
        yield running


@pytest.fixture(scope="session")
def alpha(strict: System) -> Iterator[Door]:
    with opened(strict, {"authorization": f"Bearer {KEYS['alpha']}"}) as opened_door:
        yield opened_door


@pytest.fixture(scope="session")
def beta(strict: System) -> Iterator[Door]:
    with opened(strict, {"x-api-key": KEYS["beta"]}) as opened_door:
        yield opened_door
