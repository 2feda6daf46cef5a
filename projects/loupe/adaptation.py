"""Test-time adaptation guided by pseudo-labels (Sec. 2.3): the classifier teaches the segmenter.

The classifier's probability interpolates the two conditional embeddings, and its patch map is the
mask that the segmenter is trained with. No label is read anywhere here.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from loupe.modeling.loupe import Loupe, Perception
from loupe.structures import ClassifierOutput, LossCounts, Targets

logger = logging.getLogger(__name__)

MODES = ("none", "offline", "online", "episodic")
NORMS = (nn.LayerNorm, nn.GroupNorm)


def pseudo_targets(verdict: ClassifierOutput, confidence_margin: float = 0.0) -> Targets:
    """Turns verdicts into targets: the patch map of an image called forged, no mask otherwise.

    Args:
        verdict: Output of the classifier with patch prediction.
        confidence_margin: Images whose probability is nearer to 0.5 than this teach nothing.

    Returns:
        Soft masks on the patch grid; `labels` holds the probabilities.
    """
    if verdict.patch_logits is None:
        raise ValueError(
            "adaptation needs the patch map: set MODEL.CLASSIFIER.PATCH_PREDICTION to True"
        )
    probability = verdict.image_logits.detach().float().sigmoid()
    patch_maps = verdict.patch_logits.detach().float().sigmoid()
    masks = [
        patch_map[None] if forged else patch_map[None][:0]
        for forged, patch_map in zip((probability > 0.5).tolist(), patch_maps, strict=True)
    ]
    confident = (probability - 0.5).abs() >= confidence_margin
    valid = confident[:, None, None].expand_as(patch_maps)
    masks = [
        mask if sure else mask[:0] for mask, sure in zip(masks, confident.tolist(), strict=True)
    ]
    return Targets(probability, masks, patch_maps, valid, confident)


class TestTimeAdaptation:
    """Adapts the segmenter of a model, in place, on images without labels.

    Args:
        model: A Loupe with a segmenter. Only the parameters chosen here change.
        parameters: "segmenter", "pixel_decoder", "norms" or "embeddings".
        lr: Learning rate.
        weight_decay: Of AdamW; biases and norms are not decayed.
        confidence_margin: See `pseudo_targets`.
    """

    __test__ = False  # The name is the paper's; this is no test.

    def __init__(
        self,
        model: Loupe,
        *,
        parameters: str = "segmenter",
        lr: float = 1e-4,
        weight_decay: float = 5e-2,
        confidence_margin: float = 0.0,
    ) -> None:
        if model.segmenter is None:
            raise ValueError("nothing to adapt: MODEL.SEGMENTER.ENABLED is False")
        if "segmenter" in model.frozen:
            raise ValueError("nothing to adapt: MODEL.FREEZE names the segmenter; leave it out")
        self.model, self.confidence_margin = model, confidence_margin
        self.parameters = _chosen(model.segmenter, parameters)
        self.lr, self.weight_decay = lr, weight_decay
        self._start = copy.deepcopy(model.segmenter.state_dict())
        self._new_optimizer()

    def _new_optimizer(self) -> None:
        groups = [
            {"params": [p for p in self.parameters if p.dim() > 1]},
            {"params": [p for p in self.parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=self.lr,
            weight_decay=self.weight_decay,
        )

    def reset(self) -> None:
        """Brings the segmenter back to where it started, and forgets the optimiser's state."""
        self.model.segmenter.load_state_dict(self._start)
        self._new_optimizer()

    def losses(
        self, perception: Perception, targets: Targets, counts: LossCounts
    ) -> dict[str, Tensor]:
        """The ordinary mask losses (Eq. 4) on pseudo-targets, under the soft condition."""
        inputs, features, _ = perception
        outputs = self.model.segmenter(features["patches"], targets.labels, inputs.patch_valid)
        return self.model.mask_criterion(outputs, targets, counts, inputs.extents)

    def step(self, perceptions: list[Perception]) -> float:
        """One optimiser step on some micro-batches, normalised over all of them.

        Returns:
            The loss before the step; 0 where no image is confident enough to learn from.
        """
        targets = [
            pseudo_targets(perception.verdict, self.confidence_margin) for perception in perceptions
        ]
        counts = self._counts(targets)
        if counts.class_weights == 0:
            return 0.0
        segmenter = self.model.segmenter
        segmenter.zero_grad(set_to_none=True)
        total = 0.0
        with torch.enable_grad():
            for perception, target in zip(perceptions, targets, strict=True):
                loss = sum(self.losses(perception, target, counts).values())
                # For all of the segmenter, though the optimiser holds the chosen ones alone: with
                # fewer, torch 2.12's GroupNorm crashes in its backward pass on the CPU.
                loss.backward(inputs=list(segmenter.parameters()))
                total += float(loss.detach())
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return total

    def _counts(self, targets: list[Targets]) -> LossCounts:
        images = sum(int(target.mask_known.sum()) for target in targets)
        masks = sum(len(mask) for target in targets for mask in target.masks)
        queries = self.model.segmenter.num_queries * images
        weight = self.model.mask_criterion.class_weights(queries, masks)
        return LossCounts(images, 1.0, max(masks, 1), weight)


