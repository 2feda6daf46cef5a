"""A class that one size or one file format tells from the others is named."""

from __future__ import annotations

from loupe.data.sources.entries import make_dataset_dict
from loupe.doctor.facts import ImageFacts
from loupe.doctor.shortcuts import format_of, size_of, telling_values


def as_published(count: int = 30) -> tuple[list, list]:
    """SID-Set as it is: authentic JPEGs of many sizes, PNGs, tampered ones all of one size."""
    entries, facts = [], []
    for index in range(3 * count):
        kind = index % 3
        entries.append(
            make_dataset_dict(f"{index}", f"{index}", label=int(kind > 0), wholly_forged=kind == 1)
        )
        side = 1024 if kind == 2 else 500 + index
        facts.append(ImageFacts("", width=side, height=side, format="JPEG" if kind == 0 else "PNG"))
    return entries, facts


def test_size_and_format_that_give_a_class_away_are_found():
    entries, facts = as_published()
    sizes = telling_values(entries, facts, size_of)
    assert sizes == ["100% of the tampered images are 1024 x 1024, 0% of the others"]
    formats = telling_values(entries, facts, format_of)
    assert formats == ["100% of the authentic images are JPEG, 0% of the others"]


def test_alike_images_and_few_of_them_tell_nothing():
    entries, facts = as_published()
    alike = [fact._replace(width=64, height=64, format="JPEG") for fact in facts]
    assert telling_values(entries, alike, size_of) == []
    assert telling_values(entries, alike, format_of) == []
    few = as_published(count=5)
    assert telling_values(*few, size_of) == []
