"""Overlap of texts with references, by the field's libraries: ROUGE-L, BLEU, CIDEr.

They flatter: a template that is wrong in every fact shares most of its words with the truth. Facts
(`scores`) come first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence


def overlap_scores(texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """ROUGE-L (mean F-measure), BLEU (of the corpus, 0 to 1) and CIDEr of texts.

    Args:
        texts: What was written.
        references: One for each text.

    Raises:
        ValueError: They differ in number, or there are none.
    """
    if len(texts) != len(references) or not texts:
        raise ValueError(f"{len(texts)} texts and {len(references)} references; one for each")
    from pycocoevalcap.cider.cider import Cider
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import corpus_bleu

    scorer = RougeScorer(["rougeL"])
    pairs = list(zip(texts, references, strict=True))
    rouge = [scorer.score(reference, text)["rougeL"].fmeasure for text, reference in pairs]
    # Split by us: the tokenizer that CIDEr's package brings needs Java.
    split = [{i: [_words(pair[side])] for i, pair in enumerate(pairs)} for side in (1, 0)]
    cider, _ = Cider().compute_score(*split)
    return {
        "overlap/ROUGE-L": sum(rouge) / len(rouge),
        "overlap/BLEU": corpus_bleu(list(texts), [list(references)]).score / 100,
        "overlap/CIDEr": float(cider),
    }


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+|[^\w\s]", text.lower()))
