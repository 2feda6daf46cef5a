"""Content credentials (C2PA): signed statements in a file on how its picture was made."""

from __future__ import annotations

import io
import json
from functools import cache
from types import ModuleType
from typing import Any

_KINDS = {
    **{"JPEG": "image/jpeg", "MPO": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"},
    **{"TIFF": "image/tiff", "AVIF": "image/avif", "HEIF": "image/heif", "GIF": "image/gif"},
}
# Nothing leaves the machine: manifests that lie elsewhere are not fetched.
_SETTINGS = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}


@cache
def _library() -> ModuleType | None:
    try:
        import c2pa
    except (ModuleNotFoundError, OSError, ImportError):
        return None
    return c2pa


def credentials_of(content: bytes, kind: str | None) -> dict[str, Any]:
    """Whether there are credentials, whether they are valid, and which edits they declare.

    Args:
        content: Of the file.
        kind: Pillow's name of its format.

    Returns:
        `state` ("none", "valid", "trusted", "invalid", "unread"), `generator`, `actions` and
        `problem`.
    """
    facts: dict[str, Any] = {"state": "none", "generator": None, "actions": [], "problem": ""}
    # Every manifest lies in a box of this type; most files hold none.
    if b"jumb" not in content or kind not in _KINDS:
        return facts
    library = _library()
    if library is None:
        problem = "c2pa-python is not installed; run pip install 'loupe[report]'"
        return facts | {"state": "unread", "problem": problem}
    try:
        context = library.Context(library.Settings.from_dict(_SETTINGS))
        with library.Reader(_KINDS[kind], io.BytesIO(content), context=context) as reader:
            store = json.loads(reader.json())
    except library.C2paError as error:
        if "ManifestNotFound" in str(error):
            return facts
        return facts | {"state": "unread", "problem": str(error)[:200]}
    active = store.get("manifests", {}).get(store.get("active_manifest"), {})
    actions = [
        str(action.get("action", ""))
        for assertion in active.get("assertions", [])
        if str(assertion.get("label", "")).startswith("c2pa.actions")
        for action in assertion.get("data", {}).get("actions", [])
    ]
    generators = active.get("claim_generator_info") or [{}]
    problems = [str(one.get("explanation", one)) for one in store.get("validation_status", [])]
    return {
        "state": str(store.get("validation_state", "unread")).lower(),
        "generator": active.get("claim_generator") or generators[0].get("name"),
        "actions": actions[:50],
        "problem": "; ".join(problems)[:500],
    }
