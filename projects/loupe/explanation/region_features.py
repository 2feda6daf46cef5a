"""Region-aware features (RAVFE of IFDL-VLM): an image is encoded whole and under its mask.

With f the patch features of the vision tower, x the image and M the mask,

    T = alpha f(x) + (1 - alpha) f(x M + (1 - M) background),

before the projector, or after the merger of a Qwen2-VL, which hides f(x) behind it. There is
nothing to learn in it. The background is the mean colour, 0 after
normalisation, or the blurred image. A white mask, the whole image, gives f(x) exactly.

B images, H W pixels, T tokens, C width of the tower.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loupe.structures import THRESHOLD

# Of the blurred background, as a fraction of the image's longer side.
_BLUR = 0.04


def binary_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask at the tower's size.

    The threshold does not depend on the values: 8-bit masks are above 127, others above .5. A mask
    of another size is interpolated between its binary values.

    Args:
        mask: (B, 1, h, w), uint8 from 0 to 255, bool, or float in [0, 1].
        size: Height and width of the image.

    Returns:
        (B, 1, H, W) float32, 0 or 1.

    Raises:
        ValueError: A float mask has values outside [0, 1], or it is not (B, 1, h, w).
    """
    if mask.ndim != 4 or mask.shape[1] != 1:
        raise ValueError(f"the mask is {tuple(mask.shape)}; it must be (B, 1, height, width)")
    if mask.dtype == torch.uint8:
        binary = mask > 127
    elif mask.dtype == torch.bool:
        binary = mask
    else:
        if mask.numel() and not (mask.amin() >= 0 and mask.amax() <= 1):
            raise ValueError(
                f"the mask has values from {float(mask.amin()):.3g} to {float(mask.amax()):.3g}; "
                "give 8-bit integers, or numbers in [0, 1]"
            )
        binary = mask > THRESHOLD
    if tuple(mask.shape[2:]) != size:
        soft = F.interpolate(binary.float(), size, mode="bilinear", align_corners=False)
        binary = soft > THRESHOLD
    return binary.float()


def masked_image(images: Tensor, mask: Tensor, background: str = "mean") -> Tensor:
    """Images with everything outside of the mask replaced.

    Args:
        images: (B, 3, H, W), normalised: 0 is the mean colour.
        mask: (B, 1, H, W), 0 or 1.
        background: "mean" or "blur".
    """
    if background == "mean":
        return images * mask
    reach = max(1, round(_BLUR * max(images.shape[2:])))
    blurred = images
    for _ in range(2):  # Two box filters are nearly a Gaussian.
        blurred = F.avg_pool2d(blurred, 2 * reach + 1, 1, reach, count_include_pad=False)
    return images * mask + blurred * (1 - mask)


def blend(whole: Tensor, region: Tensor, alpha: float) -> Tensor:
    """Alpha whole + (1 - alpha) region; exactly `whole` where both are equal."""
    return whole + (1 - alpha) * (region - whole)


