"""From text to claims, by words that people use: for our explanations and for those of others.

What a text says twice counts once, first mention; what it does not say is "".
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from loupe.vocabulary import CELLS, SIDES, SIZES, TONES, Claims

# Tried in turn: a denial holds the words of what it denies.
_VERDICTS = (
    (
        "undecided",
        r"undecided|cannot be decided|(?:is|remains) (?:unclear|uncertain)|does not decide",
    ),
    (
        "authentic",
        r"(?:no|without) (?:trace|sign|evidence|indication)s? of (?:\w+ )?"
        r"(?:forgery|manipulation|tampering)"
        r"|(?:was|is|has) not (?:been )?(?:forged|manipulated|tampered)|nothing speaks against",
    ),
    (
        "forged",
        r"not authentic|\bforged\b|forgery|manipulat|tamper|\bfake\b|spliced|\baltered\b|doctored",
    ),
    ("authentic", r"\bauthentic\b|\bgenuine\b|\breal\b|unaltered"),
)
_TECHNIQUES = {
    "splice": r"splic|(?:another|different|other) (?:photograph|image|picture|source)|pasted",
    "copy-move": r"cop(?:y|ied)|duplicat|cloned",
    "removal": r"remov|erased|filled in|inpaint",
    "enhancement": r"retouch|enhanc",
    "generated": r"generat|synthesi[sz]ed",
}
_VERTICAL = {"upper": "upper|top", "middle": "middle|cent(?:re|er)", "lower": "lower|bottom"}
_HORIZONTAL = {"left": "left", "centre": "cent(?:re|er)|middle", "right": "right"}
_SIZES = {"small": "small|tiny|little", "medium": "medium|moderate", "large": "large|big|extensive"}
_TONES = {
    "dark": "dark|black",
    "grey": "gr[ae]y",
    "bright": "bright|white",
    "reddish": "red(?:dish)?",
    "greenish": "green(?:ish)?",
    "bluish": "blu(?:e|ish)",
}
_SIDES = {
    "left half": "left half",
    "both halves": "both halves",
    "right half": "right half",
}


def parse(text: str) -> Claims:
    """What a text claims.

    Example:
        >>> parse("The photo was manipulated: a dog was pasted into the bottom right corner.")
        Claims(verdict='forged', technique='splice', cell='lower right', size='', tone='', side='')
    """
    plain = " ".join(text.lower().split())
    verdict = next((word for word, way in _VERDICTS if re.search(way, plain)), "")
    if verdict == "authentic":
        return Claims(verdict)
    return Claims(
        verdict,
        _first(plain, _TECHNIQUES),
        _cell(plain),
        _first(plain, _SIZES, whole=True),
        _first(plain, _TONES, whole=True),
        _first(plain, _SIDES),
    )


def _first(text: str, ways: Mapping[str, str], *, whole: bool = False) -> str:
    """The word whose expression occurs first."""
    found = []
    for word, way in ways.items():
        match = re.search(rf"\b(?:{way})\b" if whole else way, text)
        if match is not None:
            found.append((match.start(), word))
    return min(found)[1] if found else ""


def _cell(text: str) -> str:
    """The first cell that is named; two words before one, so that "upper centre" is no centre."""
    # Halves are sides, not cells.
    text = re.sub(r"\b(?:left|right|upper|lower|top|bottom) half\b|both halves", "", text)
    found = []
    for cell in CELLS:
        row, _, column = cell.rpartition(" ")
        if row:
            way = rf"\b(?:{_VERTICAL[row]})[- ](?:{_HORIZONTAL[column]})\b"
            match = re.search(way, text)
            if match is not None:
                found.append((match.start(), -len(match[0]), cell))
    match = re.search(r"\bcent(?:re|er)\b|\bmiddle\b", text)
    if match is not None:
        found.append((match.start(), -len(match[0]), "centre"))
    return min(found)[2] if found else ""


assert _SIZES.keys() == set(SIZES)
assert _TONES.keys() == set(TONES)
assert _SIDES.keys() == set(SIDES)
