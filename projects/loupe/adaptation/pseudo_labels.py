"""From verdicts to targets, how far to trust them, and how well masks and targets agree.

B images, Q queries, H W cells of a mask, h w patches.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from loupe.structures import ClassifierOutput, MaskOutput, Targets

# A region of less than this share of the image counts as noise: maps that are empty but for that
# agree.
NOISE_SHARE = 0.02


def pseudo_targets(
    verdict: ClassifierOutput, confidence_margin: float = 0.0, temperature: float = 1.0
) -> Targets:
    """Turns verdicts into targets: the patch map of an image called forged, no mask otherwise.

    Args:
        verdict: Output of the classifier with patch prediction.
        confidence_margin: Images whose probability is nearer to 0.5 than this teach nothing.
        temperature: Divides the patch logits; below 1 the map becomes sharper.

    Returns:
        Soft masks on the patch grid; `labels` holds the probabilities.
    """
    if verdict.patch_logits is None:
        raise ValueError(
            "adaptation needs the patch map: set MODEL.CLASSIFIER.PATCH_PREDICTION to True"
        )
    probability = verdict.image_logits.detach().float().sigmoid()
    patch_maps = (verdict.patch_logits.detach().float() / temperature).sigmoid()
    masks = [
        patch_map[None] if forged else patch_map[None][:0]
        for forged, patch_map in zip((probability > 0.5).tolist(), patch_maps, strict=True)
    ]
    confident = (probability - 0.5).abs() >= confidence_margin
    valid = confident[:, None, None].expand_as(patch_maps)
    masks = [
        mask if sure else mask[:0] for mask, sure in zip(masks, confident.tolist(), strict=True)
    ]
    return Targets(probability, masks, patch_maps, valid, confident)


@torch.no_grad()
def blend(targets: Targets, teacher: MaskOutput, share: float) -> Targets:
    """Mixes the teacher's masks into the targets of images called forged, at the masks' size.

    The patch map says where, the teacher keeps the outlines that a patch grid is too coarse for.

    Args:
        targets: On the patch grid.
        teacher: Its prediction for the images that have a target, at least one.
        share: Of the teacher.
    """
    maps = query_maps(teacher)[:, None]
    rest = iter(maps)
    masks = []
    for mask in targets.masks:
        # An image without a target needs an empty one of the same size.
        blended = maps[0, :0]
        if len(mask):
            own = next(rest)
            fine = F.interpolate(mask[None], own.shape[1:], mode="bilinear", align_corners=False)
            blended = share * own + (1 - share) * fine[0]
        masks.append(blended)
    return targets._replace(masks=masks)


def query_maps(output: MaskOutput) -> Tensor:
    """(B, H, W) in [0, 1]: the maps that a prediction amounts to, at the masks' own size."""
    forged = output.class_logits.float().softmax(dim=2)[..., 0]
    return torch.einsum("bq,bqhw->bhw", forged, output.mask_logits.float().sigmoid()).clamp(0, 1)


@torch.no_grad()
def grid_maps(output: MaskOutput, grid: tuple[int, int]) -> Tensor:
    """(B, h, w) in [0, 1]: the maps of a prediction on the patch grid."""
    return F.adaptive_avg_pool2d(query_maps(output)[:, None], grid)[:, 0]


def reference_maps(verdict: ClassifierOutput, temperature: float = 1.0) -> Tensor:
    """(B, h, w): what the verdicts say about each patch; nothing in images called authentic."""
    assert verdict.patch_logits is not None
    called = verdict.image_logits.float() > 0
    return (verdict.patch_logits.float() / temperature).sigmoid() * called[:, None, None]


def disagreement(maps: Tensor, reference: Tensor, patch_valid: Tensor | None = None) -> Tensor:
    """(B,) in [0, 1]: 1 - soft IoU, smoothed so that two nearly empty maps agree.

    Args:
        maps: (B, h, w) in [0, 1].
        reference: Likewise.
        patch_valid: (B, h, w) bool, False = padding; None = all valid.
    """
    valid = torch.ones_like(maps) if patch_valid is None else patch_valid.to(maps)
    difference = ((maps - reference).abs() * valid).flatten(1).sum(dim=1)
    union = (torch.maximum(maps, reference) * valid).flatten(1).sum(dim=1)
    return difference / (union + NOISE_SHARE * valid.flatten(1).sum(dim=1))


def image_weights(kind: str, probability: Tensor, disagreements: Tensor) -> Tensor | None:
    """(B,) weights in [0, 1]; None = all alike.

    Args:
        kind: See `AdaptationSettings.image_weight`.
        probability: (B,) that the image is forged.
        disagreements: (B,) of the present masks with the patch maps.
    """
    if kind == "none":
        return None
    if kind == "agreement":
        return 1 - disagreements
    entropy = torch.special.entr(probability) + torch.special.entr(1 - probability)
    return 1 - entropy / math.log(2)
