"""Patch-aware classifier (Sec. 2.1): a logit for the image and one for each patch.

B images, C channels, h w patches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loupe.modeling.layers import Mlp
from loupe.structures import ClassifierOutput


class PatchAwareClassifier(nn.Module):
    """Global head on the pooled feature, patch head on each patch, one linear layer to fuse them.

    fused = w_0 global + sum over cells i of w_i patch_i, every weight 1 / (1 + cells) at first.

    Args:
        dim: Width of the encoder.
        grid_size: Patch grid (h, w) of the training size; the fusion has one weight for each cell.
        patch_prediction: Without it the global logit is the image's (Table 2).
        fusion: Without it patches are predicted and supervised, but the global logit is the
            image's.
    """

    def __init__(
        self,
        *,
        dim: int,
        grid_size: tuple[int, int],
        patch_prediction: bool,
        fusion: bool,
    ) -> None:
        super().__init__()
        self.grid_size = grid_size
        self.image_head = Mlp(dim, 2 * dim, 1, activation=nn.GELU)
        self.patch_head = Mlp(dim, 2 * dim, 1, activation=nn.GELU) if patch_prediction else None
        self.fusion = None
        if patch_prediction and fusion:
            inputs = 1 + grid_size[0] * grid_size[1]
            self.fusion = nn.Linear(inputs, 1, bias=False)
            nn.init.constant_(self.fusion.weight, 1 / inputs)

    def forward(
        self, patches: Tensor, pooled: Tensor, patch_valid: Tensor | None = None
    ) -> ClassifierOutput:
        """Classifies images and their patches.

        Args:
            patches: (B, C, h, w).
            pooled: (B, C).
            patch_valid: (B, h, w) bool, False = padding, which adds nothing to the fused logit;
                None = all valid.

        Returns:
            Image logits (B,) and patch logits (B, h, w).
        """
        global_logits = self.image_head(pooled)
        if self.patch_head is None:
            return ClassifierOutput(global_logits.squeeze(1), None)
        patch_logits = self.patch_head(patches.permute(0, 2, 3, 1)).squeeze(3)
        if self.fusion is None:
            return ClassifierOutput(global_logits.squeeze(1), patch_logits)
        evidence = patch_logits
        if patch_valid is not None:
            evidence = evidence.masked_fill(~patch_valid, 0.0)
        if tuple(evidence.shape[1:]) != self.grid_size:
            # The weights belong to the training grid; another grid is pooled onto it.
            evidence = F.adaptive_avg_pool2d(evidence[:, None], self.grid_size)[:, 0]
        fused = self.fusion(torch.cat([global_logits, evidence.flatten(1)], dim=1))
        return ClassifierOutput(fused.squeeze(1), patch_logits)
