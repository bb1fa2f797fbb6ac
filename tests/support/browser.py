"""Headless Chromium, as ``scripts/chromium.sh`` has fetched it, and pages whose faults fail a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

from tests.support.system import ROOT, name_of
from tests.support.waiting import wait_until

CHROMIUM = ROOT / ".cache" / "chromium" / "run"
_LOCAL = ("data", "blob")
_ARGUMENTS = (
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--renderer-process-limit=2",
    "--js-flags=--max-old-space-size=256",
)
TIMEOUT_MS = 30_000


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Start it and end it, with every process of it. Skips the test where it was not fetched.

    Open it in a fixture of one module at most: Playwright holds an event loop of this thread while it runs.
    """
    if not CHROMIUM.exists():
        pytest.skip("Chromium is not here (scripts/chromium.sh fetches it): the page is not tested")
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, chromium_sandbox=False, args=list(_ARGUMENTS), timeout=TIMEOUT_MS
        )
        try:
            yield browser
        finally:
            browser.close()
            wait_until(lambda: not _alive(), "no process of Chromium is left")


def _alive() -> list[psutil.Process]:
    return [one for one in psutil.Process().children(recursive=True) if "chromium" in name_of(one)]


@contextmanager
def opened_page(browser: Browser, url: str, **context: Any) -> Iterator[Page]:
    """A page of a tab that knows nothing of others.

    Raises: AssertionError: an error was on its console, or it asked another server for something.
    """
    faults: list[str] = []
    origin = urlsplit(url).netloc

    def look(request: Request) -> None:
        address = urlsplit(request.url)
        if address.scheme not in _LOCAL and address.netloc != origin:
            faults.append(f"asked {request.url}")

    with browser.new_context(**context) as tab:
        tab.set_default_timeout(TIMEOUT_MS)
        page = tab.new_page()
        page.on("request", look)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: _note(message, faults))
        page.goto(url)
        yield page
    assert not faults


def _note(message: Any, faults: list[str]) -> None:
    """An answer that is an error is told on the console, too; the page shows it itself."""
    if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
        faults.append(message.text)
