"""What Loupe's cost is compared with: SAM-based systems, and language models that see.

Only the shapes matter here, so weights are random, or absent (the meta device). Sizes are the
published ones: SAM (arXiv 2304.02643), CLIP ViT-L/14 at 336 px, LLaVA-1.5 (arXiv 2310.03744),
LLaMA-7B (arXiv 2302.13971). B images, N tokens, C channels.
"""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

SAM_SIDE = 1024
CLIP_SIDE = 336
# Words of the question; LLaVA-1.5 puts them behind its 576 image tokens.
QUESTION_TOKENS = 64
IMAGE_TOKENS = 576
# A short answer, one token after the other.
ANSWER_TOKENS = 32
LLAMA = {"dim": 4096, "layers": 32, "heads": 32, "hidden": 11008, "words": 32000}


class Attention(nn.Module):
    """Attention whose inner width may be smaller, as in SAM's decoder."""

    def __init__(self, dim: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(dim, inner) for _ in range(3))
        self.output = nn.Linear(inner, dim)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, N, C) each -> (B, N, C)."""
        parts = [
            project(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for project, x in ((self.query, query), (self.key, key), (self.value, value))
        ]
        answer = F.scaled_dot_product_attention(*parts)
        return self.output(answer.transpose(1, 2).flatten(2))


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves and to the image, the image attends to the tokens."""

    def __init__(self, dim: int = 256, heads: int = 8, hidden: int = 2048) -> None:
        super().__init__()
        self.own = Attention(dim, heads, dim)
        self.to_image, self.to_tokens = (Attention(dim, heads, dim // 2) for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(4))

    def forward(self, tokens: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, C), (B, 4096, C) -> the same shapes."""
        tokens = self.norms[0](tokens + self.own(tokens, tokens, tokens))
        tokens = self.norms[1](tokens + self.to_image(tokens, image, image))
        tokens = self.norms[2](tokens + self.mlp(tokens))
        return tokens, self.norms[3](image + self.to_tokens(image, tokens, tokens))


class SamDecoder(nn.Module):
    """SAM's light mask decoder: two two-way blocks, upscaling by 4, four masks."""

    def __init__(self, dim: int = 256, masks: int = 4) -> None:
        super().__init__()
        # One token for the IoU, one for each mask, two for a prompt (a box, or a learned query).
        self.tokens = nn.Parameter(torch.zeros(1, 1 + masks + 2, dim))
        self.masks = masks
        self.blocks = nn.ModuleList(TwoWayBlock(dim) for _ in range(2))
        self.final = Attention(dim, 8, dim // 2)
        self.upscale = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, 2, stride=2),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 4, dim // 8, 2, stride=2),
            nn.GELU(),
        )
        self.heads = nn.ModuleList(_mlp(dim, dim // 8) for _ in range(masks))
        self.quality = _mlp(dim, masks)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, masks, 4h, 4w)."""
        B, _, h, w = image.shape
        pixels = image.flatten(2).transpose(1, 2)
        tokens = self.tokens.expand(B, -1, -1)
        for block in self.blocks:
            tokens, pixels = block(tokens, pixels)
        tokens = tokens + self.final(tokens, pixels, pixels)
        self.quality(tokens[:, 0])
        features = self.upscale(pixels.transpose(1, 2).unflatten(2, (h, w)))
        kernels = torch.stack([head(tokens[:, 1 + n]) for n, head in enumerate(self.heads)], dim=1)
        return (kernels @ features.flatten(2)).unflatten(2, features.shape[2:])


def _mlp(dim: int, out: int) -> nn.Sequential:
    layers = [nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, out)]
    return nn.Sequential(*layers)


class SamBased(nn.Module):
    """SAM's image encoder (timm's) at 1024 px, and its decoder.

    Args:
        size: "base", "large" or "huge".
    """

    def __init__(self, size: str) -> None:
        super().__init__()
        name = f"samvit_{size}_patch16"
        self.encoder = timm.create_model(name, pretrained=False, num_classes=0)
        self.decoder = SamDecoder()

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, 1024, 1024) -> four masks of 256 x 256."""
        return self.decoder(self.encoder.forward_features(images))


class LlamaLayer(nn.Module):
    """One layer: attention and gated feed-forward, no biases (rotation of positions left out)."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (
            nn.Linear(dim, dim, bias=False) for _ in range(4)
        )
        self.gate, self.up = (nn.Linear(dim, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, dim, bias=False)
        self.norms = nn.ModuleList(nn.RMSNorm(dim) for _ in range(2))

    def forward(self, x: Tensor, past: int = 0) -> Tensor:
        """(B, N, C) -> (B, N, C); keys and values of `past` earlier tokens are at hand."""
        normed = self.norms[0](x)
        query, key, value = (
            project(normed).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        earlier = key.new_zeros(*key.shape[:2], past, key.shape[3])
        key, value = torch.cat([earlier, key], 2), torch.cat([earlier, value], 2)
        answer = F.scaled_dot_product_attention(query, key, value, is_causal=past == 0)
        x = x + self.output(answer.transpose(1, 2).flatten(2))
        normed = self.norms[1](x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


class Llama(nn.Module):
    """LLaMA-7B as a plain stack."""

    def __init__(self) -> None:
        super().__init__()
        dim = LLAMA["dim"]
        self.words = nn.Embedding(LLAMA["words"], dim)
        self.layers = nn.ModuleList(
            LlamaLayer(dim, LLAMA["heads"], LLAMA["hidden"]) for _ in range(LLAMA["layers"])
        )
        self.norm = nn.RMSNorm(dim)
        self.head = nn.Linear(dim, LLAMA["words"], bias=False)

    def forward(self, x: Tensor, past: int = 0) -> Tensor:
        """(B, N, C) -> (B, words): scores of the next word."""
        for layer in self.layers:
            x = layer(x, past)
        return self.head(self.norm(x[:, -1]))


class Llava(nn.Module):
    """CLIP-L/14 at 336 px, LLaVA-1.5's projector, LLaMA-7B."""

    def __init__(self) -> None:
        super().__init__()
        name = "vit_large_patch14_clip_336"
        self.encoder = timm.create_model(name, pretrained=False, num_classes=0)
        dim = LLAMA["dim"]
        self.project = nn.Sequential(nn.Linear(1024, dim), nn.GELU(), nn.Linear(dim, dim))
        self.language = Llama()

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, 336, 336) -> (B, words): scores of the answer's first word."""
        tokens = self.project(self.encoder.forward_features(images)[:, 1:])
        question = tokens.new_zeros(len(tokens), QUESTION_TOKENS, tokens.shape[2])
        return self.language(torch.cat([tokens, question], dim=1))

    def write(self, past: int) -> Tensor:
        """One further word behind `past` tokens: (1, words)."""
        return self.language(self.language.words.weight[None, :1], past)
