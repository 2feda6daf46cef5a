"""Losses of images and patches: their values, directions and weights."""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.config import get_cfg

from loupe import add_loupe_config
from loupe.modeling.building import build_classification_criterion
from loupe.modeling.classification_criterion import ClassificationCriterion
from loupe.structures import ClassifierOutput, LossCounts, Targets

ONE = LossCounts(1, 1, 1, 1)


def criterion(**keys: object) -> ClassificationCriterion:
    """The default configuration's, with these keys of MODEL.CLASSIFIER changed."""
    cfg = add_loupe_config(get_cfg())
    cfg.MODEL.CLASSIFIER.update(keys)
    return build_classification_criterion(cfg)


def output(*image_logits: float) -> ClassifierOutput:
    """Of two images, with patches."""
    logits = torch.tensor(image_logits) if image_logits else torch.randn(2)
    return ClassifierOutput(logits, torch.randn(2, 2, 2, requires_grad=True))


def targets() -> Targets:
    """Of a forged and an authentic image."""
    ratios, valid = torch.zeros(2, 2, 2), torch.ones(2, 2, 2, dtype=torch.bool)
    known = torch.ones(2, dtype=torch.bool)
    return Targets(torch.tensor([1.0, 0.0]), [ratios[:0]] * 2, ratios, valid, known)


def test_the_image_loss_by_hand():
    losses = criterion()(output(0.5, -1.0), targets(), ONE._replace(images=2))
    expected = (math.log(1 + math.exp(-0.5)) + math.log(1 + math.exp(-1))) / 2
    assert losses["loss_image"].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["bce", "poly_focal"])
def test_the_image_loss_is_lower_for_the_right_sign(kind: str):
    make = criterion(IMAGE_LOSS=kind)
    right, wrong = (make(output(3.0 * sign, -3.0 * sign), targets(), ONE) for sign in (1, -1))
    assert right["loss_image"] < wrong["loss_image"]


def test_patches_without_a_truth_teach_nothing():
    predicted, truth = output(), targets()
    truth.patch_valid[1] = False
    criterion()(predicted, truth, ONE)["loss_patch"].backward()
    assert torch.all(predicted.patch_logits.grad[1] == 0)
    assert torch.all(predicted.patch_logits.grad[0] != 0)


def test_each_weight_weighs_its_losses():
    predicted = output()
    plain, double, patches = (
        criterion(**keys)(predicted, targets(), ONE)
        for keys in ({}, {"LOSS_WEIGHT": 2.0}, {"PATCH_WEIGHT": 3.0})
    )
    assert set(plain) == {"loss_image", "loss_patch"}
    torch.testing.assert_close(double, {name: 2 * loss for name, loss in plain.items()})
    torch.testing.assert_close(patches, plain | {"loss_patch": 3 * plain["loss_patch"]})


def test_without_patch_prediction_there_is_no_patch_loss():
    losses = criterion()(output()._replace(patch_logits=None), targets(), ONE)
    assert set(losses) == {"loss_image"}


def test_an_unknown_image_loss_is_refused():
    with pytest.raises(ValueError, match=r"IMAGE_LOSS is 'focal'; use bce or poly_focal"):
        criterion(IMAGE_LOSS="focal")
