"""What schemathesis cannot draw: files that are images, and identifiers that exist.

schemathesis loads this file by its path (`SCHEMATHESIS_HOOKS`), so it imports nothing beside it.
service_schema.py says in LOUPE_SCHEMA_FILES where the images are, and in LOUPE_SCHEMA_IDENTIFIERS
which predictions there are. Every second drawn file and identifier is replaced by one of these.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from zlib import crc32

import schemathesis

from loupe.service.store import PICTURES

_FILES = [file.read_bytes() for file in sorted(Path(os.environ["LOUPE_SCHEMA_FILES"]).iterdir())]
_KNOWN = os.environ["LOUPE_SCHEMA_IDENTIFIERS"].split(",")


@schemathesis.hook
def map_body(context: schemathesis.HookContext, body: Any) -> Any:
    """Puts an image into every second body that has a file."""
    if isinstance(body, dict) and isinstance(body.get("file"), (bytes, str)):
        drawn = crc32(repr(body["file"]).encode("utf-8", "surrogatepass"))
        if drawn % 2:
            return body | {"file": _FILES[drawn // 2 % len(_FILES)]}
    return body


@schemathesis.hook
def map_path_parameters(context: schemathesis.HookContext, path_parameters: Any) -> Any:
    """Puts a known identifier, and a picture's name, into every second path."""
    if not isinstance(path_parameters, dict) or "identifier" not in path_parameters:
        return path_parameters
    drawn = crc32(repr(path_parameters).encode("utf-8", "surrogatepass"))
    changed = dict(path_parameters)
    if drawn % 2:
        changed["identifier"] = _KNOWN[drawn // 2 % len(_KNOWN)]
        if "picture" in changed and drawn % 3:
            changed["picture"] = PICTURES[drawn // 7 % len(PICTURES)]
    return changed
