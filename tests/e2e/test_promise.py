"""What Vireo promises, as a user tries it: a tight budget gives a declared, cheaper answer for each task, from the
command line and the ``openai`` client; an impossible one is refused with what would do."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI, UnprocessableEntityError

from models.training.dyn_perceiver.evaluation import held_out_sets
from serving.client.exits import Exit
from tests.e2e.chats import fresh_png
from tests.e2e.surfaces import Door, http_oip, opened
from tests.support.clients import Ask
from tests.support.media_files import encode
from tests.support.system import System, running_system

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CLASSIFIER, READER, PAINTER, FILMER = "dyn-perceiver-nano", "texthawk2-nano", "dit-moe-nano", "vdit-nano"
TOO_LITTLE_J = 1e-7
_NEAREST = re.compile(r"energy ([0-9.e+-]+) J of")
Report = Mapping[str, Any]


class RefusedError(Exception):
    """What a surface says of a budget that nothing fits."""


@dataclass(frozen=True)
class User:
    system: System
    client: OpenAI
    door: Door
    folder: Path

    def digit(self) -> Path:
        path = self.folder / "digit.png"
        path.write_bytes(encode(held_out_sets("test")["clean"].images[0]))
        return path

    def page(self) -> Path:
        """A picture of several tiles, which no cache knows."""
        path = self.folder / "page.png"
        path.write_bytes(fresh_png(900, 900))
        return path

    def post(self, path: str, energy_j: float | None, **body: Any) -> Any:
        if energy_j is not None:
            body["vireo"] = {"energy_j": energy_j}
        return self.client.post(path, body=body, cast_to=object)

    def run(self, energy_j: float | None, *words: object) -> Report:
        """The ``vireo`` block of what a command prints with ``--json``."""
        budget = [] if energy_j is None else ["--energy-j", repr(energy_j)]
        done = self.system.command(*map(str, words), *budget, "--json", "--url", self.system.http_url, timeout_s=120)
        if done.returncode:
            assert done.returncode == Exit.REFUSED, done.stderr
            raise RefusedError(json.loads(done.stdout)["error"]["message"])
        report: Report = json.loads(done.stdout)["vireo"]
        return report


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    models = ({"id": CLASSIFIER}, {"id": READER, "options": {"engine": "torch"}}, {"id": PAINTER}, {"id": FILMER})
    with running_system("redis.cache=false", models=models, start_timeout_s=120.0) as system:
        url = f"{system.http_url}/v1"
        with OpenAI(base_url=url, api_key="none", max_retries=0) as client, opened(system) as door:
            yield User(system, client, door, tmp_path_factory.mktemp("asked"))


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def classify(user: User, energy_j: float | None) -> Report:
    made: Report = user.post("/classify", energy_j, model=CLASSIFIER, image=_base64(user.digit()))["vireo"]
    return made


def infer(user: User, energy_j: float | None) -> Report:
    answer = http_oip(user.door, Ask([user.digit().read_bytes()], model=CLASSIFIER, energy_j=energy_j))
    if answer.error is not None:
        raise RefusedError(answer.message)
    return answer.report


def chat(user: User, energy_j: float | None) -> Report:
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_base64(user.page())}"}}
    answer = user.client.chat.completions.create(
        model=READER,
        messages=[{"role": "user", "content": [{"type": "text", "text": "What is this?"}, picture]}],  # type: ignore[list-item,misc]
        max_tokens=16,
        extra_body=None if energy_j is None else {"vireo": {"energy_j": energy_j}},
    )
    return dict(answer.vireo)  # type: ignore[attr-defined]


def image(user: User, energy_j: float | None) -> Report:
    extra = None if energy_j is None else {"vireo": {"energy_j": energy_j}}
    answer = user.client.images.generate(model=PAINTER, prompt="a green 7", extra_body=extra)
    return dict(answer.vireo)  # type: ignore[attr-defined]


def video(user: User, energy_j: float | None) -> Report:
    made: Report = user.post("/videos", energy_j, model=FILMER, prompt="a red circle moves left")["vireo"]
    return made


def typed(*words: object) -> Callable[[User, float | None], Report]:
    return lambda user, energy_j: user.run(energy_j, *(word(user) if callable(word) else word for word in words))


ASKED: dict[str, Callable[[User, float | None], Report]] = {
    "classify": classify,
    "infer": infer,
    "chat": chat,
    "images": image,
    "videos": video,
    "vireo classify": typed("classify", User.digit, "--model", CLASSIFIER),
    "vireo chat": typed("chat", "What is this?", "--image", User.page, "--max-tokens", "16"),
    "vireo read": typed("read", User.page),
    "vireo image": typed("image", "a green 7", "-o", lambda user: user.folder / "seven.png"),
    "vireo video": typed("video", "a red circle moves left", "-o", lambda user: user.folder / "circle.mp4"),
}


def refusal(user: User, way: str) -> str:
    with pytest.raises((UnprocessableEntityError, RefusedError)) as refused:
        ASKED[way](user, TOO_LITTLE_J)
    return str(refused.value)


@pytest.mark.parametrize("way", ASKED)
def test_a_refusal_names_a_budget_that_gets_a_cheaper_answer_which_says_so(user: User, way: str) -> None:
    free = ASKED[way](user, None)
    assert not free["degraded"]
    assert free["energy_source"] == "estimate"
    assert way == "videos" or free["energy_j"] > 0.0  # a job that has just been made has taken nothing
    said = refusal(user, way)
    assert "no operating point fits the budget" in said
    nearest = _NEAREST.search(said)
    assert nearest, said
    report = ASKED[way](user, 1.001 * float(nearest[1]))
    assert report["operating_point"] != free["operating_point"]
    assert report["operating_point"] in said
    assert report["degraded"]
