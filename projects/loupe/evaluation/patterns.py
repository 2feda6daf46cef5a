"""Known patterns of failure in a diagnosis's facts, each with one line on what to do first."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

Facts = dict[str, Any]


class Pattern(NamedTuple):
    """A pattern that was found.

    Attributes:
        name: of the pattern.
        evidence: the numbers that show it.
        remedy: what to do first.
    """

    name: str
    evidence: str
    remedy: str


class Rule(NamedTuple):
    """How a pattern is recognised; a number that is not defined (NaN) meets no comparison.

    Attributes:
        name: what a reader calls the pattern.
        reads: the numbers' names: of a view and a metric, or of a fact.
        shows: whether they show the pattern.
        evidence: a format of the numbers, and of the groups' titles.
        remedy: what to do first.
    """

    name: str
    reads: tuple[str, ...]
    shows: Callable[..., bool]
    evidence: str
    remedy: str


RULES = (
    Rule(
        "high AUC, low IoU: the threshold is wrong",
        ("own pixel/AUC-image", "own pixel/F1-pooled", "own pixel/F1-best-pooled", "threshold"),
        lambda auc, fixed, best, threshold: auc >= 0.8 and best >= fixed + 0.1,
        "pixel AUC {0:.3f}, but F1 {1:.3f} at 0.5 against {2:.3f} at {3:.3f}",
        "take the threshold from a validation set; then train the segmenter longer, or raise "
        "MODEL.SEGMENTER.TVERSKY_FALSE_NEGATIVE if masks are too small",
    ),
    Rule(
        "high AUC, low IoU: outlines are wrong at every threshold",
        ("own pixel/AUC-image", "own pixel/IoU-image", "own pixel/F1-best-pooled"),
        lambda auc, iou, best: auc >= 0.8 and iou < 0.3 and best < 0.45,
        "pixel AUC {0:.3f}, but IoU {1:.3f}, and F1 {2:.3f} even at the best threshold",
        "train stage 2 longer, with a larger INPUT.SIZE or smaller patches; check that masks and "
        "images are aligned (tools/doctor.py)",
    ),
    Rule(
        "detects but does not locate",
        ("own image/AUC", "own pixel/AUC-image", "own pixel/IoU-image"),
        lambda auc, pixel_auc, iou: auc >= 0.85 and pixel_auc < 0.8 and iou < 0.3,
        "image AUC {0:.3f}, but pixel AUC {1:.3f} and IoU {2:.3f}",
        "the classifier may use a cue outside the forgery (compression, size, source): check for "
        "leakage with tools/doctor.py; else train stage 2 longer",
    ),
    Rule(
        "low AUC, high IoU: locates but does not detect",
        ("own image/AUC", "own pixel/IoU-image"),
        lambda auc, iou: auc < 0.75 and iou >= 0.5,
        "image AUC {0:.3f}, but IoU {1:.3f}",
        "train stage 1 longer with more authentic images (DATALOADER.SAMPLER_TRAIN "
        "BalancedSampler); check the labels of authentic images",
    ),
    Rule(
        "pixel AUC below the centre prior",
        ("own pixel/AUC-image", "centre prior pixel/AUC-image"),
        lambda auc, prior: auc < prior,
        "pixel AUC {0:.3f}, of the centre prior {1:.3f}",
        "nothing usable was learned about where: check polarity (1 = forged) and alignment of the "
        "masks, then train on data like the test set",
    ),
    Rule(
        "masks are empty",
        ("empty",),
        lambda empty: empty >= 0.5,
        "{0:.0%} of the forged images have no pixel above 0.5",
        "look at the maps' maxima: train stage 2 longer, lower the threshold, or find out whether "
        "the classifier calls these images authentic",
    ),
    Rule(
        "patch map better than mask",
        (
            "patch map, called forged pixel/F1-image",
            "mask on patches, called forged pixel/F1-image",
        ),
        lambda patch, mask: patch >= mask + 0.02,
        "F1 on the patch grid: patch map {0:.3f}, mask {1:.3f}",
        "test-time adaptation can help (tools/adapt.py); the segmenter is behind its classifier, "
        "so training stage 2 longer helps, too",
    ),
    Rule(
        "patch map worse than mask",
        (
            "patch map, called forged pixel/F1-image",
            "mask on patches, called forged pixel/F1-image",
        ),
        lambda patch, mask: patch <= mask - 0.05,
        "F1 on the patch grid: patch map {0:.3f}, mask {1:.3f}",
        "adaptation would teach mistakes: leave it off, or use ADAPTATION.IMAGE_WEIGHT agreement",
    ),
    Rule(
        "probabilities cannot be trusted",
        ("own image/ECE", "own image/Acc"),
        lambda error, accuracy: error > 0.1,
        "calibration error {0:.3f}, accuracy {1:.3f} at 0.5",
        "fit a temperature on a validation set (tools/score.py --fit-temperature): condition and "
        "adaptation both use the probability",
    ),
    Rule(
        "the condition has no effect",
        ("told apart",),
        lambda apart: apart < 0.005,
        "masks told forged and told authentic differ by {0:.4f} on average",
        "the segmenter ignores the condition: train stage 2 with authentic images, too, or leave "
        "the condition out (MODEL.SEGMENTER.CONDITION_ATTENTION none)",
    ),
    Rule(
        "wrong conditions cost masks",
        ("own pixel/F1-image", "told forged pixel/F1-image"),
        lambda own, told: told >= own + 0.05,
        "F1 {0:.3f} under the own condition, {1:.3f} if told forged",
        "better probabilities give better masks: train stage 1 longer or calibrate; "
        "MODEL.SEGMENTER.CONDITION_JITTER makes masks depend less on them",
    ),
    Rule(
        "false alarms on authentic images",
        ("own pixel/false-alarm-images",),
        lambda alarms: alarms > 0.3,
        "{0:.0%} of the authentic images have a region called forged",
        "more authentic images in stage 2, a higher threshold, or ignore maps of images whose "
        "probability is below 0.5",
    ),
    Rule(
        "small regions are missed",
        ("smallest pixel/F1-image", "largest pixel/F1-image"),
        lambda small, large: large >= 0.3 and small < 0.5 * large,
        "F1 {0:.3f} for areas of {smallest}, {1:.3f} for {largest}",
        "a larger INPUT.SIZE, or INPUT.RESIZE crop with windows; smaller patches",
    ),
    Rule(
        "one technique is missed",
        ("worst pixel/F1-image", "others pixel/F1-image"),
        lambda worst, others: others >= 0.3 and worst < 0.5 * others,
        "F1 {0:.3f} for {worst}, {1:.3f} for the others",
        "add training images of this technique; if there are none, this is what adaptation is for",
    ),
)

# A technique of fewer images is no evidence.
FEWEST_IMAGES = 5


def find_patterns(facts: Facts) -> list[Pattern]:
    """The patterns that the facts of `Diagnosis.facts` show, the most basic ones first."""
    numbers = {f"{view} {name}": x for view, m in facts["views"].items() for name, x in m.items()}
    numbers |= facts["condition"] | {key: facts[key] for key in ("empty", "threshold")}
    titles: dict[str, str] = {}
    if len(facts["by_size"]) > 1:
        for name, place in (("smallest", 0), ("largest", -1)):
            titles[name], group = list(facts["by_size"].items())[place]
            numbers[f"{name} pixel/F1-image"] = group["pixel/F1-image"]
    _compare_techniques(facts["by_technique"], numbers, titles)
    found = []
    for rule in RULES:
        values = [numbers.get(name, math.nan) for name in rule.reads]
        if rule.shows(*values) and not any(map(math.isnan, values)):
            evidence = rule.evidence.format(*values, **titles)
            found.append(Pattern(rule.name, evidence, rule.remedy))
    return found


def _compare_techniques(
    groups: dict[str, dict[str, float]], numbers: dict[str, float], titles: dict[str, str]
) -> None:
    """Adds the technique with the lowest F1, and the mean of the others over their images."""
    groups = {name: group for name, group in groups.items() if group["images"] >= FEWEST_IMAGES}
    if len(groups) < 2:
        return
    name = min(groups, key=lambda name: groups[name]["pixel/F1-image"])
    worst = groups.pop(name)
    images = sum(group["images"] for group in groups.values())
    total = sum(group["pixel/F1-image"] * group["images"] for group in groups.values())
    titles["worst"] = f"{name} ({worst['images']} images)"
    numbers["worst pixel/F1-image"] = worst["pixel/F1-image"]
    numbers["others pixel/F1-image"] = total / images
