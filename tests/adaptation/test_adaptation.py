"""Adaptation learns from verdicts, changes what it should and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loupe import Loupe
from loupe.adaptation import (
    TestTimeAdaptation,
    adapt_and_evaluate,
    adapted_predictions,
    pseudo_targets,
)
from loupe.structures import ClassifierOutput

Item = dict[str, Any]
MakeItem = Callable[..., Item]
Build = Callable[..., Loupe]
BATCH = [0, 1, 2]


def unlabelled(make_item: MakeItem, seeds: Iterable[int] = BATCH) -> list[Item]:
    keys = ("file_name", "image_id", "image", "valid_size", "height", "width", "window")
    return [{key: make_item(seed)[key] for key in keys} for seed in seeds]


def decide(model: Loupe, *image_logits: float) -> None:
    """Makes the classifier say so, image by image, whatever it sees."""
    verdicts = list(image_logits)
    original = model.classifier.forward

    def forward(**features: Tensor) -> ClassifierOutput:
        logits = torch.tensor(verdicts[: len(features["pooled"])])
        return original(**features)._replace(image_logits=logits)

    model.classifier.forward = forward


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {n for n, value in module.state_dict().items() if not torch.equal(value, before[n])}


def perceived(model: Loupe, items: list[Item]) -> list[Any]:
    with torch.no_grad():
        return [model.eval().classify(items)]


def adapt(model: Loupe, items: list[Item], steps: int = 1, **arguments: Any) -> list[float]:
    adaptation = TestTimeAdaptation(model, **arguments)
    return [adaptation.step(perceived(model, items)) for _ in range(steps)]


# ---- Pseudo-targets


def test_pseudo_targets_of_a_known_verdict():
    patch_logits = torch.tensor([[[2.0, -1.0]], [[0.5, 0.0]]])
    targets = pseudo_targets(ClassifierOutput(torch.tensor([1.5, -0.5]), patch_logits))
    torch.testing.assert_close(targets.labels, torch.tensor([1.5, -0.5]).sigmoid())
    torch.testing.assert_close(targets.masks[0], patch_logits[:1].sigmoid())
    assert targets.masks[1].shape == (0, 1, 2)
    torch.testing.assert_close(targets.patch_ratios, patch_logits.sigmoid())
    assert targets.mask_known.tolist() == [True, True]


def test_pseudo_targets_carry_no_graph():
    logits = torch.randn(2, 3, 3, requires_grad=True)
    targets = pseudo_targets(ClassifierOutput(logits.sum((1, 2)), logits))
    assert not any(t.requires_grad for t in (targets.labels, targets.patch_ratios, *targets.masks))


def test_unsure_images_teach_nothing():
    verdict = ClassifierOutput(torch.tensor([3.0, 0.1, -0.1, -3.0]), torch.randn(4, 2, 2))
    targets = pseudo_targets(verdict, confidence_margin=0.2)
    assert targets.mask_known.tolist() == [True, False, False, True]
    assert [len(mask) for mask in targets.masks] == [1, 0, 0, 0]
    assert targets.patch_valid.flatten(1).any(1).tolist() == [True, False, False, True]


def test_without_a_patch_map_there_is_nothing_to_learn_from():
    with pytest.raises(ValueError, match=r"PATCH_PREDICTION"):
        pseudo_targets(ClassifierOutput(torch.zeros(1), None))


# ---- What changes

PARAMETERS = {
    "segmenter": "",
    "pixel_decoder": "pixel_decoder.",
    "embeddings": "condition_embeddings",
    "norms": None,
}


@pytest.mark.parametrize("parameters", list(PARAMETERS))
def test_only_the_chosen_parameters_change(parameters: str, tiny_model: Loupe, make_item: MakeItem):
    before = state(tiny_model)
    decide(tiny_model, 2.0, -2.0, 0.5)
    # A rate at which every parameter with a gradient moves further than float32 rounds.
    adapt(tiny_model, unlabelled(make_item), steps=2, parameters=parameters, lr=1e-2)
    moved = changed(tiny_model, before)
    assert moved
    assert {name.split(".")[0] for name in moved} == {"segmenter"}
    names = {name.removeprefix("segmenter.") for name in moved}
    if parameters == "norms":
        kinds = {type(tiny_model.segmenter.get_submodule(n.rpartition(".")[0])) for n in names}
        assert kinds <= {nn.LayerNorm, nn.GroupNorm} | {
            type(m) for m in tiny_model.modules() if isinstance(m, nn.LayerNorm)
        }
    else:
        assert all(name.startswith(PARAMETERS[parameters]) for name in names)


def test_the_whole_segmenter_changes_by_default(tiny_model: Loupe, make_item: MakeItem):
    before = state(tiny_model.segmenter)
    decide(tiny_model, 2.0, -2.0, 0.5)
    adapt(tiny_model, unlabelled(make_item), steps=3, lr=1e-2)
    assert changed(tiny_model.segmenter, before) == set(before)


def test_classifier_and_encoder_stay_bit_for_bit_and_without_gradient(
    build: Build, make_item: MakeItem
):
    model = build("MODEL.FREEZE", [])
    before = state(model.backbone) | state(model.classifier)
    adapt(model, unlabelled(make_item), steps=2, lr=1e-2)
    assert changed(model.backbone, before) | changed(model.classifier, before) == set()
    for part in (model.backbone, model.classifier):
        assert all(p.grad is None for p in part.parameters())


def test_unknown_parameters_are_refused(tiny_model: Loupe):
    with pytest.raises(ValueError, match=r"ADAPTATION\.PARAMETERS is 'heads'; use segmenter"):
        TestTimeAdaptation(tiny_model, parameters="heads")


def test_embeddings_that_do_not_exist_cannot_be_adapted(build: Build):
    model = build("MODEL.SEGMENTER.CONDITION_ATTENTION", "none")
    with pytest.raises(ValueError, match="the model has none"):
        TestTimeAdaptation(model, parameters="embeddings")


def test_a_model_without_a_segmenter_is_refused(build: Build):
    with pytest.raises(ValueError, match=r"SEGMENTER\.ENABLED"):
        TestTimeAdaptation(build("MODEL.SEGMENTER.ENABLED", False))


# ---- Learning


def test_adapting_lowers_its_own_loss(tiny_model: Loupe, make_item: MakeItem):
    decide(tiny_model, 2.0, -2.0, 3.0)
    losses = adapt(tiny_model, unlabelled(make_item), steps=8, lr=1e-3)
    assert sum(losses[-2:]) < 0.9 * sum(losses[:2])


@pytest.mark.parametrize("verdicts", [(-3.0, -2.0, -1.0), (3.0, 2.0, 1.0), (0.0, 0.0, 0.0)])
def test_any_verdict_gives_a_finite_step(
    verdicts: tuple[float, ...], tiny_model: Loupe, make_item: MakeItem
):
    decide(tiny_model, *verdicts)
    losses = adapt(tiny_model, unlabelled(make_item), steps=2)
    assert all(0 < loss < float("inf") for loss in losses)
    assert all(torch.isfinite(p).all() for p in tiny_model.parameters())


def test_a_batch_of_unsure_images_changes_nothing(tiny_model: Loupe, make_item: MakeItem):
    decide(tiny_model, 0.1, -0.1, 0.0)
    before = state(tiny_model)
    assert adapt(tiny_model, unlabelled(make_item), confidence_margin=0.3) == [0.0]
    assert changed(tiny_model, before) == set()


def test_unsure_images_in_a_batch_do_not_change_what_is_learned(
    tiny_model: Loupe, make_item: MakeItem
):
    decide(tiny_model, 2.0, 0.0)
    draws = tiny_model.mask_criterion
    draws.draw = lambda rows, *shape, device: torch.full((len(rows), *shape), 0.4)
    adaptation = TestTimeAdaptation(tiny_model, lr=0.0, weight_decay=0.0, confidence_margin=0.3)
    both = adaptation.step(perceived(tiny_model, unlabelled(make_item, [0, 1])))
    alone = adaptation.step(perceived(tiny_model, unlabelled(make_item, [0])))
    assert both == pytest.approx(alone, rel=1e-5)


def test_micro_batches_add_up_to_one_batch(tiny_model: Loupe, make_item: MakeItem):
    tiny_model.mask_criterion.draw = lambda rows, *shape, device: torch.full(
        (len(rows), *shape), 0.4
    )
    adaptation = TestTimeAdaptation(tiny_model, lr=0.0, weight_decay=0.0)
    items = unlabelled(make_item, range(4))
    whole = adaptation.step(perceived(tiny_model, items))
    parts = [perceived(tiny_model, items[:1])[0], perceived(tiny_model, items[1:])[0]]
    assert adaptation.step(parts) == pytest.approx(whole, rel=1e-5)


def test_padded_images_are_adapted_on(tiny_model: Loupe, make_item: MakeItem):
    items = unlabelled(make_item)
    items[0]["valid_size"], items[1]["valid_size"] = (40, 84), (84, 15)
    assert all(0 < loss < float("inf") for loss in adapt(tiny_model, items, steps=2))


# ---- Modes


def run(model: Loupe, items: list[Item], mode: str, **arguments: Any) -> list[Any]:
    """Adapts on batches of one; gives the answers, and the weights after each batch."""
    torch.manual_seed(3)
    adaptation = TestTimeAdaptation(model, lr=1e-2)
    loader = [[item] for item in items]
    pairs = adapted_predictions(adaptation, loader, mode=mode, images_per_step=1, **arguments)
    return [answer for _, (answer,) in pairs]


def assert_same_answers(one: list[Any], other: list[Any]) -> None:
    for a, b in zip(one, other, strict=True):
        assert a["forgery_score"] == b["forgery_score"]
        assert torch.equal(a["forgery_map"], b["forgery_map"])


def test_episodic_adaptation_gives_the_weights_back_bit_for_bit(
    tiny_model: Loupe, make_item: MakeItem
):
    before = state(tiny_model)
    run(tiny_model, unlabelled(make_item), "episodic")
    assert changed(tiny_model, before) == set()


def test_episodic_answers_do_not_depend_on_earlier_batches(build: Build, make_item: MakeItem):
    items, model = unlabelled(make_item), build()
    model.mask_criterion.draw = lambda rows, *shape, device: torch.full((len(rows), *shape), 0.4)
    together = run(model, items, "episodic")
    apart = [run(model, [item], "episodic")[0] for item in items]
    assert_same_answers(together, apart)


def test_online_adaptation_keeps_what_it_learned(tiny_model: Loupe, make_item: MakeItem):
    before = state(tiny_model)
    run(tiny_model, unlabelled(make_item), "online")
    assert changed(tiny_model, before)


@torch.no_grad()
def test_offline_adaptation_predicts_with_the_final_weights(tiny_model: Loupe, make_item: MakeItem):
    items = unlabelled(make_item)
    with torch.enable_grad():
        answers = run(tiny_model, items, "offline")
    assert_same_answers(answers, [tiny_model([item])[0] for item in items])


@pytest.mark.parametrize("mode", ["offline", "online", "episodic"])
def test_adapted_answers_differ_from_plain_ones_in_the_map_only(
    mode: str, build: Build, make_item: MakeItem
):
    items, model = unlabelled(make_item), build().eval()
    with torch.no_grad():
        plain = [model([item])[0] for item in items]
    adapted = run(model, items, mode)
    for one, other in zip(plain, adapted, strict=True):
        assert one["forgery_score"] == pytest.approx(other["forgery_score"], abs=1e-6)
        assert not torch.equal(one["forgery_map"], other["forgery_map"])


@pytest.mark.parametrize("mode", ["offline", "online", "episodic"])
def test_every_item_is_answered_in_order_and_errors_pass_through(
    mode: str, tiny_model: Loupe, make_item: MakeItem
):
    broken = {"file_name": "b", "image_id": "b", "error": "truncated"}
    first, second, third = unlabelled(make_item)
    loader = [[first, broken], [broken, broken], [second, third]]
    adaptation = TestTimeAdaptation(tiny_model)
    pairs = list(adapted_predictions(adaptation, loader, mode=mode, images_per_step=2))
    assert [batch for batch, _ in pairs] == loader
    answers = [answer for _, batch in pairs for answer in batch]
    assert ["error" in answer for answer in answers] == [False, True, True, True, False, False]


@pytest.mark.parametrize("mode", ["none", "sideways"])
def test_an_unknown_mode_is_refused(mode: str, tiny_model: Loupe):
    with pytest.raises(ValueError, match=r"ADAPTATION\.MODE"):
        list(adapted_predictions(TestTimeAdaptation(tiny_model), [], mode=mode, images_per_step=1))


# ---- Labels


@pytest.mark.parametrize("mode", ["offline", "online"])
@pytest.mark.parametrize("kind", ["removed", "swapped", "raising"])
def test_labels_are_never_read(mode: str, kind: str, build: Build, make_item: MakeItem):
    class Forbidden(dict):
        """An item whose truth must not be looked up."""

        def __getitem__(self, key: str) -> Any:
            assert key not in ("label", "mask", "regions", "ground_truth"), key
            return super().__getitem__(key)

        def get(self, key: str, default: Any = None) -> Any:
            assert key not in ("label", "mask", "regions", "ground_truth"), key
            return super().get(key, default)

    def with_truth(item: Item, label: int) -> Item:
        mask = torch.full((84, 84), float(label))
        return item | {"label": label, "mask": mask, "regions": mask.byte(), "ground_truth": label}

    plain = [with_truth(item, i % 2) for i, item in enumerate(unlabelled(make_item))]
    other = {
        "removed": unlabelled(make_item),
        "swapped": [with_truth(item, (i + 1) % 2) for i, item in enumerate(unlabelled(make_item))],
        "raising": [Forbidden(item) for item in plain],
    }[kind]
    models = build(), build()
    assert_same_answers(run(models[0], plain, mode), run(models[1], other, mode))
    assert changed(models[0], state(models[1])) == set()


class CountingEvaluator:
    """Stands in for a Detectron2 evaluator."""

    def reset(self) -> None:
        self.pairs = 0

    def process(self, inputs: list[Item], outputs: list[Item]) -> None:
        assert len(inputs) == len(outputs)
        self.pairs += len(outputs)

    def evaluate(self) -> dict[str, int]:
        return {"pairs": self.pairs}


def test_evaluation_sees_every_image_once(tiny_cfg: Any, tiny_model: Loupe, make_item: MakeItem):
    tiny_cfg.ADAPTATION.MODE = "online"
    tiny_cfg.ADAPTATION.IMS_PER_BATCH = 2
    loader = [[item] for item in unlabelled(make_item)]
    adaptation = TestTimeAdaptation(tiny_model)
    assert adapt_and_evaluate(tiny_cfg, adaptation, loader, CountingEvaluator()) == {"pairs": 3}
