"""The page, in a real browser: look, choose a part, teach, ask, forget."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright, of the extra dev")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# It would ask its makers for updates; as root it has no sandbox.
ALONE = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
Until = Callable[[Callable[[], bool]], None]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ALONE))
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, house: Any) -> Iterator[Any]:
    """It, with nothing to complain of."""
    opened = browser.new_page(viewport={"width": 1300, "height": 900})
    complaints: list[str] = []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(house.url)
    opened.wait_for_selector(".watch .said")
    yield opened
    opened.close()
    # That an answer was a refusal is logged by the browser itself.
    assert not [text for text in complaints if not text.startswith("Failed to load resource")]


def test_it_shows_the_camera_its_watch_and_what_that_rests_on(page: Any, until: Until) -> None:
    assert page.text_content(".watch .said") == "the gate is closed"
    assert "the gate is closed" in page.text_content(".watch .evidence")
    until(lambda: page.evaluate("document.getElementById('picture').naturalWidth === 640"))
    until(lambda: page.evaluate("document.querySelector('.evidence img').naturalWidth === 224"))
    assert page.locator("#regions rect.watched").get_attribute("width") == "161"
    assert "the gate is closed" in page.text_content("#events")
    page.click("nav button:text('wide')")
    until(lambda: page.evaluate("document.getElementById('picture').naturalWidth === 1280"))
    page.click("nav button:text('gone')")
    until(lambda: page.evaluate("document.getElementById('camera-state').textContent.includes('gone.mp4')"))


def test_a_part_is_chosen_taught_asked_about_and_forgotten(page: Any, house: Any, until: Until) -> None:
    house.app.ravlm.forget(1)
    until(lambda: page.evaluate("document.getElementById('picture').naturalWidth === 640"))
    box = page.locator("#picture").bounding_box()
    scale = box["width"] / 640
    page.mouse.move(box["x"] + 250 * scale, box["y"] + 137 * scale)
    page.mouse.down()
    page.mouse.move(box["x"] + 411 * scale, box["y"] + 208 * scale)
    page.mouse.up()
    chosen = [int(number) for number in page.input_value("#region").split(",")]
    assert all(abs(got - meant) <= 1 for got, meant in zip(chosen, (250, 137, 411, 208), strict=True))

    page.fill("#text", "<b>the gate</b> is <img src=x onerror=alert(1)> shut")  # text, whatever it looks like
    page.fill("#answer", "shut")
    page.click("#teach button")
    page.wait_for_selector("#taught .met")
    until(lambda: "<b>the gate</b>" in page.text_content("#memories"))
    assert len(house.app.ravlm.memory) == 1
    assert page.locator("#memories b, #memories img[src='x']").count() == 0

    page.fill("#question", "is the gate shut?")
    page.click("#ask button")
    page.wait_for_selector("#answered .said")
    assert page.text_content("#answered .said") == "shut"
    assert "of 1000 ms" in page.text_content("#answered")

    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#memories li:first-child button")
    until(lambda: page.evaluate("document.getElementById('memories').children.length === 0"))
    assert len(house.app.ravlm.memory) == 0


def test_what_cannot_be_done_is_said_in_its_place(page: Any, house: Any) -> None:
    page.fill("#region", "0,0,9999,9999")
    page.fill("#text", "beyond")
    page.click("#teach button")
    page.wait_for_selector("#taught .error")
    assert "640x360" in page.text_content("#taught")
    assert len(house.app.ravlm.memory) == 1


def test_buttons_stay_themselves_for_keys_and_slow_fingers(page: Any, house: Any, until: Until) -> None:
    page.focus("nav button:text('wide')")
    page.evaluate("window.before = state")
    until(lambda: page.evaluate("state !== window.before && document.activeElement.textContent === 'wide'"))
    page.keyboard.press("Enter")
    assert page.get_attribute("nav button:text('wide')", "aria-pressed") == "true"
    assert page.get_attribute("nav button:text('yard')", "aria-pressed") == "false"


def test_parts_are_offered_of_the_camera_that_is_shown(page: Any, house: Any, home: Any, until: Until) -> None:
    offered = "[...document.querySelectorAll('#known-regions option')].map((one) => one.value)"
    assert page.evaluate(offered) == [house.gate]
    watch = '[[watches]]\nname = "door"\ncamera = "wide"\nquestion = "is it shut?"\nregion = "door=9,9,99,99"\n'
    home.write_text(home.read_text() + watch)
    until(lambda: page.evaluate("state.watches.length === 2"))
    page.click("nav button:text('wide')")
    until(lambda: page.evaluate(offered) == ["door=9,9,99,99"])

    page.fill("#region", "99,88,9,8")  # any two corners make a box
    assert page.locator("#regions .chosen").get_attribute("width") == "90"


def test_long_words_leave_the_buttons_beside_them_in_reach(page: Any, house: Any, until: Until) -> None:
    house.app.ravlm.memory.add([house.app.ravlm.entry(None, "W" * 300)])
    page.set_viewport_size({"width": 400, "height": 900})
    until(lambda: page.locator("#memories li").count() == 2)
    box = page.locator("#memories li:first-child button").bounding_box()
    assert box["x"] + box["width"] <= 400
    assert page.evaluate("document.getElementById('memories').scrollWidth <= 400")


def test_a_search_that_cannot_be_made_says_why(page: Any, until: Until) -> None:
    page.fill("#sought", "gate " * 300)
    page.press("#sought", "Enter")
    until(lambda: "1000 characters" in page.text_content("#memories"))
