"""Known patterns of failure in a diagnosis's facts, each with one line on what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

Facts = dict[str, Any]


class Finding(NamedTuple):
    """A pattern that was found.

    Attributes:
        name: Of the pattern.
        evidence: The numbers that show it.
        remedy: What to do first.
    """

    name: str
    evidence: str
    remedy: str


class Signature(NamedTuple):
    """A pattern of failure.

    Attributes:
        name: What a reader calls it.
        evidence: The facts -> the numbers that show it, or "" where they do not.
        remedy: What to do first.
    """

    name: str
    evidence: Callable[[Facts], str]
    remedy: str


def at(facts: Facts, path: str) -> float | None:
    """The number at `part/name`; None where it is not defined."""
    value: Any = facts
    for key in path.split("/"):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _numbers(facts: Facts, *paths: str) -> list[float] | None:
    values = [at(facts, path) for path in paths]
    return None if any(value is None for value in values) else values


def _wrong_threshold(facts: Facts) -> str:
    numbers = _numbers(
        facts, "masks/auc", "masks/pooled_f1", "masks/pooled_best_f1", "masks/best_threshold"
    )
    if numbers is None:
        return ""
    auc, fixed, best, threshold = numbers
    shown = auc >= 0.8 and best >= fixed + 0.1
    return shown * (
        f"pixel AUC {auc:.3f}, but F1 {fixed:.3f} at 0.5 against {best:.3f} at {threshold:.3f}"
    )


def _ranks_but_does_not_outline(facts: Facts) -> str:
    numbers = _numbers(facts, "masks/auc", "masks/iou", "masks/pooled_best_f1")
    if numbers is None:
        return ""
    auc, iou, best = numbers
    return (auc >= 0.8 and iou < 0.3 and best < 0.45) * (
        f"pixel AUC {auc:.3f}, but IoU {iou:.3f}, and F1 {best:.3f} even at the best threshold"
    )


def _detects_but_does_not_locate(facts: Facts) -> str:
    numbers = _numbers(facts, "classifier/auc", "masks/auc", "masks/iou")
    if numbers is None:
        return ""
    auc, pixel_auc, iou = numbers
    return (auc >= 0.85 and pixel_auc < 0.8 and iou < 0.3) * (
        f"image AUC {auc:.3f}, but pixel AUC {pixel_auc:.3f} and IoU {iou:.3f}"
    )


def _locates_but_does_not_detect(facts: Facts) -> str:
    numbers = _numbers(facts, "classifier/auc", "masks/iou")
    if numbers is None:
        return ""
    auc, iou = numbers
    return (auc < 0.75 and iou >= 0.5) * f"image AUC {auc:.3f}, but IoU {iou:.3f}"


def _below_the_centre_prior(facts: Facts) -> str:
    numbers = _numbers(facts, "masks/auc", "masks/prior_auc")
    if numbers is None:
        return ""
    auc, prior = numbers
    return (auc < prior) * f"pixel AUC {auc:.3f}, of the centre prior {prior:.3f}"


def _empty_masks(facts: Facts) -> str:
    empty = at(facts, "masks/empty")
    if empty is None:
        return ""
    return (empty >= 0.5) * f"{empty:.0%} of the forged images have no pixel above 0.5"


def _patch_map_better(facts: Facts) -> str:
    numbers = _numbers(facts, "pseudo_labels/patch_f1_if_called", "pseudo_labels/grid_f1_if_called")
    if numbers is None:
        return ""
    patch, mask = numbers
    return (patch >= mask + 0.02) * f"F1 on the patch grid: patch map {patch:.3f}, mask {mask:.3f}"


def _patch_map_worse(facts: Facts) -> str:
    numbers = _numbers(facts, "pseudo_labels/patch_f1_if_called", "pseudo_labels/grid_f1_if_called")
    if numbers is None:
        return ""
    patch, mask = numbers
    return (patch <= mask - 0.05) * f"F1 on the patch grid: patch map {patch:.3f}, mask {mask:.3f}"


def _not_calibrated(facts: Facts) -> str:
    numbers = _numbers(facts, "classifier/ece", "classifier/accuracy")
    if numbers is None:
        return ""
    error, accuracy = numbers
    return (error > 0.1) * (f"calibration error {error:.3f}, accuracy {accuracy:.3f} at 0.5")


def _condition_without_effect(facts: Facts) -> str:
    apart = at(facts, "condition/told_apart")
    if apart is None:
        return ""
    return (apart < 0.005) * (
        f"masks told forged and told authentic differ by {apart:.4f} on average"
    )


def _verdict_costs_masks(facts: Facts) -> str:
    numbers = _numbers(facts, "condition/f1_own", "condition/f1_told_forged")
    if numbers is None:
        return ""
    own, told = numbers
    return (told >= own + 0.05) * f"F1 {own:.3f} under the own verdict, {told:.3f} if told forged"


def _false_alarms(facts: Facts) -> str:
    alarms = at(facts, "authentic_images/false_alarms")
    if alarms is None:
        return ""
    return (alarms > 0.3) * f"{alarms:.0%} of the authentic images have a region called forged"


def _small_regions_missed(facts: Facts) -> str:
    quarters = facts.get("by_size") or []
    if len(quarters) < 4:
        return ""
    small, large = quarters[0]["f1"], quarters[-1]["f1"]
    return (large >= 0.3 and small < 0.5 * large) * (
        f"F1 {small:.3f} for areas of {quarters[0]['name']}, {large:.3f} for {quarters[-1]['name']}"
    )


def _one_technique_missed(facts: Facts) -> str:
    groups = [group for group in facts.get("by_technique") or [] if group["images"] >= 5]
    if len(groups) < 2:
        return ""
    worst = min(groups, key=lambda group: group["f1"])
    rest = [group for group in groups if group is not worst]
    images = sum(group["images"] for group in rest)
    mean = sum(group["f1"] * group["images"] for group in rest) / images
    return (mean >= 0.3 and worst["f1"] < 0.5 * mean) * (
        f"F1 {worst['f1']:.3f} for {worst['name']} ({worst['images']} images), "
        f"{mean:.3f} for the others"
    )


SIGNATURES = (
    Signature(
        "high AUC, low IoU: the threshold is wrong",
        _wrong_threshold,
        "take the threshold from a validation set; then train the segmenter longer, or raise "
        "MODEL.SEGMENTER.TVERSKY_FALSE_NEGATIVE if masks are too small",
    ),
    Signature(
        "high AUC, low IoU: outlines are wrong at every threshold",
        _ranks_but_does_not_outline,
        "train stage 2 longer, with a larger INPUT.SIZE or smaller patches; check that masks and "
        "images are aligned (tools/doctor.py)",
    ),
    Signature(
        "detects but does not locate",
        _detects_but_does_not_locate,
        "the classifier may use a cue outside the forgery (compression, size, source): check for "
        "leakage with tools/doctor.py; else train stage 2 longer",
    ),
    Signature(
        "low AUC, high IoU: locates but does not detect",
        _locates_but_does_not_detect,
        "train stage 1 longer with more authentic images (DATALOADER.SAMPLER_TRAIN "
        "BalancedSampler); check the labels of authentic images",
    ),
    Signature(
        "pixel AUC below the centre prior",
        _below_the_centre_prior,
        "nothing usable was learned about where: check polarity (1 = forged) and alignment of the "
        "masks, then train on data like the test set",
    ),
    Signature(
        "masks are empty",
        _empty_masks,
        "look at the maps' maxima: train stage 2 longer, lower the threshold, or find out whether "
        "the classifier calls these images authentic",
    ),
    Signature(
        "patch map better than mask",
        _patch_map_better,
        "test-time adaptation can help (tools/adapt.py); the segmenter is behind its classifier, "
        "so training stage 2 longer helps, too",
    ),
    Signature(
        "patch map worse than mask",
        _patch_map_worse,
        "adaptation would teach mistakes: leave it off, or use ADAPTATION.IMAGE_WEIGHT agreement "
        "and a teacher",
    ),
    Signature(
        "probabilities cannot be trusted",
        _not_calibrated,
        "scale the temperature on a validation set (loupe.evaluation.calibration): condition and "
        "adaptation both use the probability",
    ),
    Signature(
        "the condition has no effect",
        _condition_without_effect,
        "the segmenter ignores the verdict: train stage 2 with authentic images, too, or leave the "
        "condition out (MODEL.SEGMENTER.CONDITION_ATTENTION none)",
    ),
    Signature(
        "wrong verdicts cost masks",
        _verdict_costs_masks,
        "better verdicts give better masks: train stage 1 longer or calibrate; "
        "MODEL.SEGMENTER.CONDITION_JITTER makes masks depend less on them",
    ),
    Signature(
        "false alarms on authentic images",
        _false_alarms,
        "more authentic images in stage 2, a higher threshold, or ignore maps of images whose "
        "probability is below 0.5",
    ),
    Signature(
        "small regions are missed",
        _small_regions_missed,
        "a larger INPUT.SIZE, or INPUT.RESIZE crop with windows; smaller patches",
    ),
    Signature(
        "one technique is missed",
        _one_technique_missed,
        "add training images of this technique; if there are none, this is what adaptation is for",
    ),
)


def find_signatures(facts: Facts) -> list[Finding]:
    """The patterns that the facts of `Diagnosis.facts` show, the most basic ones first."""
    found = [(signature, signature.evidence(facts)) for signature in SIGNATURES]
    return [
        Finding(signature.name, evidence, signature.remedy)
        for signature, evidence in found
        if evidence
    ]
