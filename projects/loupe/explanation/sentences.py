"""The sentences of measured facts, in one table: a translation is another table.

`ENGLISH` has a template for each fact and case; `measure` takes any table with the same keys. Words
inside a sentence (cells, sizes, tones) are looked up in the table too, under `word/...`.
"""

from __future__ import annotations

from collections.abc import Mapping

from loupe.vocabulary import CELLS, SHAPES, SIZES, TONES

Sentences = Mapping[str, str]

ENGLISH: dict[str, str] = {
    "verdict/forged": "The detector calls the image forged (probability {probability:.2f}).",
    "verdict/authentic": "The detector calls the image authentic (probability {probability:.2f}).",
    "verdict/undecided": "The detector does not decide (probability {probability:.2f}).",
    "verdict/none": "The detector gives a probability of {probability:.2f}.",
    "regions/none": "It marks no region.",
    "regions/one": "It marks one region, {fraction:.1%} of the image.",
    "regions/many": "It marks {count} regions, {fraction:.1%} of the image.",
    "agreement/none": "There is no patch map to compare the mask with.",
    "agreement/empty": "Neither the patch map nor the mask marks anything.",
    "agreement/good": "Patch map and mask mark the same place (overlap {overlap:.2f}).",
    "agreement/poor": "Patch map and mask mark different places (overlap {overlap:.2f}): "
    "the region is uncertain.",
    "agreement/contradiction": "The verdict is {verdict}, and yet a region is marked: "
    "do not rely on the region.",
    "agreement/without": "The verdict is forged, and yet no region is marked.",
    "cell": "Region {region} lies in the image's {cell}, from ({left}, {top}) to "
    "({right}, {bottom}).",
    "size": "Region {region} covers {fraction:.1%} of the image: it is {size}.",
    "shape": "Region {region} is {shape}; it fills {solidity:.0%} of its convex outline.",
    "tone": "Region {region} is {tone}.",
    "brightness/more": "Region {region} is {amount:.0f} grey levels brighter than what surrounds "
    "it{rank}.",
    "brightness/less": "Region {region} is {amount:.0f} grey levels darker than what surrounds "
    "it{rank}.",
    "sharpness/more": "Region {region} is sharper than the rest ({inside:.2f} against "
    "{outside:.2f}){rank}.",
    "sharpness/less": "Region {region} is less sharp than the rest ({inside:.2f} against "
    "{outside:.2f}){rank}.",
    "noise/more": "Region {region} has more noise than the rest ({inside:.1f} against "
    "{outside:.1f} grey levels){rank}.",
    "noise/less": "Region {region} has less noise than the rest ({inside:.1f} against "
    "{outside:.1f} grey levels){rank}.",
    "grid/none": "No grid of JPEG blocks is found outside of region {region}.",
    "grid/same": "Region {region} follows the image's grid of JPEG blocks, from {outside} on.",
    "grid/other": "Region {region} has JPEG blocks from {inside} on, the rest from {outside} "
    "on{rank}.",
    "steps/same": "Region {region} fits the quantisation steps of the image's JPEG.",
    "steps/other": "Region {region} fits the quantisation steps of the image's JPEG worse than "
    "the rest, by {amount:.1f} standard deviations{rank}.",
    "steps/none": "No quantisation steps of a JPEG are found.",
    "copy/some": "The place most like region {region} lies {x:+d} pixels to the right and {y:+d} "
    "down{mirrored} (correlation {correlation:.2f}){rank}.",
    "copy/none": "No other place resembles region {region} (best correlation {correlation:.2f}).",
    "unmeasured": "Region {region}: {name} cannot be measured there.",
    "file/match": "The file says that it was stored with JPEG steps of {steps} and so on.",
    "rank": ", which differs more than {percentile:.0f}% of regions of authentic photographs",
    "mirrored": ", mirrored",
    "name/brightness": "the change of brightness",
    "name/sharpness": "sharpness",
    "name/noise": "noise",
    "name/grid": "the grid of JPEG blocks",
    "name/steps": "the fit of quantisation steps",
    "name/copy": "a copy",
} | {f"word/{word}": word for word in (*CELLS, *SIZES, *TONES, *SHAPES, "forged", "authentic")}
ENGLISH["word/undecided"] = "undecided"


def say(sentences: Sentences, name: str, /, **values: object) -> str:
    """A sentence of the table with its values; words of the vocabulary are translated.

    Raises:
        KeyError: The table lacks the sentence.
    """
    shown = {
        key: sentences.get(f"word/{value}", value) if isinstance(value, str) else value
        for key, value in values.items()
    }
    return sentences[name].format(**shown)
