"""The page's files: who gets what, what a browser may do with it, and that nothing in it undoes that."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from serving.front.auth import Authenticator
from serving.page import http as page
from tests.support.clients import FrontDoor, asgi
from tests.support.fake_service import FakeService

FOLDER = Path(page.__file__).parent / "files"
FILES = sorted(path.name for path in FOLDER.iterdir())
PATHS = ("/", "/docs", *(f"/page/{name}" for name in FILES))
HTML = {"accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"}


@pytest.fixture
def door() -> FrontDoor:
    return FrontDoor(FakeService(), authenticator=Authenticator({"ada": hashlib.sha256(b"key").hexdigest()}, False))


@pytest.mark.parametrize("path", PATHS)
async def test_file_is_there_without_a_key_and_fetched_once(path: str, door: FrontDoor) -> None:
    reply = await asgi(door.app, "GET", path, headers=HTML)
    assert reply.status == 200
    assert reply.body
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.headers["x-content-type-options"] == "nosniff"
    for known in (reply.headers["etag"], f'"other", W/{reply.headers["etag"]}'):
        again = await asgi(door.app, "GET", path, headers=HTML | {"if-none-match": known})
        assert (again.status, again.body, again.headers["etag"]) == (304, b"", reply.headers["etag"])
    assert (await asgi(door.app, "GET", path, headers=HTML | {"if-none-match": '"other"'})).status == 200


@pytest.mark.parametrize("path", PATHS)
async def test_browser_is_held_to_this_server(path: str, door: FrontDoor) -> None:
    policy = (await asgi(door.app, "GET", path, headers=HTML)).headers["content-security-policy"]
    rules = dict(rule.strip().partition(" ")[::2] for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["frame-ancestors"] == rules["form-action"] == rules["base-uri"] == "'none'"
    assert rules["require-trusted-types-for"] == "'script'"


@pytest.mark.parametrize("accept", ["*/*", "application/json", ""])
async def test_others_are_told_where_to_go_on(accept: str, door: FrontDoor) -> None:
    reply = await asgi(door.app, "GET", "/", headers={"accept": accept, "host": "vireo.example:8000"})
    assert reply.status == 200
    assert reply.json["models"] == "http://vireo.example:8000/v1/models"
    assert reply.headers["vary"] == "accept"


@pytest.mark.parametrize("name", ["nope.js", "..%2Fhttp.py", "http.py", "%2e%2e"])
async def test_nothing_else_is_served(name: str, door: FrontDoor) -> None:
    assert (await asgi(door.app, "GET", f"/page/{name}")).status == 404


@pytest.mark.parametrize("name", [name for name in FILES if not name.endswith(".png")])
def test_file_names_no_other_server_and_makes_no_markup_of_texts(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    addresses = set(re.findall(r"https?://[^\s\"'<>)]+", text)) - {"http://www.w3.org/2000/svg"}
    assert not addresses
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|localStorage|sessionStorage"
    )
    assert not re.search(forbidden, text)
    assert not re.search(r"<[^>]+\s(on\w+|style)=", text), "handlers and styles belong into files of their own"


def test_every_file_that_a_file_asks_for_is_there() -> None:
    texts = {name: (FOLDER / name).read_text(encoding="utf-8") for name in FILES if not name.endswith(".png")}
    asked = {
        found
        for name, text in texts.items()
        for pattern in ((r'from "\./([\w.]+)"',) if name.endswith(".js") else (r'"page/([\w.]+)"',))
        for found in re.findall(pattern, text)
    }
    assert asked <= set(FILES)
    samples = {found for text in texts.values() for found in re.findall(r'"(\w+\.png)"', text)}
    assert {name for name in FILES if name.endswith(".png")} == samples
