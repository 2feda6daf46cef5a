"""Lines of JSON on standard error: one event each."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from loupe.writing import plain


def log(event: str, *, level: str = "info", **facts: Any) -> None:
    """Writes one event.

    Args:
        event: What happened, in a few words that never change.
        level: "info", "warning" or "error".
        facts: Its numbers and names; empty texts are left out. JSON escapes what a client chose,
            so that no name of a file can forge a line.
    """
    told = {name: value for name, value in facts.items() if value != ""}
    line = {"time": round(time.time(), 3), "level": level, "event": event} | told
    sys.stderr.write(json.dumps(plain(line)) + "\n")
    sys.stderr.flush()


class EventHandler(logging.Handler):
    """Turns what libraries log into the same lines."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one record, with its traceback."""
        facts = {"logger": record.name}
        if record.exc_info:
            facts["traceback"] = logging.Formatter().formatException(record.exc_info)
        log(record.getMessage(), level=record.levelname.lower(), **facts)
