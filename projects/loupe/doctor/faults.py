"""The doctor's checks: of one set, and between sets. Pure functions over facts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from loupe.data.sources.entries import DatasetDict
from loupe.doctor.duplicates import equal_groups, near_duplicates
from loupe.doctor.facts import ImageFacts, MaskFacts
from loupe.doctor.findings import Finding
from loupe.doctor.shortcuts import format_of, size_of, telling_values

# Least fraction of pixels between 0 and 1 that makes a mask grey: an antialiased edge has some.
_GREY_FRACTION = 0.001
# A mask is suspected to be inverted above these fractions of its pixels and of its frame.
_INVERTED_FRACTION = 0.5
_INVERTED_BORDER = 0.9
# Fewer masks say nothing about the set.
_FEWEST_MASKS = 4
_UNBALANCED_FRACTION = 0.05
# Balanced accuracy of the best guess from the format, and fewest images of a class to judge it.
_FORMAT_TELLS = 0.9
_FEWEST_IMAGES = 20

_SUFFIX_FORMATS = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo"), {"JPEG", "MPO"}),
    ".png": {"PNG"},
    ".tif": {"TIFF"},
    ".tiff": {"TIFF"},
    ".bmp": {"BMP"},
    ".webp": {"WEBP"},
    ".gif": {"GIF"},
    ".ppm": {"PPM"},
    ".pgm": {"PPM"},
}


class Examined(NamedTuple):
    """A set and the facts of its images, in the same order."""

    name: str
    entries: list[DatasetDict]
    facts: list[ImageFacts]
    problems: list[str]


def check_set(examined: Examined) -> list[Finding]:
    """All findings of one set, but for duplicates."""
    items: dict[str, list[str]] = defaultdict(list)
    items["pairs"] = list(examined.problems)
    for entry, facts in zip(examined.entries, examined.facts, strict=True):
        for check, detail in _image_faults(entry, facts):
            items[check].append(f"{entry['image_id']}{detail and ': '}{detail}")
    items["shared-mask"] = _shared_masks(examined.entries)
    masks = [facts.mask for facts in examined.facts if facts.mask is not None]
    drawn = [mask for mask in masks if 0 < mask.forged < 1]
    if len(drawn) >= _FEWEST_MASKS and 2 * len(items["inverted-mask"]) > len(drawn):
        items["inverted-masks"] = items.pop("inverted-mask")
    totals = {check: len(masks) for check in items if "mask" in check}
    findings = [
        Finding(check, examined.name, found, totals.get(check, len(examined.entries)))
        for check, found in items.items()
        if found
    ]
    return findings + _check_balance(examined)


def check_duplicates(sets: list[Examined], max_distance: int) -> list[Finding]:
    """Equal and nearly equal images, within each set and between any two."""
    where = [(s, i) for s, examined in enumerate(sets) for i in range(len(examined.entries))]
    facts = [sets[s].facts[i] for s, i in where]
    bytes_of = [fact.byte_digest for fact in facts]
    items: dict[tuple[str, str], list[str]] = defaultdict(list)

    def name(position: int) -> str:
        s, i = where[position]
        return sets[s].entries[i]["image_id"]

    for group in equal_groups([fact.pixel_digest for fact in facts]):
        by_set: dict[int, list[int]] = defaultdict(list)
        for position in group:
            by_set[where[position][0]].append(position)
        for s, members in by_set.items():
            if len(members) < 2:
                continue
            equal_bytes = len({bytes_of[p] for p in members}) == 1
            check = "twins" if equal_bytes else "equal-pixels"
            if len({_meaning(sets[s], where[p][1]) for p in members}) > 1:
                check = "twins-differ"
            items[check, sets[s].name].append(" = ".join(map(name, members)))
        for a, b in combinations(sorted(by_set), 2):
            pair = " = ".join(name(by_set[s][0]) for s in (a, b))
            items["leak", f"{sets[a].name} + {sets[b].name}"].append(pair)
    for i, j in near_duplicates(facts, max_distance):
        a, b = where[i][0], where[j][0]
        labels = " and ".join(_kind(sets[where[p][0]].entries[where[p][1]]) for p in (i, j))
        text = f"{name(i)} ~ {name(j)} ({labels})"
        if a == b:
            items["near-twins", sets[a].name].append(text)
        else:
            items["near-leak", f"{sets[a].name} + {sets[b].name}"].append(text)
    return [Finding(check, dataset, found) for (check, dataset), found in items.items()]


def _image_faults(entry: DatasetDict, facts: ImageFacts) -> Iterator[tuple[str, str]]:
    """(check, detail) of one image."""
    if facts.image_error:
        yield "unreadable-image", facts.image_error
    if facts.warning:
        yield "image-warning", facts.warning
    if facts.mask_error:
        yield "unreadable-mask", facts.mask_error
    suffix = Path(entry["file_name"]).suffix.lower()
    if facts.format and facts.format not in _SUFFIX_FORMATS.get(suffix, {facts.format}):
        yield "suffix", f"is {facts.format}"
    if entry["label"] == 1 and not entry["mask_file_name"] and not entry.get("wholly_forged"):
        yield "mask-missing", ""
    if facts.mask is None:
        return
    if (facts.mask.width, facts.mask.height) != (facts.width, facts.height):
        yield (
            "mask-size",
            f"mask {facts.mask.width} x {facts.mask.height}, image {facts.width} x {facts.height}",
        )
    yield from _mask_faults(entry["label"], facts.mask)


def _mask_faults(label: int | None, mask: MaskFacts) -> Iterator[tuple[str, str]]:
    if mask.forged == 0:
        # An image that is called authentic may well have a mask of zeros.
        if mask.brightest > 0:
            yield "faint-mask", f"brightest value is {mask.brightest:.3f} of 1"
        elif label == 1:
            yield "empty-mask", ""
        return
    if label == 0:
        yield "label-against-mask", f"{mask.forged:.1%} of the mask is forged"
    if mask.between > _GREY_FRACTION:
        yield "grey-mask", f"{mask.between:.1%} of the pixels are neither 0 nor 1"
    if mask.forged == 1:
        yield "full-mask", ""
    elif mask.forged > _INVERTED_FRACTION and mask.border > _INVERTED_BORDER:
        yield "inverted-mask", f"{mask.forged:.0%} forged, {mask.border:.0%} of the border"


def _shared_masks(entries: list[DatasetDict]) -> list[str]:
    images = defaultdict(list)
    for entry in entries:
        if entry["mask_file_name"]:
            images[entry["mask_file_name"]].append(entry["image_id"])
    return [", ".join(sharing) for sharing in images.values() if len(sharing) > 1]


def _check_balance(examined: Examined) -> list[Finding]:
    counts = Counter(entry["label"] for entry in examined.entries)
    labelled = counts[0] + counts[1]
    text = f"{counts[1]} forged, {counts[0]} authentic"
    if labelled and not (counts[0] and counts[1]):
        return [Finding("one-class", examined.name, [text])]
    findings = []
    if labelled and min(counts[0], counts[1]) < _UNBALANCED_FRACTION * labelled:
        findings.append(Finding("unbalanced", examined.name, [text]))
    if min(counts[0], counts[1]) >= _FEWEST_IMAGES:
        accuracy, text = _guess_from_format(examined)
        if accuracy >= _FORMAT_TELLS:
            findings.append(Finding("format-tells", examined.name, [text]))
    shortcuts = [("size-tells-class", size_of)]
    if not any(finding.check == "format-tells" for finding in findings):
        shortcuts.append(("format-tells-class", format_of))
    for check, value_of in shortcuts:
        items = telling_values(examined.entries, examined.facts, value_of)
        findings += [Finding(check, examined.name, items)] if items else []
    return findings


def _guess_from_format(examined: Examined) -> tuple[float, str]:
    """Balanced accuracy of the best guess of the label from the format, and a text about it."""
    formats: dict[int, Counter[str]] = {0: Counter(), 1: Counter()}
    for entry, facts in zip(examined.entries, examined.facts, strict=True):
        if entry["label"] is not None and facts.format:
            formats[entry["label"]][facts.format] += 1
    totals = {label: max(1, sum(counts.values())) for label, counts in formats.items()}
    kinds = sorted(formats[0].keys() | formats[1].keys())
    accuracy = sum(max(formats[label][kind] / totals[label] for label in (0, 1)) for kind in kinds)
    text = "; ".join(
        f"{kind}: {formats[1][kind]} forged, {formats[0][kind]} authentic" for kind in kinds
    )
    return accuracy / 2, f"balanced accuracy {accuracy / 2:.2f} ({text})"


def _meaning(examined: Examined, position: int) -> tuple[int | None, str]:
    """Label and mask of an image: equal images must agree in them."""
    entry, facts = examined.entries[position], examined.facts[position]
    # A mask of zeros says of an authentic image what no mask says.
    mask = facts.mask.digest if facts.mask is not None and facts.mask.forged > 0 else ""
    return entry["label"], mask


def _kind(entry: DatasetDict) -> str:
    return {0: "authentic", 1: "forged", None: "unlabelled"}[entry["label"]]
