"""Loupe, the Detectron2 meta-architecture: an image in, a probability and a forgery map out.

    items   -preprocess->  NetworkInput   one canvas: normalised images, padding marked
            -encode->      features       patches and their pooled feature (Sec. 2.1)
            -classify->    ClassifiedBatch logits of images and patches (Sec. 2.1)
            -segment->     MaskOutput     queries, conditioned on the probability (Sec. 2.2)
            -predict->     dicts          probability, forgery map, patch map at the image's size

In training the last two arrows end in losses instead, and the condition is the true label.

B images, H W pixels of the canvas, C encoder width, h w patches.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from torch import Tensor

from loupe.modeling.building import model_arguments
from loupe.modeling.canvas import NetworkInput, network_input, stack_padded
from loupe.modeling.classification_criterion import ClassificationCriterion
from loupe.modeling.classifier import PatchAwareClassifier
from loupe.modeling.condition import training_condition
from loupe.modeling.draws import image_generators
from loupe.modeling.feature_cache import FeatureCache
from loupe.modeling.image_model import ImageModel, beside_errors, completed
from loupe.modeling.mask_criterion import MaskCriterion
from loupe.modeling.postprocessing import network_map, paste_map, shift_odds, turn_map
from loupe.modeling.segmenter import Segmenter
from loupe.modeling.targets import at_least_one, count_targets, prepare_targets
from loupe.structures import ClassifierOutput, MaskOutput

PARTS = ("backbone", "classifier", "segmenter")

Item = dict[str, Any]


class ClassifiedBatch(NamedTuple):
    """A batch after the encoder and the classifier, before the segmenter.

    Attributes:
        inputs: What the network was given.
        features: `patches` (B, C, h, w) and `pooled` (B, C).
        classification: Logits of images and patches.
        image_ids: Names of the images, where the items have one.
    """

    inputs: NetworkInput
    features: dict[str, Tensor]
    classification: ClassifierOutput
    image_ids: tuple[str, ...]

    @property
    def probability(self) -> Tensor:
        """(B,) float32 that each image is forged, without a graph."""
        return self.classification.image_logits.detach().float().sigmoid()


@META_ARCH_REGISTRY.register()
class Loupe(ImageModel):
    """Was the image forged, and where?

    Args:
        backbone: Gives `patches` and `pooled`.
        classifier: Gives logits of images and patches.
        segmenter: Gives the masks; None = the patch map stands in for the pixel map (stage 1).
        classification_criterion: None = the classifier is not trained.
        mask_criterion: Losses of the segmenter; needed when there is one.
        frozen: Names of parts that are not trained.
        condition_jitter: See `training_condition`.
        predicted_condition: Likewise.
        patch_share: Fraction of the patch map in the forgery map of a model with a segmenter.
        mask_from: Value of the raw forgery map that becomes 0.5.
        mask_from_probability: Only of images with at least this probability.
        pixel_mean: Mean of RGB pixels, 0..255.
        pixel_std: Their deviation.
        size: Side of the network's square, for images that come without `valid_size`.
        resize: How they are brought to it, see `fitted`.
        backbone_cache: Keeps the features of a frozen backbone; None = nothing is kept.
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
        frozen: tuple[str, ...],
        condition_jitter: float,
        predicted_condition: float,
        patch_share: float,
        mask_from: float,
        mask_from_probability: float,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
        size: int,
        resize: str,
        backbone_cache: FeatureCache | None = None,
    ) -> None:
        super().__init__(pixel_mean, pixel_std)
        self.size, self.resize, self.backbone_cache = size, resize, backbone_cache
        self.backbone = backbone
        self.classifier = classifier
        self.segmenter = segmenter
        self.classification_criterion = classification_criterion
        self.mask_criterion = mask_criterion
        self.condition_jitter, self.predicted_condition = condition_jitter, predicted_condition
        self.patch_share = patch_share
        self.mask_from, self.mask_from_probability = mask_from, mask_from_probability
        self.freeze(frozen, PARTS)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The arguments that a configuration describes."""
        return model_arguments(cfg)

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.backbone.size_divisibility

    def forward(
        self, batched_inputs: list[Item], counts: Tensor | None = None
    ) -> dict[str, Tensor] | list[Item]:
        """Losses in training, predictions in evaluation.

        Args:
            batched_inputs: Items of the dataset mapper: `image` uint8 (3, H, W), `valid_size`;
                in training also `label`, `mask`, `regions` and, so that draws do not depend on
                batch and process, `seed`; else `height`, `width`, `window`.
                An item without `image` carries an `error`, and its prediction is that error.
                A whole RGB image without `valid_size`, as Detectron2's `DefaultPredictor` gives,
                is brought to the network's size here.
            counts: Sums of `loss_counts` over the optimiser step, divided by the number of
                processes; None = this batch alone.

        Returns:
            Named weighted losses, or the predictions of `predict`.
        """
        if self.training:
            return self._losses(batched_inputs, counts)
        items = [completed(item, self.size, self.resize) for item in batched_inputs]
        return self.predict(items, self.classify(items))

    def _losses(self, batched_inputs: list[Item], counts: Tensor | None) -> dict[str, Tensor]:
        inputs = self.preprocess(batched_inputs)
        targets = prepare_targets(batched_inputs, inputs, self.patch_size)
        total = at_least_one(self.loss_counts(batched_inputs) if counts is None else counts)
        generators = image_generators(batched_inputs, self.device)
        features = self.encode(inputs)
        losses: dict[str, Tensor] = {}
        probability = None
        if self.classification_criterion is not None or self.predicted_condition:
            classification = self.classifier(**features, patch_valid=inputs.patch_valid)
            probability = classification.image_logits.float().sigmoid()
            if self.classification_criterion is not None:
                losses |= self.classification_criterion(classification, targets, total)
        if self.segmenter is not None:
            assert self.mask_criterion is not None, "a segmenter that trains needs its losses"
            condition = training_condition(
                targets.labels,
                probability,
                generators,
                jitter=self.condition_jitter,
                predicted=self.predicted_condition,
            )
            outputs = self.segmenter(features["patches"], condition, inputs.patch_valid)
            losses |= self.mask_criterion(outputs, targets, total, inputs.extents, generators)
        return losses

    def preprocess(self, batched_inputs: list[Item]) -> NetworkInput:
        """Stacks and normalises the images."""
        images = stack_padded(
            [item["image"].to(self.device) for item in batched_inputs], self.patch_size
        )
        sizes = [item["valid_size"] for item in batched_inputs]
        return network_input(self.normalise(images), sizes, self.patch_size)

    def encode(self, inputs: NetworkInput) -> dict[str, Tensor]:
        """Runs the encoder, without a graph if it is frozen; features of padding are 0."""
        return self.encode_canvas(inputs)

    def classify(self, batched_inputs: list[Item]) -> ClassifiedBatch | None:
        """Encodes and classifies the readable items: all that comes before the segmenter.

        Returns:
            None where no item is readable.
        """
        readable = [item for item in batched_inputs if "image" in item]
        if not readable:
            return None
        inputs = self.preprocess(readable)
        features = self.encode(inputs)
        classification = self.classifier(**features, patch_valid=inputs.patch_valid)
        image_ids = tuple(str(item.get("image_id", "")) for item in readable)
        return ClassifiedBatch(inputs, features, classification, image_ids)

    def segment(self, batch: ClassifiedBatch) -> MaskOutput | None:
        """The final masks, conditioned on the classifier's probability; None without segmenter."""
        if self.segmenter is None:
            return None
        patches, patch_valid = batch.features["patches"], batch.inputs.patch_valid
        return self.segmenter(patches, batch.probability, patch_valid, final_only=True)[-1]

    def predict(self, batched_inputs: list[Item], batch: ClassifiedBatch | None) -> list[Item]:
        """Segments a classified batch, and brings its maps to the sizes of the images.

        Args:
            batched_inputs: The items that were classified.
            batch: What `classify` returned for them; its probability is the condition.

        Returns:
            One dict for each item, on the CPU: `forgery_score` (the probability, float),
            `forgery_map` (height, width) and `patch_map` (h, w) or None; of an item without
            `image` its `error` alone.
        """
        readable = [item for item in batched_inputs if "image" in item]
        predictions = [] if batch is None else self._predictions(readable, batch)
        return beside_errors(batched_inputs, predictions)

    def _predictions(self, items: list[Item], batch: ClassifiedBatch) -> list[Item]:
        output = self.segment(batch)
        probability, logits = batch.probability, batch.classification.patch_logits
        patch_maps = [None] * len(items) if logits is None else logits.float().sigmoid()
        canvas = (batch.inputs.images.shape[2], batch.inputs.images.shape[3])
        predictions = []
        for i, item in enumerate(items):
            queries = None if output is None else (output.class_logits[i], output.mask_logits[i])
            forged = network_map(
                queries, patch_maps[i], item["valid_size"], canvas, self.patch_share
            )
            size = (item["height"], item["width"])
            window = item.get("window", (0, 0, item["width"], item["height"]))
            forgery_map = paste_map(forged, item["valid_size"], window, size)
            if probability[i] >= self.mask_from_probability:
                forgery_map = shift_odds(forgery_map, self.mask_from)
            orientation, patch_map = item.get("orientation", 1), patch_maps[i]
            prediction = {
                "forgery_score": float(probability[i]),
                "forgery_map": turn_map(forgery_map, orientation).cpu(),
                "patch_map": None if patch_map is None else turn_map(patch_map, orientation).cpu(),
            }
            predictions.append(prediction)
        return predictions

    def loss_counts(self, batched_inputs: list[Item]) -> Tensor:
        """The `LossCounts` of a batch as a float64 tensor on the CPU; they add up."""
        queries = 0 if self.segmenter is None else self.segmenter.num_queries
        return count_targets(batched_inputs, self.patch_size, queries, self.mask_criterion)
