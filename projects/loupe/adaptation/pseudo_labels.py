"""From the classifier's logits to targets for the segmenter, and how far masks agree with them.

    p = sigmoid(image logit)            probability, the condition of the segmenter
    t = sigmoid(patch logits / T)       patch map
    target = t if p > 1/2, else none    pseudo-target of the mask (Sec. 2.3)

B images, Q queries, H W cells of a mask, h w patches.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from loupe.modeling.loupe import ClassifiedBatch
from loupe.structures import ClassifierOutput, MaskOutput, Targets

# A region of less than this fraction of the image counts as noise: two maps that are empty apart
# from that agree.
NOISE_FRACTION = 0.02


def pseudo_targets(classification: ClassifierOutput, temperature: float = 1.0) -> Targets:
    """Turns the classifier's output into targets of the masks.

    Args:
        classification: Output of the classifier with patch prediction.
        temperature: T; below 1 the patch map becomes sharper.

    Returns:
        Soft masks on the patch grid, none for an image that is called authentic; `labels` holds
        the probabilities.
    """
    probability = classification.image_logits.detach().float().sigmoid()
    maps = patch_maps(classification, temperature)
    masks = [
        patch_map[None] if forged else patch_map[None][:0]
        for forged, patch_map in zip((probability > 0.5).tolist(), maps, strict=True)
    ]
    known = torch.ones_like(probability, dtype=torch.bool)
    return Targets(probability, masks, maps, known[:, None, None].expand_as(maps), known)


def patch_maps(classification: ClassifierOutput, temperature: float = 1.0) -> Tensor:
    """(B, h, w): the probability that each patch is forged, without a graph.

    Raises:
        ValueError: The classifier predicts no patches.
    """
    if classification.patch_logits is None:
        raise ValueError(
            "adaptation needs the patch map: set MODEL.CLASSIFIER.PATCH_PREDICTION to True"
        )
    return (classification.patch_logits.detach().float() / temperature).sigmoid()


@torch.no_grad()
def disagreement_with_patch_maps(
    output: MaskOutput, batch: ClassifiedBatch, temperature: float = 1.0
) -> Tensor:
    """(B,) in [0, 1]: `disagreement` of masks and pseudo-targets on the patch grid.

    Args:
        output: A prediction of the segmenter.
        batch: The images of that prediction.
        temperature: T.
    """
    forged = output.class_logits.float().softmax(dim=2)[..., 0]
    maps = torch.einsum("bq,bqhw->bhw", forged, output.mask_logits.float().sigmoid()).clamp(0, 1)
    targets = patch_maps(batch.classification, temperature)
    targets = targets * (batch.classification.image_logits > 0)[:, None, None]
    h, w = targets.shape[1:]
    maps = F.adaptive_avg_pool2d(maps[:, None], (h, w))[:, 0]
    return disagreement(maps, targets, batch.inputs.patch_valid)


def disagreement(maps: Tensor, reference: Tensor, patch_valid: Tensor | None = None) -> Tensor:
    """(B,) in [0, 1]: 1 - soft IoU, smoothed so that two nearly empty maps agree.

        D(a, b) = sum |a - b| / (sum max(a, b) + noise fraction * number of patches)

    Args:
        maps: (B, h, w) in [0, 1].
        reference: Likewise.
        patch_valid: (B, h, w) bool, False = padding; None = all valid.
    """
    valid = torch.ones_like(maps) if patch_valid is None else patch_valid.to(maps)
    difference = ((maps - reference).abs() * valid).flatten(1).sum(dim=1)
    union = (torch.maximum(maps, reference) * valid).flatten(1).sum(dim=1)
    return difference / (union + NOISE_FRACTION * valid.flatten(1).sum(dim=1))
