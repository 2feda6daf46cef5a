"""Whole runs: every image is predicted, no label is read, weights are kept or given back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from loupe import Loupe
from loupe.adaptation import TestTimeAdaptation, adapted_predictions
from loupe.adaptation.runs import SHOWN
from loupe.checkpoint import load_weights
from loupe.solver import warmup_stable_decay
from loupe.structures import GroundTruth
from loupe.trainer.evaluation import adaptation_schedule, evaluate_model
from tests.adaptation.test_steps import fail_on, state, unlabelled

Item = dict[str, Any]
MakeItem = Callable[..., Item]
Build = Callable[..., Loupe]
every_mode = pytest.mark.parametrize("mode", ["offline", "online", "episodic"])


@pytest.fixture
def build(build: Build) -> Build:
    """Models that call every image forged, so that each step draws points."""

    def forged(*options: object) -> Loupe:
        model = build(*options)
        model.classifier.register_forward_hook(
            lambda module, inputs, out: out._replace(image_logits=out.image_logits.abs() + 0.5)
        )
        return model

    return forged


def unchanged(module: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def run(model: Loupe, items: list[Item], mode: str, **settings: Any) -> list[Item]:
    """Adapts on one image at a time and predicts."""
    adaptation = TestTimeAdaptation(model, lr=1e-2, **settings)
    pairs = adapted_predictions(
        adaptation, [[item] for item in items], mode=mode, images_per_step=1
    )
    return [prediction for _, (prediction,) in pairs]


def assert_same(one: list[Item], other: list[Item]) -> None:
    for a, b in zip(one, other, strict=True):
        assert a["forgery_score"] == b["forgery_score"]
        assert torch.equal(a["forgery_map"], b["forgery_map"])


# ---- Modes


def test_episodes_end_at_the_source_and_do_not_depend_on_earlier_ones(
    tiny_model: Loupe, make_item: MakeItem
):
    before, items = state(tiny_model), unlabelled(make_item)
    together = run(tiny_model, items, "episodic")
    assert unchanged(tiny_model, before)
    assert_same(together, [run(tiny_model, [item], "episodic")[0] for item in items])


@torch.no_grad()
def test_offline_adaptation_predicts_with_the_final_weights(tiny_model: Loupe, make_item: MakeItem):
    items = unlabelled(make_item)
    with torch.enable_grad():
        adapted = run(tiny_model, items, "offline")
    assert_same(adapted, [tiny_model([item])[0] for item in items])


@every_mode
def test_adaptation_changes_maps_and_no_probability(mode: str, build: Build, make_item: MakeItem):
    items, model = unlabelled(make_item), build().eval()
    before = state(model)
    with torch.no_grad():
        plain = [model([item])[0] for item in items]
    for one, other in zip(plain, run(model, items, mode), strict=True):
        assert one["forgery_score"] == pytest.approx(other["forgery_score"], abs=1e-6)
        assert not torch.equal(one["forgery_map"], other["forgery_map"])
    assert unchanged(model, before) == (mode == "episodic")


@every_mode
def test_every_item_is_predicted_in_order_and_errors_pass_through(
    mode: str, tiny_model: Loupe, make_item: MakeItem
):
    broken = {"file_name": "b", "image_id": "b", "error": "truncated"}
    first, second, third = unlabelled(make_item)
    loader = [[first, broken], [broken, broken], [second, third]]
    adaptation = TestTimeAdaptation(tiny_model)
    pairs = list(adapted_predictions(adaptation, loader, mode=mode, images_per_step=3))
    assert [item for batch, _ in pairs for item in batch] == sum(loader, [])
    predictions = [prediction for _, batch in pairs for prediction in batch]
    assert ["error" in one for one in predictions] == [False, True, True, True, False, False]
    assert (adaptation.summary.images, adaptation.summary.steps) == (3, 2)


@every_mode
def test_an_image_that_fails_in_a_step_or_in_its_prediction_ends_nothing(
    mode: str, tiny_model: Loupe, make_item: MakeItem, monkeypatch: pytest.MonkeyPatch
):
    items = unlabelled(make_item)
    bad, worse = (items[number]["image_id"] for number in (0, 2))
    fail_on(monkeypatch, bad, worse)
    real = Loupe._predictions

    def failing(model: Loupe, batch: list[Item], *rest: Any) -> list[Item]:
        if any(item["image_id"] == worse for item in batch):
            raise MemoryError("too large")
        return real(model, batch, *rest)

    monkeypatch.setattr(Loupe, "_predictions", failing)
    adaptation = TestTimeAdaptation(tiny_model)
    pairs = list(adapted_predictions(adaptation, [items], mode=mode, images_per_step=3))
    rows = [pair for batch, outputs in pairs for pair in zip(batch, outputs, strict=True)]
    assert ["error" in output for _, output in rows] == [False, False, True]
    assert [len(item.get("warnings", ())) for item, _ in rows] == [1, 0, 1]
    assert "left out of the adaptation" in rows[0][0]["warnings"][0]
    assert (adaptation.summary.left_out, adaptation.summary.images) == (2, 3)


def test_a_step_has_as_many_images_as_asked_for_whatever_the_loaders_batches(
    tiny_model: Loupe, make_item: MakeItem
):
    adaptation = TestTimeAdaptation(tiny_model)
    sizes: list[list[int]] = []
    adaptation.step = lambda batches: sizes.append([len(b.image_ids) for b in batches]) or 0.0
    items = unlabelled(make_item, range(8))
    list(adapted_predictions(adaptation, [items[:5], items[5:]], mode="online", images_per_step=3))
    assert sizes == [[3], [2, 1], [2]]


def test_a_map_has_the_orientation_that_its_image_is_stored_in(
    tiny_model: Loupe, make_item: MakeItem
):
    item = unlabelled(make_item)[0] | {"orientation": 6}
    with torch.no_grad():
        (plain,) = tiny_model.eval()([item])
    (adapted,) = run(tiny_model, [item], "online")
    assert adapted["forgery_map"].shape == plain["forgery_map"].shape != (50, 70)


@pytest.mark.parametrize("mode", ["none", "sideways"])
def test_an_unknown_mode_is_refused(mode: str, tiny_model: Loupe):
    with pytest.raises(ValueError, match=r"ADAPTATION\.MODE"):
        list(adapted_predictions(TestTimeAdaptation(tiny_model), [], mode=mode, images_per_step=1))


# ---- Labels


@every_mode
def test_no_label_is_read(mode: str, build: Build, make_item: MakeItem):
    def labelled(order: list[int]) -> list[Item]:
        items = unlabelled(make_item, range(4))
        for item, label in zip(items, order, strict=True):
            mask = torch.full((50, 70), bool(label)).numpy()
            item["ground_truth"] = GroundTruth(label, mask, "splicing" if label else "")
            item |= {"label": label, "mask": torch.full((84, 84), float(label))}
        return items

    models, seen = (build(), build()), set()
    for model in models:
        classify = model.classify
        model.classify = lambda items, call=classify: (seen.update(*items), call(items))[1]
    outcomes = [
        run(model, labelled(order), mode, image_weight="agreement")
        for model, order in zip(models, ([0, 1, 1, 0], [1, 0, 0, 1]), strict=True)
    ]
    assert_same(*outcomes)
    assert unchanged(models[0], state(models[1]))
    assert seen
    assert seen <= set(SHOWN)


# ---- Schedule


def rates(adaptation: TestTimeAdaptation) -> list[float]:
    noted: list[float] = []
    adaptation.optimizer.register_step_pre_hook(
        lambda optimizer, *_: noted.append(optimizer.param_groups[0]["lr"])
    )
    return noted


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_offline_adaptation_warms_up_and_decays_and_online_keeps_its_rate(
    mode: str, tiny_model: Loupe, make_item: MakeItem
):
    loader = [unlabelled(make_item, [seed]) for seed in range(10)]
    adaptation = TestTimeAdaptation(tiny_model, lr=1e-3)
    noted = rates(adaptation)
    schedule = warmup_stable_decay(0.2, 0.2, "cosine")
    list(adapted_predictions(adaptation, loader, mode=mode, images_per_step=1, schedule=schedule))
    assert len(noted) == 10
    assert noted[2:8] == pytest.approx([1e-3] * 6)
    if mode == "online":
        assert set(noted) == {1e-3}
    else:
        assert noted[:2] == pytest.approx([0.25e-3, 0.75e-3])
        assert 0 < noted[9] < noted[8] < 1e-3


def test_an_unknown_schedule_is_refused(tiny_cfg: CfgNode):
    tiny_cfg.ADAPTATION.SCHEDULE = "linear"
    with pytest.raises(ValueError, match=r"ADAPTATION\.SCHEDULE is 'linear'; use wsd or constant"):
        adaptation_schedule(tiny_cfg)


# ---- Files


class Evaluator:
    """Counts what it sees."""

    def reset(self) -> None:
        self.seen = 0

    def process(self, inputs: list[Item], outputs: list[Item]) -> None:
        assert len(inputs) == len(outputs)
        self.seen += len(outputs)

    def evaluate(self) -> dict[str, int]:
        return {"seen": self.seen}


@every_mode
def test_evaluation_leaves_summary_and_adapted_weights(
    mode: str, tiny_cfg: CfgNode, tiny_model: Loupe, make_item: MakeItem, tmp_path: Path
):
    tiny_cfg.ADAPTATION.MODE, tiny_cfg.ADAPTATION.BASE_LR = mode, 1e-2
    tiny_cfg.OUTPUT_DIR = str(tmp_path)
    before = state(tiny_model)
    loader = [unlabelled(make_item)]
    for _ in range(2):  # The second run replaces the files of the first.
        assert evaluate_model(tiny_cfg, tiny_model, loader, Evaluator()) == {"seen": 3}
    assert unchanged(tiny_model, before)
    summary = json.loads((tmp_path / "adaptation.json").read_text())
    assert (summary["mode"], summary["images"], summary["steps"]) == (mode, 3, 1)
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
