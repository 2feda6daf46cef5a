"""What a file says of itself."""

from __future__ import annotations

import hashlib
import io

import cv2
import numpy as np
import pytest
from PIL import Image

from loupe.report import facts_of_file
from loupe.report.metadata import contradictions_of
from loupe.report.thumbnails import compare_thumbnail

PIXELS = cv2.resize(
    np.random.default_rng(0).integers(30, 256, (6, 9, 3)).astype(np.float32), (144, 96)
)


def encoded(pixels: np.ndarray = PIXELS, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("quality", [35, 75, 92])
def test_the_quality_of_a_standard_jpeg_is_found(quality: int):
    content = encoded(quality=quality, subsampling=1)
    facts = facts_of_file(content)
    assert facts["sha256"] == hashlib.sha256(content).hexdigest()
    assert (facts["width"], facts["height"], facts["format"]) == (144, 96, "JPEG")
    jpeg = {"quality": quality, "tables": "standard", "subsampling": "4:2:2", "progressive": False}
    assert facts["jpeg"] == jpeg


def test_tables_of_its_own_have_the_nearest_quality():
    tables = [[3] * 64, [5] * 64]
    jpeg = facts_of_file(encoded(qtables=tables, progressive=True))["jpeg"]
    assert jpeg["tables"] == "own"
    assert 85 <= jpeg["quality"] <= 99
    assert jpeg["progressive"]


def test_contradictions_of_metadata_are_said():
    exif = Image.Exif()
    exif[0x0131] = "Adobe Photoshop 25.0"
    exif[0x0132] = "2020:01:02 03:04:05"
    details = exif.get_ifd(0x8769)
    details[0x9003] = "2021:01:02 03:04:05"
    details[0xA002], details[0xA003] = 4000, 3000
    facts = facts_of_file(encoded(exif=exif))
    assert facts["software"] == ["Adobe Photoshop 25.0"]
    said = " ".join(facts["contradictions"])
    assert "EXIF says 4000 x 3000 pixels, the picture has 144 x 96" in said
    assert "Changed (2020-01-02 03:04:05) before it was taken (2021-01-02 03:04:05)" in said
    assert "a program that edits pictures: Adobe Photoshop 25.0" in said


def test_metadata_that_fits_says_nothing():
    exif = {
        "EXIF DateTimeOriginal": "2020:01:02 03:04:05",
        "Image DateTime": "2020:01:02 03:04:05",
        "EXIF ExifImageWidth": "96",
        "EXIF ExifImageLength": "144",  # A camera that was turned.
    }
    assert contradictions_of(exif, (96, 144)) == []


def test_a_thumbnail_of_another_picture_is_told_from_its_own():
    small = np.asarray(Image.fromarray(PIXELS.astype(np.uint8)).resize((72, 48)))
    barred = np.zeros((54, 72, 3))
    barred[3:51] = small
    for own in (small, barred):
        found = compare_thumbnail(encoded(), encoded(own, quality=90))
        assert found is not None
        assert (found["problem"], found["correlation"] > 0.9) == ("", True)
    other = compare_thumbnail(encoded(), encoded(small[::-1, ::-1], quality=90))
    assert other is not None
    assert "something else" in other["problem"]
    cut = compare_thumbnail(encoded(PIXELS[:, :60]), encoded(small))
    assert cut is not None
    assert "another shape" in cut["problem"]


def test_damaged_files_have_facts_too():
    facts = facts_of_file(b"no image")
    assert (facts["format"], facts["jpeg"], facts["thumbnail"]) == (None, None, None)
    assert facts["unread"]
    broken = encoded()[:30] + b"jumb" + encoded()[30:]
    assert facts_of_file(broken)["credentials"]["state"] in ("none", "unread")
