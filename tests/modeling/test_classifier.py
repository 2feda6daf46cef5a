"""The patch-aware classifier: two heads and how they are fused."""

from __future__ import annotations

import pytest
import torch

from loupe.modeling.classifier import PatchAwareClassifier


def classifier(**arguments: bool) -> PatchAwareClassifier:
    parts = {"patch_prediction": True, "fusion": True} | arguments
    return PatchAwareClassifier(dim=8, grid_size=(3, 4), **parts)


def inputs(h: int = 3, w: int = 4) -> dict[str, torch.Tensor]:
    return {"patches": torch.randn(2, 8, h, w), "pooled": torch.randn(2, 8)}


def test_fusion_starts_as_the_mean_of_all_logits():
    model, features = classifier(), inputs()
    output = model(**features)
    global_logit = model.image_head(features["pooled"])[:, 0]
    expected = (global_logit + output.patch_logits.flatten(1).sum(1)) / 13
    torch.testing.assert_close(output.image_logits, expected)


def test_patch_logits_keep_the_place_of_their_patch():
    model, features = classifier(), inputs()
    before = model(**features).patch_logits
    features["patches"][1, :, 2, 3] += 1
    changed = (model(**features).patch_logits != before).nonzero()
    assert changed.tolist() == [[1, 2, 3]]


def test_without_patch_prediction_the_global_logit_is_the_verdict():
    model, features = classifier(patch_prediction=False), inputs()
    output = model(**features)
    assert output.patch_logits is None
    torch.testing.assert_close(output.image_logits, model.image_head(features["pooled"])[:, 0])


def test_without_fusion_patches_do_not_move_the_verdict():
    model, features = classifier(fusion=False), inputs()
    output = model(**features)
    assert output.patch_logits.shape == (2, 3, 4)
    torch.testing.assert_close(output.image_logits, model.image_head(features["pooled"])[:, 0])


def test_padding_adds_nothing_to_the_verdict():
    model, features = classifier(), inputs()
    valid = torch.ones(2, 3, 4, dtype=torch.bool)
    valid[0, 2] = False
    one = model(**features, patch_valid=valid)
    features["patches"][0, :, 2] = 50
    torch.testing.assert_close(one.image_logits, model(**features, patch_valid=valid).image_logits)


@pytest.mark.parametrize(("h", "w"), [(6, 8), (2, 5), (1, 1)])
def test_another_grid_is_pooled_onto_the_training_grid(h: int, w: int):
    model, features = classifier(), inputs(h, w)
    output = model(**features)
    assert output.image_logits.shape == (2,)
    assert output.patch_logits.shape == (2, h, w)
    if (h, w) == (6, 8):
        pooled = output.patch_logits.view(2, 3, 2, 4, 2).mean(dim=(2, 4)).flatten(1)
        logits = torch.cat([model.image_head(features["pooled"]), pooled], dim=1)
        torch.testing.assert_close(output.image_logits, model.fusion(logits)[:, 0])
