"""Claims survive being written and read; and texts of others are read, too."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from loupe.data.explanations.truth import claims_of, write_claims
from loupe.evaluation.text.parsing import parse
from loupe.vocabulary import CELLS, SIDES, SIZES, TONES, Claims

TECHNIQUES = ("splice", "copy-move", "removal", "enhancement", "generated", "")


def test_what_is_written_is_read():
    rng = np.random.default_rng(0)
    for cell, size, tone, side in itertools.product(CELLS, SIZES, TONES, SIDES):
        technique = TECHNIQUES[int(rng.integers(6))]
        for claims in (
            Claims("forged", technique, cell, size, tone, side),
            Claims("undecided", "", cell, size, tone, side),
        ):
            assert parse(write_claims(claims, rng)) == claims
    for verdict in ("forged", "undecided", "authentic"):
        for _ in range(20):
            assert parse(write_claims(Claims(verdict), rng)) == Claims(verdict)


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_every_wording_of_a_technique_is_read(technique: str):
    claims = Claims("forged", technique, "upper left", "small", "dark", "left half")
    texts = {write_claims(claims, np.random.default_rng(seed)) for seed in range(100)}
    assert len(texts) >= 12
    assert {parse(text) for text in texts} == {claims}


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("No signs of tampering were found.", Claims("authentic")),
        ("The image has not been manipulated.", Claims("authentic")),
        ("This picture is genuine.", Claims("authentic")),
        ("It remains unclear whether it was tampered with.", Claims("undecided")),
        ("A tiny cloned area at the top center.", Claims("", "copy-move", "upper centre", "small")),
        ("Fake; the middle-left was inpainted.", Claims("forged", "removal", "middle left")),
        (
            "Tampered in the center, in the left half.",
            Claims("forged", "", "centre", side="left half"),
        ),
        ("A scarred hundred.", Claims("")),
    ],
)
def test_texts_of_others_are_read(text: str, claims: Claims):
    assert parse(text) == claims


def test_a_text_follows_the_verdict():
    image = np.full((90, 90, 3), 30, np.uint8)
    mask = np.zeros((90, 90), bool)
    mask[:10, :10] = True
    assert claims_of(image, mask, "authentic", "splice") == Claims("authentic")
    assert claims_of(image, mask, "undecided", "splice").technique == ""
    forged = claims_of(image, mask, "forged", "splice")
    assert forged == Claims("forged", "splice", "upper left", "small", "dark", "left half")
    assert claims_of(image, mask & False, "forged", "splice") == Claims("forged")
