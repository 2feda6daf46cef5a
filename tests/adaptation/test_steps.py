"""A step learns from the classifier, changes what it should and nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from loupe import Loupe
from loupe.adaptation import AdaptationSettings, TestTimeAdaptation, pseudo_targets
from loupe.adaptation.batches import images_of
from loupe.adaptation.pseudo_labels import disagreement
from loupe.adaptation.settings import IMAGE_WEIGHTS, PARAMETERS
from loupe.modeling.loupe import ClassifiedBatch
from loupe.structures import ClassifierOutput

Item = dict[str, Any]
MakeItem = Callable[..., Item]
Build = Callable[..., Loupe]


def unlabelled(make_item: MakeItem, seeds: Iterable[int] = (0, 1, 2)) -> list[Item]:
    keys = ("file_name", "image_id", "image", "valid_size", "height", "width", "window")
    return [{key: make_item(seed)[key] for key in keys} for seed in seeds]


def classified(model: Loupe, items: list[Item], *image_logits: float) -> ClassifiedBatch:
    """A batch before the segmenter; the logits of the images can be given."""
    with torch.no_grad():
        batch = model.eval().classify(items)
    if image_logits:
        logits = torch.tensor(image_logits)
        batch = batch._replace(classification=batch.classification._replace(image_logits=logits))
    return batch


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {n for n, value in module.state_dict().items() if not torch.equal(value, before[n])}


def fail_on(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Lets steps fail on some images, alone or in a batch."""
    real = TestTimeAdaptation._backward

    def failing(adaptation: TestTimeAdaptation, batch: ClassifiedBatch, *rest: Any) -> Any:
        if set(names) & set(batch.image_ids):
            raise MemoryError("too large")
        return real(adaptation, batch, *rest)

    monkeypatch.setattr(TestTimeAdaptation, "_backward", failing)


# ---- Pseudo-targets


def test_pseudo_targets_of_known_logits():
    patch_logits = torch.tensor([[[2.0, -1.0]], [[0.5, 0.0]]], requires_grad=True)
    targets = pseudo_targets(ClassifierOutput(torch.tensor([1.5, -0.5]), patch_logits))
    torch.testing.assert_close(targets.labels, torch.tensor([1.5, -0.5]).sigmoid())
    torch.testing.assert_close(targets.masks[0], patch_logits[:1].sigmoid().detach())
    assert targets.masks[1].shape == (0, 1, 2)
    assert targets.mask_known.tolist() == [True, True]
    assert not targets.masks[0].requires_grad


def test_a_lower_temperature_sharpens_the_pseudo_target():
    logits = ClassifierOutput(torch.tensor([2.0]), torch.tensor([[[0.4, -0.4]]]))
    sharp = pseudo_targets(logits, 0.1).masks[0].flatten()
    torch.testing.assert_close(sharp, torch.tensor([4.0, -4.0]).sigmoid())


def test_without_a_patch_map_there_is_nothing_to_learn_from():
    with pytest.raises(ValueError, match=r"PATCH_PREDICTION"):
        pseudo_targets(ClassifierOutput(torch.zeros(1), None))


def test_maps_that_are_equal_or_nearly_empty_agree_and_opposite_ones_do_not():
    full, empty, faint = torch.ones(1, 4, 4), torch.zeros(1, 4, 4), torch.full((1, 4, 4), 1e-3)
    assert disagreement(full, full).item() == 0
    assert disagreement(empty, faint).item() < 0.06
    assert disagreement(full, empty).item() > 0.95
    lower_half = torch.arange(4).view(1, 4, 1).expand(1, 4, 4) > 1
    assert disagreement(lower_half.float(), empty, ~lower_half).item() == 0


# ---- What changes


