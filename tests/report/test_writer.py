"""The files of a report."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

from loupe.report.page import page
from tests.report.conftest import ODD


class Attributes(HTMLParser):
    """Names of all attributes of a page."""

    names: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names = self.names | {name for name, _ in attrs}


def test_json_and_table_hold_every_image_and_every_error(report: Path):
    content = json.loads((report / "report.json").read_text())
    assert content["schema"] == 1
    assert [image["probability"] for image in content["images"]] == [0.95, 0.5, 0.1]
    first = content["images"][0]
    assert first["regions"][0]["box"] == [30, 20, 70, 60]
    assert len(first["file_facts"]["sha256"]) == 64
    assert any("1 region" in fact["sentence"] or fact["region"] == 1 for fact in first["facts"])
    assert [Path(one["file"]).name for one in content["errors"]] == ["none.jpg", "gone.jpg"]
    with (report / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["verdict"] for row in rows] == ["forged", "undecided", "authentic", "", ""]
    assert "cannot be reported" in rows[-1]["error"]
    assert (first["class"], first["class_probabilities"]["tampered"]) == ("tampered", 0.95)
    assert [row["class"] for row in rows] == ["tampered", "", "", "", ""]
    assert rows[0]["class_probabilities"] == "authentic 0.050000; tampered 0.950000"
    for image in content["images"]:
        assert (report / image["picture"]).is_file()
        assert (report / image["map"]).is_file()


def test_no_text_of_a_file_becomes_markup(report: Path):
    text = (report / "index.html").read_text()
    assert ODD not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert "Case &lt;12&gt;" in text
    assert "&lt;b&gt;no&lt;/b&gt; image" in text
    assert text.count("<th>class</th><td>authentic 0.05, tampered 0.95</td>") == 1
    reader = Attributes()
    reader.feed(text)
    assert not [name for name in reader.names if name.startswith("on") or name == "style"]
    assert "data-file" in reader.names


def test_marks_on_an_image_called_authentic_are_said_to_be_a_weak_hint(report: Path):
    content = json.loads((report / "report.json").read_text())
    forged, undecided, authentic = content["images"]
    regions = forged["regions"]
    for image in (undecided, authentic):
        image["regions"] = regions
    hint = "Marked although the image as a whole is called authentic"
    for images, expected in (([forged, undecided], 0), ([authentic], 1)):
        assert page(content | {"images": images}).count(hint) == expected
    authentic["regions"] = []
    assert hint not in page(content)


def test_a_page_of_a_thousand_images_is_light(report: Path):
    content = json.loads((report / "report.json").read_text())
    content["images"] *= 334
    text = page(content)
    assert len(text) < 10e6
    assert text.count("<article") == 1002
    pictures = re.findall(r"<img [^>]*>", text)
    assert all('loading="lazy"' in picture for picture in pictures)


def test_names_that_are_no_text_are_shown_by_their_bytes(report: Path):
    content = json.loads((report / "report.json").read_text())
    content["images"][0]["file"] = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    assert r"caf\udce9.png" in page(content)
