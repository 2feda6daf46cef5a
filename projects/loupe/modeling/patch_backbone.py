"""What all encoders of square patches share."""

from __future__ import annotations

from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor


class PatchBackbone(Backbone):
    """An encoder of patches.

    Attributes:
        patch_size: Side of a patch in pixels.
        embed_dim: Width of its features.
    """

    patch_size: int
    embed_dim: int

    @property
    def size_divisibility(self) -> int:
        """Image sides must be multiples of this (pixels)."""
        return self.patch_size

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Shape of the patch features."""
        return {"patches": ShapeSpec(channels=self.embed_dim, stride=self.patch_size)}

    def require_whole_patches(self, images: Tensor) -> None:
        """Looks at the size of images (B, 3, H, W).

        Raises:
            ValueError: A side is no multiple of the patch size.
        """
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"image of {height} x {width} px: both sides must be multiples of the patch size "
                f"{self.patch_size}; set INPUT.SIZE to such a multiple"
            )
