"""How far masks have moved from what they may be compared with.

B images, h w patches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from loupe.adaptation.pseudo_labels import disagreement, grid_maps, reference_maps
from loupe.modeling.loupe import ClassifiedBatch
from loupe.structures import MaskOutput


def predict(segmenter: nn.Module, perception: ClassifiedBatch) -> list[MaskOutput]:
    """The segmenter's outputs under the soft condition, the last one being the prediction."""
    inputs, features, verdict = perception
    probability = verdict.image_logits.detach().float().sigmoid()
    return segmenter(features["patches"], probability, inputs.patch_valid)


def part_of(perception: ClassifiedBatch, rows: list[int]) -> ClassifiedBatch:
    """What is known of some images of a batch, as far as the segmenter needs it."""
    inputs, features, verdict = perception
    valid = None if inputs.patch_valid is None else inputs.patch_valid[rows]
    return ClassifiedBatch(
        inputs._replace(patch_valid=valid),
        {"patches": features["patches"][rows]},
        verdict._replace(image_logits=verdict.image_logits[rows]),
    )


def maps_on_grid(output: MaskOutput, perception: ClassifiedBatch) -> Tensor:
    """(B, h, w) in [0, 1]: the maps of a prediction on the patch grid."""
    height, width = perception.features["patches"].shape[-2:]
    return grid_maps(output, (height, width))


@torch.no_grad()
def disagreement_with_patch_maps(
    output: MaskOutput, perception: ClassifiedBatch, temperature: float = 1.0
) -> Tensor:
    """(B,) in [0, 1]; see `disagreement`."""
    maps = maps_on_grid(output, perception)
    reference = reference_maps(perception.classification, temperature)
    return disagreement(maps, reference, perception.inputs.patch_valid)


class Guard:
    """Compares the masks of some images with the patch maps or with the source model's masks.

    Args:
        kind: "patch_map" or "source", see `AdaptationSettings.rollback`.
        source: The segmenter as it was before adaptation.
        perceptions: The images, in micro-batches.
        temperature: Of the patch maps.
    """

    @torch.no_grad()
    def __init__(
        self,
        kind: str,
        source: nn.Module,
        perceptions: Sequence[ClassifiedBatch],
        temperature: float = 1.0,
    ) -> None:
        self.kind, self.temperature = kind, temperature
        self._source = [
            disagreement_with_patch_maps(output, perception, temperature)
            if kind == "patch_map"
            else maps_on_grid(output, perception)
            for perception in perceptions
            for output in [predict(source, perception)[-1]]
        ]

    @torch.no_grad()
    def excess(
        self, outputs: Sequence[MaskOutput], perceptions: Sequence[ClassifiedBatch]
    ) -> float:
        """Mean over the images of how much more these masks disagree than the source model's do.

        Args:
            outputs: Predictions, one for each micro-batch.
            perceptions: The micro-batches that the guard was made with.

        Returns:
            NaN if an output is not finite.
        """
        more = []
        for output, perception, source in zip(outputs, perceptions, self._source, strict=True):
            if self.kind == "patch_map":
                present = disagreement_with_patch_maps(output, perception, self.temperature)
                more.append(present - source)
            else:
                maps = maps_on_grid(output, perception)
                more.append(disagreement(maps, source, perception.inputs.patch_valid))
        return float(torch.cat(more).mean())
