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

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loupe.modeling.canvas import valid_patches
from loupe.modeling.forensic.pixels import cell_mean, normalised_log, relative_to_image

# Of each colour: second differences along four directions, and the square kernel.
NUM_RESIDUALS = 3 * 5
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
        x = torch.cat([cell_mean(images, CELL), fine, relative_to_image(fine, patch_valid)], dim=1)
        x = torch.cat([self.cells(x), raster, relative_to_image(raster, patch_valid)], dim=1)
        return self.tokens(x)

    @torch.no_grad()
    def energies(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Fine (B, R, H / 4, W / 4) and raster energies (B, 4 R, H / 8, W / 8), as logarithms.

        Always in float32: half precision rounds pixels near 1 by more than the residuals are.
        """
        with torch.autocast(images.device.type, enabled=False):
            # (B, R, 2, 2, H / 4, W / 4): of each cell and raster position, a sum over 4 pixels.
            sums = torch.stack([_raster_sums(r) for r in _residuals(images.float())], dim=2)
            sums = sums.flatten(1, 2)
            fine = sums.sum(dim=(2, 3)) / (CELL * CELL)
            return normalised_log(fine), normalised_log(cell_mean(sums.flatten(1, 3) / 4, 2))


def _residuals(images: Tensor) -> Iterator[Tensor]:
    """Each residual, up to its sign, as (B, 3, CELL, CELL, H / CELL, W / CELL).

    Pixels come by their place in their cell first, so that all sums run over whole planes: of a
    cell and of the pixels around it, CELL + 2 rows and columns of planes.
    """
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    side = CELL + 2
    planes = padded.unfold(2, side, CELL).unfold(3, side, CELL)
    planes = planes.permute(0, 1, 4, 5, 2, 3).contiguous()
    before, here, after = slice(0, CELL), slice(1, CELL + 1), slice(2, side)
    twice = 2 * planes[:, :, here, here]
    across = planes[:, :, :, before] + planes[:, :, :, after] - 2 * planes[:, :, :, here]
    yield across[:, :, here]
    yield planes[:, :, before, here] + planes[:, :, after, here] - twice
    yield planes[:, :, before, before] + planes[:, :, after, after] - twice
    yield planes[:, :, before, after] + planes[:, :, after, before] - twice
    # The square kernel is the second difference down of that across, negated.
    yield across[:, :, before] + across[:, :, after] - 2 * across[:, :, here]


def _raster_sums(residual: Tensor) -> Tensor:
    """Sums of |r| by raster position, (B, 3, CELL, CELL, h, w) -> (B, 3, 2, 2, h, w)."""
    size = residual.abs()
    size = size[:, :, :2] + size[:, :, 2:]
    return size[:, :, :, :2] + size[:, :, :, 2:]
