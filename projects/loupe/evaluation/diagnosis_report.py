"""A diagnosis to read: Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loupe.evaluation.signatures import Facts, Finding, at


def markdown(facts: Facts, findings: Sequence[Finding], title: str) -> str:
    """The report: what was found and what to do, then the numbers behind it."""
    lines = [
        f"# Diagnosis of {title}",
        "",
        f"{facts['images']} images: {facts['forged']} forged ({facts['with_mask']} with a mask), "
        f"{facts['authentic']} authentic; {facts['left_out']} left out.",
        "",
        "## Found",
        "",
    ]
    lines += [
        f"- **{finding.name}**: {finding.evidence}. *{finding.remedy[:1].upper()}"
        f"{finding.remedy[1:]}.*"
        for finding in findings
    ] or ["Nothing that is known to go wrong."]
    lines += _classifier(facts) + _masks(facts) + _pseudo_labels(facts) + _condition(facts)
    lines += _groups("Errors by size of the forged region (quarters of the images)", facts, "size")
    lines += _groups("Errors by technique", facts, "technique")
    return "\n".join(lines) + "\n"


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = ["", "| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return lines + ["| " + " | ".join(map(_text, row)) + " |" for row in rows]


def _rows(facts: Facts, rows: dict[str, str]) -> list[tuple[str, Any]]:
    return [(name, at(facts, path)) for name, path in rows.items()]


def _classifier(facts: Facts) -> list[str]:
    names = {
        "AUC": "classifier/auc",
        "accuracy at 0.5": "classifier/accuracy",
        "calibration error (ECE)": "classifier/ece",
        "mean probability of forged images": "classifier/mean_score_forged",
        "of authentic images": "classifier/mean_score_authentic",
    }
    points = [
        (
            f"{point['low']:.2f} to {point['high']:.2f}",
            point["images"],
            point["mean_probability"],
            point["forged_fraction"],
        )
        for point in facts["classifier"]["reliability"]
    ]
    lines = ["", "## Is the classifier reliable?", *_table(("", "value"), _rows(facts, names))]
    return lines + _table(("probability", "images", "said", "true"), points)


def _masks(facts: Facts) -> list[str]:
    names = {
        "pixel AUC (mean over images)": "masks/auc",
        "pixel AUC of the centre prior": "masks/prior_auc",
        "F1 at 0.5 (mean over images)": "masks/f1",
        "IoU at 0.5 (mean over images)": "masks/iou",
        "F1 at each image's best threshold": "masks/best",
        "F1 at 0.5 (all pixels)": "masks/pooled_f1",
        "F1 at the best common threshold": "masks/pooled_best_f1",
        "that threshold": "masks/best_threshold",
        "forged images with an empty mask": "masks/empty",
        "authentic images with a false alarm": "authentic_images/false_alarms",
    }
    return ["", "## Are the masks right?", *_table(("", "value"), _rows(facts, names))]


def _pseudo_labels(facts: Facts) -> list[str]:
    rows = [
        (title, *(at(facts, f"pseudo_labels/{name}_{part}") for part in parts))
        for title, name in (("patch map", "patch"), ("mask", "grid"))
        for parts in [("f1", "iou", "best", "f1_if_called")]
    ]
    gap = at(facts, "pseudo_labels/gap_f1")
    words = "There is nothing to compare."
    if gap is not None:
        what = "can help" if gap > 0 else "has nothing to teach on average"
        words = f"Gap {gap:+.3f}: adaptation, which learns from the patch map, {what}."
    head = ("on the patch grid", "F1", "IoU", "best F1", "F1 where called forged")
    return ["", "## Are the pseudo-labels better than the masks?", *_table(head, rows), "", words]


def _condition(facts: Facts) -> list[str]:
    if at(facts, "condition/told_apart") is None:
        return ["", "## What does the condition do?", "", "There is none."]
    rows = [
        ("told authentic", at(facts, "condition/f1_told_authentic")),
        ("own verdict", at(facts, "condition/f1_own")),
        ("told forged", at(facts, "condition/f1_told_forged")),
    ]
    apart = at(facts, "condition/told_apart")
    own = at(facts, "condition/own_to_told_forged")
    words = f"Mean difference of a pixel: told forged to told authentic {apart:.4f}"
    return [
        "",
        "## What does the condition do?",
        *_table(("", "F1 of forged images"), rows),
        "",
        f"{words}, told forged to own verdict {own:.4f}.",
    ]


def _groups(title: str, facts: Facts, kind: str) -> list[str]:
    groups = facts[f"by_{kind}"]
    if not groups:
        return []
    names = ("images", "score", "f1", "iou", "best", "auc", "prior_auc")
    head = (kind, "images", "probability", "F1", "IoU", "best F1", "pixel AUC", "centre prior")
    rows = [(group["name"], *(group[name] for name in names)) for group in groups]
    return ["", f"## {title}", *_table(head, rows)]
