"""One step of adaptation, and what makes it safe."""

from __future__ import annotations

import copy
import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from loupe.adaptation.guard import Guard, disagreement_with_patch_maps, part_of, predict
from loupe.adaptation.parameters import chosen_parameters, gradients_for, graph_parameters
from loupe.adaptation.pseudo_labels import blend, image_weights, pseudo_targets
from loupe.adaptation.settings import AdaptationSettings
from loupe.adaptation.summary import AdaptationSummary
from loupe.modeling.loupe import ClassifiedBatch, Loupe
from loupe.structures import LossCounts, MaskOutput, Targets

logger = logging.getLogger(__name__)

CLIP_NORM = 1.0


class Lesson(NamedTuple):
    """The outcome of a backward pass.

    Attributes:
        loss: Before the step.
        weight: Sum of the images' weights; 0 = there is nothing to learn from.
        images: Number of images that count.
        excess: By how much more the present masks disagree than the source model's do.
    """

    loss: float = 0.0
    weight: float = 0.0
    images: int = 0
    excess: float = 0.0


class TestTimeAdaptation:
    """Adapts the segmenter of a model, in place, on images without labels.

    Attributes:
        model: The model.
        settings: What adapts, and how safely.
        source: The segmenter as it was, never changed.
        teacher: Moving average of the segmenter, or None.
        summary: What was done so far.

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
        if model.segmenter is None:
            raise ValueError("nothing to adapt: MODEL.SEGMENTER.ENABLED is False")
        if "segmenter" in model.frozen:
            raise ValueError("nothing to adapt: MODEL.FREEZE names the segmenter; leave it out")
        self.model = model
        self.settings = dataclasses.replace(settings or AdaptationSettings(), **changes)
        self.source = _frozen_copy(model.segmenter)
        self.teacher = _frozen_copy(model.segmenter) if self.settings.teacher_decay else None
        name = self.settings.parameters
        self.parameters = chosen_parameters(model.segmenter, name)
        self._graph = graph_parameters(model.segmenter, name)
        self._sources = chosen_parameters(self.source, name)
        self.summary = AdaptationSummary()
        self._schedule: Callable[[int], float] = lambda step: 1.0
        self._attempts = 0
        self._moved = self._stopped = False
        self._rollbacks = 0
        self.forget_answers()
        self._new_optimizer()

    def follow(self, schedule: Callable[[float], float], total_steps: int) -> None:
        """Multiplies the learning rate by `schedule(progress)` over the next `total_steps` steps.

        A step's progress in (0, 1) is that of its middle: at its beginning the first step of a
        warmup would have a rate of 0, and be lost, which is much of a short adaptation.
        """
        self._attempts = 0
        self._schedule = lambda step: schedule(min((step + 0.5) / total_steps, 1.0))

    def _new_optimizer(self) -> None:
        groups = [
            {"params": [p for p in self.parameters if p.dim() > 1]},
            {"params": [p for p in self.parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=self.settings.lr,
            weight_decay=self.settings.weight_decay,
        )

    def reset(self) -> None:
        """Brings everything but the summary back to where it started."""
        self._return_to_source()
        self._stopped, self._rollbacks = False, 0

    def _return_to_source(self) -> None:
        self.model.segmenter.load_state_dict(self.source.state_dict())
        if self.teacher is not None:
            self.teacher.load_state_dict(self.source.state_dict())
        self._new_optimizer()
        self._moved = False

    def forget_answers(self) -> None:
        """Lets go of the last step's images and their predictions."""
        self._answers: list[tuple[ClassifiedBatch, MaskOutput]] = []

    @contextmanager
    def answering(self, perception: ClassifiedBatch | None) -> Iterator[None]:
        """The model with the weights that answer; a prediction that is known already is reused."""
        student = self.model.segmenter
        known = [output for seen, output in self._answers if seen is perception]
        if self.settings.teacher_predicts:
            self.model.segmenter = self.teacher
        elif known:
            self.model.segmenter = _Known(known[0])
        try:
            yield
        finally:
            self.model.segmenter = student

    def step(self, perceptions: Sequence[ClassifiedBatch], *, met: bool = True) -> float:
        """One optimiser step on some micro-batches, normalised over all of them.

        The step is not taken, or is taken back, where the settings or a value that is not finite
        say so; the summary counts it.

        Args:
            perceptions: The micro-batches.
            met: Whether these images are met for the first time.

        Returns:
            The loss before the step; 0 where nothing was learned from.
        """
        self.forget_answers()
        if self._stopped or not perceptions:
            return 0.0
        rate = self.settings.lr * self._schedule(self._attempts)
        self._attempts += 1
        guard = None
        if self.settings.rollback != "none":
            temperature = self.settings.patch_temperature
            guard = Guard(self.settings.rollback, self.source, perceptions, temperature)
        lesson = self._learn(perceptions, guard, met)
        if self._moved and not self._tolerable(lesson.excess):
            # What was learned so far harms images that have taught nothing yet.
            self._return_to_source()
            self._note_rollback()
            if self._stopped:
                return 0.0
            lesson = self._learn(perceptions, guard, False)
        if not lesson.weight:
            self.summary.skipped_nothing_to_learn += 1
            return 0.0
        norm = nn.utils.clip_grad_norm_(self.parameters, CLIP_NORM)
        if not (math.isfinite(lesson.loss) and torch.isfinite(norm)):
            self.model.segmenter.zero_grad(set_to_none=True)
            self.summary.skipped_not_finite += 1
            return lesson.loss
        if not self._move(perceptions, guard, rate):
            return lesson.loss
        self._update_teacher()
        self._moved = True
        self.summary.steps += 1
        self.summary.images_taught += lesson.images if met else 0
        self.summary.note_loss(lesson.loss)
        return lesson.loss

    def _learn(
        self, perceptions: Sequence[ClassifiedBatch], guard: Guard | None, met: bool
    ) -> Lesson:
        """Computes the gradient; no weight changes."""
        margin = self.settings.confidence_margin
        temperature = self.settings.patch_temperature
        targets = [
            pseudo_targets(perception.classification, margin, temperature)
            for perception in perceptions
        ]
        counts = self._counts(targets)
        if counts.class_weights == 0:
            return Lesson()
        segmenter = self.model.segmenter
        segmenter.zero_grad(set_to_none=True)
        loss, weight, outputs = 0.0, 0.0, []
        with torch.enable_grad(), gradients_for(segmenter, self._graph):
            for perception, target in zip(perceptions, targets, strict=True):
                value, share, output = self._backward(perception, target, counts)
                loss, weight = loss + value, weight + share
                outputs.append(output)
                if met:
                    self.summary.note_before(self._disagreements(output, perception).tolist())
        excess = 0.0 if guard is None else guard.excess(outputs, perceptions)
        return Lesson(loss, weight, int(counts.images), excess)

    def _backward(
        self, perception: ClassifiedBatch, targets: Targets, counts: LossCounts
    ) -> tuple[float, float, MaskOutput]:
        """Adds the gradient of one micro-batch; gives loss, sum of weights, and prediction."""
        outputs = predict(self.model.segmenter, perception)
        taught = [index for index, mask in enumerate(targets.masks) if len(mask)]
        if self.teacher is not None and self.settings.teacher_share and taught:
            with torch.no_grad():
                teacher = predict(self.teacher, part_of(perception, taught))[-1]
            targets = blend(targets, teacher, self.settings.teacher_share)
        known = targets.mask_known.float()
        weights = None
        if self.settings.image_weight != "none":
            disagreements = self._disagreements(outputs[-1], perception)
            weights = image_weights(self.settings.image_weight, targets.labels, disagreements)
            _scale_gradients(outputs, weights)
            known = known * weights
        extents = perception.inputs.extents
        loss = sum(self.model.mask_criterion(outputs, targets, counts, extents).values())
        loss.backward()
        prediction = MaskOutput(*(None if x is None else x.detach() for x in outputs[-1]))
        return float(loss.detach()), float(known.sum()), prediction

    def _move(
        self, perceptions: Sequence[ClassifiedBatch], guard: Guard | None, rate: float
    ) -> bool:
        """Lets the optimiser move the weights; says whether the move was kept."""
        before = [] if guard is None else [p.detach().clone() for p in self.parameters]
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self._pull_to_source()
        if guard is None:
            return True
        with torch.no_grad():
            outputs = [predict(self.model.segmenter, perception)[-1] for perception in perceptions]
            if self._tolerable(guard.excess(outputs, perceptions)):
                self._answers = list(zip(perceptions, outputs, strict=True))
                return True
            for parameter, value in zip(self.parameters, before, strict=True):
                parameter.copy_(value)
        self._new_optimizer()
        self._note_rollback()
        return False

    def _tolerable(self, excess: float) -> bool:
        # Not `>`, which lets NaN pass.
        return excess <= self.settings.rollback_tolerance

    def _counts(self, targets: list[Targets]) -> LossCounts:
        images = sum(int(target.mask_known.sum()) for target in targets)
        masks = sum(len(mask) for target in targets for mask in target.masks)
        queries = self.model.segmenter.num_queries * images
        weight = self.model.mask_criterion.class_weights(queries, masks)
        return LossCounts(images, 1.0, max(masks, 1), weight)

    @torch.no_grad()
    def _pull_to_source(self) -> None:
        if self.settings.anchor:
            for parameter, source in zip(self.parameters, self._sources, strict=True):
                parameter.lerp_(source, self.settings.anchor)

    @torch.no_grad()
    def _update_teacher(self) -> None:
        if self.teacher is not None:
            share = 1 - self.settings.teacher_decay
            pairs = zip(self.teacher.parameters(), self.model.segmenter.parameters(), strict=True)
            for averaged, present in pairs:
                averaged.lerp_(present, share)

    def _note_rollback(self) -> None:
        self.summary.rolled_back += 1
        self._rollbacks += 1
        if self._rollbacks == self.settings.rollback_patience:
            self._stopped = self.summary.stopped = True
            logger.warning("adaptation stops after %d rollbacks", self._rollbacks)

    def note_answer(self, output: MaskOutput, perception: ClassifiedBatch) -> None:
        """Adds the disagreement of a prediction with the patch maps to the summary."""
        self.summary.note_after(self._disagreements(output, perception).tolist())

    def _disagreements(self, output: MaskOutput, perception: ClassifiedBatch) -> Tensor:
        temperature = self.settings.patch_temperature
        return disagreement_with_patch_maps(output, perception, temperature)


def _frozen_copy(segmenter: nn.Module) -> nn.Module:
    return copy.deepcopy(segmenter).requires_grad_(False).eval()


class _Known(nn.Module):
    """Stands in for a segmenter whose prediction for the images at hand is known."""

    def __init__(self, output: MaskOutput) -> None:
        super().__init__()
        self.output = output

    def forward(self, *inputs: Tensor | None) -> list[MaskOutput]:
        return [self.output]


def _scale_gradients(outputs: list[MaskOutput], weights: Tensor) -> None:
    """Weighs images: an image's loss reaches the network through its own outputs alone."""
    for output in outputs:
        for tensor in output:
            # Before the first of the parameters that adapt, nothing has a gradient to be weighted.
            if tensor is not None and tensor.requires_grad:
                factors = weights.view(-1, *[1] * (tensor.dim() - 1))
                tensor.register_hook(functools.partial(torch.mul, factors))
