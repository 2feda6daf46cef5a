"""From the configuration to the parts of the model: the one place where keys meet arguments.

The keys own the defaults (`loupe.config`). Where a key exists, a class of `loupe.modeling` takes a
keyword-only argument without a default, so that no default is written twice.
"""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_backbone

from loupe.modeling.backbone import VIT, PerceptionEncoder
from loupe.modeling.classification_criterion import ClassificationCriterion
from loupe.modeling.classifier import PatchAwareClassifier
from loupe.modeling.feature_cache import FeatureCache
from loupe.modeling.forensic.patch_embedding import WITH_GREY_LEVELS
from loupe.modeling.lora import add_adapters
from loupe.modeling.mask_criterion import MaskCriterion, MaskLossWeights
from loupe.modeling.matcher import MatchingCosts
from loupe.modeling.plain_vit import PlainViT
from loupe.modeling.segmenter import Segmenter


def model_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of `Loupe`.

    Raises:
        ValueError: The keys contradict each other.
    """
    classifier, segmenter = cfg.MODEL.CLASSIFIER, cfg.MODEL.SEGMENTER
    if not classifier.LOSS_WEIGHT and "classifier" not in cfg.MODEL.FREEZE:
        raise ValueError(
            "MODEL.CLASSIFIER.LOSS_WEIGHT is 0, so the classifier cannot learn: "
            "add classifier to MODEL.FREEZE"
        )
    if not segmenter.ENABLED and not classifier.PATCH_PREDICTION:
        raise ValueError(
            "MODEL.SEGMENTER.ENABLED and MODEL.CLASSIFIER.PATCH_PREDICTION are both False: "
            "nothing would say where; switch one on"
        )
    backbone = build_backbone(cfg)
    return {
        "backbone": backbone,
        "classifier": build_classifier(cfg, backbone),
        "segmenter": build_segmenter(cfg, backbone.embed_dim) if segmenter.ENABLED else None,
        "classification_criterion": (
            build_classification_criterion(cfg) if classifier.LOSS_WEIGHT else None
        ),
        "mask_criterion": build_mask_criterion(cfg) if segmenter.ENABLED else None,
        "frozen": tuple(cfg.MODEL.FREEZE),
        "condition_jitter": segmenter.CONDITION_JITTER,
        "predicted_condition": segmenter.PREDICTED_CONDITION,
        "patch_share": segmenter.PATCH_SHARE,
        "mask_from": segmenter.MASK_FROM,
        "mask_from_probability": segmenter.MASK_FROM_PROBABILITY,
        "pixel_mean": tuple(cfg.MODEL.PIXEL_MEAN),
        "pixel_std": tuple(cfg.MODEL.PIXEL_STD),
        "size": cfg.INPUT.SIZE,
        "resize": cfg.INPUT.RESIZE,
        "backbone_cache": build_backbone_cache(cfg),
    }


def build_backbone_cache(cfg: CfgNode) -> FeatureCache | None:
    """The cache of MODEL.FEATURE_CACHE; None where there is none.

    Raises:
        ValueError: The backbone is not frozen, or training never sees an image twice.
    """
    key, cache = "MODEL.FEATURE_CACHE.FOLDER", cfg.MODEL.FEATURE_CACHE
    if not cache.FOLDER:
        return None
    if "backbone" not in cfg.MODEL.FREEZE:
        raise ValueError(
            f"{key} keeps the features of a frozen backbone: add backbone to MODEL.FREEZE"
        )
    require_same_images(cfg, key)
    return feature_cache(cfg, cache.FOLDER)


def feature_cache(cfg: CfgNode, folder: str) -> FeatureCache:
    """A cache as MODEL.FEATURE_CACHE says, in some folder."""
    cache = cfg.MODEL.FEATURE_CACHE
    return FeatureCache(folder, precision=cache.PRECISION, limit_gb=cache.LIMIT_GB)


def require_same_images(cfg: CfgNode, key: str) -> None:
    """A cache of features needs images that are the same in each pass over the data.

    Args:
        cfg: Of the whole run.
        key: What asks for the cache.

    Raises:
        ValueError: They are drawn anew.
    """
    drawn = [name for name, probability in cfg.INPUT.AUGMENTATION.items() if probability]
    if drawn:
        raise ValueError(
            f"{key} is set, but augmentation makes other images each time: set "
            f"{', '.join(f'INPUT.AUGMENTATION.{name} 0' for name in drawn)}"
        )
    if cfg.INPUT.RESIZE == "crop":
        raise ValueError(
            f"{key} is set, but INPUT.RESIZE crop draws another window each time: set pad, squash "
            "or native"
        )
    streams = [name for name in cfg.DATASETS.TRAIN if name.startswith("synthetic://")]
    if streams:
        raise ValueError(
            f"{key} is set, but {streams[0]} is a stream whose images hardly come twice: write a "
            "list with `loupe synthesize`, and set DATASETS.TRAIN to it"
        )


def encoder_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of `PerceptionEncoder`.

    Raises:
        ValueError: The stem needs other pixels than MODEL.PIXEL_MEAN and MODEL.PIXEL_STD give.
    """
    encoder = cfg.MODEL.PERCEPTION_ENCODER
    if encoder.PRECISION != "float32" and "backbone" not in cfg.MODEL.FREEZE:
        raise ValueError(
            f"MODEL.PERCEPTION_ENCODER.PRECISION is {encoder.PRECISION}, too coarse for updates: "
            "add backbone to MODEL.FREEZE, or use float32"
        )
    if encoder.STEM in WITH_GREY_LEVELS:
        _require_grey_levels(cfg)
    overrides = {
        "patch_size": encoder.PATCH_SIZE,
        "embed_dim": encoder.EMBED_DIM,
        "num_heads": encoder.NUM_HEADS,
    }
    # MODEL.WEIGHTS brings the encoder along, unless it is declared not to.
    brought = cfg.MODEL.WEIGHTS and "backbone" not in cfg.MODEL.NEW_PARTS
    return {
        "name": encoder.NAME,
        "image_size": encoder.POSITION_SIZE or cfg.INPUT.SIZE,
        "weights": "" if brought else encoder.WEIGHTS,
        "stem": encoder.STEM,
        "depth": encoder.DEPTH,
        "new_parts": [
            part.removeprefix(VIT) for part in cfg.MODEL.NEW_PARTS if part.startswith(VIT)
        ],
        "precision": encoder.PRECISION,
        "overrides": {key: value for key, value in overrides.items() if value},
    }


