"""Does an image show one of its places twice? Copies under a shift, from the autocorrelation.

A region that was copied within an image repeats the texture of its original under one shift
d = (y, x). Neither recompression nor rescaling of the whole image hides that, for both suffer
nearly alike. Two steps, after Fridrich, Soukal and Lukas (DFRWS 2003):

1. The likeliest shifts are peaks of the autocorrelation A(d) = sum_p I(p) I(p + d), computed from
   the power spectrum |F|^2 (Wiener-Khinchin). The spectrum is divided by its own local mean first
   (whitening): the correlation of neighbouring pixels would outweigh a copy otherwise.
2. Under each shift, the similarity of a place p with p + d is

       s = t / (t + e + FLOOR),

   e the mean squared difference of the two windows, t the texture of the weaker one. Texture is
   the smaller eigenvalue of the structure tensor J = mean of (g g^T), g the gradient:

       t = (J_xx + J_yy) / 2 - sqrt((J_xx - J_yy)^2 / 4 + J_xy^2).

   t is roughly how much e grows for a match one pixel off, in the direction of least growth.
   So flat places, straight edges and stripes, which match themselves under many shifts, have t = 0.

Copies that were turned or scaled are not found.

B images, H W pixels, h w patches, K shifts. Cells are squares of CELL pixels.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loupe.modeling.forensic.pixels import GREY_LEVELS, cell_mean, luma
from loupe.modeling.layers import ZeroInitConvs

# Side of a cell in pixels.
CELL = 4
# Side, in cells, of the windows in which two places are compared.
WINDOW = 5
# Shifts compared: the likeliest of the image.
NUM_SHIFTS = 6
# Shortest shift in pixels: places nearer than that are similar in every image.
SHORTEST = 24
# An image with a smaller side, in pixels, has too few shifts to choose from.
SMALLEST = 32
# Longest shift, as a fraction of the side: few pixels support longer ones.
LONGEST = 0.9
# Standard deviations in pixels of the two blurs whose difference is matched. The coarse one removes
# shading, the fine one what JPEG damages.
FINE, COARSE = 0.7, 3.0
# Passband of the autocorrelation, in cycles per pixel.
PASSBAND = (0.03, 0.3)
# Side, in frequencies, of the neighbourhood whose mean power whitens the spectrum.
WHITENING = 9
# Texture fainter than this, in squared grey levels, is rarely found again.
FLOOR = 1.0
# Similarity up to this occurs by chance.
CHANCE = 0.2
# Number of best shifts that describe the whole image.
NUM_BEST = 3


class CopyBranch(nn.Module):
    """Similarity, texture and the best shifts, as tokens.

    Args:
        embed_dim: Width of the tokens.
        patch_size: A multiple of CELL, in pixels.
    """

    def __init__(self, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        self.cells = patch_size // CELL
        self.places = nn.Conv2d(5, embed_dim, 1)
        self.image = nn.Linear(2 * NUM_BEST, embed_dim)
        self.tokens = ZeroInitConvs(embed_dim)

    def forward(self, images: Tensor, valid: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], (B, H, W) bool -> (B, C, h, w)."""
        places, image = self.statistics(GREY_LEVELS * luma(images), valid)
        return self.tokens(self.places(places) + self.image(image)[:, :, None, None])

    @torch.no_grad()
    def statistics(self, grey: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """What the branch learns from: of patches (B, 5, h, w) and of images (B, 2 NUM_BEST).

        Args:
            grey: (B, 1, H, W) in grey levels.
            valid: (B, H, W) bool.
        """
        with torch.autocast(grey.device.type, enabled=False):
            similarity, texture, peaks = self_similarity(grey.float(), valid)
            # How much of the image repeats under each shift, and how surely.
            area = (similarity - CHANCE).clamp(min=0).square().sum(dim=(2, 3))
            best = area.argmax(dim=1)[:, None, None, None].expand(-1, 1, *similarity.shape[2:])
            similarity = torch.cat(
                [similarity.amax(dim=1, keepdim=True), similarity.gather(1, best)], dim=1
            )
            places = [
                cell_mean(similarity, self.cells),
                F.max_pool2d(similarity, self.cells),
                cell_mean(texture.log1p(), self.cells),
            ]
            # Clamped and divided to the size of the other features.
            image = [area.topk(NUM_BEST)[0].log1p(), peaks.topk(NUM_BEST)[0].clamp(max=40.0) / 8]
            return torch.cat(places, dim=1), torch.cat(image, dim=1)


def self_similarity(grey: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How similar each place is to another one, under each of the image's likeliest shifts.

    Images are compared one by one, each within its own borders, so that a batch changes nothing.

    Args:
        grey: (B, 1, H, W) float32 in grey levels, both sides multiples of CELL.
        valid: (B, H, W) bool, True = image, at the top left.

    Returns:
        Similarity (B, K, H / CELL, W / CELL) in [0, 1), at both ends of each shift; texture
        (B, 1, H / CELL, W / CELL) in squared grey levels per pixel; and the height of each shift's
        peak (B, K), in standard deviations of the autocorrelation. All 0 in padding, for shifts
        that a small image does not have, and for images with a side below SMALLEST.
    """
    height, width = (side // CELL for side in grey.shape[2:])
    similarity = grey.new_zeros(len(grey), NUM_SHIFTS, height, width)
    texture = grey.new_zeros(len(grey), 1, height, width)
    peaks = grey.new_zeros(len(grey), NUM_SHIFTS)
    for index, own in enumerate(valid):
        h, w = (int(own.any(dim=axis).sum()) // CELL for axis in (1, 0))
        if CELL * min(h, w) < SMALLEST:
            continue
        image = grey[index : index + 1, :, : CELL * h, : CELL * w]
        smooth = blur(image - image.mean(), FINE)
        band = smooth - blur(image - image.mean(), COARSE)
        texture[index, :, :h, :w] = texture_of(smooth)[0]
        shifts, peaks[index] = likeliest_shifts(band[0, 0])
        matched = _compare(band[0, 0], texture[index, 0, :h, :w], shifts.tolist())
        similarity[index, :, :h, :w] = matched * (peaks[index] > 0)[:, None, None]
    return similarity, texture, peaks


def _compare(band: Tensor, texture: Tensor, shifts: list[list[int]]) -> Tensor:
    """(H, W) and (H / CELL, W / CELL) of one image -> similarity (K, H / CELL, W / CELL).

    `roll` wraps around; wrapped pixels rarely match, so they are not masked.
    """
    shifted = torch.stack([band.roll((-y, -x), (0, 1)) for y, x in shifts])
    difference = mean_over(cell_mean(shifted.sub_(band).square_()[:, None], CELL), WINDOW)[:, 0]
    in_cells = [(round(y / CELL), round(x / CELL)) for y, x in shifts]
    other_end = torch.stack([texture.roll((-y, -x), (0, 1)) for y, x in in_cells])
    weaker = torch.minimum(other_end, texture)
    similarity = weaker / (weaker + difference + FLOOR)
    # The same value at the other end of the shift: both the copy and its original are marked.
    ends = [image.roll(shift, (0, 1)) for image, shift in zip(similarity, in_cells, strict=True)]
    return torch.maximum(similarity, torch.stack(ends))


def likeliest_shifts(band: Tensor) -> tuple[Tensor, Tensor]:
    """Peaks of the whitened autocorrelation of an image.

    Args:
        band: (H, W), band-passed grey levels.

    Returns:
        (K, 2) int64 as y x, highest peak first; and the heights (K,) in standard deviations of the
        autocorrelation. 0 = the image has no further peak.
    """
    height, width = band.shape
    # Twice the size: without zero padding shifts would wrap around.
    size = (2 * height, 2 * width)
    real, imaginary = torch.view_as_real(torch.fft.rfft2(band, s=size)).unbind(2)
    power = real.square() + imaginary.square()
    # Tensors of a compiler or exporter must not stay in the cache.
    tables = _shift_tables.__wrapped__ if torch.compiler.is_compiling() else _shift_tables
    passed, deviations, out, x = tables(height, width, band.device)
    whitened = power / (mean_over(power[None], WHITENING)[0] + 1e-6)
    # A(d) = A(-d): half of the shifts are enough.
    columns = torch.fft.ifft(whitened * passed, dim=0)[: height + 1]
    correlation = torch.fft.irfft(columns, n=size[1])
    correlation = (correlation / deviations).masked_fill_(out, 0.0)
    deviation = correlation.square().mean().sqrt()
    # A peak counts once: the highest of a square of 4 x 4 pixels and of the squares around it.
    squares, places = F.max_pool2d(correlation[None], 4, return_indices=True)
    squares = squares.masked_fill(squares < F.max_pool2d(squares, 3, 1, 1), 0.0)
    peak, index = squares.flatten().topk(NUM_SHIFTS)
    index = places.flatten()[index]
    shifts = torch.stack([index // size[1], x[index % size[1]].round().long()], dim=1)
    return shifts, peak / (deviation + 1e-6)


@lru_cache(maxsize=2)  # Images of one size come together; a table has the size of four images.
def _shift_tables(
    height: int, width: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `likeliest_shifts` needs of an image's size alone.

    Returns:
        The passband at each frequency (2 H, W + 1); of each shift (H + 1, 2 W) the deviation, up to
        a factor, and whether it is left out; and the horizontal shifts (2 W,) in pixels.
    """
    size = (2 * height, 2 * width)
    y = torch.fft.fftfreq(size[0], device=device)[:, None]
    x = torch.fft.rfftfreq(size[1], device=device)
    low, high = ((x.square() + y.square()) / limit**2 for limit in PASSBAND)
    passed = (-high).exp() * (1 - (-low).exp())
    y = torch.arange(height + 1, device=device)[:, None]
    x = torch.fft.fftfreq(size[1], 1 / size[1], device=device)
    # The deviation of a sum over n pixels grows as sqrt(n), and n is the overlap of the two copies.
    overlap = (1 - y / height).clamp(min=0.1) * (1 - x.abs() / width).clamp(min=0.1)
    out = (y.square() + x.square() < SHORTEST**2) | ((y == 0) & (x < 0))
    out = out | (y > LONGEST * height) | (x.abs() > LONGEST * width)
    return passed, overlap.sqrt(), out, x


def texture_of(image: Tensor) -> Tensor:
    """Smaller eigenvalue of the structure tensor, (B, 1, H, W) -> (B, 1, H / CELL, W / CELL).

    The padding halves the gradient at the border: strong stripes get a little false texture there.
    """
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    x = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    y = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    xx, yy, xy = (mean_over(cell_mean(product, CELL), WINDOW) for product in (x * x, y * y, x * y))
    spread = ((xx - yy).square() / 4 + xy.square()).sqrt()
    return ((xx + yy) / 2 - spread).clamp(min=0)


def mean_over(x: Tensor, side: int) -> Tensor:
    """Mean over side x side neighbourhoods, as far as the image reaches; `side` is odd."""
    size = x.shape[-2:]
    for axis in (-2, -1):
        x = _sum_over(x, side, axis)
    rows, columns = (_neighbours(length, side, x.device) for length in size)
    return x / (rows[:, None] * columns)


def _neighbours(length: int, side: int, device: torch.device) -> Tensor:
    """(length,) float32: how many of the `side` places around each one there are."""
    place = torch.arange(length, device=device)
    first, last = (place - side // 2).clamp(min=0), (place + side // 2).clamp(max=length - 1)
    return (last - first + 1).float()


def _sum_over(x: Tensor, side: int, axis: int) -> Tensor:
    """Sums over `side` places, an odd number, along an axis; zero beyond its ends."""
    margin = [0, 0, side // 2, side // 2] if axis == -2 else [side // 2, side // 2, 0, 0]
    sums, width, length = F.pad(x, margin), 1, x.shape[axis]
    total, first = sums.narrow(axis, 0, length), 1
    while 2 * width <= side:
        whole = sums.shape[axis] - width
        sums, width = sums.narrow(axis, 0, whole) + sums.narrow(axis, width, whole), 2 * width
        # The bits of `side`: sums over 1, 2, 4, ... places, one behind the other.
        if side & width:
            total, first = total + sums.narrow(axis, first, length), first + width
    return total


def blur(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (B, 1, H, W)."""
    reach = round(3 * sigma)
    place = torch.arange(-reach, reach + 1, dtype=image.dtype)
    kernel = (-place.square() / (2 * sigma**2)).exp()
    weights = (kernel / kernel.sum()).tolist()
    for axis in (-2, -1):
        margin = [0, 0, reach, reach] if axis == -2 else [reach, reach, 0, 0]
        padded, length = F.pad(image, margin, mode="replicate"), image.shape[axis]
        image = weights[reach] * padded.narrow(axis, reach, length)
        for away in range(1, reach + 1):
            pair = [padded.narrow(axis, reach + side, length) for side in (-away, away)]
            image = image.add_(pair[0] + pair[1], alpha=weights[reach + away])
    return image
