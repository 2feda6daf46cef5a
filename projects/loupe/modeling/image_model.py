"""What the meta-architectures share: normalised pixels, frozen parts, the way to the encoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from detectron2.modeling import Backbone
from torch import Tensor, nn
from typing_extensions import Self

from loupe.modeling.canvas import NetworkInput, fitted
from loupe.modeling.feature_cache import FeatureCache

Item = dict[str, Any]


class ImageModel(nn.Module):
    """A model of images, some of whose parts may be frozen.

    Args:
        pixel_mean: Mean of RGB pixels, 0..255.
        pixel_std: Their deviation.
    """

    backbone: Backbone
    pixel_mean: Tensor
    pixel_std: Tensor
    frozen: tuple[str, ...] = ()
    # Of the features of a frozen backbone.
    backbone_cache: FeatureCache | None = None

    def __init__(self, pixel_mean: Sequence[float], pixel_std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("pixel_mean", torch.tensor(list(pixel_mean)).view(3, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(list(pixel_std)).view(3, 1, 1), False)

    def freeze(self, frozen: Iterable[str], parts: Sequence[str]) -> None:
        """Freezes parts; called once they are there.

        Args:
            frozen: Their names, as MODEL.FREEZE has them; a part that is None is passed over.
            parts: The names that there are.

        Raises:
            ValueError: A name is not among them.
        """
        unknown = set(frozen) - set(parts)
        if unknown:
            raise ValueError(f"MODEL.FREEZE names {sorted(unknown)}; the parts are {parts}")
        self.frozen = tuple(frozen)
        for part in self._frozen_parts():
            part.requires_grad_(False)
        self.train(self.training)

    def _frozen_parts(self) -> list[nn.Module]:
        return [getattr(self, name) for name in self.frozen if getattr(self, name) is not None]

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.pixel_mean.device

    def train(self, mode: bool = True) -> Self:
        """Sets training mode, except for frozen parts, which always stay in evaluation mode."""
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        return self

    def normalise(self, pixels: Tensor) -> Tensor:
        """(..., 3, H, W) of 0 to 255 -> as the encoder expects them."""
        return (pixels.float() - self.pixel_mean) / self.pixel_std

    def encode_canvas(self, inputs: NetworkInput) -> dict[str, Tensor]:
        """Runs the encoder, without a graph if it is frozen; features of padding are 0."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and "backbone" not in self.frozen):
            if self.backbone_cache is None or "backbone" not in self.frozen:
                features = self.backbone(inputs.images, inputs.valid)
            else:
                features = self._cached_features(inputs, self.backbone_cache)
            if inputs.patch_valid is not None:
                features["patches"] = features["patches"] * inputs.patch_valid[:, None]
        return features

    def _cached_features(self, inputs: NetworkInput, cache: FeatureCache) -> dict[str, Tensor]:
        """The backbone's features, kept as one array (h w + 1, C) an image: patches, pooled."""

        def encode(images: Tensor, valid: Tensor | None) -> Tensor:
            features = self.backbone(images, valid)
            tokens = features["patches"].flatten(2).transpose(1, 2)
            return torch.cat([tokens, features["pooled"][:, None]], dim=1)

        tokens = cache(self.backbone, inputs.images, inputs.valid, encode)
        side = self.backbone.size_divisibility
        h, w = (length // side for length in inputs.images.shape[-2:])
        # In memory as the backbone gives them: other layouts are other kernels, and other rounding.
        patches = tokens[:, :-1].transpose(1, 2).reshape(len(tokens), -1, h, w)
        return {"patches": patches, "pooled": tokens[:, -1]}


def completed(item: Item, size: int, resize: str) -> Item:
    """An item as the dataset mapper makes it.

    Args:
        item: Of the mapper, or of Detectron2's `DefaultPredictor`: a whole RGB `image` (3, H, W)
            without `valid_size`, which is brought to the network's size here.
        size: Side of the network's square.
        resize: How images are brought to it, see `fitted`.
    """
    if "image" not in item or "valid_size" in item:
        return item
    image, valid_size = fitted(item["image"], size, resize)
    return item | {"image": image, "valid_size": valid_size}


def beside_errors(items: Iterable[Item], predictions: Iterable[Item]) -> list[Item]:
    """Predictions of the items that have an image, and the error alone of each other item."""
    left = iter(predictions)
    return [next(left) if "image" in item else {"error": item["error"]} for item in items]
