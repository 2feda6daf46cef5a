"""Loupe, the Detectron2 meta-architecture: an image in, a forgery probability and a map out.

B images, S side of the network image, C encoder width, h w patches.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from torch import Tensor, nn
from torch.nn import functional as F

from loupe.modeling.canvas import stack_padded, valid_pixels
from loupe.modeling.classifier import PatchAwareClassifier
from loupe.modeling.criterion import ClassificationCriterion, MaskCriterion, MaskLossWeights
from loupe.modeling.matcher import MatchingCosts
from loupe.modeling.postprocessing import extend_edge, paste_map, query_map
from loupe.modeling.segmenter import Segmenter
from loupe.ops import use_fast_linear
from loupe.structures import ClassifierOutput, LossCounts, MaskOutput, Targets

PARTS = ("backbone", "classifier", "segmenter")


class NetworkInput(NamedTuple):
    """A batch as the network takes it.

    Attributes:
        images: (B, 3, S, S) normalised, zero in padding.
        patch_valid: (B, h, w) bool, or None where there is no padding.
        extents: (B, 2), share of the canvas (x, y) that is image.
    """

    images: Tensor
    patch_valid: Tensor | None
    extents: Tensor


class Perception(NamedTuple):
    """What is known about a batch before the segmenter runs: input, features, verdicts."""

    inputs: NetworkInput
    features: dict[str, Tensor]
    verdict: ClassifierOutput


@META_ARCH_REGISTRY.register()
class Loupe(nn.Module):
    """Was the image forged, and where?

    Args:
        backbone: Gives `patches` and `pooled`.
        classifier: Gives the verdicts.
        segmenter: Gives the masks; None = the patch map stands in for the pixel map (stage 1).
        classification_criterion: None = the classifier is not trained.
        mask_criterion: Losses of the segmenter; needed when there is one.
        frozen: Names of parts that are not trained.
        condition_jitter: Largest share by which training labels are mixed towards 0.5.
        patch_share: Share of the patch map in the pixels' map of a model with a segmenter.
        pixel_mean: Mean of RGB pixels, 0..255.
        pixel_std: Their deviation.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        classifier: PatchAwareClassifier,
        segmenter: Segmenter | None,
        classification_criterion: ClassificationCriterion | None,
        mask_criterion: MaskCriterion | None,
        frozen: tuple[str, ...] = ("backbone",),
        condition_jitter: float = 0.0,
        patch_share: float = 0.0,
        pixel_mean: tuple[float, ...] = (127.5, 127.5, 127.5),
        pixel_std: tuple[float, ...] = (127.5, 127.5, 127.5),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier
        self.segmenter = segmenter
        self.classification_criterion = classification_criterion
        self.mask_criterion = mask_criterion
        self.condition_jitter, self.patch_share = condition_jitter, patch_share
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(3, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(3, 1, 1), False)
        unknown = set(frozen) - set(PARTS)
        if unknown:
            raise ValueError(f"MODEL.FREEZE names {sorted(unknown)}; the parts are {PARTS}")
        self.frozen = tuple(frozen)
        for name in self.frozen:
            if getattr(self, name) is not None:
                getattr(self, name).requires_grad_(False)
        use_fast_linear(self)
        self.train(self.training)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Wires the parts as the config says."""
        backbone = build_backbone(cfg)
        classifier = PatchAwareClassifier(
            dim=backbone.embed_dim,
            grid_size=backbone.grid_size,
            patch_prediction=cfg.MODEL.CLASSIFIER.PATCH_PREDICTION,
            fusion=cfg.MODEL.CLASSIFIER.FUSION,
        )
        enabled = cfg.MODEL.SEGMENTER.ENABLED
        if not cfg.MODEL.CLASSIFIER.LOSS_WEIGHT and "classifier" not in cfg.MODEL.FREEZE:
            raise ValueError(
                "MODEL.CLASSIFIER.LOSS_WEIGHT is 0, so the classifier cannot learn: "
                "add classifier to MODEL.FREEZE"
            )
        if not enabled and not cfg.MODEL.CLASSIFIER.PATCH_PREDICTION:
            raise ValueError(
                "MODEL.SEGMENTER.ENABLED and MODEL.CLASSIFIER.PATCH_PREDICTION are both False: "
                "nothing would say where; switch one on"
            )
        return {
            "backbone": backbone,
            "classifier": classifier,
            "segmenter": _segmenter(cfg, backbone.embed_dim) if enabled else None,
            "classification_criterion": _classification_criterion(cfg),
            "mask_criterion": _mask_criterion(cfg) if enabled else None,
            "frozen": tuple(cfg.MODEL.FREEZE),
            "condition_jitter": cfg.MODEL.SEGMENTER.CONDITION_JITTER,
            "patch_share": cfg.MODEL.SEGMENTER.PATCH_SHARE,
            "pixel_mean": tuple(cfg.MODEL.PIXEL_MEAN),
            "pixel_std": tuple(cfg.MODEL.PIXEL_STD),
        }

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return self.pixel_mean.device

    def train(self, mode: bool = True) -> Loupe:
        """Sets training mode, except for frozen parts, which always stay in evaluation mode."""
        super().train(mode)
        for name in self.frozen:
            if getattr(self, name) is not None:
                getattr(self, name).eval()
        return self

    def forward(
        self, batched_inputs: list[dict[str, Any]], counts: Tensor | None = None
    ) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Losses in training, predictions in evaluation.

        Args:
            batched_inputs: Items of the dataset mapper: `image` uint8 (3, S, S), `valid_size`;
                in training also `label`, `mask`, `regions`; else `height`, `width`, `window`.
                An item without `image` carries an `error` and is answered with it.
            counts: Sums of `loss_counts` over the optimiser step, divided by the number of
                processes; None = this batch alone.

        Returns:
            Named weighted losses, or one dict for each item: `forgery_score` (float),
            `forgery_map` (height, width) and `patch_map` (h, w) or None, on the CPU.
        """
        if self.training:
            return self._losses(batched_inputs, counts)
        return self._predictions(batched_inputs)

    def _losses(
        self, batched_inputs: list[dict[str, Any]], counts: Tensor | None
    ) -> dict[str, Tensor]:
        inputs = self.preprocess(batched_inputs)
        targets = self.prepare_targets(batched_inputs, inputs)
        total = _at_least_one(self.loss_counts(batched_inputs) if counts is None else counts)
        features = self.encode(inputs)
        losses: dict[str, Tensor] = {}
        if self.classification_criterion is not None:
            verdict = self.classifier(**features, patch_valid=inputs.patch_valid)
            losses |= self.classification_criterion(verdict, targets, total)
        if self.segmenter is not None:
            condition = self._training_condition(targets.labels)
            outputs = self.segmenter(features["patches"], condition, inputs.patch_valid)
            losses |= self.mask_criterion(outputs, targets, total, inputs.extents)
        return losses

    def _predictions(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return self.answer(batched_inputs, self.perceive(batched_inputs))

    def perceive(self, batched_inputs: list[dict[str, Any]]) -> Perception | None:
        """Encodes and classifies the readable items: all that comes before the segmenter.

        Returns:
            None where no item is readable.
        """
        readable = [item for item in batched_inputs if "image" in item]
        if not readable:
            return None
        inputs = self.preprocess(readable)
        features = self.encode(inputs)
        verdict = self.classifier(**features, patch_valid=inputs.patch_valid)
        return Perception(inputs, features, verdict)

    def answer(
        self, batched_inputs: list[dict[str, Any]], perception: Perception | None
    ) -> list[dict[str, Any]]:
        """Predicts from a perception of the same items; one without `image` keeps its error.

        The condition is the classifier's probability, always.
        """
        answers = iter(() if perception is None else self._answers(batched_inputs, perception))
        return [
            next(answers) if "image" in item else {"error": item["error"]}
            for item in batched_inputs
        ]

    def _answers(
        self, batched_inputs: list[dict[str, Any]], perception: Perception
    ) -> list[dict[str, Any]]:
        inputs, features, verdict = perception
        probability = verdict.image_logits.detach().float().sigmoid()
        output = None
        if self.segmenter is not None:
            output = self.segmenter(features["patches"], probability, inputs.patch_valid)[-1]
        size = (inputs.images.shape[2], inputs.images.shape[3])
        readable = [item for item in batched_inputs if "image" in item]
        return [
            _answer(item, i, size, probability, verdict, output, self.patch_share)
            for i, item in enumerate(readable)
        ]

    def preprocess(self, batched_inputs: list[dict[str, Any]]) -> NetworkInput:
        """Stacks and normalises; padding becomes exactly zero, whatever it holds."""
        images = self._stack(batched_inputs, "image")
        images = (images.float() - self.pixel_mean) / self.pixel_std
        height, width = images.shape[-2:]
        sizes = torch.tensor([item["valid_size"] for item in batched_inputs], device=self.device)
        extents = sizes.flip(1) / sizes.new_tensor([width, height])
        if all(tuple(item["valid_size"]) == (height, width) for item in batched_inputs):
            return NetworkInput(images, None, extents)
        patch = self.backbone.size_divisibility
        valid = valid_pixels(extents, images.shape[-2:])[:, None]
        patch_valid = F.max_pool2d(valid, patch)[:, 0] > 0
        return NetworkInput(images * valid, patch_valid, extents)

    def _stack(self, batched_inputs: list[dict[str, Any]], key: str) -> Tensor:
        tensors = [item[key].to(self.device) for item in batched_inputs]
        return stack_padded(tensors, self.backbone.size_divisibility)

    def encode(self, inputs: NetworkInput) -> dict[str, Tensor]:
        """Runs the encoder, without a graph if it is frozen; padding holds zero features."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and "backbone" not in self.frozen):
            features = self.backbone(inputs.images, inputs.patch_valid)
            if inputs.patch_valid is not None:
                features["patches"] = features["patches"] * inputs.patch_valid[:, None]
        return features

    def prepare_targets(
        self, batched_inputs: list[dict[str, Any]], inputs: NetworkInput
    ) -> Targets:
        """Brings the mapper's masks and labels to the device; averages masks over patches."""
        soft = self._stack(batched_inputs, "mask")
        patch = self.backbone.size_divisibility
        ratios = F.avg_pool2d(soft[:, None], patch)[:, 0]
        known = torch.tensor(
            [item.get("mask_known", True) for item in batched_inputs], device=self.device
        )
        valid = torch.ones_like(ratios, dtype=torch.bool)
        if inputs.patch_valid is not None:
            valid = inputs.patch_valid
            # A share of the patch's image, not of its padding.
            shares = F.avg_pool2d(valid_pixels(inputs.extents, soft.shape[1:])[:, None], patch)
            ratios = ratios / shares[:, 0].clamp(min=1 / patch**2)
        masks = []
        all_regions = self._stack(batched_inputs, "regions")
        for item, regions in zip(batched_inputs, all_regions, strict=True):
            numbers = torch.arange(1, _region_count(item) + 1, device=self.device)
            masks.append((regions[None] == numbers[:, None, None]).float())
        labels = torch.tensor([float(item["label"]) for item in batched_inputs], device=self.device)
        return Targets(labels, masks, ratios, valid & known[:, None, None], known)

    def loss_counts(self, batched_inputs: list[dict[str, Any]]) -> Tensor:
        """The `LossCounts` of a batch as a float64 tensor on the CPU; they add up."""
        patch = self.backbone.size_divisibility
        known = [item for item in batched_inputs if item.get("mask_known", True)]
        patches = masks = class_weights = 0.0
        queries = 0 if self.segmenter is None else self.segmenter.num_queries
        for item in known:
            h, w = item["valid_size"]
            patches += -(-h // patch) * -(-w // patch)
            masks += min(_region_count(item), queries)
        if self.mask_criterion is not None:
            class_weights = self.mask_criterion.class_weights(queries * len(known), masks)
        counts = LossCounts(len(batched_inputs), patches, masks, class_weights)
        return torch.tensor(counts, dtype=torch.float64)

    def _training_condition(self, labels: Tensor) -> Tensor:
        """Ground truth, as in the paper; `condition_jitter` mixes it towards 0.5."""
        if not self.condition_jitter:
            return labels
        share = self.condition_jitter * torch.rand_like(labels)
        return labels * (1 - share) + 0.5 * share


def _region_count(item: dict[str, Any]) -> int:
    return int(item["regions"].max()) if item.get("mask_known", True) else 0


def _at_least_one(counts: Tensor) -> LossCounts:
    """Counts as numbers; where there is nothing to count the sum is 0, too, and 1 divides it."""
    return LossCounts(*(value if value > 0 else 1.0 for value in counts.tolist()))


def _answer(
    item: dict[str, Any],
    index: int,
    size: tuple[int, int],
    probability: Tensor,
    verdict: ClassifierOutput,
    output: MaskOutput | None,
    patch_share: float,
) -> dict[str, Any]:
    valid_size = item["valid_size"]
    patch_map = None
    if verdict.patch_logits is not None:
        patch_map = verdict.patch_logits[index].float().sigmoid()
    maps = []
    if output is not None:
        masks = extend_edge(output.mask_logits[index], valid_size, size)
        maps.append(query_map(output.class_logits[index], masks, size))
    if output is None or (patch_share and patch_map is not None):
        extended = extend_edge(patch_map[None], valid_size, size)[None]
        maps.append(F.interpolate(extended, size, mode="bilinear", align_corners=False)[0, 0])
    network_map = torch.lerp(*maps, patch_share) if len(maps) == 2 else maps[0]
    window = item.get("window", (0, 0, item["width"], item["height"]))
    pasted = paste_map(network_map, valid_size, window, (item["height"], item["width"]))
    return {
        "forgery_score": float(probability[index]),
        "forgery_map": pasted.cpu(),
        "patch_map": None if patch_map is None else patch_map.cpu(),
    }


def _segmenter(cfg: CfgNode, dim_in: int) -> Segmenter:
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
    )


def _classification_criterion(cfg: CfgNode) -> ClassificationCriterion | None:
    classifier = cfg.MODEL.CLASSIFIER
    if not classifier.LOSS_WEIGHT:
        return None
    return ClassificationCriterion(
        image_loss=classifier.IMAGE_LOSS,
        image_alpha=classifier.IMAGE_ALPHA,
        patch_alpha=classifier.PATCH_ALPHA,
        gamma=classifier.GAMMA,
        epsilon=classifier.EPSILON,
        weight=classifier.LOSS_WEIGHT,
        patch_weight=classifier.PATCH_WEIGHT,
    )


def _mask_criterion(cfg: CfgNode) -> MaskCriterion:
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
