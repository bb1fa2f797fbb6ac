"""The page in a real browser: by keyboard, under a key, with whatever a model says."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from models.contract import Knob
from models.io import ImageIO
from serving.domain import Degradation
from serving.errors import QuotaExceeded, QuotaTooSmall, ServingError
from serving.front.auth import Authenticator
from serving.tasks.videos.limits import ClipLimits
from tests.e2e.conftest import Picture
from tests.support import flipbook
from tests.support.accounts import FakeAccounts, make_account
from tests.support.browser import opened_page, running_browser
from tests.support.fake_service import CHAT_MODEL, MODEL, FakeService, make_card, make_chat_card, make_image_card
from tests.support.fake_videos import make_video_card
from tests.support.served_door import ServedDoor, served
from tests.support.system import System

MARKUP = "<img src=x onerror=\"document.title='hit'\"><script>document.title='hit'</script><b>bold</b> "
WORDS = ("Two at ", "<box><100><200><,>", "<300><400></box>", f" and {MARKUP}", "<box><900><900><,><500><600></box>.")
KNOBS = (
    Knob(name="exit_1", summary="Confidence.", default=2.0, low=0.0, high=2.0, grid=(0.0, 2.0), trades="accuracy"),
    Knob(name="mode", summary=f"How {MARKUP}.", default="a", values=("a", "b")),
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as running:
        yield running


@pytest.fixture(scope="module")
def door() -> Iterator[ServedDoor]:
    """A front door with a model for each task, which says what no model of ours would."""
    service = FakeService(
        (replace(make_card(), knobs=KNOBS), make_image_card("mender", ImageIO(takes_picture=True, max_side=512))),
        chat_cards=(make_chat_card(),),
        video_cards=(make_video_card(),),
        words=WORDS,
    )
    service.accounts = FakeAccounts("local")
    with served(service) as running:
        yield running


def add(page: Page, data: bytes, name: str = "picture.png") -> None:
    panel = page.get_by_role("tabpanel")
    panel.locator("input[type=file]").set_input_files({"name": name, "mimeType": "image/png", "buffer": data})


# -- a system of our own ---------------------------------------------------------------------------------------------


def test_pictures_are_classified_by_keyboard_alone(system: System, browser: Browser, digits: list[Picture]) -> None:
    with opened_page(browser, system.http_url) as page:
        expect(page.get_by_role("row", name="dyn-perceiver-nano classify")).to_contain_text("ready")
        add(page, digits[7][0])
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the tasks")).to_be_focused()
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        expect(page.get_by_role("tab", name="Classify")).to_be_focused()
        button = page.get_by_role("button", name="Classify", exact=True)
        for _ in range(12):
            page.keyboard.press("Tab")
            if button.evaluate("one => one === document.activeElement"):
                break
        page.keyboard.press("Enter")
        answers = page.get_by_role("region", name="Answers")
        expect(answers.get_by_role("heading", name="7")).to_be_visible()
        expect(answers).to_contain_text("of 4")
        for fact in ("exit_1=", " J (estimate)", "Computed", "Request"):
            expect(answers).to_contain_text(fact)
        expect(page.get_by_role("img", name="Requests: ")).to_be_visible()
        expect(page.get_by_role("region", name="Spend by model")).to_contain_text("dyn-perceiver-nano")


def test_key_is_asked_for_and_kept_nowhere(billed: System, browser: Browser) -> None:
    with opened_page(browser, billed.http_url) as page:
        note = page.locator("#key-note")
        expect(note).to_contain_text("invalid_api_key, request ")
        expect(page.get_by_label("API key")).to_be_focused()
        for key in ("wrong", "acme"):
            expect(page.get_by_role("tab")).to_have_count(0)
            page.get_by_label("API key").fill(key)
            page.keyboard.press("Enter")
            (expect(note).to_contain_text("invalid_api_key") if key == "wrong" else expect(note).to_be_hidden())
        expect(page.get_by_role("tab")).to_have_count(2)
        expect(page.get_by_role("region", name="Budget", exact=True)).to_contain_text("acme")
        page.get_by_role("button", name="Use a sample").first.click()
        expect(page.get_by_role("img", name="shapes.png")).to_be_visible()
        page.get_by_label("Message").fill("hello")
        page.keyboard.press("Enter")
        log = page.get_by_role("log")
        expect(log).to_contain_text("1 images")
        expect(log).to_contain_text("max_tokens=")
        assert page.url == f"{billed.http_url}/"
        kept = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie, history.state])")
        assert "acme" not in kept
        assert page.content().count("acme") == 1, "nothing but the tenant's name, in its budget"
        page.reload()
        expect(note).to_contain_text("invalid_api_key")


# -- a front door with fakes behind it -------------------------------------------------------------------------------


def test_boxes_are_drawn_and_markup_stays_text(door: ServedDoor, browser: Browser) -> None:
    with opened_page(browser, door.url) as page:
        page.get_by_role("button", name="Use a sample").first.click()
        expect(page.get_by_role("img", name="shapes.png")).to_be_visible()
        page.get_by_label("Message").fill(MARKUP)
        with page.expect_request("**/v1/chat/completions") as sent:
            page.keyboard.press("Enter")
        kinds = [part["type"] for part in sent.value.post_data_json["messages"][0]["content"]]
        assert kinds == ["image_url", "text"]  # the other way round, texthawk2-nano finds the wrong thing
        log = page.get_by_role("log")
        expect(log.get_by_label("Box 1: left 10%, top 20%, right 30%, bottom 40%; Box 2: left 50.1%")).to_be_visible()
        expect(log.locator(".assistant .words")).to_have_text(f"Two at 1 and {MARKUP}2.")
        assert log.locator(".words :not(mark)").count() == 0
        assert page.title() == "Vireo"
        boxes = log.locator("rect:not(.halo)")
        assert [boxes.nth(i).evaluate("one => Math.round(one.getBBox().width)") > 10 for i in range(2)] == [True, True]


def test_errors_are_shown_with_code_and_request_id(door: ServedDoor, browser: Browser) -> None:
    with opened_page(browser, door.url) as page:
        page.get_by_role("tab", name="Classify").click()
        add(page, b"no picture", f"{MARKUP}.png")
        panel = page.get_by_role("tabpanel")
        panel.get_by_text("Budget", exact=True).click()
        panel.get_by_label("Latency, ms").fill("0")
        page.get_by_role("button", name="Classify", exact=True).click()
        error = page.get_by_role("alert").filter(has_text="latency_ms")
        expect(error).to_contain_text("invalid_request")
        expect(error).to_contain_text("request ")
        panel.get_by_label("Latency, ms").fill("")
        page.get_by_role("button", name="Classify", exact=True).click()
        expect(page.get_by_role("alert").filter(has_text="unsupported_media_type")).to_be_visible()
        assert page.title() == "Vireo"


def test_budget_and_settings_are_those_of_the_form(door: ServedDoor, browser: Browser, digits: list[Picture]) -> None:
    with opened_page(browser, door.url) as page:
        page.get_by_role("tab", name="Classify").click()
        add(page, digits[7][0])
        panel = page.get_by_role("tabpanel")
        panel.get_by_text("Budget", exact=True).click()
        panel.get_by_label("Energy, J").fill("2.5")
        panel.get_by_label("Priority").select_option("high")
        panel.get_by_text("Settings of the model", exact=True).click()
        panel.get_by_label("exit_1, slider").focus()
        page.keyboard.press("Home")
        panel.get_by_label("mode").select_option("b")
        with page.expect_request("**/v1/classify") as sent:
            page.get_by_role("button", name="Classify", exact=True).click()
        expected = {"energy_j": 2.5, "priority": "high", "settings": {"exit_1": 0, "mode": "b"}}
        assert sent.value.post_data_json["vireo"] == expected
        assert sent.value.post_data_json["model"] == MODEL


def test_budget_is_that_of_the_key_and_looked_at_after_each_answer(browser: Browser, digits: list[Picture]) -> None:
    service, accounts = FakeService(), FakeAccounts()
    service.accounts = accounts
    keys = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("ada", "bob", "lost")}
    with served(service, Authenticator(keys, False)) as running, opened_page(browser, running.url) as page:
        expect(page.locator("#key-note")).to_be_visible()
        budget = page.get_by_role("region", name="Budget", exact=True)
        expect(budget).to_be_hidden()
        for key, text in (("bob", "No limit: the tenant bob"), ("lost", "cannot be read now"), ("ada", "ada")):
            page.get_by_label("API key").fill(key)
            page.keyboard.press("Enter")
            expect(budget).to_contain_text(text)
            expect(budget.get_by_role("table")).to_have_count(1 if key == "ada" else 0)
        rows = {"Left": "60 J", "At most": "100 J", "Comes back": "2 J/s", "Full in": "20 s", "Set aside": "12 J"}
        for name, text in (rows | {"Spent": "4,310 J"}).items():
            expect(budget.get_by_role("row", name=name)).to_contain_text(text)
        expect(budget.get_by_role("row", name="Full in")).to_contain_text("never")
        accounts.held = make_account(100.0, 10.0, num_open=0)
        expect(budget.get_by_role("row", name="Left")).to_contain_text("100 J")  # it is looked at while it changes
        accounts.held = make_account(-3.0, 10.0)
        page.get_by_role("tab", name="Classify").click()
        add(page, digits[7][0])
        page.get_by_role("button", name="Classify", exact=True).click()
        expect(page.get_by_role("region", name="Answers")).to_contain_text("0.25 J")
        expect(budget.get_by_role("row", name="Left")).to_contain_text("-3 J")
        expect(budget).to_contain_text("Used up: requests are refused until something is left, in about 1.5 s.")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (QuotaExceeded("too little is left", retry_after_s=600.0), r"was refused: it fits in about \d{3} s"),
        (QuotaTooSmall("it never fits"), "takes more than this budget ever holds"),
    ],
)
def test_budget_says_when_the_request_that_it_refused_fits(
    error: ServingError, text: str, browser: Browser, digits: list[Picture]
) -> None:
    service = FakeService(error=error)
    service.accounts = FakeAccounts()
    ada = Authenticator({"ada": hashlib.sha256(b"ada").hexdigest()}, False)
    with served(service, ada) as running, opened_page(browser, running.url) as page:
        page.get_by_label("API key").fill("ada")
        page.keyboard.press("Enter")
        page.get_by_role("tab", name="Classify").click()
        add(page, digits[7][0])
        page.get_by_role("button", name="Classify", exact=True).click()
        expect(page.get_by_role("alert").filter(has_text=error.code)).to_be_visible()
        budget = page.get_by_role("region", name="Budget", exact=True)
        expect(budget).to_contain_text(re.compile(text))
        service.error = None
        page.get_by_role("button", name="Classify", exact=True).click()
        expect(page.get_by_role("region", name="Answers")).to_contain_text("0.25 J")
        expect(budget).not_to_contain_text(re.compile(text))


def test_answer_says_what_a_lower_point_gave_up(browser: Browser, digits: list[Picture]) -> None:
    service = FakeService()
    lowered = Degradation(
        from_point="best",
        to_point="fast",
        reasons=("load", "energy"),
        quality_before=0.98,
        quality_after=0.91,
        energy_j_before=2.0,
        energy_j_after=0.25,
    )
    service.report = replace(service.report, degraded=("load", "energy"), degradation=lowered)
    with served(service) as running, opened_page(browser, running.url) as page:
        expect(page.get_by_role("region", name="Budget", exact=True)).to_contain_text("No limit: the tenant local")
        page.get_by_role("tab", name="Classify").click()
        add(page, digits[7][0])
        page.get_by_role("button", name="Classify", exact=True).click()
        answers = page.get_by_role("region", name="Answers")
        for fact in ("0.25 J (estimate)", "load, energy", "best", "0.98 to 0.91", "2 J to 0.25 J", "load and energy"):
            expect(answers).to_contain_text(fact)


def test_stopping_a_clip_cancels_its_job(door: ServedDoor, browser: Browser) -> None:
    with opened_page(browser, door.url) as page:
        page.get_by_role("tab", name="Videos").click()
        page.get_by_label("Prompt").fill("a ball")
        page.get_by_role("button", name="Make the clip").click()
        panel = page.get_by_role("tabpanel")
        expect(panel.get_by_role("progressbar")).to_be_visible()
        with page.expect_response(lambda answer: answer.request.method == "DELETE") as deleted:
            panel.get_by_role("button", name="Stop").click()
        assert deleted.value.ok
        expect(panel).to_contain_text("Cancelled")


def test_clip_begins_with_the_picture_of_the_form(browser: Browser, digits: list[Picture]) -> None:
    limits = ClipLimits(family=flipbook.FAMILY, variant=flipbook.FAMILY.variants[0])
    service = FakeService(video_cards=(make_video_card(flipbook.MODEL, limits),))
    with served(service) as running, opened_page(browser, running.url) as page:
        page.get_by_role("tab", name="Videos").click()
        assert page.get_by_label("Prompt").count() == 0
        add(page, digits[7][0])
        with page.expect_request("**/v1/videos") as sent:
            page.get_by_role("button", name="Make the clip").click()
        body = sent.value.post_data_json
    assert body["model"] == flipbook.MODEL
    assert body["input_reference"].startswith("data:image/png;base64,")
    assert "prompt" not in body


def test_every_path_can_be_read_and_found(door: ServedDoor, browser: Browser) -> None:
    with opened_page(browser, f"{door.url}/docs") as page:
        operations = page.locator("details.operation")
        expect(operations.filter(has_text="/v1/chat/completions")).to_be_visible()
        document = page.request.get(f"{door.url}/openapi.json").json()
        assert operations.count() == sum(len(item) for item in document["paths"].values())
        page.get_by_label("Find").fill("v1/classify")
        expect(page.locator("details.operation:visible")).to_have_count(1)
        operations.filter(has_text="/v1/classify").locator("summary").first.click()
        for text in ("quality_floor", "top_k", "invalid_image"):
            expect(operations.filter(has_text="/v1/classify")).to_contain_text(text)


@pytest.mark.parametrize(("path", "scheme"), [("/", "light"), ("/", "dark"), ("/docs", "dark")])
def test_page_is_accessible_and_fits_a_telephone(path: str, scheme: str, door: ServedDoor, browser: Browser) -> None:
    narrow = {"width": 360, "height": 740}
    with opened_page(browser, door.url + path, viewport=narrow, color_scheme=scheme, reduced_motion="reduce") as page:
        if path == "/":
            expect(page.get_by_role("row", name=CHAT_MODEL)).to_be_visible()
            page.get_by_label("Message").fill("hello")
            page.keyboard.press("Enter")
            expect(page.get_by_role("log")).to_contain_text("Operating point")
            expect(page.get_by_role("region", name="Budget", exact=True)).to_contain_text("100 J")
        else:
            page.locator("details.operation summary").first.click()
        found = Axe().run(
            page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
        )
        assert found.violations_count == 0, found.generate_report()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
