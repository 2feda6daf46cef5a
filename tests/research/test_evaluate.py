"""One model measured in several settings: numbers by image, and failures that stay alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loupe.checkpoint import save_weights
from loupe.config import load_config
from loupe.evaluation import ForgeryEvaluator
from loupe.trainer import LoupeTrainer
from research.experiments import evaluate
from research.experiments.ablations import REFERENCE
from research.experiments.intervals import metric_values
from research.experiments.leave_one_out import (
    METRICS,
    Plan,
    change_line,
    pairs_by_seed,
    write_tables,
)
from research.experiments.measured import pair_of, read_measured
from research.experiments.options import Scale
from research.experiments.runs import Runner

CONFIG = Path(__file__).parents[2] / "configs" / "ablations" / "stage2.yaml"
DATA = "synthetic://test?size=64&count=8&difficulty=30"
OPTIONS = ["INPUT.SIZE", "64", "MODEL.DEVICE", "cpu", "MODEL.NEW_PARTS", "[]"]
OPTIONS += ["MODEL.PERCEPTION_ENCODER.DEPTH", "1", "MODEL.PERCEPTION_ENCODER.STEM", "patch"]
OPTIONS += ["MODEL.SEGMENTER.PIXEL_LAYERS", "1", "MODEL.SEGMENTER.MASK_LAYERS", "1"]
OPTIONS += ["DATALOADER.NUM_WORKERS", "0", "TEST.IMS_PER_BATCH", "4", "SEED", "1"]
SETTINGS = {
    "plain": [],
    "again": ["ADAPTATION.MODE", "none"],
    "online": ["ADAPTATION.MODE", "online", "ADAPTATION.BASE_LR", "0.01"],
    "broken": ["ADAPTATION.MODE", "sideways"],
    "large": ["INPUT.SIZE", "96"],
}


def build() -> Any:
    torch.manual_seed(0)
    model = LoupeTrainer.build_model(load_config(CONFIG, OPTIONS)).eval()
    with torch.no_grad():
        # A verdict above 0.5, so that adaptation has something to learn.
        model.classifier.image_head[-1].bias.fill_(9.0)
        model.classifier.fusion.weight[0, 0] = 1.0
    return model


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Paths of the numbers of each setting, "failed" with the number of failures."""
    folder = tmp_path_factory.mktemp("run")
    weights = folder / "model_final.pth"
    save_weights(build().state_dict(), weights)
    paths = {name: folder / "evaluations" / f"{name}.npz" for name in SETTINGS}
    tasks = [
        {"name": name, "dataset": DATA, "options": options, "limit": 0, "output": str(paths[name])}
        for name, options in SETTINGS.items()
    ]
    tasks.append(tasks[0] | {"name": "few", "limit": 5, "output": str(folder / "few.npz")})
    plan = {"config": str(CONFIG), "options": OPTIONS, "weights": str(weights)}
    failed = evaluate.main(plan | {"evaluations": tasks})
    assert failed == 1
    return paths | {"few": folder / "few.npz"}


def test_a_setting_that_fails_leaves_no_numbers_and_ends_nothing(measured: dict[str, Path]):
    assert {name for name, path in measured.items() if not path.exists()} == {"broken"}


def test_the_numbers_give_the_evaluators_metrics(measured: dict[str, Path]):
    cfg = load_config(CONFIG, OPTIONS)
    evaluator = ForgeryEvaluator("check", protocols=(), resamples=0)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TEST = (DATA,)
    expected = LoupeTrainer.test(cfg, build(), evaluator)
    found = metric_values(read_measured(measured["plain"]).columns)
    for metric in ("image/AUC", "pixel/F1-pooled", "pixel/FPR-authentic"):
        group, name = metric.split("/")
        assert found[metric] == pytest.approx(expected[group][name], nan_ok=True)


def test_adaptation_moves_the_map_and_not_the_model_of_the_next_setting(measured: dict[str, Path]):
    plain, again, online = (
        np.stack(read_measured(measured[name]).columns) for name in ("plain", "again", "online")
    )
    assert np.array_equal(plain, again, equal_nan=True)
    assert not np.array_equal(plain, online, equal_nan=True)


def test_adapted_weights_are_not_kept(measured: dict[str, Path]):
    assert list(measured["plain"].parent.rglob("*.pth")) == []


def test_images_may_be_read_at_another_size_than_the_models(measured: dict[str, Path]):
    small, large = (read_measured(measured[name]) for name in ("plain", "large"))
    assert small.image_ids == large.image_ids
    assert (small.columns.probability != large.columns.probability).any()


def test_a_limit_draws_some_of_the_images(measured: dict[str, Path]):
    few, all_images = (read_measured(measured[name]).image_ids for name in ("few", "plain"))
    assert len(few) == 5
    assert set(few) < set(all_images)


def test_evaluations_of_different_images_are_no_pair(measured: dict[str, Path]):
    with pytest.raises(ValueError, match="different images"):
        pair_of(measured["plain"], measured["few"])


def test_the_leave_one_out_report_has_changes_by_technique_and_their_mean(
    measured: dict[str, Path], tmp_path: Path
):
    paths = {
        (technique, technique, seed, name): measured[name]
        for technique in ("splice", "removal")
        for seed in (1, 2)
        for name in ("plain", "online")
    }
    line = change_line("splice", "online", METRICS[1], pairs_by_seed("splice", "online", paths))
    # Both seeds are the same run here.
    assert line["seeds_low"] == pytest.approx(line["seeds_high"])
    assert line["images_low"] <= line["mean"] <= line["images_high"]
    plan = Plan(("splice", "removal"), [1, 2], {"online": ()}, (), (), 0, REFERENCE)
    scale = Scale("quick", DATA, DATA, 0, (), ())
    write_tables(plan, scale, paths, Runner(tmp_path), tmp_path)
    text = (tmp_path / "loo").with_suffix(".md").read_text()
    assert "mean of techniques" in text
    assert "worst technique" in text
