"""What tells a class of images without looking at them: one size, or one file format.

SID-Set is the example: its authentic images are JPEG, both kinds of forgeries PNG, and the edited
ones all have 1024 x 1024 pixels. A detector that learns this is right there and wrong elsewhere.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable

from loupe.data.sources.entries import DatasetDict
from loupe.doctor.facts import ImageFacts
from loupe.structures import CLASSES, class_of

# A value tells a class if this fraction of the class has it, and at most that of the others.
SHARED, ELSEWHERE = 0.9, 0.1
# Fewest images of a class, and of the others, to judge it.
FEWEST = 20


def size_of(facts: ImageFacts) -> str:
    """Width and height of an image, for people; "" where it cannot be read."""
    return "" if facts.image_error else f"{facts.width} x {facts.height}"


def format_of(facts: ImageFacts) -> str:
    """File format of an image; "" where it cannot be read."""
    return facts.format


def telling_values(
    entries: list[DatasetDict],
    facts: list[ImageFacts],
    value_of: Callable[[ImageFacts], str],
) -> list[str]:
    """A sentence for each class that one value tells from the others.

    Args:
        entries: Of the set.
        facts: Of the same images.
        value_of: "" where an image has no such value.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for entry, fact in zip(entries, facts, strict=True):
        value = value_of(fact)
        if entry["label"] is not None and value:
            kind = class_of(entry["label"], bool(entry.get("wholly_forged", False)))
            counts[kind][value] += 1
    sentences = []
    for name in CLASSES:
        others = sum((counts[other] for other in CLASSES if other != name), Counter[str]())
        total, rest = counts[name].total(), others.total()
        if min(total, rest) < FEWEST:
            continue
        value, number = counts[name].most_common(1)[0]
        if number >= SHARED * total and others[value] <= ELSEWHERE * rest:
            sentences.append(
                f"{number / total:.0%} of the {name} images are {value}, "
                f"{others[value] / rest:.0%} of the others"
            )
    return sentences
