"""From the truth of a forgery to claims, and from claims to sentences in many wordings.

Synthetic forgeries have exact truths, so that every claim of a text can be right or wrong. The
parser that reads claims back is `loupe.evaluation.text.parsing`; it knows none of these sentences.
"""

from __future__ import annotations

import numpy as np

from loupe.vocabulary import Claims, cell_of, side_of, size_of, tone_of

_VERDICTS = {
    "forged": (
        "This image was forged.",
        "The photograph was manipulated.",
        "Part of this image is not authentic.",
    ),
    "undecided": (
        "It is undecided whether this image was forged.",
        "It cannot be decided whether the photograph was manipulated.",
    ),
    "authentic": (
        "The image is authentic: no trace of forgery stands out.",
        "Nothing speaks against this photograph; it is taken to be authentic.",
        "No sign of manipulation was found, and the image counts as authentic.",
    ),
}
_TECHNIQUES = {
    "splice": (
        "Content of another photograph was pasted in.",
        "An object from a different photograph was spliced in.",
    ),
    "copy-move": (
        "A part of the image was copied to another place.",
        "One part of the picture was duplicated and moved.",
    ),
    "removal": (
        "An object was removed and the hole filled in.",
        "Something was erased and painted over with its surroundings.",
    ),
    "enhancement": (
        "A part was retouched.",
        "Its appearance was changed by local retouching.",
    ),
    "generated": (
        "A part was painted by an image generator.",
        "Its content comes from a generator of images.",
    ),
}
_PLACES = (
    "The region lies in the {cell} of the image, in {side}.",
    "Look at the {cell}: the region is in {side} of the picture.",
)
_IN_SIDE = {
    "left half": "the left half",
    "right half": "the right half",
    "both halves": "both halves",
}
_LOOKS = (
    "It is {size} and {tone}.",
    "The region is {size}; its colour is {tone}.",
)


def claims_of(image: np.ndarray, mask: np.ndarray, verdict: str, technique: str = "") -> Claims:
    """What is true of an image, as far as a verdict lets a text say it.

    A text follows the verdict: of an image called authentic it claims no region, and of an
    undecided one no technique.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool, the forged or suspected pixels.
        verdict: "forged", "undecided" or "authentic".
        technique: How it was forged; "" = not known.
    """
    if verdict == "authentic" or not mask.any():
        return Claims(verdict)
    return Claims(
        verdict,
        technique if verdict == "forged" else "",
        cell_of(mask),
        size_of(mask),
        tone_of(image, mask),
        side_of(mask),
    )


def write_claims(claims: Claims, rng: np.random.Generator) -> str:
    """Claims as sentences, in a wording that is drawn.

    Args:
        claims: What to say; what is "" is left out.
        rng: Draws the wording.
    """
    texts = [_draw(rng, _VERDICTS[claims.verdict])]
    if claims.technique:
        texts.append(_draw(rng, _TECHNIQUES[claims.technique]))
    if claims.cell:
        texts.append(_draw(rng, _PLACES).format(cell=claims.cell, side=_IN_SIDE[claims.side]))
        texts.append(_draw(rng, _LOOKS).format(size=claims.size, tone=claims.tone))
    return " ".join(texts)


def _draw(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]


def all_texts() -> list[str]:
    """Every sentence that can be written, for vocabularies that are made of words."""
    from loupe.vocabulary import CELLS, SIZES, TONES

    tables = (*_VERDICTS.values(), *_TECHNIQUES.values(), _PLACES, _LOOKS)
    words = (*CELLS, *SIZES, *TONES, *_IN_SIDE.values())
    return [*(text for table in tables for text in table), *words]
