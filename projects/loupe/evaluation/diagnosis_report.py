"""A diagnosis to read: Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from loupe.evaluation.patterns import Facts, Pattern
from loupe.writing import markdown_table, markdown_text

_METRICS = (
    *("pixel/F1-image", "pixel/IoU-image", "pixel/F1-best-image", "pixel/AUC-image"),
    "pixel/F1-pooled",
)
_GROUP = ("images", "probability", *_METRICS[:4], "centre prior")

VIEWS_TEXT = """Of forged images: the model's own map, what it gives when told the condition, a bump
in the middle; on the patch grid, the patch map (the pseudo-label of adaptation) and the mask.
"""


def markdown(facts: Facts, patterns: Sequence[Pattern], title: str) -> str:
    """The report: what was found and what to do, then the numbers behind it."""
    counts, own, condition = facts["counts"], facts["views"]["own"], facts["condition"]
    numbers = {
        "best common threshold": facts["threshold"],
        "F1 at that threshold (all pixels)": own["pixel/F1-best-pooled"],
        "forged images of which no pixel is called forged": facts["empty"],
        "authentic images with a false alarm": own["pixel/false-alarm-images"],
        "mean probability of forged images": facts["probability"]["forged"],
        "of authentic images": facts["probability"]["authentic"],
        "a pixel moves from told authentic to told forged by": condition["told apart"],
        "from the own condition to told forged by": condition["own to told forged"],
    }
    numbers |= {name: own[name] for name in ("image/AUC", "image/Acc", "image/ECE")}
    points = [
        (
            f"{point['low']:.2f} to {point['high']:.2f}",
            point["images"],
            _text(point["mean_probability"]),
            _text(point["forged_fraction"]),
        )
        for point in facts["reliability"]
    ]
    views = {view: m for view, m in facts["views"].items() if not math.isnan(m["pixel/F1-image"])}
    parts = [
        f"# Diagnosis of {markdown_text(title)}\n",
        f"{counts['images']} images: {counts['forged']} forged ({counts['with-mask']} with a mask)"
        f", {counts['authentic']} authentic; {counts['unreadable']} left out.\n",
        "## Found\n",
        "\n".join(map(_line, patterns)) + "\n"
        if patterns
        else "Nothing that is known to go wrong.\n",
        "## Are the masks right?\n",
        VIEWS_TEXT,
        _table("view", views, _METRICS),
        markdown_table(("", "value"), [(name, _text(value)) for name, value in numbers.items()]),
        "## Are the probabilities right?\n",
        markdown_table(("probability", "images", "said", "true"), points),
    ]
    for kind, words in (("by_size", "size of the forged region"), ("by_technique", "technique")):
        if facts[kind]:
            parts += [f"## Errors by {words}\n", _table(words, facts[kind], _GROUP)]
    return "\n".join(parts)


def _line(pattern: Pattern) -> str:
    name, evidence, remedy = map(markdown_text, pattern)
    return f"- **{name}**: {evidence}. *{remedy[:1].upper()}{remedy[1:]}.*"


def _table(title: str, rows: dict[str, dict[str, float]], names: Sequence[str]) -> str:
    cells = [(row, *(_text(numbers[name]) for name in names)) for row, numbers in rows.items()]
    return markdown_table((title, *names), cells)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.3f}"
    return str(value)
