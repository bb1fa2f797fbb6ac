"""One default system for the whole session, and the pictures that it is asked about."""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.training.dyn_perceiver.evaluation import held_out_sets
from serving.config.sections import GatewaySettings
from tests.benchmarks.chat_systems import CHECKPOINT, write_random_folder
from tests.e2e.surfaces import Door, opened
from tests.support.chat_system import ALPHA, BETA, ChatSystem, running_chat_system
from tests.support.collector import Collector, running_collector
from tests.support.media_files import encode
from tests.support.system import MODEL, System, running_system

Picture = tuple[bytes, str]
"""A PNG and its true label."""
CALLS_ON_THE_WAY = GatewaySettings().calls_in_flight
"""Calls that a gateway has sent to a replica that does not read, each with one image where requests come one by one: an
idle dispatcher sends at once. Requests beyond these wait in the gateway."""


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
    count = itertools.count(1)  # its next() is atomic: several threads may call; 0 is the digit itself

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
        models=[{"id": MODEL, "options": {"max_queue": 8}}],
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


BURST_S = {"rich": 10_000.0, "poor": 10_000.0}
POOR_J = 0.06
"""A picture that is classified to the last exit takes half of it."""
BILLED_CHAT = "texthawk2-nano"


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    with running_collector() as running:
        yield running


@pytest.fixture(scope="session")
def billed(collector: Collector) -> Iterator[System]:
    """A system that tells the collector of every request, with a tenant that can pay, one that cannot, and one more.
    Each has its name as its key."""
    bounds = {name: {"burst_s": burst_s, "seconds_per_s": 0.0001} for name, burst_s in BURST_S.items()} | {"acme": {}}
    bounds["poor"] |= {"burst_j": POOR_J, "joules_per_s": 0.0001}
    tenants = [
        {"name": name, "api_key_sha256": [hashlib.sha256(name.encode()).hexdigest()], **more}
        for name, more in bounds.items()
    ]
    models = ({"id": MODEL}, {"id": BILLED_CHAT, "options": {"engine": "fake"}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server.server_port}")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        with running_system("redis.timeout_s=2", "redis.cache=false", models=models, tenants=tenants) as running:
            yield running


# -- chat ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def trained_checkpoint() -> Path:
    """The committed weights, for tests that judge what an answer says."""
    if not (CHECKPOINT / "config.json").is_file():
        pytest.skip(f"{CHECKPOINT.name} has no trained weights here (make train-texthawk2-nano): answers mean nothing")
    return CHECKPOINT


@pytest.fixture(scope="session")
def chat_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed weights, or random ones of the same shape where there are none: enough for all but meaning."""
    if (CHECKPOINT / "config.json").is_file():
        return CHECKPOINT
    return write_random_folder(tmp_path_factory.mktemp("texthawk2"))


@pytest.fixture(scope="session")
def chat(chat_checkpoint: Path) -> Iterator[ChatSystem]:
    """The one system of all tests of chat."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    with running_chat_system(chat_checkpoint) as running:
        yield running


@pytest.fixture(scope="session")
def chat_door(chat: ChatSystem) -> Iterator[Door]:
    """Connections of the tenant that may see probabilities."""
    with opened(chat.system, {"authorization": f"Bearer {ALPHA}"}) as opened_door:
        yield opened_door


@pytest.fixture(scope="session")
def other_chat_door(chat: ChatSystem) -> Iterator[Door]:
    """Connections of the other tenant."""
    with opened(chat.system, {"authorization": f"Bearer {BETA}"}) as opened_door:
        yield opened_door
