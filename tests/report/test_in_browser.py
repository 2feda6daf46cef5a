"""The report in Chromium: what an analyst sees and does."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def page(report: Path) -> Iterator:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 900})
        page.faults = []
        page.on("console", lambda message: page.faults.append(message.text))
        page.on("dialog", lambda dialog: page.faults.append("a script ran"))
        page.goto((report / "index.html").as_uri())
        yield page
        browser.close()


def pixels(page) -> np.ndarray:
    """(H, W, 3) of the first picture with its map."""
    picture = page.locator("article:not([hidden]) figure.marked").first.screenshot()
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)


def names(page) -> list[str]:
    titles = page.locator("article:not([hidden]) h2").all_text_contents()
    return [title.rsplit("/", 1)[-1].split(".")[0] for title in titles]


def test_sliders_change_the_picture(page):
    page.locator("#threshold").fill("50")
    page.locator("#opacity").fill("100")
    marked = pixels(page)
    height, width = marked.shape[:2]
    # The region is pure tint (255, 0, 161), the rest is not.
    tint = np.abs(marked - (255, 0, 161)).max(axis=2) < 12
    inside = np.s_[height * 25 // 90 : height * 55 // 90, width * 35 // 120 : width * 65 // 120]
    assert tint[inside].mean() > 0.95
    assert tint.mean() == pytest.approx(1600 / 10800, abs=0.03)
    page.locator("#threshold").fill("98")
    assert np.abs(pixels(page) - (255, 0, 161)).max(axis=2).min() > 12
    page.locator("#threshold").fill("50")
    page.locator("#opacity").fill("0")
    assert (np.abs(pixels(page) - (255, 0, 161)).max(axis=2) < 12).mean() < 0.01
    assert page.faults == []


def test_images_are_sorted_and_filtered(page):
    assert names(page) == ["<img src=x onerror=alert(1)>", "between", "authentic"]
    page.locator("#sort").select_option("file")
    assert sorted(names(page)) != ["x"]
    assert names(page)[0] in ("<img src=x onerror=alert(1)>", "authentic")
    page.locator("#verdict").select_option("undecided")
    assert names(page) == ["between"]
    assert page.locator("#shown").inner_text() == "1 of 3 images"
    page.locator("#verdict").select_option("")
    page.locator("#search").fill("AUTH")
    assert names(page) == ["authentic"]
    page.locator("#search").fill("")
    page.locator("#sort").select_option("probability")


def test_pictures_stand_side_by_side_and_are_enlarged(page):
    assert not page.locator("figure.plain").first.is_visible()
    page.locator("#beside").check()
    assert page.locator("figure.plain").first.is_visible()
    page.locator("button.zoom").first.click()
    assert page.locator("dialog").is_visible()
    assert page.locator("dialog img").count() == 2
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()


def test_it_prints_with_all_its_pictures(page, tmp_path):
    pypdf = pytest.importorskip("pypdf")
    page.locator("#opacity").fill("60")
    page.evaluate("window.print = () => document.body.append('printed')")
    page.locator("#print").click()
    page.get_by_text("printed").wait_for()
    document = pypdf.PdfReader(io.BytesIO(page.pdf()))
    text = "".join(one.extract_text() for one in document.pages)
    assert "Case <12>" in text
    assert "Threshold" not in text  # Controls are for the screen.
    # One picture and one map for each image: Chromium stores what it draws twice once.
    assert sum(len(one.images) for one in document.pages) >= 6
    assert page.faults == []
