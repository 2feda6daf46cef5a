"""Four scales from one patch grid (Sec. 2.2): 4x, 2x, 1x and 1/2 of it, all of the same width.

As ViTDet (arXiv 2203.16527) does, from the last feature map alone; the blocks are the released
code's, not ViTDet's. B images, C channels, h w patches.
"""

from __future__ import annotations

from collections.abc import Iterable

from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from loupe.modeling.layers import recomputed


class Halving(nn.Module):
    """Maximum of 2 x 2 cells. A side of one cell stays: tiny images have such grids."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, max(1, h // 2), max(1, w // 2))."""
        return F.max_pool2d(x, (min(2, x.shape[2]), min(2, x.shape[3])))


class ScaleBlock(nn.Sequential):
    """One halving or doubling: resample, GELU, depthwise 3 x 3, channel LayerNorm."""

    def __init__(self, dim: int, *, up: bool) -> None:
        resample = nn.ConvTranspose2d(dim, dim, 2, stride=2) if up else Halving()
        depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        nn.init.normal_(depthwise.weight, std=0.02)
        super().__init__()
        self.resample = resample
        self.activation = nn.GELU()
        self.depthwise = depthwise
        self.norm = LayerNorm2d(dim)


class FeaturePyramid(nn.Module):
    """Strides are a quarter, half, once and twice the patch size: 3.5, 7, 14, 28 for PE-L/14."""

    def __init__(self, dim: int, *, checkpointing: bool = False) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.scales = nn.ModuleList(
            [
                nn.Sequential(ScaleBlock(dim, up=True), ScaleBlock(dim, up=True)),
                nn.Sequential(ScaleBlock(dim, up=True)),
                nn.Sequential(),
                nn.Sequential(ScaleBlock(dim, up=False)),
            ]
        )

    def forward(self, patches: Tensor, projections: Iterable[nn.Module]) -> list[Tensor]:
        """Makes the four maps, each projected before the next one is made at full width.

        Args:
            patches: (B, C, h, w).
            projections: One for each map, finest first: (B, C, ...) -> (B, C', ...).

        Returns:
            [(B, C', 4h, 4w), (B, C', 2h, 2w), (B, C', h, w), (B, C', h/2, w/2)].
        """
        return [
            recomputed(nn.Sequential(scale, projection), patches, enabled=self.checkpointing)
            for scale, projection in zip(self.scales, projections, strict=True)
        ]
