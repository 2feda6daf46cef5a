"""Scores of explanations: every value is known in advance."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from loupe.evaluation.text.evaluator import ExplanationEvaluator
from loupe.evaluation.text.overlap import overlap_scores
from loupe.evaluation.text.parsing import parse
from loupe.evaluation.text.scores import Explained, contradictions, difference, hits, score
from loupe.vocabulary import Claims

TRUE = Claims("forged", "splice", "upper left", "small", "dark", "left half")


def explained(claims: Claims, truth: Claims = TRUE, verdict: str = "forged", region=TRUE):
    return Explained("a", "", True, claims, truth, verdict, region)


def values(*records: Explained) -> dict[str, float]:
    return {name: one.value for name, one in score(records, resamples=0).items()}


def test_facts_are_exact_and_silence_is_wrong():
    silent = Claims("forged")
    half = TRUE._replace(cell="centre", tone="bright", technique="removal")
    found = values(explained(TRUE), explained(silent), explained(half))
    assert found["facts/verdict"] == 1
    assert found["facts/cell"] == pytest.approx(1 / 3)
    assert found["facts/size"] == pytest.approx(2 / 3)
    assert found["stated/size"] == 1
    assert found["stated/cell"] == 0.5
    assert found["facts/all"] == pytest.approx(1 / 3)
    assert found["contradiction/cell"] == 0.5


def test_false_claims_are_counted_on_authentic_images_alone():
    real = Claims("authentic")
    found = values(
        explained(TRUE),
        explained(TRUE, real, "forged"),
        explained(real, real, "authentic", None),
        explained(TRUE, real, "authentic", None),
        explained(Claims("undecided", cell="centre"), TRUE, "authentic"),
    )
    assert found["false/region-authentic"] == pytest.approx(2 / 3)
    assert found["false/forged-authentic"] == pytest.approx(2 / 3)
    assert found["false/region-called-authentic"] == pytest.approx(2 / 3)
    assert found["detector/verdict"] == pytest.approx(3 / 5)


def test_a_text_contradicts_the_mask_in_what_it_says():
    assert contradictions(TRUE._replace(cell="centre", tone=""), TRUE) == ("cell",)
    assert contradictions(Claims("forged"), TRUE) == ()
    assert contradictions(TRUE, None) == ("region",)


def test_intervals_hold_the_value_and_differences_are_paired():
    rng = np.random.default_rng(0)
    rows = [explained(TRUE if rng.random() < 0.7 else Claims("forged")) for _ in range(200)]
    one = score(rows)["facts/cell"]
    assert one.low < one.value < one.high
    assert one.high - one.low < 0.2
    cells = hits(rows)["facts/cell"]
    assert difference(cells, cells) == (0.0, 0.0, 0.0, 200)
    worse = cells * (np.arange(200) % 2)
    found = difference(np.stack([cells, cells]), np.stack([worse, worse]))
    assert found.value == pytest.approx((cells - worse).mean())
    assert found.low > 0.2


def test_an_evaluation_writes_scores_texts_and_pairs(tmp_path: Path):
    evaluator = ExplanationEvaluator("set", output_dir=tmp_path, resamples=20)
    text = "This image was forged. The region lies in the upper left, in the left half."
    items = [
        {"image_id": "a", "claims": TRUE, "region_claims": TRUE._asdict(), "verdict": "forged"},
        {"image_id": "b"},
    ]
    outputs = [{"explanation": text, "complete": True}, {"error": "b.png: damaged"}]
    evaluator.process(items, outputs)
    results = evaluator.evaluate()
    assert results["facts"]["cell"] == 1
    assert results["facts"]["technique"] == 0
    written = json.loads((tmp_path / "inference" / "set.json").read_text())
    assert written["errors"] == {"b": "b.png: damaged"}
    texts = json.loads((tmp_path / "inference" / "set.texts.json").read_text())
    assert texts[0]["claims"]["cell"] == parse(text).cell == "upper left"


def test_long_names_of_sets_that_end_alike_keep_files_of_their_own(tmp_path: Path):
    for begins in ("first", "second"):
        name = begins + "/" + 300 * "a"
        evaluator = ExplanationEvaluator(name, output_dir=tmp_path, resamples=2)
        evaluator.process([{"image_id": "a", "claims": TRUE}], [{"explanation": "", "complete": 1}])
        evaluator.evaluate()
    assert len(list((tmp_path / "inference").glob("*.texts.json"))) == 2


def test_overlap_by_the_fields_libraries():
    pytest.importorskip("rouge_score")
    pytest.importorskip("pycocoevalcap")
    texts = ["the region is small and dark", "it was forged at the upper left"]
    same, other = overlap_scores(texts, texts), overlap_scores(texts, texts[::-1])
    assert same["overlap/ROUGE-L"] == 1
    assert same["overlap/BLEU"] == pytest.approx(1)
    assert same["overlap/CIDEr"] > 5 > other["overlap/CIDEr"]
    with pytest.raises(ValueError, match="one for each"):
        overlap_scores(texts, texts[:1])
