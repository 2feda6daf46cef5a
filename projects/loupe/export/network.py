"""What is exported: pixels in, probability and maps out, on one canvas without padding.

B images, H W pixels of the canvas, h w patches.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from loupe.export.twins import WholeBatchCopies
from loupe.modeling.deformable_attention import DeformableAttention
from loupe.modeling.forensic.copies import CopyBranch
from loupe.modeling.loupe import Loupe
from loupe.modeling.postprocessing import shift_odds
from loupe.ops.reference import ms_deform_attn_fused_reference

INPUT = "images"
OUTPUTS = ("probability", "forgery_map", "patch_map")


class ExportError(ValueError):
    """A model that cannot be exported, and why."""


class ExportedLoupe(nn.Module):
    """A `Loupe` as a function of pixels.

    Args:
        model: In evaluation mode; it is left as it is.
        size: (H, W) of the images, multiples of the patch size.

    Raises:
        ExportError: The size does not fit, or the model has no patch map.
    """

    def __init__(self, model: Loupe, size: tuple[int, int]) -> None:
        super().__init__()
        if any(side < 1 or side % model.patch_size for side in size):
            raise ExportError(
                f"the size is {size[0]} x {size[1]}; both must be multiples of the patch size "
                f"{model.patch_size}"
            )
        if model.classifier.patch_head is None:
            raise ExportError("a model without patch prediction cannot be exported")
        self.size = size
        self.model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
        replace_parts(self.model, size)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predicts.

        Args:
            images: (B, 3, H, W) float32, RGB from 0 to 255.

        Returns:
            Probability (B,), not calibrated; forgery map (B, H, W); patch map (B, h, w).
        """
        model: Any = self.model
        features = model.backbone((images - model.pixel_mean) / model.pixel_std, None)
        classification = model.classifier(**features, patch_valid=None)
        probability = classification.image_logits.float().sigmoid()
        patch_map = classification.patch_logits.float().sigmoid()
        return probability, self._maps(features["patches"], probability, patch_map), patch_map

    def _maps(self, patches: Tensor, probability: Tensor, patch_map: Tensor) -> Tensor:
        """As `Loupe.predict` does image by image, for the batch."""
        model, size = self.model, self.size
        if model.segmenter is None:
            return _resized(patch_map[:, None], size)[:, 0]
        output = model.segmenter(patches, probability, None, final_only=True)[-1]
        forged = output.class_logits.float().softmax(dim=2)[:, :, 0]
        masks = _resized(output.mask_logits.float(), size).sigmoid()
        maps = (forged[:, :, None, None] * masks).sum(dim=1).clamp(0, 1)
        if model.patch_share:
            maps = torch.lerp(maps, _resized(patch_map[:, None], size)[:, 0], model.patch_share)
        shifted = shift_odds(maps, model.mask_from)
        return torch.where(
            (probability >= model.mask_from_probability)[:, None, None], shifted, maps
        )


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return nn.functional.interpolate(maps, size, mode="bilinear", align_corners=False)


def replace_parts(model: nn.Module, size: tuple[int, int]) -> None:
    """Puts the twins in the places of what a graph cannot hold."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, DeformableAttention):
                child.operator = ms_deform_attn_fused_reference  # `grid_sample`.
            elif isinstance(child, CopyBranch):
                setattr(parent, name, WholeBatchCopies(child, size))
