"""The segmenter (Sec. 2.2): pyramid, conditional pixel decoder, mask decoder.

B images, C encoder width, h w patches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from loupe.modeling.feature_pyramid import FeaturePyramid
from loupe.modeling.mask_decoder import MaskDecoder
from loupe.modeling.pixel_decoder import Condition, ConditionalPixelDecoder
from loupe.structures import MaskOutput


class Segmenter(nn.Module):
    """Finds the forged regions, conditioned on the probability that the image is forged.

    Args:
        dim_in: Width of the encoder.
        dim: Width of both decoders.
        num_heads: Attention heads of both decoders.
        num_points: Sampling points per level and head.
        pixel_layers: Layers of the pixel decoder.
        pixel_ffn_dim: Hidden width there.
        mask_layers: Layers of the mask decoder.
        mask_ffn_dim: Hidden width there.
        num_queries: Queries per image.
        predict_boxes: Adds a box head.
        condition: "token", "pixel" or "none".
        condition_tokens: Learned embeddings for each of the two classes.
        checkpointing: Compute the pyramid and the pixel decoder's layers again for gradients.
    """

    def __init__(
        self,
        *,
        dim_in: int,
        dim: int,
        num_heads: int,
        num_points: int,
        pixel_layers: int,
        pixel_ffn_dim: int,
        mask_layers: int,
        mask_ffn_dim: int,
        num_queries: int,
        predict_boxes: bool,
        condition: str,
        condition_tokens: int,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.feature_pyramid = FeaturePyramid(dim_in, checkpointing=checkpointing)
        # Row 0 = authentic, row 1 = forged.
        self.condition_embeddings = None
        if condition != "none":
            self.condition_embeddings = nn.Parameter(torch.empty(2, condition_tokens, dim))
            nn.init.normal_(self.condition_embeddings, std=0.02)
        self.pixel_decoder = ConditionalPixelDecoder(
            dim_in=dim_in,
            dim=dim,
            num_layers=pixel_layers,
            num_heads=num_heads,
            num_points=num_points,
            ffn_dim=pixel_ffn_dim,
            condition=condition,
            checkpointing=checkpointing,
        )
        self.mask_decoder = MaskDecoder(
            dim=dim,
            num_queries=num_queries,
            num_layers=mask_layers,
            num_heads=num_heads,
            ffn_dim=mask_ffn_dim,
            predict_boxes=predict_boxes,
        )

    @property
    def num_queries(self) -> int:
        """Queries per image."""
        return self.mask_decoder.query_features.num_embeddings

    def forward(
        self,
        patches: Tensor,
        probability: Tensor | None,
        patch_valid: Tensor | None = None,
        *,
        final_only: bool = False,
    ) -> list[MaskOutput]:
        """Predicts queries at every depth.

        Args:
            patches: (B, C, h, w), zero in padding.
            probability: (B,) in [0, 1] that each image is forged; None = unconditional.
            patch_valid: (B, h, w) bool, False = padding; None = all valid.
            final_only: Compute no outputs of earlier depths, which only losses read.

        Returns:
            The mask decoder's outputs, the final one last.
        """
        condition = None
        if probability is not None and self.condition_embeddings is not None:
            condition = Condition(self.condition_embeddings, probability)
        pyramid = self.feature_pyramid(patches, self.pixel_decoder.projections)
        features = self.pixel_decoder(pyramid, condition, patch_valid)
        return self.mask_decoder(
            features.mask_features, features.memory, patch_valid, final_only=final_only
        )