@pytest.mark.parametrize("weight", IMAGE_WEIGHTS)
@pytest.mark.parametrize("parameters", PARAMETERS)
def test_only_the_chosen_parameters_change(
    parameters: str, weight: str, build: Build, make_item: MakeItem
):
    # Nothing is frozen, so that adaptation alone keeps encoder and classifier.
    model = build("MODEL.FREEZE", [])
    before = state(model)
    # A rate at which every parameter with a gradient moves further than float32 rounds.
    options = {"parameters": parameters, "image_weight": weight, "lr": 1e-2}
    adaptation = TestTimeAdaptation(model, **options)
    for _ in range(3):
        adaptation.step([classified(model, unlabelled(make_item), 2.0, -2.0, 0.5)])
    moved = changed(model, before)
    whole = {name for name in before if name.startswith("segmenter.")}
    norms = {
        name
        for name in whole
        if "norm" in str(type(model.get_submodule(name[: name.rfind(".")]))).lower()
    }
    assert moved == (whole if parameters == "segmenter" else norms)
    for part in (model.backbone, model.classifier):
        assert all(parameter.grad is None for parameter in part.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("MODEL.SEGMENTER.ENABLED", False), r"SEGMENTER\.ENABLED is False"),
        (("MODEL.FREEZE", ["segmenter"]), r"FREEZE names the segmenter"),
    ],
)
def test_a_model_with_nothing_to_adapt_is_refused(options: tuple, message: str, build: Build):
    with pytest.raises(ValueError, match=message):
        TestTimeAdaptation(build(*options))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parameters": "heads"}, r"PARAMETERS is 'heads'; use segmenter or norms"),
        ({"image_weight": "size"}, r"IMAGE_WEIGHT is 'size'; use none or agreement"),
        ({"patch_temperature": 0.0}, r"PATCH_TEMPERATURE is 0\.0; use a positive number"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        AdaptationSettings(**settings)


def test_the_defaults_of_the_configuration_are_the_released_behaviour(tiny_cfg: CfgNode):
    tiny_cfg.SEED = 0
    assert AdaptationSettings.from_config(tiny_cfg) == AdaptationSettings()


# ---- Learning


def test_adapting_lowers_its_own_loss(tiny_model: Loupe, make_item: MakeItem):
    adaptation = TestTimeAdaptation(tiny_model, lr=1e-3)
    batch = classified(tiny_model, unlabelled(make_item), 2.0, -2.0, 3.0)
    losses = [adaptation.step([batch]) for _ in range(8)]
    assert sum(losses[-2:]) < 0.9 * sum(losses[:2])


@pytest.mark.parametrize("logits", [(-3.0, -2.0, -1.0), (3.0, 2.0, 1.0), (0.0, 0.0, 0.0)])
def test_any_logits_and_padding_give_a_finite_step(
    logits: tuple[float, ...], tiny_model: Loupe, make_item: MakeItem
):
    items = unlabelled(make_item)
    items[0]["valid_size"], items[1]["valid_size"] = (40, 84), (84, 15)
    adaptation = TestTimeAdaptation(tiny_model)
    batch = classified(tiny_model, items, *logits)
    assert all(0 < adaptation.step([batch]) < math.inf for _ in range(2))
    assert all(torch.isfinite(p).all() for p in tiny_model.parameters())


def test_the_result_depends_neither_on_micro_batches_nor_on_order(
    build: Build, make_item: MakeItem
):
    models, items = (build(), build()), unlabelled(make_item, range(4))
    losses = [
        TestTimeAdaptation(model, image_weight="agreement").step(
            [classified(model, part) for part in parts]
        )
        for model, parts in zip(models, ([items], [items[2:], items[1::-1]]), strict=True)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    gradients = [
        torch.cat([p.grad.flatten() for p in model.segmenter.parameters()]) for model in models
    ]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_points_are_drawn_anew_in_each_step_and_for_each_seed(
    tiny_model: Loupe, make_item: MakeItem
):
    batch = classified(tiny_model, unlabelled(make_item), 2.0, 2.0, 2.0)
    still = {"lr": 0.0, "weight_decay": 0.0}
    one, other, again = (TestTimeAdaptation(tiny_model, seed=s, **still) for s in (0, 1, 0))
    losses = [one.step([batch]), one.step([batch]), other.step([batch])]
    assert len(set(losses)) == 3
    assert again.step([batch]) == losses[0]


def gradient(model: Loupe, batch: ClassifiedBatch, **settings: Any) -> Tensor:
    """Direction of the gradient of a step that moves nothing."""
    TestTimeAdaptation(model, lr=0.0, weight_decay=0.0, **settings).step([batch])
    gradients = [p.grad for p in model.segmenter.parameters() if p.grad is not None]
    return nn.functional.normalize(torch.cat([g.flatten() for g in gradients]), dim=0)


def test_an_image_whose_patch_map_contradicts_its_mask_counts_little(
    tiny_model: Loupe, make_item: MakeItem
):
    both = classified(tiny_model, unlabelled(make_item, [0, 1]), 2.0, 2.0)
    maps = nn.functional.adaptive_avg_pool2d(
        torch.stack([one["forgery_map"] for one in tiny_model(unlabelled(make_item, [0, 1]))]),
        (6, 6),
    )
    maps[1] = (maps[1] < 0.5).float()
    logits = maps.clamp(1e-4, 1 - 1e-4).logit()
    both = both._replace(classification=both.classification._replace(patch_logits=logits))
    alone = classified(tiny_model, unlabelled(make_item, [0]), 2.0)
    alone = alone._replace(classification=alone.classification._replace(patch_logits=logits[:1]))
    wanted = gradient(tiny_model, alone)
    weighted = gradient(tiny_model, both, image_weight="agreement")
    assert torch.dot(weighted, wanted) > torch.dot(gradient(tiny_model, both), wanted)


# ---- Values that are not finite


def test_one_bad_step_is_skipped_and_does_not_end_the_run(tiny_model: Loupe, make_item: MakeItem):
    adaptation = TestTimeAdaptation(tiny_model, lr=1e-3)
    good, bad = (classified(tiny_model, unlabelled(make_item), 2.0, 2.0, -2.0) for _ in range(2))
    bad.features["patches"][1, 0, 2, 2] = math.nan
    before = state(tiny_model)
    assert math.isnan(adaptation.step([bad]))
    assert not changed(tiny_model, before)
    assert not adaptation.optimizer.state
    assert math.isfinite(adaptation.step([good]))
    assert (adaptation.summary.skipped_not_finite, adaptation.summary.steps) == (1, 1)
    json.dumps(adaptation.summary.as_json(), allow_nan=False)


@pytest.mark.parametrize(
    "loss",
    [
        # Its value is 0, its slope infinite times 0.
        lambda logits: (logits * 0).abs().sqrt().sum(),
        # Its slope is 1.
        lambda logits: logits.sum() + math.inf,
    ],
    ids=["gradient", "loss"],
)
def test_a_gradient_or_a_loss_alone_that_is_not_finite_skips_the_step(
    loss: Callable[[Tensor], Tensor], tiny_model: Loupe, make_item: MakeItem
):
    criterion = tiny_model.mask_criterion

    def kinked(outputs: Any, *rest: Any) -> dict[str, Tensor]:
        return {"loss": loss(outputs[-1].mask_logits)}

    kinked.class_weights = criterion.class_weights
    tiny_model.mask_criterion = kinked
    before = state(tiny_model)
    adaptation = TestTimeAdaptation(tiny_model, lr=1e-2)
    adaptation.step([classified(tiny_model, unlabelled(make_item), 2.0, 2.0, 2.0)])
    assert not changed(tiny_model, before)
    assert adaptation.summary.skipped_not_finite == 1


# ---- Failures


def test_an_image_that_a_step_fails_on_is_as_if_it_had_not_been_there(
    build: Build, make_item: MakeItem, monkeypatch: pytest.MonkeyPatch
):
    def stepped(choose: Callable[[ClassifiedBatch], list[ClassifiedBatch]]) -> tuple:
        torch.manual_seed(0)
        model = build().eval()
        adaptation = TestTimeAdaptation(model, lr=1e-2)
        loss = adaptation.step(choose(classified(model, unlabelled(make_item), 2.0, 2.0, -2.0)))
        return loss, state(model), adaptation

    def one_by_one(batch: ClassifiedBatch) -> list[ClassifiedBatch]:
        first, _, third = images_of(batch)
        return [first, third]

    expected, weights, _ = stepped(one_by_one)
    fail_on(monkeypatch, unlabelled(make_item)[1]["image_id"])
    loss, found, adaptation = stepped(lambda batch: [batch])
    assert loss == expected
    assert all(torch.equal(value, found[name]) for name, value in weights.items())
    assert list(adaptation.left_out.values()) == [
        "left out of the adaptation: it failed on this image (MemoryError: too large)"
    ]
    summary = adaptation.summary
    assert (summary.left_out, summary.steps, summary.measured_before) == (1, 1, 2)


def test_a_step_that_fails_on_all_images_changes_nothing(
    tiny_model: Loupe, make_item: MakeItem, monkeypatch: pytest.MonkeyPatch
):
    items = unlabelled(make_item)
    fail_on(monkeypatch, *(item["image_id"] for item in items))
    before, adaptation = state(tiny_model), TestTimeAdaptation(tiny_model)
    assert adaptation.step([classified(tiny_model, items)]) == 0
    assert not changed(tiny_model, before)
    assert (adaptation.summary.left_out, adaptation.summary.steps) == (3, 0)
