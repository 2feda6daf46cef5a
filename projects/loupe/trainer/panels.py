"""Pictures of an evaluation for TensorBoard: input, truth and prediction side by side."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from detectron2.evaluation import DatasetEvaluator

from loupe.data.images.orientation import UPRIGHT, turn_back
from loupe.structures import GroundTruth
from loupe.visualization import panel


class PanelCollector(DatasetEvaluator):
    """Draws the first images that an evaluation meets, half of them forged if it can.

    It rides along as a second evaluator, so that the pictures cost no forward pass.

    Args:
        num_panels: how many pictures to draw at most.
    """

    def __init__(self, num_panels: int) -> None:
        self.num_panels = num_panels
        self.reset()

    def reset(self) -> None:
        """Forgets all pictures."""
        self.forged: list[tuple[str, np.ndarray]] = []
        self.others: list[tuple[str, np.ndarray]] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Draws the images of a batch, unless there are enough of their kind."""
        for item, output in zip(inputs, outputs, strict=True):
            truth = item.get("ground_truth")
            kind = self.forged if truth is not None and truth.label == 1 else self.others
            if len(kind) < self.num_panels and "forgery_map" in output and "image" in item:
                kind.append((item["file_name"], draw_panel(item, output, truth)))

    def evaluate(self) -> None:
        """Gives no metrics."""

    def panels(self) -> list[tuple[str, np.ndarray]]:
        """Returns (file name, picture (H, W, 3) uint8 RGB), at most `num_panels` of them."""
        num_forged = max((self.num_panels + 1) // 2, self.num_panels - len(self.others))
        chosen = self.forged[:num_forged]
        return chosen + self.others[: self.num_panels - len(chosen)]


def draw_panel(
    item: dict[str, Any], output: dict[str, Any], truth: GroundTruth | None
) -> np.ndarray:
    """Draws one image as the network saw it, so that all pictures are small and of like size.

    Args:
        item: of an evaluation batch, with "image", "valid_size" and "window".
        output: the model's prediction, with "forgery_map" and "forgery_score".
        truth: of the image; None = not known.

    Returns:
        (h, 3 * w and gaps, 3) uint8 RGB, h and w being the valid part of the network's image.
    """
    height, width = item["valid_size"]
    image = item["image"][:, :height, :width].permute(1, 2, 0).numpy()

    def shrink(full: np.ndarray) -> np.ndarray:
        full = turn_back(full, item.get("orientation", UPRIGHT))
        x0, y0, x1, y1 = (round(value) for value in item["window"])
        window = full[max(y0, 0) : max(y1, 1), max(x0, 0) : max(x1, 1)].astype(np.float32)
        return cv2.resize(window, (width, height), interpolation=cv2.INTER_AREA)

    mask = None
    if truth is not None and truth.mask is not None:
        mask = shrink(truth.mask) >= 0.5
    elif truth is not None and truth.label == 0:
        mask = np.zeros((height, width), bool)
    return panel(image, mask, shrink(output["forgery_map"].numpy()), float(output["forgery_score"]))