def _require_grey_levels(cfg: CfgNode) -> None:
    """Stems that count in grey levels undo PIXEL_MEAN and PIXEL_STD, so these must be 127.5."""
    for key in ("PIXEL_MEAN", "PIXEL_STD"):
        values = list(cfg.MODEL[key])
        if values != [127.5] * 3:
            raise ValueError(
                f"MODEL.{key} is {values}; STEM: {cfg.MODEL.PERCEPTION_ENCODER.STEM} needs 127.5 "
                "for each channel"
            )


@BACKBONE_REGISTRY.register()
def build_perception_encoder(
    cfg: CfgNode, input_shape: ShapeSpec | None = None
) -> PerceptionEncoder:
    """Detectron2's entry: `MODEL.BACKBONE.NAME: build_perception_encoder`."""
    return with_adapters(cfg, PerceptionEncoder(**encoder_arguments(cfg)))


@BACKBONE_REGISTRY.register()
def build_plain_vit(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> PlainViT:
    """Detectron2's entry: `MODEL.BACKBONE.NAME: build_plain_vit`.

    Raises:
        ValueError: Published weights do not go with MODEL.PIXEL_MEAN and MODEL.PIXEL_STD.
    """
    vit = cfg.MODEL.VIT
    brought = cfg.MODEL.WEIGHTS and "backbone" not in cfg.MODEL.NEW_PARTS
    backbone = PlainViT(
        name=vit.NAME,
        image_size=cfg.MODEL.EXPERT.TOWER_SIZE or cfg.INPUT.SIZE,
        weights="" if brought else vit.WEIGHTS,
        depth=vit.DEPTH,
    )
    for key, expected in zip(("PIXEL_MEAN", "PIXEL_STD"), backbone.pixel_statistics, strict=True):
        pairs = zip(cfg.MODEL[key], expected, strict=True)
        if vit.WEIGHTS and any(abs(ours - theirs) > 0.5 for ours, theirs in pairs):
            raise ValueError(
                f"MODEL.{key} is {list(cfg.MODEL[key])}; {vit.NAME} was trained with "
                f"{[round(value, 3) for value in expected]}: set these"
            )
    return with_adapters(cfg, backbone)


def with_adapters(cfg: CfgNode, backbone: Any) -> Any:
    """The backbone, with the adapters of MODEL.LORA if there are any.

    Raises:
        ValueError: The backbone is frozen, and its adapters with it; or an option is not for it.
    """
    lora = cfg.MODEL.LORA
    if lora.RANK and "backbone" in cfg.MODEL.FREEZE:
        raise ValueError(
            "MODEL.LORA.RANK adapts the backbone, but MODEL.FREEZE names it: take it out (adapters "
            "keep the encoder's own weights as they are)"
        )
    backbone = add_adapters(backbone, rank=lora.RANK, alpha=lora.ALPHA)
    return _run_as_configured(cfg, backbone)


def _run_as_configured(cfg: CfgNode, backbone: Any) -> Any:
    vit: Any = getattr(backbone, "vit", None)
    for key in ("ACTIVATION_CHECKPOINTING", "COMPILE"):
        if cfg.MODEL[key] and vit is None:
            raise ValueError(
                f"MODEL.{key} is True, but MODEL.BACKBONE.NAME is {cfg.MODEL.BACKBONE.NAME}; "
                "it is there for encoders of timm"
            )
    if cfg.MODEL.ACTIVATION_CHECKPOINTING:
        vit.set_grad_checkpointing()
    if cfg.MODEL.COMPILE:
        # Block by block: one program serves all of them, and names of weights stay.
        for block in vit.blocks:
            block.compile()
    return backbone


def build_classifier(cfg: CfgNode, backbone: PerceptionEncoder) -> PatchAwareClassifier:
    """The classifier of MODEL.CLASSIFIER for this encoder."""
    return PatchAwareClassifier(
        dim=backbone.embed_dim,
        grid_size=backbone.grid_size,
        patch_prediction=cfg.MODEL.CLASSIFIER.PATCH_PREDICTION,
        fusion=cfg.MODEL.CLASSIFIER.FUSION,
    )


def build_segmenter(cfg: CfgNode, dim_in: int) -> Segmenter:
    """The segmenter of MODEL.SEGMENTER for an encoder of this width."""
    segmenter = cfg.MODEL.SEGMENTER
    return Segmenter(
        dim_in=dim_in,
        dim=segmenter.FEATURE_DIM,
        num_heads=segmenter.NUM_HEADS,
        num_points=segmenter.NUM_POINTS,
        pixel_layers=segmenter.PIXEL_LAYERS,
        pixel_ffn_dim=segmenter.PIXEL_FFN_DIM,
        mask_layers=segmenter.MASK_LAYERS,
        mask_ffn_dim=segmenter.MASK_FFN_DIM,
        num_queries=segmenter.NUM_QUERIES,
        predict_boxes=segmenter.PREDICT_BOXES,
        condition=segmenter.CONDITION_ATTENTION,
        condition_tokens=segmenter.CONDITION_TOKENS,
        checkpointing=cfg.MODEL.ACTIVATION_CHECKPOINTING,
    )


def build_classification_criterion(cfg: CfgNode) -> ClassificationCriterion:
    """The losses of MODEL.CLASSIFIER."""
    classifier = cfg.MODEL.CLASSIFIER
    return ClassificationCriterion(
        image_loss=classifier.IMAGE_LOSS,
        image_alpha=classifier.IMAGE_ALPHA,
        patch_alpha=classifier.PATCH_ALPHA,
        gamma=classifier.GAMMA,
        epsilon=classifier.EPSILON,
        weight=classifier.LOSS_WEIGHT,
        patch_weight=classifier.PATCH_WEIGHT,
    )


def build_mask_criterion(cfg: CfgNode) -> MaskCriterion:
    """The matching and the losses of MODEL.SEGMENTER."""
    segmenter = cfg.MODEL.SEGMENTER
    return MaskCriterion(
        weights=MaskLossWeights(
            mask=segmenter.MASK_WEIGHT,
            tversky=segmenter.TVERSKY_WEIGHT,
            class_=segmenter.CLASS_WEIGHT,
            box=segmenter.BOX_WEIGHT,
        ),
        costs=MatchingCosts(
            class_=segmenter.COST_CLASS,
            mask=segmenter.COST_MASK,
            dice=segmenter.COST_DICE,
            box=segmenter.BOX_WEIGHT,
        ),
        alpha=segmenter.MASK_ALPHA,
        gamma=segmenter.GAMMA,
        epsilon=segmenter.EPSILON,
        false_positive=segmenter.TVERSKY_FALSE_POSITIVE,
        false_negative=segmenter.TVERSKY_FALSE_NEGATIVE,
        no_object_weight=segmenter.NO_OBJECT_WEIGHT,
        num_points=segmenter.TRAIN_POINTS,
        oversample_ratio=segmenter.OVERSAMPLE_RATIO,
        importance_ratio=segmenter.IMPORTANCE_RATIO,
    )
