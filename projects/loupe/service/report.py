"""One prediction as one HTML file: pictures inside, no script, works from the disk and prints."""

from __future__ import annotations

import base64
import hashlib
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from typing import Any

from loupe.service.store import UPLOAD, Record

_STYLE = """
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; }
h1, td { overflow-wrap: anywhere; }
img { max-width: 100%; }
figure { display: inline-block; width: 48%; min-width: 18rem; margin: 0 1% 1rem 0; }
table { border-collapse: collapse; } th, td { padding: .2rem .8rem .2rem 0; text-align: left; }
td, th { border-bottom: 1px solid #ccc; vertical-align: top; }
"""
_VERDICTS = {
    "authentic": "No trace of a forgery was found. That is no proof that there is none.",
    "forged": "Called forged. Map and facts say where; none of them is a proof by itself.",
    "undecided": "The traces do not decide.",
    "": "The model has no rule for a verdict.",
}


def report(record: Record, folder: Path, model: dict[str, Any]) -> str:
    """The report of a finished prediction.

    Args:
        record: Its row.
        folder: Its files.
        model: Facts of the model, as /v1/model tells.
    """
    result = record.result
    classes = result.get("class_probabilities", {})
    upload = (folder / UPLOAD).read_bytes()
    when = datetime.fromtimestamp(record.finished or record.created, timezone.utc)
    about = {
        "Verdict": result["verdict"] or "none",
        "Meaning": _VERDICTS[result["verdict"]],
        "Probability": f"{result['probability']:.3f}",
        "Class": ", ".join(f"{name} {value:.3f}" for name, value in classes.items()) or "-",
        "Reasons": "; ".join(result["reasons"]) or "-",
        "Warnings": "; ".join(result["warnings"]) or "-",
        "Size": f"{result['width']} x {result['height']} pixels, {len(upload)} bytes",
        "SHA-256 of the file": hashlib.sha256(upload).hexdigest(),
        "Examined": when.isoformat(timespec="seconds"),
    }
    about |= {f"Model: {name}": _flat(value) for name, value in model.items()}
    sides = ("number", "left", "top", "right", "bottom", "pixels")
    regions = [
        [*(str(one[side]) for side in sides), f"{one['mean']:.2f}"] for one in result["regions"]
    ]
    title = escape(f"Loupe: {record.file}")
    facts = "".join(f"<li>{escape(fact['sentence'])}</li>" for fact in result["facts"])
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>"
        + _table([], [[name, value] for name, value in about.items()])
        + _figure(folder / "preview.jpg", "The image")
        + _figure(folder / "preview_map.png", "Forgery map; white = forged")
        + "<h2>Regions</h2>"
        + (_table([*sides, "mean"], regions) if regions else "<p>Nothing above one half.</p>")
        + f"<h2>Measured facts</h2><ul>{facts}</ul></body></html>\n"
    )


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {one}" for name, one in value.items())
    return str(value)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"<tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>"] if head else []
    lines += [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
    return f"<table>{''.join(lines)}</table>"


def _figure(path: Path, caption: str) -> str:
    kind = "jpeg" if path.suffix == ".jpg" else "png"
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img alt="{caption}" src="data:image/{kind};base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
