"""ForgeryExpert, the second meta-architecture: IFDL-VLM's stage 1 (arXiv 2603.12930).

    items  -preprocess->  ExpertInput    canvas for the segmentation encoder, view for the tower
           -encode->      features       patches and class token of the tower
           -classify->    Evidence       class logits, and the prompt
           -segment->     mask logits    SAM's mask decoder, told by the prompt
           -predict->     dicts          as Loupe's, and the probability of each class

Every image gets a map: nothing in evaluation reads a label. The probability that an image is forged
is 1 - P(authentic).

B images, H W pixels of the canvas, C width of the tower, h w patches, K classes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from torch import Tensor
from torch.nn import functional as F

from loupe.modeling.canvas import NetworkInput, network_input, stack_padded
from loupe.modeling.expert.building import expert_arguments
from loupe.modeling.expert.evidence_prompt import Evidence, EvidencePrompt
from loupe.modeling.expert.expert_criterion import ExpertCriterion
from loupe.modeling.expert.mask_prompting import MaskPrompting
from loupe.modeling.expert.towers import PatchNeck, SamEncoder
from loupe.modeling.expert.view import crop_view, whole_view
from loupe.modeling.feature_cache import FeatureCache
from loupe.modeling.image_model import ImageModel, beside_errors, completed
from loupe.modeling.postprocessing import paste_map, turn_map
from loupe.modeling.targets import at_least_one
from loupe.structures import CLASSES, LossCounts, class_names, class_of

PARTS = ("backbone", "evidence", "segmentation_encoder", "mask_prompting")

Item = dict[str, Any]


class ExpertInput(NamedTuple):
    """A batch as the expert takes it.

    Attributes:
        pixels: (B, 3, H, W), 0 to 255, the canvas; 0 in padding.
        canvas: The same, normalised for the tower, with what is padding.
        tower: What the tower sees; the canvas itself where it has no size of its own.
        valid_sizes: (height, width) of each image on the canvas.
    """

    pixels: Tensor
    canvas: NetworkInput
    tower: NetworkInput
    valid_sizes: list[tuple[int, int]]


@META_ARCH_REGISTRY.register()
class ForgeryExpert(ImageModel):
    """A verdict of K classes, and a map that its evidence prompts.

    Args:
        backbone: The vision tower: gives `patches` and `pooled`.
        evidence: Verdict and prompt.
        segmentation_encoder: SAM's, or a neck on the patches of the backbone.
        mask_prompting: The mask decoder.
        criterion: The losses.
        frozen: Names of parts that are not trained.
        num_classes: 2 (authentic, tampered) or 3 (and generated as a whole).
        gate: "class" multiplies the map by the probability; "none" leaves it.
        tower_size: Side of the tower's input; 0 = the canvas.
        tower_view: "whole" or "crop".
        feature_cache: Keeps the features of SAM's frozen encoder; None = nothing is kept.
        pixel_mean: Mean of RGB pixels, 0..255, for the tower.
        pixel_std: Their deviation.
        size: Side of the canvas, for images that come without `valid_size`.
        resize: How they are brought to it, see `fitted`.
        backbone_cache: Keeps the features of a frozen tower; None = nothing is kept.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        evidence: EvidencePrompt,
        segmentation_encoder: SamEncoder | PatchNeck,
        mask_prompting: MaskPrompting,
        criterion: ExpertCriterion,
        frozen: tuple[str, ...],
        num_classes: int,
        gate: str,
        tower_size: int,
        tower_view: str,
        feature_cache: FeatureCache | None,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
        size: int,
        resize: str,
        backbone_cache: FeatureCache | None,
    ) -> None:
        super().__init__(pixel_mean, pixel_std)
        self.size, self.resize = size, resize
        self.backbone = backbone
        self.evidence = evidence
        self.segmentation_encoder = segmentation_encoder
        self.mask_prompting = mask_prompting
        self.criterion = criterion
        self.classes = class_names(num_classes)
        self.gate, self.tower_size, self.tower_view = gate, tower_size, tower_view
        self.feature_cache, self.backbone_cache = feature_cache, backbone_cache
        self.freeze(frozen, PARTS)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The arguments that a configuration describes."""
        return expert_arguments(cfg)

    def forward(
        self, batched_inputs: list[Item], counts: Tensor | None = None
    ) -> dict[str, Tensor] | list[Item]:
        """Losses in training, predictions in evaluation; see `Loupe.forward`.

        Args:
            batched_inputs: Items of the dataset mapper; an item without `image` carries an `error`,
                and its prediction is that error. A whole RGB image without `valid_size`, as
                Detectron2's `DefaultPredictor` gives, is brought to the canvas here.
            counts: Sums of `loss_counts` over the optimiser step, divided by the number of
                processes; None = this batch alone.
        """
        if self.training:
            return self._losses(batched_inputs, counts)
        items = [completed(item, self.size, self.resize) for item in batched_inputs]
        return self.predict(items)

    # ---- Forward

    def preprocess(self, batched_inputs: list[Item]) -> ExpertInput:
        """Stacks the images, and makes the tower's view of them."""
        patch = self.backbone.size_divisibility
        multiple = 1 if self.tower_size else patch
        pixels = stack_padded(
            [item["image"].to(self.device) for item in batched_inputs], multiple
        ).float()
        valid_sizes = [tuple(item["valid_size"]) for item in batched_inputs]
        canvas = network_input(self.normalise(pixels), valid_sizes, multiple)
        if not self.tower_size:
            return ExpertInput(pixels, canvas, canvas, valid_sizes)
        if self.tower_view == "crop":
            view, sizes = crop_view(pixels, valid_sizes, self.tower_size), None
        else:
            view, sizes = whole_view(pixels, valid_sizes, self.tower_size)
        sizes = sizes or [(self.tower_size, self.tower_size)] * len(view)
        tower = network_input(self.normalise(view), sizes, patch)
        return ExpertInput(pixels, canvas, tower, valid_sizes)

    def encode(self, inputs: ExpertInput) -> dict[str, Tensor]:
        """Runs the tower, without a graph if it is frozen; features of padding are 0."""
        return self.encode_canvas(inputs.tower)

    def classify(self, inputs: ExpertInput, features: dict[str, Tensor]) -> Evidence:
        """Class logits and prompts."""
        return self.evidence(**features, patch_valid=inputs.tower.patch_valid)

    def segment(
        self,
        inputs: ExpertInput,
        features: dict[str, Tensor],
        prompts: Tensor,
        chosen: list[int] | None = None,
    ) -> Tensor:
        """(b, h, w) mask logits of the chosen images, or of all, on the whole canvas."""
        rows = slice(None) if chosen is None else chosen
        frozen = "segmentation_encoder" in self.frozen
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            if isinstance(self.segmentation_encoder, PatchNeck):
                segmentation = self.segmentation_encoder(features["patches"][rows])
            else:
                segmentation = self._segmentation_features(inputs, rows)
        return self.mask_prompting(segmentation, prompts[rows])

    def _segmentation_features(self, inputs: ExpertInput, rows: slice | list[int]) -> Tensor:
        """Features of SAM's encoder, one image after the other: at 1024 px each is large."""
        pixels, valid = inputs.pixels[rows], inputs.canvas.valid
        valid = None if valid is None else valid[rows]
        features = []
        for i in range(len(pixels)):
            one = pixels[i : i + 1], None if valid is None else valid[i : i + 1]
            if self.feature_cache is None:
                features.append(self.segmentation_encoder(*one))
            else:
                encoder = self.segmentation_encoder
                features.append(self.feature_cache(encoder, *one, encode=encoder))
        return torch.cat(features)

    # ---- Training

    def loss_counts(self, batched_inputs: list[Item]) -> Tensor:
        """The `LossCounts` of a batch as a float64 tensor on the CPU; they add up."""
        counts = LossCounts(len(batched_inputs), 0.0, len(self._with_masks(batched_inputs)), 0.0)
        return torch.tensor(counts, dtype=torch.float64)

    def class_index(self, item: Item) -> int:
        """Index of an item's class among those of the model."""
        name = class_of(int(item["label"]), bool(item.get("wholly_forged", False)))
        return self.classes.index(name if name in self.classes else CLASSES[-1])

    def _with_masks(self, items: list[Item]) -> list[int]:
        """Images that are forged in part, whose mask is known: only these teach the map."""
        return [
            index
            for index, item in enumerate(items)
            if item["label"] == 1
            and item.get("mask_known", True)
            and not (item.get("wholly_forged", False) and len(self.classes) == len(CLASSES))
        ]

    def _losses(self, batched_inputs: list[Item], counts: Tensor | None) -> dict[str, Tensor]:
        total = at_least_one(self.loss_counts(batched_inputs) if counts is None else counts)
        inputs = self.preprocess(batched_inputs)
        features = self.encode(inputs)
        evidence = self.classify(inputs, features)
        classes = torch.tensor([self.class_index(item) for item in batched_inputs])
        chosen = self._with_masks(batched_inputs)
        # The mask decoder must have a gradient in every batch of every process, if only 0.
        used = chosen or [0]
        logits = self.segment(inputs, features, evidence.prompts, used)
        masks = []
        for i, row in zip(used, logits, strict=True):
            height, width = inputs.valid_sizes[i]
            on_canvas = self._on_canvas(row, inputs)[:height, :width]
            target = batched_inputs[i]["mask"].to(self.device)[:height, :width]
            masks.append((on_canvas, target))
        losses = self.criterion(evidence.class_logits, classes.to(self.device), masks, total)
        if not chosen:
            losses |= {name: 0 * losses[name] for name in losses if name.startswith("loss_mask")}
        return losses

    def _on_canvas(self, logits: Tensor, inputs: ExpertInput) -> Tensor:
        """(h, w) logits of the whole canvas -> (H, W), as SAM enlarges them."""
        size = (inputs.pixels.shape[2], inputs.pixels.shape[3])
        return F.interpolate(
            logits[None, None].float(), size, mode="bilinear", align_corners=False
        )[0, 0]

    # ---- Evaluation

    def predict(self, batched_inputs: list[Item]) -> list[Item]:
        """Predicts the readable items.

        Returns:
            One dict for each item, on the CPU: `forgery_score` (the probability, float),
            `forgery_map` (height, width), `patch_map` None, `class_probabilities` (K,); of an item
            without `image` its `error` alone.
        """
        readable = [item for item in batched_inputs if "image" in item]
        return beside_errors(batched_inputs, self._predictions(readable) if readable else [])

    def _predictions(self, items: list[Item]) -> list[Item]:
        inputs = self.preprocess(items)
        features = self.encode(inputs)
        evidence = self.classify(inputs, features)
        logits = self.segment(inputs, features, evidence.prompts)
        probabilities = evidence.class_logits.float().softmax(dim=1)
        forged = (1 - probabilities[:, 0]).clamp(0, 1)
        predictions = []
        for i, item in enumerate(items):
            size = (item["height"], item["width"])
            window = item.get("window", (0, 0, item["width"], item["height"]))
            on_canvas = self._on_canvas(logits[i], inputs)
            # Logits are enlarged, not probabilities: as released.
            forgery_map = paste_map(on_canvas, item["valid_size"], window, size).sigmoid()
            if self.gate == "class":
                forgery_map = forgery_map * forged[i]
            prediction = {
                "forgery_score": float(forged[i]),
                "forgery_map": turn_map(forgery_map, item.get("orientation", 1)).cpu(),
                "patch_map": None,
                "class_probabilities": probabilities[i].cpu(),
            }
            predictions.append(prediction)
        return predictions
