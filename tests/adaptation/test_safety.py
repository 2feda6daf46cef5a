"""Each safety option in the situation that it is made for, and what no option may do."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from loupe import Loupe
from loupe.adaptation import (
    AdaptationSettings,
    TestTimeAdaptation,
    adapted_predictions,
    pseudo_targets,
)
from loupe.adaptation.guard import maps_on_grid, predict
from loupe.adaptation.pseudo_labels import disagreement, image_weights
from loupe.adaptation.runs import SHOWN, count_groups
from loupe.adaptation.settings import IMAGE_WEIGHTS, PARAMETERS
from loupe.checkpoint import load_weights
from loupe.modeling.loupe import ClassifiedBatch
from loupe.solver import warmup_stable_decay
from loupe.structures import ClassifierOutput, GroundTruth
from loupe.trainer.evaluation import adaptation_schedule, evaluate_model

Item = dict[str, Any]
MakeItem = Callable[..., Item]
Build = Callable[..., Loupe]
ALL_OPTIONS: dict[str, Any] = {
    "confidence_margin": 0.01,
    "patch_temperature": 0.5,
    "image_weight": "agreement",
    "teacher_decay": 0.5,
    "teacher_predicts": True,
    "anchor": 0.1,
    "rollback": "patch_map",
    "rollback_tolerance": 0.5,
}
# A rate that destroys the masks in one step.
RUINOUS = 10.0


def unlabelled(make_item: MakeItem, seeds: Iterable[int] = (0, 1, 2)) -> list[Item]:
    return [{k: v for k, v in make_item(seed).items() if k in SHOWN} for seed in seeds]


def perceived(model: Loupe, items: list[Item], *image_logits: float) -> ClassifiedBatch:
    """What is known of a batch; the verdicts can be given."""
    with torch.no_grad():
        perception = model.eval().classify(items)
    if image_logits:
        verdict = perception.classification._replace(image_logits=torch.tensor(image_logits))
        perception = perception._replace(classification=verdict)
    return perception


@pytest.fixture
def quiet_model(tiny_model: Loupe) -> Loupe:
    """A model whose masks are faint, so that they can become stronger."""
    with torch.no_grad():
        tiny_model.segmenter.mask_decoder.class_head.bias.copy_(torch.tensor([-2.0, 0.0]))
    return tiny_model


def with_patch_maps(perception: ClassifiedBatch, patch_maps: Tensor) -> ClassifiedBatch:
    logits = patch_maps.clamp(1e-4, 1 - 1e-4).logit()
    return perception._replace(
        classification=perception.classification._replace(patch_logits=logits)
    )


def masks(segmenter: nn.Module, perception: ClassifiedBatch) -> Tensor:
    with torch.no_grad():
        return maps_on_grid(predict(segmenter, perception)[-1], perception)


def agreeing(model: Loupe, items: list[Item]) -> ClassifiedBatch:
    """Images called forged whose patch maps are the masks that the model gives already."""
    perception = perceived(model, items, *[2.0] * len(items))
    return with_patch_maps(perception, masks(model.segmenter, perception))


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def unchanged(module: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def gradient(model: Loupe) -> Tensor:
    gradients = [p.grad for p in model.segmenter.parameters() if p.grad is not None]
    return torch.cat([g.flatten() for g in gradients])


def direction(model: Loupe, perception: ClassifiedBatch, **settings: Any) -> Tensor:
    """The gradient of a step that moves nothing, with points that do not depend on chance."""
    model.mask_criterion.draw = lambda rows, *shape, device: torch.full((len(rows), *shape), 0.4)
    TestTimeAdaptation(model, lr=0.0, weight_decay=0.0, **settings).step([perception])
    return nn.functional.normalize(gradient(model), dim=0)


# ---- How much an image counts


def test_maps_that_are_equal_or_nearly_empty_agree_and_opposite_ones_do_not():
    full, empty, faint = torch.ones(1, 4, 4), torch.zeros(1, 4, 4), torch.full((1, 4, 4), 1e-3)
    assert disagreement(full, full).item() == 0
    assert disagreement(empty, faint).item() < 0.06
    assert disagreement(full, empty).item() > 0.95


def test_padding_does_not_disagree():
    valid = torch.zeros(1, 4, 4, dtype=torch.bool)
    valid[:, :2] = True
    map_ = torch.zeros(1, 4, 4)
    map_[:, 2:] = 1
    assert disagreement(map_, torch.zeros(1, 4, 4), valid).item() == 0


def test_the_surer_a_verdict_the_more_it_counts():
    weights = image_weights("entropy", torch.tensor([0.5, 0.7, 0.9, 1.0]), torch.zeros(4))
    assert weights[0].item() == pytest.approx(0, abs=1e-6)
    assert weights[-1].item() == 1
    assert (weights.diff() > 0).all()


def test_an_undecided_image_weighs_nothing_under_entropy(tiny_model: Loupe, make_item: MakeItem):
    items = unlabelled(make_item, [0, 1])
    alone = direction(tiny_model, perceived(tiny_model, items[:1], 4.0))
    both = perceived(tiny_model, items, 4.0, 1e-3)
    weighted = direction(tiny_model, both, image_weight="entropy")
    assert torch.dot(weighted, alone).item() > 0.999
    assert torch.dot(direction(tiny_model, both), alone).item() < 0.99


def test_a_batch_of_undecided_images_is_not_learned_from(tiny_model: Loupe, make_item: MakeItem):
    before = state(tiny_model)
    adaptation = TestTimeAdaptation(tiny_model, lr=0.1, image_weight="entropy")
    perception = perceived(tiny_model, unlabelled(make_item), 0.0, 0.0, 0.0)
    assert adaptation.step([perception]) == 0
    assert adaptation.summary.skipped_nothing_to_learn == 1
    assert unchanged(tiny_model, before)


def test_an_image_whose_patch_map_contradicts_its_mask_counts_little(
    tiny_model: Loupe, make_item: MakeItem
):
    perception = agreeing(tiny_model, unlabelled(make_item, [0, 1]))
    alone = agreeing(tiny_model, unlabelled(make_item, [0]))
    opposite = masks(tiny_model.segmenter, perception)
    opposite[1] = (opposite[1] < 0.5).float()
    contradicting = with_patch_maps(perception, opposite)
    wanted = direction(tiny_model, alone)
    weighted = direction(tiny_model, contradicting, image_weight="agreement")
    assert torch.dot(weighted, wanted) > torch.dot(direction(tiny_model, contradicting), wanted)


@pytest.mark.parametrize("weight", IMAGE_WEIGHTS)
@pytest.mark.parametrize("parameters", PARAMETERS)
def test_images_can_be_weighted_whatever_adapts(
    weight: str, parameters: str, tiny_model: Loupe, make_item: MakeItem
):
    before = state(tiny_model)
    options = {"image_weight": weight, "parameters": parameters, "lr": 1e-2}
    adaptation = TestTimeAdaptation(tiny_model, **options)
    adaptation.step([perceived(tiny_model, unlabelled(make_item), 3.0, 1.0, -2.0)])
    assert adaptation.summary.steps == 1
    assert not unchanged(tiny_model, before)


def test_an_image_taught_several_times_counts_once(tiny_model: Loupe, make_item: MakeItem):
    adaptation = TestTimeAdaptation(tiny_model, lr=1e-4)
    perception = perceived(tiny_model, unlabelled(make_item), 3.0, 1.0, -2.0)
    for number in range(3):
        adaptation.step([perception], met=number == 0)
    assert (adaptation.summary.steps, adaptation.summary.images_taught) == (3, 3)


def test_a_lower_temperature_sharpens_the_pseudo_target():
    verdict = ClassifierOutput(torch.tensor([2.0]), torch.tensor([[[0.4, -0.4]]]))
    soft, sharp = (pseudo_targets(verdict, 0.0, t).masks[0].flatten() for t in (1.0, 0.1))
    torch.testing.assert_close(soft, torch.tensor([0.4, -0.4]).sigmoid())
    assert sharp[0] > 0.98
    assert sharp[1] < 0.02


# ---- Teacher


def test_the_teacher_follows_slowly(tiny_model: Loupe, make_item: MakeItem):
    adaptation = TestTimeAdaptation(tiny_model, lr=1e-2, teacher_decay=0.75)
    source = tiny_model.segmenter.condition_embeddings.detach().clone()
    adaptation.step([perceived(tiny_model, unlabelled(make_item), 2.0, 2.0, -2.0)])
    student, teacher = (m.condition_embeddings for m in (tiny_model.segmenter, adaptation.teacher))
    torch.testing.assert_close(teacher.data, source + 0.25 * (student.detach() - source))


def test_a_wrong_patch_map_teaches_nothing_where_the_teacher_alone_does(
    tiny_model: Loupe, make_item: MakeItem
):
    right = agreeing(tiny_model, unlabelled(make_item))
    wrong = with_patch_maps(right, torch.rand(3, 6, 6))
    options = {"teacher_decay": 0.9, "teacher_share": 1.0}
    assert not torch.equal(direction(tiny_model, right), direction(tiny_model, wrong))
    assert torch.equal(
        direction(tiny_model, right, **options), direction(tiny_model, wrong, **options)
    )


def test_the_share_mixes_teacher_and_patch_map(tiny_model: Loupe, make_item: MakeItem):
    perception = with_patch_maps(agreeing(tiny_model, unlabelled(make_item)), torch.rand(3, 6, 6))
    seen: list[Tensor] = []
    criterion = tiny_model.mask_criterion

    def record(outputs: Any, targets: Any, *rest: Any) -> Any:
        seen.append(targets.masks[0])
        return criterion(outputs, targets, *rest)

    tiny_model.mask_criterion = record
    record.class_weights = criterion.class_weights
    for share in (1.0, 0.5, 1e-9):
        TestTimeAdaptation(tiny_model, lr=0.0, teacher_decay=0.9, teacher_share=share).step(
            [perception]
        )
    assert (seen[0] - seen[2]).abs().max() > 0.1
    torch.testing.assert_close(seen[1], (seen[0] + seen[2]) / 2)


def test_the_teacher_answers_if_it_is_told_to(build: Build, make_item: MakeItem):
    items = unlabelled(make_item)
    answers, models = {}, {}
    for predicts in (False, True):
        model = models[predicts] = build()
        torch.manual_seed(0)
        adaptation = TestTimeAdaptation(
            model, lr=1e-2, teacher_decay=0.999999, teacher_predicts=predicts
        )
        pairs = adapted_predictions(adaptation, [items], mode="online", images_per_step=3)
        answers[predicts] = [answer["forgery_map"] for _, batch in pairs for answer in batch]
    with torch.no_grad():
        plain = [answer["forgery_map"] for answer in build().eval()(items)]
    for own, student, teacher in zip(plain, answers[False], answers[True], strict=True):
        torch.testing.assert_close(teacher, own, atol=1e-3, rtol=0)
        assert not torch.allclose(student, own, atol=1e-3)
    # What answered is what is left to be saved.
    teacher = adaptation.teacher.state_dict()
    assert unchanged(models[True].segmenter, teacher)


def test_the_teacher_is_asked_about_images_called_forged_alone(
    tiny_model: Loupe, make_item: MakeItem
):
    perception = agreeing(tiny_model, unlabelled(make_item))
    perception = perception._replace(
        classification=perception.classification._replace(
            image_logits=torch.tensor([-2.0, 2.0, -2.0])
        )
    )
    adaptation = TestTimeAdaptation(tiny_model, lr=0.0, teacher_decay=0.9)
    asked: list[int] = []
    adaptation.teacher.register_forward_pre_hook(lambda _, inputs: asked.append(len(inputs[0])))
    adaptation.step([perception])
    assert asked == [1]


# ---- Anchor


def distance(model: Loupe, source: dict[str, Tensor]) -> float:
    own = model.segmenter.state_dict()
    return math.sqrt(sum((own[n] - source[n]).square().sum().item() for n in own))


def test_the_anchor_keeps_long_adaptation_near_the_source(build: Build, make_item: MakeItem):
    distances = []
    for anchor in (0.0, 0.2, 1.0):
        model = build()
        source = state(model.segmenter)
        adaptation = TestTimeAdaptation(model, lr=1e-2, anchor=anchor)
        for _ in range(6):
            adaptation.step([perceived(model, unlabelled(make_item), 2.0, -2.0, 1.0)])
        distances.append(distance(model, source))
    assert distances[1] < 0.7 * distances[0]
    assert distances[2] == 0


# ---- Rollback


@pytest.mark.parametrize("kind", ["patch_map", "source"])
def test_a_ruinous_step_is_taken_back_bit_for_bit(
    kind: str, quiet_model: Loupe, make_item: MakeItem
):
    before = state(quiet_model)
    perception = agreeing(quiet_model, unlabelled(make_item))
    adaptation = TestTimeAdaptation(quiet_model, lr=RUINOUS, rollback=kind)
    adaptation.step([perception])
    assert unchanged(quiet_model, before)
    assert (adaptation.summary.rolled_back, adaptation.summary.steps) == (1, 0)
    assert adaptation.summary.images_taught == 0


@pytest.mark.parametrize("kind", ["patch_map", "source"])
def test_a_harmless_step_is_kept(kind: str, quiet_model: Loupe, make_item: MakeItem):
    before = state(quiet_model)
    adaptation = TestTimeAdaptation(quiet_model, lr=1e-7, rollback=kind)
    adaptation.step([agreeing(quiet_model, unlabelled(make_item))])
    assert (adaptation.summary.rolled_back, adaptation.summary.steps) == (0, 1)
    assert not unchanged(quiet_model, before)


def test_weights_that_harm_images_not_yet_learned_from_are_given_up(
    quiet_model: Loupe, make_item: MakeItem
):
    source = state(quiet_model.segmenter)
    fresh = agreeing(quiet_model, unlabelled(make_item, [5, 6]))
    adaptation = TestTimeAdaptation(quiet_model, lr=1e-6, anchor=1.0, rollback="patch_map")
    adaptation.step([agreeing(quiet_model, unlabelled(make_item))])
    with torch.no_grad():
        for parameter in quiet_model.segmenter.parameters():
            parameter.add_(torch.randn_like(parameter))
    adaptation.step([fresh])
    # Back at the source; the step from there was harmless, and the anchor undid it.
    assert unchanged(quiet_model.segmenter, source)
    assert (adaptation.summary.rolled_back, adaptation.summary.steps) == (1, 2)


def test_adaptation_stops_after_so_many_rollbacks(quiet_model: Loupe, make_item: MakeItem):
    perception = agreeing(quiet_model, unlabelled(make_item))
    adaptation = TestTimeAdaptation(quiet_model, lr=RUINOUS, rollback="source", rollback_patience=2)
    for _ in range(5):
        adaptation.step([perception])
    assert adaptation.summary.rolled_back == 2
    assert adaptation.summary.stopped


def test_weights_that_are_not_finite_are_taken_back(quiet_model: Loupe, make_item: MakeItem):
    before = state(quiet_model)
    adaptation = TestTimeAdaptation(quiet_model, lr=1e30, rollback="patch_map")
    adaptation.step([agreeing(quiet_model, unlabelled(make_item))])
    assert unchanged(quiet_model, before)


def test_rolled_back_images_are_answered_as_by_the_source_model(
    quiet_model: Loupe, make_item: MakeItem
):
    items, model = unlabelled(make_item), quiet_model.eval()
    with torch.no_grad():
        plain = [answer["forgery_map"] for answer in model(items)]
    adaptation = TestTimeAdaptation(model, lr=RUINOUS, rollback="source")
    pairs = adapted_predictions(adaptation, [items], mode="online", images_per_step=3)
    answers = [answer["forgery_map"] for _, batch in pairs for answer in batch]
    assert adaptation.summary.rolled_back == 1
    assert all(torch.equal(a, b) for a, b in zip(plain, answers, strict=True))


@pytest.mark.parametrize("mode", ["offline", "online", "episodic"])
def test_predictions_that_the_check_made_are_those_of_the_adapted_model(
    mode: str, build: Build, make_item: MakeItem
):
    loader = [unlabelled(make_item, [seed]) for seed in range(4)]
    answers = []
    for options in ({}, {"rollback": "source", "rollback_tolerance": 1.0}):
        torch.manual_seed(0)
        adaptation = TestTimeAdaptation(build(), lr=1e-2, **options)
        pairs = adapted_predictions(adaptation, loader, mode=mode, images_per_step=2)
        answers.append([answer["forgery_map"] for _, batch in pairs for answer in batch])
    assert all(torch.equal(a, b) for a, b in zip(*answers, strict=True))


# ---- Values that are not finite


def test_features_that_are_not_finite_skip_the_step(tiny_model: Loupe, make_item: MakeItem):
    perception = perceived(tiny_model, unlabelled(make_item), 2.0, 2.0, -2.0)
    perception.features["patches"][1, 0, 2, 2] = math.nan
    before = state(tiny_model)
    adaptation = TestTimeAdaptation(tiny_model, lr=1e-2)
    assert math.isnan(adaptation.step([perception]))
    assert unchanged(tiny_model, before)
    assert not adaptation.optimizer.state
    assert (adaptation.summary.skipped_not_finite, adaptation.summary.steps) == (1, 0)
    json.dumps(adaptation.summary.as_json(), allow_nan=False)


def test_a_gradient_that_is_not_finite_skips_the_step(tiny_model: Loupe, make_item: MakeItem):
    criterion = tiny_model.mask_criterion

    def kinked(outputs: Any, *rest: Any) -> dict[str, Tensor]:
        # Its value is 0, its slope infinite times 0.
        return {"loss": (outputs[-1].mask_logits * 0).abs().sqrt().sum()}

    kinked.class_weights = criterion.class_weights
    tiny_model.mask_criterion = kinked
    before = state(tiny_model)
    adaptation = TestTimeAdaptation(tiny_model, lr=1e-2)
    adaptation.step([perceived(tiny_model, unlabelled(make_item), 2.0, 2.0, 2.0)])
    assert unchanged(tiny_model, before)
    assert adaptation.summary.skipped_not_finite == 1


def test_one_bad_step_does_not_end_the_run(tiny_model: Loupe, make_item: MakeItem):
    adaptation = TestTimeAdaptation(tiny_model, lr=1e-3)
    good = perceived(tiny_model, unlabelled(make_item), 2.0, 2.0, -2.0)
    bad = perceived(tiny_model, unlabelled(make_item), 2.0, 2.0, -2.0)
    bad.features["patches"].fill_(math.inf)
    assert [math.isfinite(adaptation.step([p])) for p in (good, bad, good)] == [True, False, True]
    assert (adaptation.summary.skipped_not_finite, adaptation.summary.steps) == (1, 2)


# ---- Labels


@pytest.mark.parametrize("mode", ["offline", "online", "episodic"])
def test_shuffled_labels_change_nothing_with_every_option_on(
    mode: str, build: Build, make_item: MakeItem
):
    def labelled(order: list[int]) -> list[list[Item]]:
        items = unlabelled(make_item, range(4))
        for item, label in zip(items, order, strict=True):
            mask = torch.full((50, 70), bool(label)).numpy()
            item["ground_truth"] = GroundTruth(label, mask, "splicing" if label else "")
            item |= {"label": label, "mask": torch.full((84, 84), float(label))}
        return [items[:1], items[1:]]

    outcomes = []
    for order in ([0, 1, 1, 0], [1, 0, 0, 1]):
        torch.manual_seed(4)
        model = build()
        adaptation = TestTimeAdaptation(model, lr=1e-2, **ALL_OPTIONS)
        pairs = adapted_predictions(
            adaptation, labelled(order), mode=mode, images_per_step=2, steps=2
        )
        answers = [answer for _, batch in pairs for answer in batch]
        outcomes.append((answers, state(model), adaptation.summary.as_json()))
    one, other = outcomes
    assert one[2] == other[2]
    assert one[2]["steps"] > 0
    assert all(torch.equal(value, other[1][name]) for name, value in one[1].items())
    for a, b in zip(one[0], other[0], strict=True):
        assert a["forgery_score"] == b["forgery_score"]
        assert torch.equal(a["forgery_map"], b["forgery_map"])


@pytest.mark.parametrize("mode", ["offline", "online", "episodic"])
def test_the_model_is_shown_no_key_that_could_hold_a_label(
    mode: str, tiny_model: Loupe, make_item: MakeItem
):
    seen: set[str] = set()
    perceive, answer = tiny_model.classify, tiny_model.predict
    tiny_model.classify = lambda items: (seen.update(*items), perceive(items))[1]
    tiny_model.predict = lambda items, p: (seen.update(*items), answer(items, p))[1]
    items = [make_item(seed) | {"ground_truth": 1, "technique": "x"} for seed in range(2)]
    adaptation = TestTimeAdaptation(tiny_model, **ALL_OPTIONS)
    list(adapted_predictions(adaptation, [items], mode=mode, images_per_step=2))
    assert seen
    assert seen <= set(SHOWN)


# ---- Schedule


def rates(adaptation: TestTimeAdaptation) -> list[float]:
    noted: list[float] = []
    adaptation.optimizer.register_step_pre_hook(
        lambda optimizer, *_: noted.append(optimizer.param_groups[0]["lr"])
    )
    return noted


def test_offline_adaptation_warms_up_and_decays(tiny_model: Loupe, make_item: MakeItem):
    loader = [unlabelled(make_item, [seed]) for seed in range(10)]
    adaptation = TestTimeAdaptation(tiny_model, lr=1e-3)
    noted = rates(adaptation)
    schedule = warmup_stable_decay(0.2, 0.2)
    list(
        adapted_predictions(
            adaptation, loader, mode="offline", images_per_step=1, schedule=schedule
        )
    )
    assert len(noted) == 10
    assert noted[2:8] == pytest.approx([1e-3] * 6)
    assert noted[:2] == pytest.approx([0.25e-3, 0.75e-3])
    assert noted[9] < noted[8] < 1e-3
    assert noted[9] > 0


@pytest.mark.parametrize("mode", ["online", "episodic"])
def test_other_modes_keep_their_rate(mode: str, tiny_model: Loupe, make_item: MakeItem):
    loader = [unlabelled(make_item, [seed]) for seed in range(2)]
    adaptation = TestTimeAdaptation(tiny_model, lr=1e-3)
    noted = rates(adaptation)
    schedule = warmup_stable_decay(0.5, 0.5)
    list(adapted_predictions(adaptation, loader, mode=mode, images_per_step=1, schedule=schedule))
    assert set(noted) == {1e-3}


@pytest.mark.parametrize(("batches", "size"), [([1] * 7, 3), ([4, 4, 2], 6), ([5], 9), ([], 2)])
def test_the_number_of_steps_is_known_beforehand(batches: list[int], size: int):
    class Loader:
        batch_size = max(batches, default=1)

        def __len__(self) -> int:
            return len(batches)

    as_list = [[{}] * count for count in batches]
    assert count_groups(Loader(), size) == count_groups(as_list, size)


def test_a_loader_that_does_not_tell_its_length_has_no_schedule():
    assert count_groups(iter([]), 2) is None


# ---- Settings and files


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_weight": "size"}, r"IMAGE_WEIGHT is 'size'; use none, entropy or agreement"),
        ({"rollback": "yes"}, r"ROLLBACK is 'yes'; use none, patch_map or source"),
        ({"patch_temperature": 0.0}, r"PATCH_TEMPERATURE is 0\.0; use a positive number"),
        ({"anchor": 1.5}, r"ANCHOR is 1\.5; use a number from 0 to 1"),
        ({"confidence_margin": 0.6}, r"CONFIDENCE_MARGIN is 0\.6"),
        ({"teacher_predicts": True}, r"set ADAPTATION\.TEACHER_DECAY"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        AdaptationSettings(**settings)


def test_the_defaults_of_the_configuration_are_the_released_behaviour(tiny_cfg: CfgNode):
    assert AdaptationSettings.from_config(tiny_cfg) == AdaptationSettings()


def test_an_unknown_schedule_is_refused(tiny_cfg: CfgNode):
    tiny_cfg.ADAPTATION.SCHEDULE = "linear"
    with pytest.raises(ValueError, match=r"ADAPTATION\.SCHEDULE is 'linear'; use wsd or constant"):
        adaptation_schedule(tiny_cfg)


def test_gradients_are_asked_for_only_where_they_are_needed(tiny_model: Loupe, make_item: MakeItem):
    perception = perceived(tiny_model, unlabelled(make_item), 2.0, 2.0, -2.0)
    TestTimeAdaptation(tiny_model, parameters="embeddings").step([perception])
    with_gradient = [n for n, p in tiny_model.segmenter.named_parameters() if p.grad is not None]
    assert with_gradient == ["condition_embeddings"]
    assert all(p.requires_grad for p in tiny_model.segmenter.parameters())


class Evaluator:
    """Counts what it sees."""

    def reset(self) -> None:
        self.seen = 0

    def process(self, inputs: list[Item], outputs: list[Item]) -> None:
        self.seen += len(outputs)

    def evaluate(self) -> dict[str, int]:
        return {"seen": self.seen}


@pytest.mark.parametrize("mode", ["offline", "online", "episodic"])
def test_evaluation_leaves_summary_and_adapted_weights(
    mode: str, tiny_cfg: CfgNode, tiny_model: Loupe, make_item: MakeItem, tmp_path: Path
):
    tiny_cfg.ADAPTATION.MODE, tiny_cfg.ADAPTATION.BASE_LR = mode, 1e-2
    tiny_cfg.OUTPUT_DIR = str(tmp_path)
    before = state(tiny_model)
    loader = [unlabelled(make_item)]
    assert evaluate_model(tiny_cfg, tiny_model, loader, Evaluator()) == {"seen": 3}
    assert unchanged(tiny_model, before)
    summary = json.loads((tmp_path / "adaptation.json").read_text())
    assert summary["mode"] == mode
    assert (summary["images"], summary["steps"]) == (3, 1)
    assert 0 <= summary["disagreement_after"] <= 1
    saved = tmp_path / "model_adapted.pth"
    assert saved.exists() == (mode != "episodic")
    if saved.exists():
        weights = load_weights(saved)
        assert set(weights) == set(before)
        assert not all(torch.equal(weights[name], value) for name, value in before.items())


def test_the_checkpoint_is_never_overwritten(tiny_cfg: CfgNode, tiny_model: Loupe, tmp_path: Path):
    tiny_cfg.ADAPTATION.MODE, tiny_cfg.OUTPUT_DIR = "online", str(tmp_path)
    (tmp_path / "base.pth").write_bytes(b"precious")
    (tmp_path / "model_adapted.pth").symlink_to(tmp_path / "base.pth")
    tiny_cfg.MODEL.WEIGHTS = str(tmp_path / "base.pth")
    with pytest.raises(ValueError, match=r"never overwritten: give another output folder"):
        evaluate_model(tiny_cfg, tiny_model, [], Evaluator())
    assert (tmp_path / "base.pth").read_bytes() == b"precious"
