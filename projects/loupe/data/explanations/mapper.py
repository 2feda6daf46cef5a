"""ExplanationMapper: a dataset dict becomes the item that an `Explainer` takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode

from loupe.data.explanations.examples import draw_example
from loupe.data.explanations.truth import claims_of
from loupe.data.images.masks import read_mask
from loupe.data.images.orientation import UPRIGHT, turn
from loupe.data.training.dataset_mapper import ForgeryDatasetMapper
from loupe.explanation.guidance import region_of
from loupe.explanation.prompts import question_of
from loupe.vocabulary import Claims

Item = dict[str, Any]


class ExplanationMapper:
    """Adds `region` and `question`, and in training `explanation`, to the detector's items.

    - A dict with an `explanation` (see `readers`) keeps it; its region is its mask.
    - Any other gets an explanation that is written from its truth, another one each time.
    - A dict with a `region_file_name` is shown that map, in training and in evaluation. Without it
      an evaluation shows the whole image, unless the model finds a region itself or `oracle` is
      set: the truth is never shown unasked.

    Args:
        cfg: Configuration.
        is_train: See `ForgeryDatasetMapper`.
        oracle: Whether evaluation shows the true mask.
    """

    def __init__(self, cfg: CfgNode, is_train: bool, *, oracle: bool = False) -> None:
        self.mapper = ForgeryDatasetMapper(cfg, is_train=is_train)
        self.is_train = is_train
        self.oracle = oracle
        self.jitter = cfg.MODEL.EXPLAINER.MASK_JITTER
        self.tell = cfg.MODEL.EXPLAINER.TELL_REGION

    def __call__(self, dataset_dict: Item) -> Item:
        """Dataset dict -> item.

        Raises:
            UnreadableImageError: In training, image, mask or map cannot be used.
        """
        item = self.mapper(dataset_dict)
        if "error" in item:
            return item
        if "region_file_name" in dataset_dict:
            # A map that cannot be read is an error, not a missing region.
            region = region_of(item, read_mask(dataset_dict["region_file_name"]))
        elif self.is_train:
            height, width = item["valid_size"]
            mask = item["mask"][:height, :width].numpy() >= 0.5
            region = mask if mask.any() else None
        else:
            region = self._true_region(item) if self.oracle else None
        item["region"] = region
        if "explanation" in dataset_dict:
            item["question"] = dataset_dict["question"]
            item["explanation"] = dataset_dict["explanation"]
        elif self.is_train:
            self._write(item, dataset_dict)
        else:
            item["question"] = question_of(marked=region is not None)
        if not self.is_train:
            # For the evaluator alone.
            item["reference"] = item.pop("explanation", "")
            item["claims"] = self._true_claims(item)
        return item

    def _true_claims(self, item: Item) -> Claims | None:
        """What is true of an image whose truth is known."""
        truth = item.get("ground_truth")
        if truth is None:
            return None
        mask = self._true_region(item)
        if not truth.label or mask is None:
            return Claims("forged" if truth.label else "authentic")
        height, width = item["valid_size"]
        image = item["image"][:, :height, :width].permute(1, 2, 0).numpy()
        orientation = item.get("orientation", UPRIGHT)
        image, mask = turn(image, orientation), turn(mask, orientation)
        return claims_of(image, mask, "forged", truth.technique)

    def _true_region(self, item: Item) -> np.ndarray | None:
        truth = item.get("ground_truth")
        if truth is None or truth.mask is None:
            return None
        return region_of(item, truth.mask.astype(np.float32))

    def _write(self, item: Item, dataset_dict: Item) -> None:
        """Draws an example from the truth; NumPy's generator is seeded for each draw."""
        rng = np.random.default_rng(int(np.random.randint(2**31)))
        height, width = item["valid_size"]
        image = item["image"][:, :height, :width].permute(1, 2, 0).numpy()
        mask = item["mask"][:height, :width].numpy() >= 0.5
        technique = dataset_dict.get("technique", "")
        example = draw_example(rng, image, mask, technique, self.jitter, tell=self.tell)
        item |= {"region": example.region, "question": example.question}
        item |= {"explanation": example.explanation, "claims": example.claims}


def as_feature_item(features: torch.Tensor, line: Item) -> Item:
    """The item of features that a frozen tower computed before: see `features`."""
    return {"features": features, "file_name": line["image_id"]} | line
