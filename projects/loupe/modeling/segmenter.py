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
    """Finds the forged regions, told how likely the image is forged at all.

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
        condition_tokens: Learned embeddings for each of the two verdicts.
    """

    def __init__(
        self,
        *,
        dim_in: int,
        dim: int = 256,
        num_heads: int = 8,
        num_points: int = 4,
        pixel_layers: int = 6,
        pixel_ffn_dim: int = 1024,
        mask_layers: int = 9,
        mask_ffn_dim: int = 2048,
        num_queries: int = 20,
        predict_boxes: bool = False,
        condition: str = "token",
        condition_tokens: int = 1,
    ) -> None:
        super().__init__()
        self.feature_pyramid = FeaturePyramid(dim_in)
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
        self, patches: Tensor, probability: Tensor | None, patch_valid: Tensor | None = None
    ) -> list[MaskOutput]:
        """Predicts queries at every depth.

        Args:
            patches: (B, C, h, w), zero in padding.
            probability: (B,) in [0, 1] that each image is forged; None = unconditional.
            patch_valid: (B, h, w) bool, False = padding.

        Returns:
            The mask decoder's outputs, the final one last.
        """
        condition = None
        if probability is not None and self.condition_embeddings is not None:
            condition = Condition(self.condition_embeddings, probability)
        pyramid = self.feature_pyramid(patches)
        features = self.pixel_decoder(pyramid, condition, patch_valid)
        return self.mask_decoder(features.mask_features, features.memory, patch_valid)
