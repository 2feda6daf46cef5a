"""The report of one prediction: the page of `loupe report` as one file that works from the disk."""

from __future__ import annotations

import base64
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from loupe.report.page import page
from loupe.service.store import Record


def report(record: Record, folder: Path, model: dict[str, Any]) -> str:
    """The report of a finished prediction.

    Args:
        record: Its row.
        folder: Its files.
        model: Facts of the model, as /v1/model tells.
    """
    result = record.result
    regions = [
        {
            "box": [one[side] for side in ("left", "top", "right", "bottom")],
            "area": one["pixels"],
            "mean_score": one["mean"],
        }
        for one in result["regions"]
    ]
    image = result | {
        "file": record.file,
        "regions": regions,
        "views": [],
        # Rows that an older version wrote have none.
        "file_facts": result.get("file_facts"),
        "picture": _address(folder / "preview.jpg"),
        "map": _address(folder / "preview_map.png"),
        "seconds": round((record.finished or record.created) - record.created, 3),
    }
    versions = model.get("versions", {})
    known = {"weights", "sha256", "operating_point", "versions"}
    content = {
        "title": f"Loupe: {record.file}",
        "date": datetime.fromtimestamp(record.finished or record.created, timezone.utc).isoformat(
            timespec="seconds"
        ),
        "system": f"Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        "model": {
            "name": model.get("weights", ""),
            "sha256": model.get("sha256", ""),
            "version": versions.get("loupe", ""),
            "operating_point": model.get("operating_point", ""),
            "settings": {name: value for name, value in model.items() if name not in known},
        },
        "images": [image],
        "errors": [],
    }
    return page(content, single_file=True)


def _address(path: Path) -> str:
    """A picture as a `data:` address."""
    kind = "jpeg" if path.suffix == ".jpg" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
