"""``--url`` and ``--key`` as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.client.address import read_key, read_url
from serving.client.http import Client
from serving.client.told import Failed


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("localhost:8000", "http://localhost:8000"),
        ("localhost", "http://localhost:8000"),
        ("8123", "http://127.0.0.1:8123"),
        (":8123", "http://127.0.0.1:8123"),
        (" http://127.0.0.1:8000/ ", "http://127.0.0.1:8000"),
        ("http://host", "http://host"),
        ("https://vireo.example.com/", "https://vireo.example.com"),
        ("HTTPS://Host:8443/proxied/", "https://host:8443/proxied"),
        ("http://host:8000/v1", "http://host:8000"),
        ("host:8000/v1/", "http://host:8000"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("http://[::1]", "http://[::1]"),
    ],
)
def test_address_is_understood(text: str, url: str) -> None:
    assert read_url(text) == url
    assert read_url(url) == url


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "http://", "http://[", "ftp://x", "host:port", "host:99999", "a b:80", "http://h/?a=1", "h/#x", "a..b",
        "http://.", f"{'a' * 64}.example.com", "h/\x01",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_with_a_remedy(text: str) -> None:
    with pytest.raises(Failed, match=r"write HOST:PORT|a key is given with --key"):
        read_url(text)


@pytest.mark.parametrize("text", ["http://me:secret@host", "me:secret@host:port", "ftp://me:secret@host"])
def test_key_in_an_address_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(Failed, match="a key is given with --key") as refusal:
        read_url(text)
    assert "secret" not in refusal.value.line


def test_key_is_text_or_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "key.txt"
    path.write_text("sesame\n")
    assert read_key("sesame") == read_key(f"@{path}") == "sesame"
    assert read_key(None) is read_key("") is None


@pytest.mark.parametrize("content", [b"", b"\n", b"se\xffsame", b"one\ntwo"])
def test_key_that_no_header_can_carry_is_refused_unseen(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "key.txt"
    path.write_bytes(content)
    with pytest.raises(Failed) as refusal:
        read_key(f"@{path}")
    assert "same" not in refusal.value.line
    assert "one" not in refusal.value.line


def test_key_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"gone.txt, which cannot be read \(No such file"):
        read_key(f"@{tmp_path / 'gone.txt'}")


def test_name_that_nobody_can_look_up_ends_in_a_line() -> None:
    with Client(read_url("http://-é"), None) as client, pytest.raises(Failed, match="is no address; check --url"):
        client.models()
