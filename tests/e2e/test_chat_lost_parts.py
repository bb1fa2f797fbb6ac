"""The engine's process or the chat replica dies by SIGKILL while answers are under way.

A stream that has begun ends with one typed error; whatever nobody has seen anything of is sent again and answered; the
replica comes back by itself; nothing of the dead one stays behind.
"""

from __future__ import annotations

import json
import threading
from typing import Any

import psutil
import pytest

from tests.e2e.chats import RawChat, body_of, fresh_png, fresh_question, has_text, turn
from tests.support.chat_engines import engine_processes
from tests.support.chat_system import ALPHA, ChatSystem
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

COMES_BACK_S = 120.0
UNARY_TOKENS = 700


class Asker(threading.Thread):
    """Asks for a whole answer, which takes a while."""

    def __init__(self, chat: ChatSystem, *images: bytes) -> None:
        super().__init__()
        self._system = chat.system
        fields = {"max_tokens": UNARY_TOKENS, "logit_bias": chat.endless()}
        self._body = body_of(turn(fresh_question(), *images), **fields)
        self.status = 0
        self.document: dict[str, Any] = {}

    def run(self) -> None:
        with RawChat(self._system, ALPHA, self._body) as raw:
            self.status = raw.response().status
            self.document = json.loads(raw.response().read())


def retries(chat: ChatSystem) -> float:
    return chat.engine().metrics.total("vireo_chat_retries_total")


def is_back(chat: ChatSystem, dead: psutil.Process) -> bool:
    replicas = chat.system.replicas("texthawk2-nano")
    if len(replicas) != 1 or replicas[0].pid == dead.pid:
        return False
    return len(engine_processes(replicas[0].pid)) == 1


@pytest.mark.parametrize("part", ["engine", "replica"])
def test_killed_part_comes_back_and_loses_only_streams_that_had_begun(part: str, chat: ChatSystem) -> None:
    chat.wait_idle()
    replica, engine = chat.replica(), chat.engine_process()
    sent_again = retries(chat)
    askers = [Asker(chat), Asker(chat, fresh_png())]
    body = body_of(turn(fresh_question()), max_tokens=1000, logit_bias=chat.endless(), stream=True)
    with RawChat(chat.system, ALPHA, body) as raw:
        events = raw.events()
        assert any(has_text(event) for event in events)
        for asker in askers:
            asker.start()
        wait_until(lambda: chat.engine().running == 3, "three answers are under way")
        (engine if part == "engine" else replica).kill()
        rest = list(events)

    errors = [event for event in rest if isinstance(event, dict) and "error" in event]
    assert [error["error"]["code"] for error in errors] == ["replica_lost"]
    assert rest[-1] is errors[0], "nothing follows the error, [DONE] neither"

    for asker in askers:
        asker.join(COMES_BACK_S)
        assert (asker.status, asker.document.get("error")) == (200, None)
        assert asker.document["usage"]["completion_tokens"] == UNARY_TOKENS
        assert asker.document["choices"][0]["finish_reason"] == "length"
    assert retries(chat) >= sent_again + len(askers)

    wait_until(lambda: is_back(chat, replica), "one new replica with one engine process", COMES_BACK_S)
    wait_until(lambda: not (replica.is_running() or engine.is_running()), "the dead ones are gone")
    chat.wait_idle()


def test_everything_still_answers_afterwards(chat: ChatSystem) -> None:
    with chat.client() as client:
        answer = client.chat.completions.create(**body_of(turn(fresh_question(), fresh_png())))
    assert answer.usage.completion_tokens > 0
    assert chat.system.is_ready()
