"""What each family adds: which models are trained, and what the table says of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from loupe.evaluation.measures import Columns
from research.experiments.families import run_families
from research.experiments.leave_one_out import Plan, job_without
from research.experiments.options import Scale, job_of
from research.experiments.rows import Cell, image_interval
from research.experiments.runs import Done, Evaluation, Job, RunError, job_digest
from tests.research.test_experiments import ROWS, columns

SCALE = Scale("quick", "synthetic://train?count=10", "synthetic://test?count=4", 0, (), ())
PLAN = Plan(("splice", "removal"), [1, 2], {}, ("real/manifest.csv",), (), 0, ROWS["stage2"])


class Models:
    """In the place of a runner: a model that saw splices finds 30 of 40 pixels, another 10."""

    def __init__(self, folder: Path, failing: str = "none") -> None:
        self.folder, self.failing = folder, failing
        self.failures: list[str] = []
        self.jobs: list[Job] = []

    def evaluate(self, job: Job, evaluations: list[Evaluation]) -> list[Path]:
        if self.failing in job.name:
            raise RunError(f"train {job.name}: bad luck")
        self.jobs.append(job)
        found = 10 if "without-splice" in job.name else 30
        return [self._measured(job, evaluation, found) for evaluation in evaluations]

    def _measured(self, job: Job, evaluation: Evaluation, found: int) -> Path:
        name = f"{job_digest(job)}-{abs(hash(evaluation.dataset))}.npz"
        return measured(self.folder / name, [found, found + 1, found + 2, found + 3])


def measured(path: Path, found: list[int]) -> Path:
    """The file of an evaluation in which so many of the 40 forged pixels are found."""
    names = np.array([f"{i:03}" for i in range(len(found))])
    table, fields = np.stack(columns(np.array(found))), np.array(Columns._fields)
    np.savez(path, image_ids=names, columns=table, fields=fields, about="{}")
    return path


def lines(report: Path) -> dict[tuple[str, str, str], dict]:
    content = json.loads((report / "families.json").read_text())
    return {(line["test"], line["left_out"], line["metric"]): line for line in content["lines"]}


def test_a_family_whose_loss_hurts_shows_with_its_interval(tmp_path: Path):
    run_families(PLAN, SCALE, Models(tmp_path), tmp_path)
    found = lines(tmp_path)
    for test in ("synthetic", "real"):
        line = found[test, "splice", "pixel/F1-pooled"]
        assert line["models"] == 2
        assert line["difference"] == pytest.approx(
            line["mean"] - found[test, "everything", "pixel/F1-pooled"]["mean"]
        )
        assert line["low"] <= line["difference"] <= line["high"] < -0.2
        assert line["seeds_low"] == pytest.approx(line["difference"])
        assert found[test, "removal", "pixel/F1-pooled"]["difference"] == 0
    assert "without splice" in (tmp_path / "families.md").read_text()


def test_everything_and_all_but_one_are_trained_for_every_seed(tmp_path: Path):
    models = Models(tmp_path)
    run_families(PLAN, SCALE, models, tmp_path)
    trained = [job.options[job.options.index("DATASETS.TRAIN") + 1] for job in models.jobs]
    sets = [SCALE.train, f"{SCALE.train}&without=splice", f"{SCALE.train}&without=removal"]
    assert trained == [f"('{name}',)" for name in sets] * 2
    assert all(job.first is None for job in models.jobs)


def test_its_models_are_the_first_stages_of_leave_one_out():
    row = ROWS["stage2"]._replace(first="from_scratch_stage1")
    family = ROWS["from_scratch_stage1"]
    first = job_without("splice", row, 1, SCALE).first
    assert job_digest(job_without("splice", family, 1, SCALE)) == job_digest(first)
    assert job_digest(job_of(family, 1, SCALE)) != job_digest(first)


def test_a_model_that_fails_is_listed_and_ends_nothing(tmp_path: Path):
    models = Models(tmp_path, failing="without-removal")
    run_families(PLAN, SCALE, models, tmp_path)
    assert len(models.failures) == 2
    assert ("synthetic", "splice", "image/AUC") in lines(tmp_path)
    assert (tmp_path / "families.md").read_text().count("bad luck") == 2


def test_other_data_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"casia\.csv: leaving a technique out needs synthetic"):
        run_families(PLAN, SCALE._replace(train="casia.csv"), Models(tmp_path), tmp_path)


def test_rows_of_a_table_are_compared_image_by_image_too(tmp_path: Path):
    def cells(*found: list[int]) -> dict[int, Cell]:
        done = Done(tmp_path, 60.0, 1.0, "train")
        paths = [measured(tmp_path / f"{hash(tuple(f))}.npz", f) for f in found]
        return {seed: Cell({}, done, path) for seed, path in enumerate(paths)}

    reference = cells([10, 12, 14, 11], [11, 12, 13, 9])
    better = cells([20, 22, 24, 21], [23, 22, 23, 19])
    interval = image_interval(better, reference, "pixel/F1-pooled")
    assert 0.1 < interval.low < interval.mean < interval.high
    assert image_interval(reference, reference, "pixel/F1-pooled")[:3] == (0, 0, 0)
    assert np.isnan(image_interval(better, {}, "pixel/F1-pooled").low)
