#!/usr/bin/env python3
"""Goes the way of an analyst through the page of a real service, in Chromium, and takes pictures.

Measures the first paint in fresh contexts of the browser, sends twenty photographs and a file that
is none at once, looks at a result, moves the sliders and saves the report with the keyboard alone,
and takes pictures: light, dark, narrow, an error, and the report. Fails if a photograph has no
prediction, if anything is asked of another host, or if the script of the page raises.

Example:
    pip install playwright    # and Chromium from the distribution
    python -m research.reliability.service_page PHOTOGRAPHS... --pictures FOLDER
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright

from research.measuring import machine, parser_of, write_results
from research.reliability.service_process import ServiceProcess

FILES = 20
PATIENCE = 900_000
# No image, with a name that needs care.
TEXT = "notes & <b>names.jpg"
PAINT = "performance.getEntriesByName('first-contentful-paint').map(one => one.startTime)"


def first_paints(browser: Browser, address: str, count: int) -> list[float]:
    """Milliseconds from the navigation to the first paint with content, nothing in the cache."""
    found = []
    for _ in range(count):
        context = browser.new_context()
        page = context.new_page()
        page.goto(address)
        page.wait_for_function(f"{PAINT}.length > 0", timeout=PATIENCE)
        found.append(page.evaluate(PAINT)[0])
        context.close()
    return found


def by_keyboard(page: Page, until: str, key: str = "Tab") -> None:
    """Presses a key until the focus is on an element that fits a selector."""
    for _ in range(200):
        page.keyboard.press(key)
        if page.evaluate("until => document.activeElement.matches(until)", until):
            return
    raise AssertionError(f"the keyboard does not reach {until}")


def choose_files(page: Page, files: list[Path]) -> None:
    """Opens the chooser of files with the keyboard, and gives it files."""
    by_keyboard(page, "#files")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(files)


def take(page: Page, folder: Path | None, name: str) -> None:
    """A picture of the whole page."""
    if folder is not None:
        page.screenshot(path=folder / f"page_{name}.png", full_page=True)


def walk(page: Page, files: list[Path], folder: Path | None, kept: Path) -> dict[str, Any]:
    """From photographs to a report in a file, without a mouse."""
    choose_files(page, files)
    page.wait_for_selector("#queue .told")
    take(page, folder, "queue")
    good = len(files) - 1
    expect(page.locator("#status")).to_have_text(f"{good} done, 1 failed", timeout=PATIENCE)
    verdicts = page.locator("#queue button > :nth-child(2)").all_inner_texts()
    chosen = next((n for n, verdict in enumerate(verdicts) if verdict == "forged"), 0)
    page.locator("#queue button").first.focus()
    for _ in range(chosen):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#file")).to_have_text(files[chosen].name, timeout=PATIENCE)
    page.wait_for_selector("#boxes svg")
    take(page, folder, "light")
    by_keyboard(page, "#opacity")
    page.keyboard.press("End")
    by_keyboard(page, "#threshold")
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    expect(page.locator("#threshold-value")).to_have_text("0.40")
    take(page, folder, "sliders")
    by_keyboard(page, "#downloads a")
    with page.expect_download(timeout=PATIENCE) as download:
        page.keyboard.press("Enter")
    download.value.save_as(kept)
    for scheme, width in (("dark", 1200), ("light", 360)):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        take(page, folder, "dark" if scheme == "dark" else "narrow")
    page.set_viewport_size({"width": 1200, "height": 900})
    page.get_by_text(TEXT).first.click()
    expect(page.locator("#verdict")).to_contain_text("No prediction")
    take(page, folder, "error")
    return {"verdicts": {name: verdicts.count(name) for name in set(verdicts)}}


def main(words: list[str] | None = None) -> int:
    """Prints and writes what was measured."""
    parser = parser_of(__doc__)
    parser.add_argument("photographs", nargs="+", type=Path)
    parser.add_argument("--pictures", type=Path, help="folder of the pictures")
    parser.add_argument("--paints", type=int, default=15)
    parser.add_argument("--options", nargs="*", default=[], help="of loupe serve")
    arguments = parser.parse_args(words)
    if arguments.pictures is not None:
        arguments.pictures.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        text = Path(place) / TEXT
        text.write_text("this is text")
        files = [*arguments.photographs[: FILES - 1], text]
        with ServiceProcess(Path(place) / "store", *arguments.options) as service:
            paints = first_paints(browser, service.address, arguments.paints)
            page = browser.new_context(viewport={"width": 1200, "height": 900}).new_page()
            page.set_default_timeout(PATIENCE)
            faults: list[str] = []
            asked: list[str] = []
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on("request", lambda one: asked.append(one.url))
            page.goto(service.address)
            report = Path(place) / "report.html"
            told = walk(page, files, arguments.pictures, report)
            own = (service.address, f"blob:{service.address}")
            foreign = [url for url in asked if not url.startswith(own)]
            page.goto(report.as_uri())
            take(page, arguments.pictures, "report")
            told |= {"report": f"{report.stat().st_size} bytes, title {page.title()!r}"}
        version = browser.version
        browser.close()
    told |= {
        "files at once": len(files),
        "chromium": version,
        "first contentful paint, milliseconds": [round(one) for one in paints],
        "median": round(median(paints)),
        "faults": faults,
        "asked of others": foreign,
    }
    for name, value in told.items():
        print(name, value)
    write_results(machine() | told, arguments.output)
    return int(bool(faults or foreign))


if __name__ == "__main__":
    raise SystemExit(main())
