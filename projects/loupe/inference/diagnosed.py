"""Predictions of a labelled set for a diagnosis, also under a condition that is given.

A diagnosis compares maps with patches, and patches lie on the pixels as they are stored: so do all
maps and masks here, whatever the orientation tag says.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from loupe.data.images.orientation import UPRIGHT, turn_back
from loupe.data.training.loaders import build_test_loader
from loupe.evaluation.diagnosis import ConditionedPrediction, Diagnosis
from loupe.inference.predictor import LoupePredictor
from loupe.modeling.loupe import ClassifiedBatch, Loupe

# A logit whose sigmoid is 1 in float32.
CERTAIN = 30.0


def told(
    model: Loupe, batch: list[dict[str, Any]], perception: ClassifiedBatch, logit: float
) -> list:
    """The model's predictions if the image logit were this."""
    verdict = perception.classification
    certain = verdict._replace(image_logits=torch.full_like(verdict.image_logits, logit))
    return model.predict(batch, perception._replace(classification=certain))


@torch.no_grad()
def predictions_of(model: Loupe, batch: list[dict[str, Any]]) -> list[ConditionedPrediction]:
    """What the model predicts for readable images, also if it is told the condition."""
    perception = model.classify(batch)
    assert perception is not None, "the batch has a readable image"
    own = model.predict(batch, perception)
    conditional = model.segmenter is not None and model.segmenter.condition_embeddings is not None
    pairs: list[tuple[Any, Any]] = [(None, None)] * len(batch)
    if conditional:
        authentic, forged = (told(model, batch, perception, sign * CERTAIN) for sign in (-1, 1))
        pairs = [
            (as_stored(item, a["forgery_map"]), as_stored(item, f["forgery_map"]))
            for item, a, f in zip(batch, authentic, forged, strict=True)
        ]
    return [
        ConditionedPrediction(
            prediction["forgery_score"],
            as_stored(item, prediction["forgery_map"]),
            *pair,
            *patch_map_and_window(item, prediction["patch_map"], model.backbone.size_divisibility),
        )
        for item, prediction, pair in zip(batch, own, pairs, strict=True)
    ]


def as_stored(item: dict[str, Any], upright: torch.Tensor | np.ndarray) -> np.ndarray:
    """A map or mask as the item's pixels are stored."""
    return turn_back(np.asarray(upright), item.get("orientation", UPRIGHT))


def patch_map_and_window(
    item: dict[str, Any], patch_map: torch.Tensor | None, patch: int
) -> tuple[Any, Any]:
    """The patches that are image, and the pixels of the image that they cover.

    Args:
        item: of the batch.
        patch_map: (h, w) patches of the batch's canvas, which may be larger than the item; upright.
        patch: side of a patch in pixels of the network's input.
    """
    if patch_map is None:
        return None, None
    valid = item["valid_size"]
    rows, columns = (-(-side // patch) for side in valid)
    x0, y0, x1, y1 = item["window"]
    # The last patch may be partly padding, and then reaches beyond what the image shows.
    reach = columns * patch / valid[1], rows * patch / valid[0]
    window = (x0, y0, x0 + (x1 - x0) * reach[0], y0 + (y1 - y0) * reach[1])
    # Padding lies at the right and at the bottom of the pixels as they are stored.
    return as_stored(item, patch_map)[:rows, :columns], window


def examine(predictor: LoupePredictor, dataset: str) -> Diagnosis:
    """Runs the model over the data set.

    Raises:
        ValueError: No image has a label, or the model is no Loupe.
    """
    if not isinstance(predictor.model, Loupe):
        raise ValueError(
            "a diagnosis tells Loupe's classifier and segmenter apart; of a "
            f"{type(predictor.model).__name__} see loupe evaluate and loupe robustness"
        )
    diagnosis, examined = Diagnosis(), 0
    for batch in build_test_loader(predictor.cfg, dataset):
        for item in batch:
            if "error" in item:
                diagnosis.leave_out(item["file_name"], item["error"])
        usable = [item for item in batch if "image" in item and "ground_truth" in item]
        if not usable:
            continue
        for item, prediction in zip(usable, predictions_of(predictor.model, usable), strict=True):
            try:
                truth = item["ground_truth"]
                if truth.mask is not None:
                    truth = truth._replace(mask=as_stored(item, truth.mask))
                diagnosis.add(item["file_name"], prediction, truth)
                examined += 1
            except ValueError as error:
                diagnosis.leave_out(item["file_name"], str(error))
    if not examined:
        raise ValueError(f"{dataset}: no image with a label could be read; a diagnosis needs truth")
    return diagnosis
