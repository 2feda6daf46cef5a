"""From the configuration to the parts of the expert: where keys meet arguments."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_backbone

from loupe.modeling.building import (
    build_backbone_cache,
    feature_cache,
    require_same_images,
    with_adapters,
)
from loupe.modeling.expert.evidence_prompt import EvidencePrompt
from loupe.modeling.expert.expert_criterion import ExpertCriterion
from loupe.modeling.expert.mask_prompting import MaskPrompting
from loupe.modeling.expert.towers import (
    ClipTower,
    PatchNeck,
    SamEncoder,
    build_clip_vision,
    build_mask_decoder,
    build_sam,
)


def expert_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of `ForgeryExpert`.

    Raises:
        ValueError: The keys contradict each other.
    """
    expert = cfg.MODEL.EXPERT
    _check_feature_cache(cfg)
    backbone = build_backbone(cfg)
    if expert.TOWER_SIZE % backbone.size_divisibility:
        raise ValueError(
            f"MODEL.EXPERT.TOWER_SIZE is {expert.TOWER_SIZE}; it must be a multiple of the tower's "
            f"patch, {backbone.size_divisibility}"
        )
    if expert.SEGMENTATION == "backbone" and expert.TOWER_SIZE:
        raise ValueError(
            "MODEL.EXPERT.SEGMENTATION is 'backbone', so the tower must see the whole canvas: set "
            "MODEL.EXPERT.TOWER_SIZE 0"
        )
    segmentation_encoder, mask_prompting = build_segmentation(cfg, backbone)
    return {
        "backbone": backbone,
        "evidence": EvidencePrompt(
            dim=backbone.embed_dim,
            num_classes=expert.NUM_CLASSES,
            hidden_dim=expert.VERDICT_DIM,
            prompt_dim=mask_prompting.dim,
            num_heads=expert.NUM_HEADS,
            prompt=expert.PROMPT,
        ),
        "segmentation_encoder": segmentation_encoder,
        "mask_prompting": mask_prompting,
        "criterion": ExpertCriterion(
            class_weight=expert.CLASS_WEIGHT, mask_weight=expert.MASK_WEIGHT
        ),
        "frozen": tuple(cfg.MODEL.FREEZE),
        "num_classes": expert.NUM_CLASSES,
        "gate": expert.GATE,
        "tower_size": expert.TOWER_SIZE,
        "tower_view": expert.TOWER_VIEW,
        "feature_cache": (
            feature_cache(cfg, expert.FEATURE_CACHE) if expert.FEATURE_CACHE else None
        ),
        "backbone_cache": build_backbone_cache(cfg),
        "pixel_mean": tuple(cfg.MODEL.PIXEL_MEAN),
        "pixel_std": tuple(cfg.MODEL.PIXEL_STD),
        "size": cfg.INPUT.SIZE,
        "resize": cfg.INPUT.RESIZE,
    }


def build_segmentation(
    cfg: CfgNode, backbone: Backbone
) -> tuple[SamEncoder | PatchNeck, MaskPrompting]:
    """The segmentation encoder and the mask decoder of MODEL.EXPERT."""
    expert = cfg.MODEL.EXPERT
    if expert.SEGMENTATION == "sam":
        # MODEL.WEIGHTS brings the whole expert along, unless it is declared not to.
        brought = cfg.MODEL.WEIGHTS and "segmentation_encoder" not in cfg.MODEL.NEW_PARTS
        vision, prompts, decoder = build_sam(expert.SAM_NAME, "" if brought else expert.SAM_WEIGHTS)
        return SamEncoder(vision), MaskPrompting(prompts, decoder)
    prompts, decoder = build_mask_decoder(
        dim=expert.DECODER_DIM,
        layers=expert.DECODER_LAYERS,
        heads=expert.DECODER_HEADS,
        mlp_dim=expert.DECODER_MLP_DIM,
    )
    return PatchNeck(backbone.embed_dim, expert.DECODER_DIM), MaskPrompting(prompts, decoder)


@BACKBONE_REGISTRY.register()
def build_clip_tower(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> ClipTower:
    """Detectron2's entry: `MODEL.BACKBONE.NAME: build_clip_tower`."""
    expert = cfg.MODEL.EXPERT
    brought = cfg.MODEL.WEIGHTS and "backbone" not in cfg.MODEL.NEW_PARTS
    vision = build_clip_vision(expert.CLIP_NAME, "" if brought else expert.CLIP_WEIGHTS)
    return with_adapters(cfg, ClipTower(vision))


def _check_feature_cache(cfg: CfgNode) -> None:
    """A cache needs a frozen encoder, and images that are the same each time.

    Raises:
        ValueError: They are not.
    """
    if not cfg.MODEL.EXPERT.FEATURE_CACHE:
        return
    if cfg.MODEL.EXPERT.SEGMENTATION != "sam" or "segmentation_encoder" not in cfg.MODEL.FREEZE:
        raise ValueError(
            "MODEL.EXPERT.FEATURE_CACHE keeps features of SAM's frozen encoder: set SEGMENTATION "
            "sam, and add segmentation_encoder to MODEL.FREEZE"
        )
    require_same_images(cfg, "MODEL.EXPERT.FEATURE_CACHE")
