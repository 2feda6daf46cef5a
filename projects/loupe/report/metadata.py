"""EXIF, and where it contradicts itself or its picture."""

from __future__ import annotations

import io
import logging
from datetime import datetime

# At most so many tags are listed, and so many characters of each: anybody can write any metadata.
MOST_TAGS, LONGEST = 120, 200
_TAKEN, _CHANGED = "EXIF DateTimeOriginal", "Image DateTime"
_SIDES = ("EXIF ExifImageWidth", "EXIF ExifImageLength")


def exif_of(content: bytes) -> tuple[dict[str, str], bytes | None, str]:
    """Tags as text, the embedded thumbnail, and why there are none where they cannot be read."""
    try:
        import exifread
    except ModuleNotFoundError:
        return {}, None, "EXIF: exifread is not installed; run pip install 'loupe[report]'"
    # It logs what it does not know of makers' notes; that is nothing to tell a user.
    logging.getLogger("exifread").setLevel(logging.CRITICAL)
    try:
        tags = exifread.process_file(io.BytesIO(content), details=True)
    except Exception as error:  # Broken metadata: whatever its author thought of.
        return {}, None, f"EXIF: damaged ({type(error).__name__}: {str(error)[:LONGEST]})"
    thumbnail = tags.pop("JPEGThumbnail", None)
    known = {
        str(name): _plain(value)
        for name, value in sorted(tags.items())
        if not str(name).startswith(("MakerNote", "Thumbnail")) and not isinstance(value, bytes)
    }
    first = dict(list(known.items())[:MOST_TAGS])
    return first, thumbnail if isinstance(thumbnail, bytes) else None, ""


def _plain(value: object) -> str:
    """Text without what no page should show: control characters."""
    text = str(value)[:LONGEST]
    return "".join(c if c.isprintable() else " " for c in text).strip()


def contradictions_of(exif: dict[str, str], size: tuple[int | None, int | None]) -> list[str]:
    """Sentences on what does not fit together.

    Args:
        exif: Tags as text.
        size: (height, width) that the header says; None = not known.
    """
    found = []
    width, height = (_number(exif.get(name)) for name in _SIDES)
    known = [side for side in size if side is not None]
    if width and height and len(known) == 2 and sorted((width, height)) != sorted(known):
        found.append(
            f"EXIF says {width} x {height} pixels, the picture has {size[1]} x {size[0]}: it was "
            "shrunk, enlarged or cut after it was taken"
        )
    taken, changed = (_time(exif.get(name)) for name in (_TAKEN, _CHANGED))
    if taken and changed and changed < taken:
        found.append(f"Changed ({changed}) before it was taken ({taken})")
    elif taken and changed and (changed - taken).total_seconds() > 60:
        found.append(f"Changed ({changed}) after it was taken ({taken})")
    if taken and taken > datetime.now():
        found.append(f"Taken in the future ({taken})")
    return found


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None


def _time(text: str | None) -> datetime | None:
    try:
        return datetime.strptime((text or "")[:19], "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return None
