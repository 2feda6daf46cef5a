"""Tuples passed between the parts of Loupe.

One polarity everywhere: 1 = forged, 0 = authentic.
Letters: B images, Q queries, R forged regions of one image, H W pixels, h w patch-grid cells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import cv2
import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

# An image or a pixel is called forged above this probability; in 8-bit maps, above 127.
THRESHOLD = 0.5

# What an image can be, for models and data sets that tell three: nothing of it is forged, all of it
# was made by a generator, or a part of it was changed.
CLASSES = ("authentic", "generated", "tampered")


def class_of(label: int, wholly_forged: bool) -> str:
    """The class of an image from what a data set says of it: one of CLASSES."""
    return CLASSES[0] if not label else CLASSES[1 if wholly_forged else 2]


def class_names(count: int) -> tuple[str, ...]:
    """Names of the classes of a model that tells so many: 2 or 3.

    Example:
        >>> class_names(2)
        ('authentic', 'tampered')
    """
    return CLASSES if count == len(CLASSES) else (CLASSES[0], CLASSES[-1])


class Photographs(Protocol):
    """Photographs to forge, each read or made when it is asked for."""

    def __len__(self) -> int:
        """Number of photographs."""

    def __getitem__(self, index: int, /) -> np.ndarray:
        """(H, W, 3) uint8 RGB, not to be written to."""


class Targets(NamedTuple):
    """What a training step is supervised with, on the network's grid.

    Attributes:
        labels: (B,) float; 1 = the image is forged.
        masks: B tensors (R, H, W) in [0, 1]; R = 0 for an authentic image.
        patch_ratios: (B, h, w), fraction of forged pixels in each patch.
        patch_valid: (B, h, w) bool; False where a patch is padding alone, or where no mask is
            known.
        mask_known: (B,) bool; False leaves the image out of all losses on masks.
    """

    labels: Tensor
    masks: list[Tensor]
    patch_ratios: Tensor
    patch_valid: Tensor
    mask_known: Tensor


class ClassifierOutput(NamedTuple):
    """Logits of the patch-aware classifier.

    Attributes:
        image_logits: (B,) fused logit; its sigmoid is the probability that the image is forged.
        patch_logits: (B, h, w), or None where patch prediction is switched off.
    """

    image_logits: Tensor
    patch_logits: Tensor | None


class MaskOutput(NamedTuple):
    """One prediction of the mask decoder (there is one before the first layer and one after each).

    Attributes:
        class_logits: (B, Q, 2); index 0 = forged, 1 = no object.
        mask_logits: (B, Q, H, W) at the mask features' size.
        boxes: (B, Q, 4) normalised cx, cy, w, h in [0, 1], or None without a box head.
    """

    class_logits: Tensor
    mask_logits: Tensor
    boxes: Tensor | None


class LossCounts(NamedTuple):
    """What the loss sums are divided by. Counts add up over micro-batches and processes.

    All depend on the targets alone, so a trainer can add them over a whole optimiser step before
    the first forward pass; that is what makes 4 x 2 accumulated equal 1 x 8.

    Attributes:
        images: number of images.
        patches: number of patches that are not padding.
        masks: number of target masks that a query can be matched to.
        class_weights: sum over all queries of their class weight (1 matched, `no object` else).
    """

    images: float
    patches: float
    masks: float
    class_weights: float


class GroundTruth(NamedTuple):
    """The truth about one test image. Only an evaluator reads it; the model never does.

    Attributes:
        label: 1 = forged.
        mask: (height, width) bool at the image's own size; None = no mask is known (an authentic
            image needs none: all its pixels are authentic).
        technique: how it was forged; "" where the data set does not tell.
        source: where it comes from; "" where the data set does not tell.
        wholly_forged: The image was generated as a whole.
    """

    label: int
    mask: np.ndarray | None
    technique: str = ""
    source: str = ""
    wholly_forged: bool = False


class MarkedRegion(NamedTuple):
    """One connected part of a forgery map above the threshold.

    Attributes:
        box: (x0, y0, x1, y1) in pixels of the image; x1 and y1 are excluded.
        area: in pixels.
        mean_score: mean of the forgery map inside.
    """

    box: tuple[int, int, int, int]
    area: int
    mean_score: float


class Prediction(NamedTuple):
    """The prediction for one image.

    Attributes:
        score: probability that the image is forged, calibrated where the weights carry a rule.
        forgery_map: (height, width) float32 in [0, 1] at the image's own size.
        patch_map: (h, w) float32 in [0, 1], the patch classifier's map; None if it has none.
        verdict: "authentic", "forged" or "undecided"; "" where the weights carry no rule.
        reasons: why it is undecided.
        views: what the network saw of the image, in words: shrunk how far, how many windows.
        class_probabilities: by name of the class, as the network gives them for the whole image;
            empty where the model tells no classes.
    """

    score: float
    forgery_map: np.ndarray
    patch_map: np.ndarray | None
    verdict: str = ""
    reasons: tuple[str, ...] = ()
    views: tuple[str, ...] = ()
    class_probabilities: dict[str, float] = {}

    @property
    def class_name(self) -> str:
        """The most probable class; "" where the model tells no classes."""
        return max(self.class_probabilities, key=self.class_probabilities.__getitem__, default="")

    @property
    def probability(self) -> float:
        """Probability that the image is forged: the score by its other name."""
        return self.score

    @property
    def regions(self) -> tuple[MarkedRegion, ...]:
        """The marked regions, largest first; specks below a 20,000th of the image are left out."""
        return marked_regions(self.forgery_map)


# Smallest region that is listed, as a fraction of the image, and the most of them.
SMALLEST_REGION, MOST_REGIONS = 5e-5, 100


def marked_regions(
    forgery_map: np.ndarray, threshold: float = THRESHOLD
) -> tuple[MarkedRegion, ...]:
    """Connected parts of a forgery map above a threshold, largest first.

    Args:
        forgery_map: (H, W) in [0, 1].
        threshold: a pixel is marked above it.
    """
    forged = (forgery_map > threshold).astype(np.uint8)
    # Labels take four bytes a pixel: only the part that holds all regions gets them.
    left, top, columns, rows = cv2.boundingRect(forged)
    if not columns:
        return ()
    marked = np.s_[top : top + rows, left : left + columns]
    count, labels, stats, _ = cv2.connectedComponentsWithStats(forged[marked], connectivity=8)
    least = max(1.0, SMALLEST_REGION * forgery_map.size)
    order = 1 + np.argsort(-stats[1:count, cv2.CC_STAT_AREA], kind="stable")
    regions = []
    for label in order[:MOST_REGIONS]:
        x, y, width, height, area = (int(value) for value in stats[label])
        if area < least:
            break
        part = np.s_[y : y + height, x : x + width]
        mean = float(forgery_map[marked][part][labels[part] == label].mean())
        x, y = x + left, y + top
        regions.append(MarkedRegion((x, y, x + width, y + height), area, mean))
    return tuple(regions)
