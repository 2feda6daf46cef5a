"""What an image file says of itself: hashes, format, metadata, contradictions.

Nothing of it proves or disproves a forgery: metadata is easily written, and most programs remove
it. EXIF is read by exifread, content credentials by c2pa-python (`pip install loupe[report]`);
without them the facts say so.
"""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from loupe.report.credentials import credentials_of
from loupe.report.jpeg_tables import estimate_quality
from loupe.report.metadata import contradictions_of, exif_of
from loupe.report.thumbnails import compare_thumbnail

# Programs whose name in a file means that somebody edited, or could have edited, the picture.
EDITORS = re.compile(
    r"photoshop|lightroom|gimp|affinity|paint|snapseed|picasa|pixelmator|capture one|darktable|"
    r"rawtherapee|imagemagick|facetune|meitu|canva|firefly|midjourney|stable diffusion|dall",
    re.IGNORECASE,
)
_XMP_TOOL = re.compile(rb"""(?:CreatorTool|softwareAgent)(?:>|=["'])([^<"']{1,120})""")
_LONGEST = 200


def facts_of_file(source: str | Path | bytes) -> dict[str, Any]:
    """Facts of one file, all of them plain JSON.

    Args:
        source: The file, or its content.

    Returns:
        `sha256`, `bytes`, `format`, `width`, `height` (None where no header of an image is found),
        `jpeg` (quality, tables, subsampling, progressive; None for other formats), `software`,
        `exif` (tag -> text), `contradictions` (sentences), `thumbnail`, `credentials`, and
        `unread`: what could not be read, and why.

    Raises:
        OSError: The file cannot be read.
    """
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    facts: dict[str, Any] = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "format": None,
        "width": None,
        "height": None,
        "jpeg": None,
        "unread": [],
    }
    header = _header(content, facts)
    exif, thumbnail, problem = exif_of(content)
    facts["unread"] += [problem] if problem else []
    facts["exif"] = exif
    facts["software"] = _software(content, exif, header)
    size = (facts["height"], facts["width"])
    facts["contradictions"] = contradictions_of(exif, size)
    facts["contradictions"] += [
        f"The file names a program that edits pictures: {name}"
        for name in facts["software"]
        if EDITORS.search(name)
    ]
    facts["thumbnail"] = compare_thumbnail(content, thumbnail)
    if facts["thumbnail"] and facts["thumbnail"]["problem"]:
        facts["contradictions"].append(facts["thumbnail"]["problem"])
    facts["credentials"] = credentials_of(content, facts["format"])
    return facts


def _header(content: bytes, facts: dict[str, Any]) -> dict[str, Any]:
    """Fills in what the header says; returns Pillow's words on the file."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            facts |= {"format": image.format, "width": image.width, "height": image.height}
            if image.format in ("JPEG", "MPO"):
                facts["jpeg"] = estimate_quality(image)
            return {str(key): value for key, value in image.info.items()}
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        kind = type(error).__name__
        facts["unread"].append(f"header: no header of an image was found ({kind})")
    except Image.DecompressionBombError:
        facts["unread"].append("header: announces more pixels than are safe to read")
    return {}


def _software(content: bytes, exif: dict[str, str], header: dict[str, Any]) -> list[str]:
    """Names of programs in EXIF, XMP and PNG texts, each once."""
    names = [exif.get(tag, "") for tag in ("Image Software", "Image ProcessingSoftware")]
    names += [match.decode("utf-8", "replace") for match in _XMP_TOOL.findall(content[: 2**20])]
    names += [str(header[key])[:_LONGEST] for key in ("Software", "software") if key in header]
    return list(dict.fromkeys(name.strip() for name in names if name.strip()))