def _chosen(segmenter: nn.Module, parameters: str) -> list[nn.Parameter]:
    if parameters == "segmenter":
        return list(segmenter.parameters())
    if parameters == "pixel_decoder":
        return list(segmenter.pixel_decoder.parameters())
    if parameters == "norms":
        norms = [module for module in segmenter.modules() if isinstance(module, NORMS)]
        return [parameter for norm in norms for parameter in norm.parameters()]
    if parameters == "embeddings":
        if segmenter.condition_embeddings is None:
            raise ValueError("ADAPTATION.PARAMETERS is embeddings, but the model has none")
        return [segmenter.condition_embeddings]
    raise ValueError(
        f"ADAPTATION.PARAMETERS is {parameters!r}; "
        "use segmenter, pixel_decoder, norms or embeddings"
    )


def _grouped(
    loader: Iterable[list[dict[str, Any]]], size: int
) -> Iterator[list[list[dict[str, Any]]]]:
    """Joins a loader's batches until they hold `size` images or the loader ends."""
    group: list[list[dict[str, Any]]] = []
    for batch in loader:
        group.append(batch)
        if sum(map(len, group)) >= size:
            yield group
            group = []
    if group:
        yield group


def adapted_predictions(
    adaptation: TestTimeAdaptation,
    loader: Iterable[list[dict[str, Any]]],
    *,
    mode: str,
    images_per_step: int,
) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """Adapts and predicts.

    Args:
        adaptation: Holds the model.
        loader: Batches of test items; read twice in offline mode.
        mode: "offline", "online" or "episodic".
        images_per_step: Images in one optimiser step; a loader's batch is a micro-batch.

    Yields:
        Batches as the loader gave them, and their predictions, in order.
    """
    if mode not in MODES[1:]:
        raise ValueError(f"ADAPTATION.MODE is {mode!r}; use one of {MODES}")
    model = adaptation.model.eval()
    if mode == "offline":
        for group in _grouped(loader, images_per_step):
            _adapt(adaptation, _perceive(model, group))
        for batch in loader:
            yield batch, _answer(model, batch, *_perceive(model, [batch]))
        return
    for group in _grouped(loader, images_per_step):
        perceptions = _perceive(model, group)
        _adapt(adaptation, perceptions)
        try:
            for batch, perception in zip(group, perceptions, strict=True):
                yield batch, _answer(model, batch, perception)
        finally:
            if mode == "episodic":
                adaptation.reset()


def _adapt(adaptation: TestTimeAdaptation, perceptions: list[Perception | None]) -> None:
    loss = adaptation.step([perception for perception in perceptions if perception is not None])
    logger.info("adaptation loss %.4f", loss)


# Functions of their own, lest the generator's consumer runs without gradients while it is paused.
@torch.no_grad()
def _answer(
    model: Loupe, batch: list[dict[str, Any]], perception: Perception | None
) -> list[dict[str, Any]]:
    return model.answer(batch, perception)


@torch.no_grad()
def _perceive(model: Loupe, group: list[list[dict[str, Any]]]) -> list[Perception | None]:
    return [model.perceive(batch) for batch in group]


def adapt_and_evaluate(cfg: CfgNode, model: Loupe, loader: Any, evaluator: Any) -> dict[str, Any]:
    """Evaluates while adapting, as `ADAPTATION` says.

    Args:
        cfg: The configuration.
        model: The model, adapted in place.
        loader: A test loader.
        evaluator: A Detectron2 evaluator; it alone sees the truth.

    Returns:
        What the evaluator returns.
    """
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise ValueError("adaptation runs in one process: use --num-gpus 1")
    adaptation = TestTimeAdaptation(
        model,
        parameters=cfg.ADAPTATION.PARAMETERS,
        lr=cfg.ADAPTATION.BASE_LR,
        weight_decay=cfg.ADAPTATION.WEIGHT_DECAY,
        confidence_margin=cfg.ADAPTATION.CONFIDENCE_MARGIN,
    )
    evaluator.reset()
    for batch, answers in adapted_predictions(
        adaptation,
        loader,
        mode=cfg.ADAPTATION.MODE,
        images_per_step=cfg.ADAPTATION.IMS_PER_BATCH,
    ):
        evaluator.process(batch, answers)
    return evaluator.evaluate()
