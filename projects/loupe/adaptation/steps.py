"""One step of adaptation.

A step is one optimiser step on some images, spread over micro-batches and processes. Its losses are
normalised over all of them, and its random points belong to the images, so the result does not
depend on how the images are spread.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor, nn

from loupe.adaptation.batches import images_of
from loupe.adaptation.parameters import chosen_parameters, gradients_for, graph_parameters
from loupe.adaptation.pseudo_labels import disagreement_with_patch_maps, pseudo_targets
from loupe.adaptation.settings import AdaptationSettings
from loupe.adaptation.summary import AdaptationSummary
from loupe.modeling.guarded import guarded
from loupe.modeling.loupe import ClassifiedBatch, Loupe
from loupe.structures import LossCounts, MaskOutput, Targets

CLIP_NORM = 1.0

_logger = logging.getLogger(__name__)


class TestTimeAdaptation:
    """Adapts the segmenter of a model, in place, on images without labels.

    Attributes:
        model: The model.
        settings: What adapts, and how.
        summary: What was done so far.
        left_out: Names of the images that no step could learn from, and why.
        predict: The model, whose failure on one image is that image's "error".

    Args:
        model: A Loupe with a segmenter. Only the chosen parameters change.
        settings: By default the released behaviour.
        changes: Settings that differ from these.

    Raises:
        ValueError: There is nothing to adapt, or a setting is not allowed.
    """

    __test__ = False  # The name is the paper's; this is no test.

    def __init__(
        self, model: Loupe, settings: AdaptationSettings | None = None, **changes: Any
    ) -> None:
        if model.segmenter is None or model.mask_criterion is None:
            raise ValueError("nothing to adapt: MODEL.SEGMENTER.ENABLED is False")
        if "segmenter" in model.frozen:
            raise ValueError("nothing to adapt: MODEL.FREEZE names the segmenter; leave it out")
        self.model, self.segmenter, self.criterion = model, model.segmenter, model.mask_criterion
        self.settings = dataclasses.replace(settings or AdaptationSettings(), **changes)
        state = self.segmenter.state_dict()
        self._source = {name: value.clone() for name, value in state.items()}
        self.parameters = chosen_parameters(self.segmenter, self.settings.parameters)
        self._graph = graph_parameters(self.segmenter, self.settings.parameters)
        self.summary = AdaptationSummary()
        self.left_out: dict[str, str] = {}
        self.predict = guarded(model)
        self._schedule: Callable[[int], float] = lambda step: 1.0
        self._start()

    def follow(self, schedule: Callable[[float], float], total_steps: int) -> None:
        """Multiplies the learning rate by `schedule(progress)` over the next `total_steps` steps.

        The progress of a step in (0, 1) is that of its middle. At its beginning the first step of a
        warmup has a rate of 0 and would be lost, which is much of a short adaptation.
        """
        self._attempts = 0
        self._schedule = lambda step: schedule(min((step + 0.5) / total_steps, 1.0))

    def reset(self) -> None:
        """Restores the source weights and forgets the steps; the summary stays."""
        self.segmenter.load_state_dict(self._source)
        self._start()

    def _start(self) -> None:
        self._attempts = 0
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.parameters if p.dim() > 1]},
            {"params": [p for p in self.parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=self.settings.lr,
            weight_decay=self.settings.weight_decay,
        )

    def step(self, batches: Sequence[ClassifiedBatch]) -> float:
        """One optimiser step on the micro-batches of all processes.

        A loss or gradient that is not finite skips the step: weights and optimiser stay. An image
        that the step fails on alone is left out, as if it had not been there; `left_out` says why.

        Args:
            batches: The micro-batches of this process; there may be none.

        Returns:
            The loss before the step; 0 where no process has an image.
        """
        while True:
            self.segmenter.zero_grad(set_to_none=True)
            targets = [self._targets(batch) for batch in batches]
            counts = self._counts(targets)
            if not counts.images:
                return 0.0
            loss, disagreements, without = self._accumulate(batches, targets, counts)
            loss, failed = self._total([loss, float(without is not None)])
            if not failed:
                break
            # All processes take the step again, since its counts have changed.
            batches = batches if without is None else without
        self.summary.note_before(disagreements)
        self._add_up_gradients()
        rate = self.settings.lr * self._schedule(self._attempts)
        self._attempts += 1
        norm = nn.utils.clip_grad_norm_(self.parameters, CLIP_NORM)
        if not (math.isfinite(loss) and torch.isfinite(norm)):
            self.segmenter.zero_grad(set_to_none=True)
            self.summary.skipped_not_finite += 1
            return loss
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.summary.note_step(loss)
        return loss

    def _targets(self, batch: ClassifiedBatch) -> Targets:
        return pseudo_targets(batch.classification, self.settings.patch_temperature)

    def _accumulate(
        self, batches: Sequence[ClassifiedBatch], targets: list[Targets], counts: LossCounts
    ) -> tuple[float, list[float], list[ClassifiedBatch] | None]:
        """Adds up the gradients of the micro-batches.

        Returns:
            Their loss, the disagreement of each image, and None; where one of them fails, the
            batches to try instead: its images one by one, or without its only image.
        """
        loss, disagreements = 0.0, []
        with torch.enable_grad(), gradients_for(self.segmenter, self._graph):
            for number, (batch, target) in enumerate(zip(batches, targets, strict=True)):
                try:
                    more, found = self._backward(batch, target, counts)
                except Exception as error:  # Out of memory, a shape that a layer refuses, ...
                    parts = self._without_failing(batch, error)
                    return 0.0, [], [*batches[:number], *parts, *batches[number + 1 :]]
                loss += more
                disagreements += found
        return loss, disagreements, None

    def _without_failing(self, batch: ClassifiedBatch, error: Exception) -> list[ClassifiedBatch]:
        if len(batch.image_ids) > 1:
            return images_of(batch)
        (name,) = batch.image_ids
        first = f"{type(error).__name__}: {error}".splitlines()[0]
        self.left_out[name] = f"left out of the adaptation: it failed on this image ({first})"
        self.summary.left_out += 1
        _logger.warning("%s: %s", name, self.left_out[name], exc_info=error)
        return []

    def _backward(
        self, batch: ClassifiedBatch, targets: Targets, counts: LossCounts
    ) -> tuple[float, list[float]]:
        """Adds the gradient of one micro-batch; returns its loss and its disagreements."""
        outputs = self.segmenter(
            batch.features["patches"], targets.labels, batch.inputs.patch_valid
        )
        disagreements = self._disagreements(outputs[-1], batch)
        if self.settings.image_weight == "agreement":
            _scale_gradients(outputs, 1 - disagreements)
        generators = [self._generator(image_id) for image_id in batch.image_ids]
        losses = self.criterion(outputs, targets, counts, batch.inputs.extents, generators)
        loss = functools.reduce(torch.add, losses.values())
        loss.backward()
        return float(loss.detach()), disagreements.tolist()

    def _generator(self, image_id: str) -> torch.Generator:
        """Draws an image's points in this step, whatever else is in the batch or the process."""
        name = image_id.encode("utf-8", "surrogateescape")
        number = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")
        sequence = np.random.SeedSequence((self.settings.seed, self._attempts, number))
        seed = int(sequence.generate_state(1, np.uint64)[0])
        return torch.Generator(self.model.device).manual_seed(seed)

    def _counts(self, targets: list[Targets]) -> LossCounts:
        labels = sum(len(target.labels) for target in targets)
        regions = sum(len(mask) for target in targets for mask in target.masks)
        images, masks = self._total([labels, regions])
        queries = self.segmenter.num_queries * images
        weight = self.criterion.class_weights(queries, masks)
        return LossCounts(images, 1.0, max(masks, 1.0), weight)

    def _total(self, values: list[float]) -> list[float]:
        """Adds numbers up over the processes."""
        if comm.get_world_size() == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.model.device)
        dist.all_reduce(total)
        return total.tolist()

    def _add_up_gradients(self) -> None:
        """Adds the gradients up over the processes; one without images has none."""
        if comm.get_world_size() == 1:
            return
        parameters = self.parameters
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        parts = flat.split([parameter.numel() for parameter in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def note_prediction(self, output: MaskOutput, batch: ClassifiedBatch) -> None:
        """Adds the disagreement of predicted masks with the patch maps to the summary."""
        self.summary.note_after(self._disagreements(output, batch).tolist())

    def _disagreements(self, output: MaskOutput, batch: ClassifiedBatch) -> Tensor:
        return disagreement_with_patch_maps(output, batch, self.settings.patch_temperature)


def _scale_gradients(outputs: list[MaskOutput], weights: Tensor) -> None:
    """Weights images: an image's loss reaches the network through its own outputs alone.

    The weights are not normalised, so a batch of doubtful images moves less.
    """
    for output in outputs:
        for tensor in output:
            # Outputs above the first parameter that adapts have no gradient to be weighted.
            if tensor is not None and tensor.requires_grad:
                factors = weights.view(-1, *[1] * (tensor.dim() - 1))
                tensor.register_hook(functools.partial(torch.mul, factors))
