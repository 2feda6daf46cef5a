"""High-pass residuals: the noise of an image, and how neighbouring pixels depend on each other.

An image is content plus noise. A filter whose coefficients sum to 0 removes smooth content; what is
left carries the traces of the camera and of processing. The second difference along a direction d,

    r_d(x) = I(x - d) - 2 I(x) + I(x + d),

is 0 wherever I is linear along d. Four directions and the 3 x 3 square kernel are second-order
residuals of the spatial rich model (Fridrich and Kodovsky, IEEE TIFS 7(3), 2012). A region from
another image, or one that was resized, blurred or compressed on its own, has other energies.

Colour cameras measure one colour per pixel and interpolate the others, so residuals at the four
positions of a 2 x 2 raster have unequal energies; so do those of resampled images (Popescu and
Farid, IEEE TSP 53(2) and 53(10), 2005). A region pasted at an odd offset breaks that.

B images, C channels of the tokens, R residuals (5 kernels x 3 colours), H W pixels, h w patches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loupe.modeling.canvas import valid_patches
from loupe.modeling.forensic.pixels import log_mean, relative_to_image

# Second differences along four directions, and the square kernel.
KERNELS = (
    ((0, 0, 0), (1, -2, 1), (0, 0, 0)),
    ((0, 1, 0), (0, -2, 0), (0, 1, 0)),
    ((1, 0, 0), (0, -2, 0), (0, 0, 1)),
    ((0, 0, 1), (0, -2, 0), (1, 0, 0)),
    ((-1, 2, -1), (2, -4, 2), (-1, 2, -1)),
)
NUM_RESIDUALS = 3 * len(KERNELS)
# Side of a cell in pixels: large enough for a stable mean of |r|, small enough to follow outlines.
CELL = 4


class ResidualBranch(nn.Module):
    """Logarithms of mean |r| in cells, absolute and relative to the image.

    Fine energies are means over cells of 4 px. Raster energies are means over cells of 8 px for
    each of the four positions of a 2 x 2 raster.

    Args:
        embed_dim: Width of the tokens.
        patch_size: 8, 16 or 32 pixels.
    """

    kernels: Tensor

    def __init__(self, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        kernels = torch.tensor(KERNELS, dtype=torch.float32)[:, None]
        self.register_buffer("kernels", kernels.repeat(3, 1, 1, 1), persistent=False)
        # From cells of 4 px to cells of 8 px.
        self.cells = nn.Sequential(
            nn.Conv2d(3 + 2 * NUM_RESIDUALS, 96, 3, stride=2, padding=1), nn.GELU()
        )
        layers: list[nn.Module] = [
            nn.Conv2d(96 + 8 * NUM_RESIDUALS, embed_dim, 3, padding=1),
            nn.GELU(),
        ]
        # From cells of 8 px to patches: none for 8, one halving for 16, two for 32.
        for _ in range(patch_size.bit_length() - 4):
            layers += [nn.Conv2d(embed_dim, embed_dim, 3, stride=2, padding=1), nn.GELU()]
        self.tokens = nn.Sequential(*layers, nn.Conv2d(embed_dim, embed_dim, 1))

    def forward(self, images: Tensor, valid: Tensor) -> Tensor:
        """(B, 3, H, W), (B, H, W) bool -> (B, C, h, w)."""
        patch_valid = valid_patches(valid, self.patch_size)
        fine, raster = self.energies(images)
        x = torch.cat(
            [F.avg_pool2d(images, CELL), fine, relative_to_image(fine, patch_valid)], dim=1
        )
        x = torch.cat([self.cells(x), raster, relative_to_image(raster, patch_valid)], dim=1)
        return self.tokens(x)

    @torch.no_grad()
    def energies(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Fine (B, R, H / 4, W / 4) and raster energies (B, 4 R, H / 8, W / 8), as logarithms.

        Always in float32: half precision rounds pixels near 1 by more than the residuals are.
        """
        with torch.autocast(images.device.type, enabled=False):
            padded = F.pad(images.float(), (1, 1, 1, 1), mode="replicate")
            size = F.conv2d(padded, self.kernels, groups=3).abs_()
            # The four raster positions as channels of their own: pixel_unshuffle, but faster.
            raster = [size[..., y::2, x::2] for y in range(2) for x in range(2)]
            return log_mean(size, CELL), log_mean(torch.stack(raster, dim=2).flatten(1, 2), CELL)
