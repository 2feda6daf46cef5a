"""From a tower's tokens to a verdict and the prompt that tells a mask decoder what to look for.

    l = MLP(class token)                                class logits
    p_i = ReLU(W_p patch_i)                             evidence of each patch
    a = Attention(query W_q l, keys p, values p)        what of it fits the verdict
    prompt = mean_i(p_i + a) = mean(p) + a              "vector": one prompt, places are lost
    prompt_i = p_i + a                                  "tokens": one prompt for each patch

The raw logits make the query, so the losses on masks reach the verdict, too.

B images, K classes, C width of the tower, D width of the prompt, h w patches, N = h w, P prompts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PROMPTS = ("vector", "tokens")


class Evidence(NamedTuple):
    """What the tower says of a batch.

    Attributes:
        class_logits: (B, K); class 0 = authentic.
        prompts: (B, P, D); P = 1, or N for "tokens".
    """

    class_logits: Tensor
    prompts: Tensor


class EvidencePrompt(nn.Module):
    """Verdict head, patch projection and the attention between them.

    Args:
        dim: Width C of the tower.
        num_classes: K.
        hidden_dim: Hidden width of the verdict head.
        prompt_dim: Width D of the prompt.
        num_heads: Heads of the attention.
        prompt: One of PROMPTS.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_classes: int,
        hidden_dim: int,
        prompt_dim: int,
        num_heads: int,
        prompt: str,
    ) -> None:
        super().__init__()
        if prompt not in PROMPTS:
            raise ValueError(f"MODEL.EXPERT.PROMPT is {prompt!r}; use one of {', '.join(PROMPTS)}")
        self.prompt = prompt
        self.verdict_head = nn.Sequential(
            nn.Linear(dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, num_classes)
        )
        self.patch_projection = nn.Linear(dim, prompt_dim)
        self.verdict_projection = nn.Linear(num_classes, prompt_dim)
        self.attention = nn.MultiheadAttention(prompt_dim, num_heads, batch_first=True)

    def forward(self, pooled: Tensor, patches: Tensor, patch_valid: Tensor | None) -> Evidence:
        """Classifies images, and makes their prompts.

        Args:
            pooled: (B, C) class token, or what stands for it.
            patches: (B, C, h, w).
            patch_valid: (B, h, w) bool, False = padding, which gives no evidence; None = all valid.
        """
        logits = self.verdict_head(pooled)
        evidence = F.relu(self.patch_projection(patches.flatten(2).transpose(1, 2)))
        query = self.verdict_projection(logits)[:, None]
        padding = None if patch_valid is None else ~patch_valid.flatten(1)
        attended, _ = self.attention(
            query, evidence, evidence, key_padding_mask=padding, need_weights=False
        )
        if padding is None:
            mean = evidence.mean(dim=1, keepdim=True)
        else:
            weight = (~padding)[..., None].to(evidence.dtype)
            mean = (evidence * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
        if self.prompt == "vector":
            return Evidence(logits, mean + attended)
        if padding is not None:
            # The mask decoder attends to all prompts: padding repeats the mean of the image.
            evidence = torch.where(padding[..., None], mean, evidence)
        return Evidence(logits, evidence + attended)
