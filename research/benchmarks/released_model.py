"""The released Loupe (github.com/Kamichanw/Loupe, 94c36f6), run from a checkout beside this one.

Nothing of it is copied here. PYTHONPATH must hold its `src` folder, and transformers 4.x, for which
it was written; `omegaconf` and `loguru`, which its layers import and do not use, are stood in for.
"""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

# configs/model/{base,cls,seg,cls_seg}.yaml of the release.
SETTINGS: dict[str, Any] = {
    "enable_conditional_queries": True,
    "fpn_scales": [0.5, 2, 4],
    "cls_forge_weight": 0.2,
    "patch_forge_weight": 0.85,
    "tversky_alpha": 0.3,
    "pixel_forge_weight": 0.8,
    "pixel_poly_epsilon": 1.0,
    "mask2former_overrides": {
        "num_queries": 20,
        "mask_weight": 5.0,
        "class_weight": 2.0,
        "dice_weight": 5.0,
        "id2label": {0: "forgery"},
        "label2id": {"forgery": 0},
    },
}
CONFIG_TYPES = ("DictConfig", "ListConfig", "OmegaConf")
TRAINED = {"stage 1": "classifier", "stage 2": "segmentor"}


def build(layers: int = 0) -> nn.Module:
    """The model with random weights, all parts of it, frozen.

    Args:
        layers: Blocks of the encoder; 0 = all.
    """
    _stand_in("omegaconf", **{name: type(name, (), {}) for name in CONFIG_TYPES})
    _stand_in("loguru", logger=logging.getLogger("released"))
    encoders = import_module("models.pe").PE_VISION_CONFIG
    if layers:
        encoders["PE-Core-L14-336"].layers = layers
    config = import_module("models.loupe.configuration_loupe").LoupeConfig(stage="test", **SETTINGS)
    model: nn.Module = import_module("models.loupe.modeling_loupe").LoupeModel(config)
    return model.requires_grad_(False).eval()


def _stand_in(name: str, **attributes: Any) -> None:
    """A module of these attributes, where the real one is not installed."""
    if name not in sys.modules and find_spec(name) is None:
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(attributes)


def losses(model: nn.Module, stage: str, images: Tensor, masks: Tensor) -> Tensor:
    """The loss of a stage.

    Args:
        model: Of `build`; its other parts must be frozen.
        stage: One of TRAINED.
        images: (B, 3, H, W) normalised.
        masks: (B, H, W) in {0, 1}; an image is forged where its mask has a 1.
    """
    forged = masks.flatten(1).amax(dim=1)
    if stage == "stage 1":
        model.config.stage = "cls"
        patches = nn.functional.avg_pool2d(masks[:, None], model.config.patch_size).flatten(1)
        return model(images, labels=forged[:, None], patch_labels=patches).loss
    model.config.stage = "seg"
    regions = [mask[None][:count] for mask, count in zip(masks, forged.int().tolist(), strict=True)]
    classes = [torch.zeros(len(part), dtype=torch.long, device=images.device) for part in regions]
    return model(images, mask_labels=regions, class_labels=classes).loss


def predict(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of images, and forgery maps at the images' size."""
    model.config.stage = "test"
    output = _without_losses(model, images)
    forged = output[1].softmax(dim=2)[..., 0]
    size = images.shape[2:]
    masks = nn.functional.interpolate(output[2], size, mode="bilinear", align_corners=False)
    return output[0], torch.einsum("bq,bqhw->bhw", forged, masks.sigmoid())


def _without_losses(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What stage "test" computes, without the losses that it adds for its adaptation."""
    features = model.backbone.forward_features(images, norm=True)
    classified = model.classifier(features, model.backbone._pool(features))
    side = model.config.image_size // model.config.patch_size
    patches = features[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    probability = classified.logits.squeeze(1).sigmoid()
    segmented = model.segmentor(patches, pseudo_labels=probability)
    return classified.logits, segmented.class_queries_logits, segmented.masks_queries_logits