class RegionTower(nn.Module):
    """A vision tower that takes image and masked image as six channels, and blends its features.

    It stands in the place of a LLaVA's own tower, so that `forward` and `generate` of transformers
    stay as they are, also where an image is cut into tiles.

    Args:
        tower: Any vision model of transformers, or one with the same output (`hidden_states`).
        alpha: Weight of the whole image; 1 = no mask, 0 = the region alone.
    """

    def __init__(self, tower: nn.Module, alpha: float) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha}; it must be from 0 to 1")
        self.tower = tower
        self.alpha = alpha

    def inputs(self, pixel_values: Tensor, image: Tensor) -> dict[str, Tensor]:
        """What the model around this tower takes.

        Args:
            pixel_values: See `forward`.
            image: (B, L) bool, True = a token that stands for the image.
        """
        return {"pixel_values": pixel_values}

    def __getattr__(self, name: str) -> Any:
        """What transformers asks a tower for, such as `config` or `dtype`, is the tower's own."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "tower":
                raise
            return getattr(self.tower, name)

    def forward(self, pixel_values: Tensor, **options: Any) -> Any:
        """Hidden states of the tower, blended.

        Args:
            pixel_values: (B, 6, H, W): image and masked image; a seventh channel is 1 where the
                canvas shows the image, for towers that know padding. Or (B, 2, T, C), the features
                of both, computed before by a frozen tower.
            options: For the tower.
        """
        if pixel_values.ndim == 4 and pixel_values.shape[1] == 2:
            whole, region = pixel_values.unbind(dim=1)
            return tower_output(blend(whole, region, self.alpha))
        options["output_hidden_states"] = True
        if pixel_values.shape[1] == 7 and isinstance(self.tower, EncoderTower):
            options["valid"] = pixel_values[:, 6] > 0
        output = self.tower(pixel_values[:, :3], **options)
        if self.alpha == 1:
            return output
        region = self.tower(pixel_values[:, 3:6], **options)
        output.hidden_states = tuple(
            blend(a, b, self.alpha)
            for a, b in zip(output.hidden_states, region.hidden_states, strict=True)
        )
        return output


class MergedRegionTower(RegionTower):
    """The tower of a Qwen2-VL: its features are blended after its merger, at the tokens' size.

    A Qwen2-VL takes patches in rows, and their grid. Image and masked image lie beside each other
    in each row.

    Args:
        tower: A Qwen2-VL's `visual`.
        alpha: Weight of the whole image.
    """

    def inputs(self, pixel_values: Tensor, image: Tensor) -> dict[str, Tensor]:
        """Patches of both images, (B N, 2 D), their grid (B, 3), and which tokens are the image's.

        Args:
            pixel_values: (B, 6 or 7, H, W).
            image: (B, L) bool.
        """
        config: Any = self.tower.config
        sizes = config.patch_size, config.spatial_merge_size, config.temporal_patch_size
        rows = [patch_rows(part, *sizes) for part in (pixel_values[:, :3], pixel_values[:, 3:6])]
        height, width = (side // config.patch_size for side in pixel_values.shape[2:])
        grid = torch.tensor([[1, height, width]], device=pixel_values.device)
        return {
            "pixel_values": torch.cat(rows, dim=1),
            "image_grid_thw": grid.expand(len(pixel_values), 3),
            "mm_token_type_ids": image.int(),
        }

    def forward(self, pixel_values: Tensor, **options: Any) -> Any:
        """Patches (N, 2 D) -> output whose `pooler_output` (N / merge^2, C) is blended."""
        whole, region = pixel_values.chunk(2, dim=1)
        output = self.tower(whole, **options)
        if self.alpha < 1:
            masked = self.tower(region, **options).pooler_output
            output.pooler_output = blend(output.pooler_output, masked, self.alpha)
        return output


def patch_rows(images: Tensor, patch: int, merge: int, frames: int) -> Tensor:
    """Patches in the order in which a Qwen2-VL merges them: square after square, each row by row.

    Args:
        images: (B, C, H, W); sides are multiples of `patch` x `merge`.
        patch: Side of a patch in pixels.
        merge: Patches on a side of a square that becomes one token.
        frames: How often each patch is repeated, as if the image were a film.

    Returns:
        (B H / patch W / patch, C frames patch patch).
    """
    count, channels, height, width = images.shape
    rows, columns = height // (patch * merge), width // (patch * merge)
    split = images.reshape(count, channels, rows, merge, patch, columns, merge, patch)
    ordered = split.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)
    repeated = ordered.expand(*ordered.shape[:6], frames, patch, patch)
    return repeated.reshape(-1, channels * frames * patch * patch)


def merges(model: Any) -> bool:
    """Whether a model is a Qwen2-VL, whose tower ends in a merger of patches."""
    return hasattr(getattr(model, "model", None), "visual")


def tower_of(vlm: Any) -> RegionTower:
    """The tower of a LLaVA, or of a Qwen2-VL."""
    return vlm.model.visual if merges(vlm) else vlm.model.vision_tower


def tower_output(hidden_state: Tensor) -> Any:
    """One hidden state (B, T, C) in the form that transformers expects of a tower."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    return BaseModelOutputWithPooling(last_hidden_state=hidden_state, hidden_states=(hidden_state,))


class EncoderTower(nn.Module):
    """Loupe's own encoder as a tower: patches averaged to a fixed number of tokens.

    The encoder sees pixels at their own scale, so that traces stay; the grid of tokens is relative
    to the image, whatever its size.

    Args:
        backbone: Gives `patches` (B, C, h, w).
        grid: Tokens on each side.
    """

    def __init__(self, backbone: nn.Module, grid: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.grid = grid

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.parameters()).dtype

    @torch.no_grad()
    def forward(self, pixel_values: Tensor, valid: Tensor | None = None, **_: Any) -> Any:
        """(B, 3, H, W), normalised, and (B, H, W) bool -> one hidden state (B, grid^2, C)."""
        if valid is None:
            valid = torch.ones_like(pixel_values[:, 0], dtype=torch.bool)
        patches = self.backbone(pixel_values.float(), valid)["patches"]
        size = pixel_values.shape[2] // patches.shape[2]
        tokens = []
        for own, image in zip(patches, valid, strict=True):
            rows, columns = (-(-int(image.any(dim=d).sum()) // size) for d in (1, 0))
            pooled = F.adaptive_avg_pool2d(own[:, :rows, :columns], self.grid)
            tokens.append(pooled.flatten(1).T)
        return tower_output(torch.stack(tokens))


def jittered(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A mask as a detector may find it: grown or shrunk, and shifted, by up to a fifth of its size.

    Args:
        mask: (H, W) bool.
        rng: Source of randomness.

    Returns:
        (H, W) bool; never empty unless the mask is.
    """
    import cv2

    side = float(np.sqrt(mask.sum()))
    reach = round(float(rng.uniform(0, 0.2)) * side)
    changed: np.ndarray = mask.astype(np.uint8)
    if reach:
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1,) * 2)
        changed = (cv2.dilate if rng.random() < 0.5 else cv2.erode)(changed, kernel)
    x, y = rng.uniform(-0.2, 0.2, 2) * side
    move = np.array([[1, 0, x], [0, 1, y]], np.float32)
    changed = cv2.warpAffine(changed, move, mask.shape[::-1], flags=cv2.INTER_NEAREST)
    return changed.astype(bool) if changed.any() else mask
