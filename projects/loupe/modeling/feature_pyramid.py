"""Four scales from one patch grid (Sec. 2.2): 4x, 2x, 1x and 1/2 of it, all of the same width.

B images, C channels, h w patches.
"""

from __future__ import annotations

from timm.layers import LayerNorm2d
from torch import Tensor, nn


class ScaleBlock(nn.Sequential):
    """One halving or doubling: resample, GELU, depthwise 3 x 3, channel LayerNorm."""

    def __init__(self, dim: int, *, up: bool) -> None:
        resample = nn.ConvTranspose2d(dim, dim, 2, stride=2) if up else nn.MaxPool2d(2)
        depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        nn.init.normal_(depthwise.weight, std=0.02)
        super().__init__()
        self.resample = resample
        self.activation = nn.GELU()
        self.depthwise = depthwise
        self.norm = LayerNorm2d(dim)


class FeaturePyramid(nn.Module):
    """Strides are a quarter, half, once and twice the patch size: 3.5, 7, 14, 28 for PE-L/14."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            [
                nn.Sequential(ScaleBlock(dim, up=True), ScaleBlock(dim, up=True)),
                nn.Sequential(ScaleBlock(dim, up=True)),
                nn.Sequential(),
                nn.Sequential(ScaleBlock(dim, up=False)),
            ]
        )

    def forward(self, patches: Tensor) -> list[Tensor]:
        """(B, C, h, w) -> [(B, C, 4h, 4w), (B, C, 2h, 2w), (B, C, h, w), (B, C, h/2, w/2)]."""
        return [scale(patches) for scale in self.scales]
