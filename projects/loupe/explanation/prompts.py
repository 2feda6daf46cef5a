"""How a question, an image and an explanation become one text.

A template is saved with the adapters that were trained with it, by its name: training and use can
never differ (the released model's do: "a curious user" in one, "a curious human" in the other).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from loupe.structures import THRESHOLD
from loupe.vocabulary import Claims


class Template(NamedTuple):
    """The words around question and explanation.

    Attributes:
        opening: Before the image.
        between: Between image and question.
        closing: After the question, up to where the explanation begins.
        space: Between both; belongs to the explanation.
        end: The token that ends an explanation.
    """

    opening: str
    between: str
    closing: str
    space: str
    end: str


# Word for word what base models were trained with; "words" is for models made from scratch.
TEMPLATES = {
    name: Template(**words)
    for name, words in json.loads(
        Path(__file__).with_name("templates.json").read_text(encoding="utf-8")
    ).items()
}

QUESTION = "Explain whether this image was forged, and where."
_VERDICTS = {
    "forged": "The detector says forged.",
    "authentic": "The detector says authentic.",
    "undecided": "The detector does not decide.",
}
_TOLD = "Measured of the region: {cell}, {side}, {size}, {tone}."
_NO_REGION = "No region is marked."


def verdict_word(score: float, verdict: str = "") -> str:
    """What the question says of the detector: its verdict, or its score above or below THRESHOLD.

    Example:
        >>> verdict_word(0.7), verdict_word(0.7, "undecided")
        ('forged', 'undecided')
    """
    return verdict or ("forged" if score > THRESHOLD else "authentic")


def question_of(verdict: str = "", marked: bool = True, told: Claims | None = None) -> str:
    """The question to an explainer: what the detector says, and whether it marks a region.

    The verdict is the detector's. A text model that had to judge could read the verdict off the
    mask's presence; so the question states it.

    Args:
        verdict: "forged", "authentic", "undecided" or "" = not known.
        marked: Whether a mask goes with the image; without one the region is the whole image.
        told: What was measured of the region, to be told in words; None = nothing is.
    """
    region = "" if told is None or not marked else _TOLD.format(**told._asdict())
    words = [QUESTION, _VERDICTS.get(verdict, ""), region or ("" if marked else _NO_REGION)]
    return " ".join(word for word in words if word)


class Prompt(NamedTuple):
    """A prompt around the image, and where its explanation begins.

    Attributes:
        before: Text before the image.
        after: Text after it, with the explanation and its end, if there is one.
        start: First character of `after` that belongs to the explanation.
    """

    before: str
    after: str
    start: int


def fill(template: Template, question: str, explanation: str | None = None) -> Prompt:
    """The text of a question, and in training of its explanation.

    Args:
        template: Words around both.
        question: Without an image mark.
        explanation: None = to be written.
    """
    asked = f"{template.between}{question}{template.closing}"
    if explanation is None:
        return Prompt(template.opening, asked, len(asked))
    told = f"{asked}{template.space}{explanation}{template.end}"
    return Prompt(template.opening, told, len(asked))
