"""Does an image hold one of its parts twice? For `STEM: forensic-copies`.

B images, H W pixels, h w patches, K shifts. Cells are squares of CELL pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loupe.modeling.layers import SilentConvs

CELL = 4
# Windows in which two places are compared, in cells.
WINDOW = 5
# Shifts compared: the likeliest of the image.
NUM_SHIFTS = 6
# None is shorter, in pixels, for neighbours always look alike.
SHORTEST = 24
# An image with a smaller side, in pixels, has too few shifts to choose from.
SMALLEST = 32
# Standard deviations, in pixels, of the two blurs whose difference is matched: the coarse one takes
# away shades, the fine one what JPEG spoils.
FINE, COARSE = 0.7, 3.0
# The band of the spectrum that votes for shifts, in cycles per pixel.
VOTING = (0.03, 0.3)
# Texture fainter than this, in squared grey levels, is hardly found again.
FLOOR = 1.0
# Likeness up to this comes by chance.
CHANCE = 0.2
# So many shifts, the best, describe the image as a whole.
NUM_BEST = 3


class CopyBranch(nn.Module):
    """Places that the image shows a second time, shifted.

    Copies without a turn or a change of scale repeat the texture of their originals under one
    shift, which stands out in the image's autocorrelation (Fridrich, Soukal and Lukas 2003), and
    does so after recompression and rescaling, for original and copy suffer nearly alike. Natural
    images repeat themselves too, along edges and in stripes: a place counts as found again only
    where a pixel's shift in any direction would make the match much worse.
    """

    def __init__(self, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        self.cells = patch_size // CELL
        self.places = nn.Conv2d(5, embed_dim, 1)
        self.image = nn.Linear(2 * NUM_BEST, embed_dim)
        self.tokens = SilentConvs(embed_dim)

    def forward(self, luma: Tensor, inside: Tensor) -> Tensor:
        """Takes what `likeness` does; returns (B, C, h, w)."""
        places, image = self.statistics(luma, inside)
        return self.tokens(self.places(places) + self.image(image)[:, :, None, None])

    @torch.no_grad()
    def statistics(self, luma: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        """What the branch learns from: of patches (B, 5, h, w) and of images (B, 2 NUM_BEST)."""
        with torch.autocast(luma.device.type, enabled=False):
            found, texture, votes = likeness(luma.float(), inside)
            area = (found - CHANCE).clamp(min=0).square().sum(dim=(2, 3))
            first = area.argmax(dim=1)
            first = found.gather(1, first[:, None, None, None].expand(-1, 1, *found.shape[2:]))
            found = torch.cat([found.amax(dim=1, keepdim=True), first], dim=1)
            places = [
                F.avg_pool2d(found, self.cells),
                F.max_pool2d(found, self.cells),
                F.avg_pool2d(texture.log1p(), self.cells),
            ]
            best = [area.topk(NUM_BEST)[0].log1p(), votes.topk(NUM_BEST)[0].clamp(max=40.0) / 8]
            return torch.cat(places, dim=1), torch.cat(best, dim=1)


def likeness(luma: Tensor, inside: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How surely each place is found again under each of the image's likeliest shifts.

    Each image is judged within its own borders, whatever it shares a batch with.

    Args:
        luma: (B, 1, H, W) float32 grey levels, both sides multiples of CELL.
        inside: (B, 1, H, W) float32, 1 = image, at the top left, 0 = padding.

    Returns:
        Likeness (B, K, H / CELL, W / CELL) in [0, 1), of copies and originals both; texture, the
        mean squared slope in the direction of the least, (B, 1, H / CELL, W / CELL); and the votes
        for each shift (B, K), in standard deviations. All 0 in padding, for shifts that a small
        image does not have, and for images with a side below SMALLEST.
    """
    height, width = (side // CELL for side in luma.shape[2:])
    found = luma.new_zeros(len(luma), NUM_SHIFTS, height, width)
    texture = luma.new_zeros(len(luma), 1, height, width)
    votes = luma.new_zeros(len(luma), NUM_SHIFTS)
    for index, own in enumerate(inside[:, 0] > 0):
        h, w = (int(own.any(dim=axis).sum()) // CELL for axis in (1, 0))
        if CELL * min(h, w) < SMALLEST:
            continue
        image = luma[index : index + 1, :, : CELL * h, : CELL * w]
        smooth = _blur(image - image.mean(), FINE)
        band = smooth - _blur(image - image.mean(), COARSE)
        texture[index, :, :h, :w] = _least_slope(smooth)[0]
        shifts, votes[index] = _likeliest_shifts(band[0, 0])
        likely = _compare(band[0, 0], texture[index, 0, :h, :w], shifts.tolist())
        found[index, :, :h, :w] = likely * (votes[index] > 0)[:, None, None]
    return found, texture, votes


def _compare(band: Tensor, texture: Tensor, shifts: list[list[int]]) -> Tensor:
    """(H, W) and (H / CELL, W / CELL) of one image -> likeness (K, H / CELL, W / CELL).

    What a shift moves over a border comes in at the other side: chance makes little of that.
    """
    shifted = torch.stack([band.roll((-y, -x), (0, 1)) for y, x in shifts])
    difference = _mean(F.avg_pool2d((shifted - band).square()[:, None], CELL), WINDOW)[:, 0]
    of_cells = [(round(y / CELL), round(x / CELL)) for y, x in shifts]
    there = torch.stack([texture.roll((-y, -x), (0, 1)) for y, x in of_cells])
    least = torch.minimum(there, texture)
    found = least / (least + difference + FLOOR)
    # Marked at both ends of the shift.
    ends = [image.roll(shift, (0, 1)) for image, shift in zip(found, of_cells, strict=True)]
    return torch.maximum(found, torch.stack(ends))


def _likeliest_shifts(band: Tensor) -> tuple[Tensor, Tensor]:
    """Peaks of the autocorrelation of an image (H, W): (K, 2) int64 as y x, and their heights (K,).

    Its spectrum is whitened by its surroundings first, lest the ordinary likeness of neighbours
    decides. Heights are in standard deviations of the autocorrelation; 0 = it has no more peaks.
    """
    height, width = band.shape
    power = torch.fft.rfft2(band, s=(2 * height, 2 * width)).abs().square()
    y = torch.fft.fftfreq(2 * height, device=band.device)[:, None]
    x = torch.fft.rfftfreq(2 * width, device=band.device)
    low, high = ((x.square() + y.square()) / limit**2 for limit in VOTING)
    voting = (-high).exp() * (1 - (-low).exp())
    whitened = power / (_mean(power[None], 9)[0] + 1e-6)
    votes = torch.fft.irfft2(whitened * voting, s=(2 * height, 2 * width))
    # A shift and its reverse are one: half of them will do.
    votes = votes[: height + 1]
    y = torch.arange(height + 1, device=band.device)[:, None]
    x = torch.fft.fftfreq(2 * width, 1 / (2 * width), device=band.device)
    # Few pixels vote for long shifts.
    overlap = (1 - y / height).clamp(min=0.1) * (1 - x.abs() / width).clamp(min=0.1)
    votes = votes / overlap.sqrt()
    out = (y.square() + x.square() < SHORTEST**2) | ((y == 0) & (x < 0))
    out = out | (y > 0.9 * height) | (x.abs() > 0.9 * width)
    deviation = votes.masked_fill(out, 0.0).square().mean().sqrt()
    # A peak counts once: the highest of a square of 4 pixels and of those around it.
    peaks, places = F.max_pool2d(votes.masked_fill(out, 0.0)[None], 4, return_indices=True)
    peaks = peaks.masked_fill(peaks < F.max_pool2d(peaks, 3, 1, 1), 0.0)
    peak, index = peaks.flatten().topk(NUM_SHIFTS)
    index = places.flatten()[index]
    shifts = torch.stack([index // (2 * width), x[index % (2 * width)].round().long()], dim=1)
    return shifts, peak / (deviation + 1e-6)


def _least_slope(image: Tensor) -> Tensor:
    """Smaller eigenvalue of the structure tensor in windows, (B, 1, H / CELL, W / CELL).

    At the border slopes are halved, so that strong stripes seem to have a little texture there.
    """
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    x = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    y = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    xx, yy, xy = (_mean(F.avg_pool2d(product, CELL), WINDOW) for product in (x * x, y * y, x * y))
    spread = ((xx - yy).square() / 4 + xy.square()).sqrt()
    return ((xx + yy) / 2 - spread).clamp(min=0)


def _mean(x: Tensor, side: int) -> Tensor:
    """Over side x side neighbourhoods, one axis after the other, which is quicker."""
    x = F.avg_pool2d(x, (side, 1), 1, (side // 2, 0), count_include_pad=False)
    return F.avg_pool2d(x, (1, side), 1, (0, side // 2), count_include_pad=False)


def _blur(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (B, 1, H, W)."""
    reach = round(3 * sigma)
    place = torch.arange(-reach, reach + 1, device=image.device, dtype=image.dtype)
    kernel = (-place.square() / (2 * sigma**2)).exp()
    kernel = (kernel / kernel.sum())[None, None]
    image = F.conv2d(F.pad(image, (reach, reach, 0, 0), mode="replicate"), kernel[:, :, None])
    return F.conv2d(F.pad(image, (0, 0, reach, reach), mode="replicate"), kernel[..., None])
