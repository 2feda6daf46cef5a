"""What the segmenter is conditioned on in training (Sec. 2.2): how surely the image is forged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from loupe.modeling.draws import draw_uniform


def training_condition(
    labels: Tensor,
    probability: Tensor | None,
    generators: Sequence[Generator | None],
    *,
    jitter: float,
    predicted: float,
) -> Tensor:
    """The true label as in the paper, softened or replaced so that it is not trusted blindly.

    A segmenter trained on true labels alone gives no mask where the classifier is wrong. Trained
    on predicted conditions too, it relies on the image as well.

    Args:
        labels: (B,) float, 1 = forged.
        probability: (B,) the classifier's; needed where `predicted` is above 0.
        generators: One for each image, see `draw_uniform`.
        jitter: Largest fraction by which a label is mixed towards 0.5.
        predicted: Fraction of images whose condition is the classifier's probability instead.

    Returns:
        (B,) in [0, 1].
    """
    condition = labels
    if jitter:
        fraction = jitter * draw_uniform(generators, device=labels.device)
        condition = labels * (1 - fraction) + 0.5 * fraction
    if predicted:
        assert probability is not None
        chosen = draw_uniform(generators, device=labels.device) < predicted
        condition = torch.where(chosen, probability.detach().to(labels.dtype), condition)
    return condition
