"""The page in the Chromium of the system: upload, sliders, errors, many files, narrow and dark.

LOUPE_SCREENSHOTS=FOLDER keeps pictures of it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.service.conftest import png
from tests.service.predictors import SLOW

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
# The page runs on a busy machine, too.
PATIENCE = 300_000
MARKUP = "<img src=x onerror=document.title='hacked'>.png"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page; nothing may go wrong in it, and nothing may be asked of another host."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda line: faults.append(line.text) if "Policy" in line.text else None)
    foreign: list[str] = []
    page.on("request", lambda one: foreign.append(one.url))
    page.goto(address)
    yield page
    context.close()
    assert faults == []
    assert [url for url in foreign if not url.startswith((address, f"blob:{address}"))] == []


def keep(page: Any, name: str) -> None:
    if folder := os.environ.get("LOUPE_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def choose(page: Any, files: list[tuple[str, bytes]]) -> None:
    page.set_input_files(
        "#files",
        [{"name": name, "mimeType": "image/png", "buffer": content} for name, content in files],
    )


def pixel(page: Any, x: int, y: int) -> list[int]:
    script = "([x, y]) => [...picture.getContext('2d').getImageData(x, y, 1, 1).data]"
    return page.evaluate(script, [x, y])


def wait_for_text(page: Any, name: str, text: str) -> None:
    sync_api.expect(page.locator(f"#{name}")).to_have_text(text, timeout=PATIENCE)


def wait_for_width(page: Any, width: int) -> None:
    sync_api.expect(page.locator("#picture")).to_have_attribute(
        "width", str(width), timeout=PATIENCE
    )


def slide(page: Any, name: str, value: int) -> None:
    page.locator(f"#{name}").fill(str(value))


def test_an_upload_shows_its_map_and_sliders_change_it_without_a_request(page: Any):
    choose(page, [(MARKUP, png())])
    page.wait_for_selector("#verdict.forged")
    wait_for_width(page, 30)
    assert page.title() == "Loupe"
    assert page.inner_text("#file") == MARKUP
    assert "0.78" in page.inner_text("#verdict")
    assert page.locator("#regions tbody tr").count() == 1
    assert "<b>no</b>" in page.inner_text("#facts")
    assert page.inner_text("#text") == "The <i>sky</i> was changed."
    assert page.inner_text("#text-warnings") == "No sky."
    page.wait_for_selector("#boxes rect")
    asked: list[str] = []
    page.on("request", lambda one: asked.append(one.url))
    slide(page, "opacity", 100)
    covered = pixel(page, 17, 10)
    slide(page, "opacity", 0)
    plain = pixel(page, 17, 10)
    slide(page, "opacity", 100)
    slide(page, "threshold", 90)
    assert pixel(page, 17, 10) == plain != covered
    slide(page, "threshold", 50)
    assert pixel(page, 17, 10) == covered
    assert asked == []
    with page.expect_download() as download:
        page.click("#downloads a >> text=Mask")
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")


def test_an_error_is_shown_in_plain_words(page: Any):
    choose(page, [("notes.png", b"this is text"), ("good.png", png())])
    page.wait_for_selector(".told.error")
    page.click("#queue button >> text=notes.png")
    told = page.inner_text("#verdict")
    assert "No prediction: the content is no image of a known format" in told
    assert not page.is_visible("figure")
    page.wait_for_selector("#queue .forged")
    assert page.inner_text("#status") == "1 done, 1 failed"
    keep(page, "error")


def test_twenty_files_at_once_all_end(page: Any):
    choose(page, [(f"{number}.png", png()) for number in range(20)])
    wait_for_text(page, "status", "20 done")
    assert page.locator("#queue li").count() == 20
    assert page.locator("#queue progress").count() == 0


def test_the_keyboard_is_enough(page: Any):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    choose(page, [("a.png", png()), ("b.png", png((9, 9, 9), 24, 32))])
    wait_for_text(page, "status", "2 done")
    page.locator("#queue button").nth(1).focus()
    page.keyboard.press("Enter")
    wait_for_text(page, "file", "b.png")
    assert page.locator("#queue button").nth(1).get_attribute("aria-current") == "true"
    page.locator("#threshold").focus()
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#threshold-value") == "0.51"
    names = page.evaluate(
        "[...document.querySelectorAll('input, button')].filter(one => !one.closest('[hidden]'))"
        ".filter(one => !(one.labels?.length || one.textContent.trim())).length"
    )
    assert names == 0


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (360, "light")])
def test_the_page_fits_narrow_and_dark_screens(page: Any, width: int, scheme: str):
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    choose(page, [("holiday.png", png(SLOW, 240, 360)), ("a" * 90 + ".png", png())])
    wait_for_text(page, "status", "2 done")
    wait_for_width(page, 360)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (back == "rgb(22, 22, 22)") == (scheme == "dark")
    keep(page, f"{scheme}_{width}")


def test_pasting_and_dropping_work_like_choosing(page: Any):
    script = """([kind, bytes]) => {
        const carried = new DataTransfer();
        carried.items.add(new File([new Uint8Array(bytes)], `${kind}.png`, {type: "image/png"}));
        const event = kind === "paste"
            ? new ClipboardEvent("paste", {clipboardData: carried})
            : new DragEvent("drop", {dataTransfer: carried, cancelable: true});
        document.dispatchEvent(event);
    }"""
    for kind in ("paste", "drop"):
        page.evaluate(script, [kind, list(png())])
    wait_for_text(page, "status", "2 done")
    assert page.locator("#queue .name").all_inner_texts() == ["paste.png", "drop.png"]
