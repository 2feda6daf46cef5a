"""Parts of the model that compute the same with what a graph of ONNX has.

A graph has no loop over the images of a batch, no complex numbers and no operator of Loupe's own.
So these twins take whole batches of images without padding:

- Fourier transforms are products with matrices of cosines and sines. With a real x of zero-padded
  size N x M, X = W_N x W_M^T, W_uv = exp(-2 pi i u v / N), is four products of real matrices. The
  inverse of a spectrum P that is real and even, as a power spectrum is, has cosines alone:

      c(y, x) = 1 / (N M) sum over u, v of P(u, v) cos(2 pi (u y / N + v x / M)),

  cos(a + b) = cos a cos b - sin a sin b, and columns v and M - v are equal, so half are summed.
- A shift by `roll` is a gather.

B images, H W pixels, K shifts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loupe.modeling.forensic import copies
from loupe.modeling.forensic.copies import CopyBranch

# Squares of the autocorrelation of which the highest peak counts; see copies.py.
_SQUARE = 4


class WholeBatchCopies(nn.Module):
    """`CopyBranch` for batches of images of one size without padding.

    Args:
        original: Whose layers are used.
        size: (H, W) of the images, multiples of CELL.
    """

    def __init__(self, original: CopyBranch, size: tuple[int, int]) -> None:
        super().__init__()
        self.cells = original.cells
        self.places, self.image, self.tokens = original.places, original.image, original.tokens
        self.search = ShiftSearch(size)

    def forward(self, images: Tensor, valid: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, C, h, w); `valid` is all True."""
        grey = copies.GREY_LEVELS * copies.luma(images)
        similarity, texture, peaks = self.similarity(grey)
        area = (similarity - copies.CHANCE).clamp(min=0).square().sum(dim=(2, 3))
        best = area.argmax(dim=1)[:, None, None, None].expand(-1, 1, *similarity.shape[2:])
        found = torch.cat([similarity.amax(dim=1, keepdim=True), similarity.gather(1, best)], 1)
        places = [
            F.avg_pool2d(found, self.cells),
            F.max_pool2d(found, self.cells),
            F.avg_pool2d(texture.log1p(), self.cells),
        ]
        highest = peaks.topk(copies.NUM_BEST)[0].clamp(max=40.0) / 8
        image = torch.cat([area.topk(copies.NUM_BEST)[0].log1p(), highest], dim=1)
        tokens = self.places(torch.cat(places, dim=1)) + self.image(image)[:, :, None, None]
        return self.tokens(tokens)

    def similarity(self, grey: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `copies.self_similarity`, of (B, 1, H, W)."""
        centred = grey - grey.mean(dim=(2, 3), keepdim=True)
        smooth = copies.blur(centred, copies.FINE)
        band = smooth - copies.blur(centred, copies.COARSE)
        texture = copies.texture_of(smooth)
        shifts, peaks = self.search(band[:, 0])
        shifted = rolled(band, -shifts)
        squares = (shifted - band).square()
        count = copies.NUM_SHIFTS
        difference = copies.mean_over(F.avg_pool2d(squares, copies.CELL), copies.WINDOW)
        in_cells = (shifts / copies.CELL).round().long()
        weaker = torch.minimum(rolled(texture, -in_cells), texture)
        similarity = weaker / (weaker + difference + copies.FLOOR)
        ends = torch.cat(
            [rolled(similarity[:, k : k + 1], in_cells[:, k : k + 1]) for k in range(count)], dim=1
        )
        similarity = torch.maximum(similarity, ends)
        return similarity * (peaks > 0)[:, :, None, None], texture, peaks


def rolled(images: Tensor, shifts: Tensor) -> Tensor:
    """Each image of (B, 1, H, W) rolled by each of its shifts (B, K, 2), y x: (B, K, H, W)."""
    _, _, height, width = images.shape
    count = shifts.shape[1]
    rows = (torch.arange(height) - shifts[:, :, :1]) % height
    columns = (torch.arange(width) - shifts[:, :, 1:]) % width
    places = rows[..., :, None] * width + columns[..., None, :]
    flat = images.flatten(2).expand(-1, count, -1)
    return flat.gather(2, places.flatten(2)).unflatten(2, (height, width))


class ShiftSearch(nn.Module):
    """The likeliest shifts of images of one size: `copies.likeliest_shifts` without an FFT.

    Args:
        size: (H, W).
    """

    row_cos: Tensor
    row_sin: Tensor
    column_cos: Tensor
    column_sin: Tensor
    passed: Tensor
    back_row_cos: Tensor
    back_row_sin: Tensor
    back_column_cos: Tensor
    back_column_sin: Tensor
    kept: Tensor

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        height, width = self.size = size
        twice = (2 * height, 2 * width)
        # In float64: an error of float32 in the cosines would change which peak is the highest.
        row = _angles(twice[0], height, twice[0])
        column = _angles(width + 1, width, twice[1])
        y = torch.fft.fftfreq(twice[0])[:, None]
        x = torch.fft.rfftfreq(twice[1])
        low, high = ((x.square() + y.square()) / limit**2 for limit in copies.PASSBAND)
        passed = (-high).exp() * (1 - (-low).exp())
        # Columns 0 and W occur once among the 2 W of the whole spectrum, all others twice.
        weight = torch.full((width + 1,), 2.0)
        weight[[0, -1]] = 1.0
        back_row = _angles(height + 1, twice[0], twice[0])
        back_column = _angles(width + 1, twice[1], twice[1])
        buffers = {
            "row_cos": row.cos(), "row_sin": row.sin(),
            "column_cos": column.cos().T, "column_sin": column.sin().T,
            "passed": passed * weight / (twice[0] * twice[1]),
            "back_row_cos": back_row.cos(), "back_row_sin": back_row.sin(),
            "back_column_cos": back_column.cos(), "back_column_sin": back_column.sin(),
        }  # fmt: skip
        y = torch.arange(height + 1)[:, None]
        x = torch.fft.fftfreq(twice[1], 1 / twice[1])
        overlap = (1 - y / height).clamp(min=0.1) * (1 - x.abs() / width).clamp(min=0.1)
        out = (y.square() + x.square() < copies.SHORTEST**2) | ((y == 0) & (x < 0))
        out = out | (y > copies.LONGEST * height) | (x.abs() > copies.LONGEST * width)
        for name, value in buffers.items():
            self.register_buffer(name, value.float(), persistent=False)
        self.register_buffer("kept", (~out).float() / overlap.sqrt(), persistent=False)

    def forward(self, band: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H, W) -> shifts (B, K, 2) int64, y x, and the heights of their peaks (B, K)."""
        height, width = self.size
        by_cos, by_sin = band @ self.column_cos, band @ self.column_sin
        real = self.row_cos @ by_cos - self.row_sin @ by_sin
        imaginary = self.row_cos @ by_sin + self.row_sin @ by_cos
        power = real.square() + imaginary.square()
        # The mean of neighbours in the whole spectrum, of which half is here, as in copies.py.
        whitened = power / (copies.mean_over(power[:, None], copies.WHITENING)[:, 0] + 1e-6)
        passed = whitened * self.passed
        correlation = self.back_row_cos @ passed @ self.back_column_cos
        correlation = correlation - self.back_row_sin @ passed @ self.back_column_sin
        correlation = correlation * self.kept
        deviation = correlation.square().mean(dim=(1, 2)).sqrt()
        # The highest of each square, and where in it.
        squares = correlation[:, :height].unflatten(1, (-1, _SQUARE)).unflatten(3, (-1, _SQUARE))
        squares = squares.transpose(2, 3).flatten(3)
        highest, inside = squares.max(dim=3)
        around = F.max_pool2d(highest[:, None], 3, 1, 1)[:, 0]
        highest = torch.where(highest < around, torch.zeros_like(highest), highest)
        peaks, index = highest.flatten(1).topk(copies.NUM_SHIFTS)
        inside = inside.flatten(1).gather(1, index)
        across = 2 * width // _SQUARE
        y = index // across * _SQUARE + inside // _SQUARE
        x = index % across * _SQUARE + inside % _SQUARE
        # Columns from W on are shifts to the left.
        x = torch.where(x < width, x, x - 2 * width)
        return torch.stack([y, x], dim=2), peaks / (deviation + 1e-6)[:, None]


def _angles(left: int, right: int, turn: int) -> Tensor:
    """(left, right) float64: 2 pi i j / turn, reduced to one turn while the numbers are whole."""
    product = torch.outer(torch.arange(left), torch.arange(right)) % turn
    return product.double() * (2 * math.pi / turn)
