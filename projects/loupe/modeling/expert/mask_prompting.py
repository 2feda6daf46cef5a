"""From features of the segmentation encoder and prompts to mask logits, by SAM's mask decoder.

SAM is arXiv 2304.02643. Prompts enter as sparse embeddings, without position; there is no mask
prompt, so the dense embedding is `no_mask_embed` everywhere.

B images, P prompts, D width, h w cells of the segmentation features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class MaskPrompting(nn.Module):
    """SAM's prompt encoder, which stays as it is, and its mask decoder, which learns.

    Args:
        prompt_encoder: transformers' `SamPromptEncoder`.
        mask_decoder: transformers' `SamMaskDecoder`.
    """

    # transformers does not say what its modules hold.
    prompt_encoder: Any
    mask_decoder: Any

    def __init__(self, prompt_encoder: Any, mask_decoder: Any) -> None:
        super().__init__()
        self.prompt_encoder = prompt_encoder.requires_grad_(False)
        self.mask_decoder = mask_decoder
        # Of four masks the first is used, and no loss looks at the predicted overlap.
        mask_decoder.iou_prediction_head.requires_grad_(False)
        mask_decoder.output_hypernetworks_mlps[1:].requires_grad_(False)

    @property
    def dim(self) -> int:
        """Width D of features and prompts."""
        return int(self.prompt_encoder.hidden_size)

    def position(self, h: int, w: int) -> Tensor:
        """(1, D, h, w): random Fourier features of the cells' centres."""
        device = self.prompt_encoder.no_mask_embed.weight.device
        y, x = ((torch.arange(cells, device=device) + 0.5) / cells for cells in (h, w))
        rows, columns = torch.meshgrid(y, x, indexing="ij")
        grid = torch.stack([columns, rows], dim=-1)[None]
        return self.prompt_encoder.shared_embedding(grid).permute(0, 3, 1, 2)

    def forward(self, features: Tensor, prompts: Tensor) -> Tensor:
        """Decodes one mask for each image.

        Args:
            features: (B, D, h, w).
            prompts: (B, P, D).

        Returns:
            (B, 4 h, 4 w) logits.
        """
        count, dim, h, w = features.shape
        dense = self.prompt_encoder.no_mask_embed.weight.view(1, dim, 1, 1)
        masks, _ = self.mask_decoder(
            image_embeddings=features,
            image_positional_embeddings=self.position(h, w).expand(count, -1, -1, -1),
            sparse_prompt_embeddings=prompts[:, None],
            dense_prompt_embeddings=dense.expand(count, -1, h, w),
            multimask_output=False,
        )
        return masks[:, 0, 0]
