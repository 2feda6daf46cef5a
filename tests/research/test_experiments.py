"""Intervals against scipy, rows against their configurations, runs that resume and survive."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from loupe.config import load_config
from loupe.evaluation.measures import Columns, ImageMeasures
from loupe.evaluation.records import columns_of
from research.experiments import runs
from research.experiments.ablations import CONFIGS, TABLES, carried_options
from research.experiments.command import parse_arguments
from research.experiments.intervals import (
    Pair,
    bootstrap_interval,
    paired_t_interval,
    pooled_interval,
    t_interval,
)
from research.experiments.leave_one_out import known_techniques, overall_line
from research.experiments.options import QUICK_TEST, QUICK_TRAIN, Scale, job_of, scale_of
from research.experiments.report import interval_text
from research.experiments.runs import Evaluation, Job, RunError, Runner, job_digest

QUICK = Scale("quick", "synthetic://train?count=10", "synthetic://test?count=4", 0, (), ())
ROWS = {row.config: row for table in TABLES.values() for row in table.rows}


def columns(hits: np.ndarray) -> Columns:
    """Forged images of 100 pixels, 40 of them forged, of which `hits` are found."""
    return columns_of(
        ImageMeasures(
            1.0, 0.9, true_positives=h, false_positives=5, false_negatives=40 - h, true_negatives=55
        )
        for h in hits
    )


@pytest.fixture
def pair() -> Pair:
    generator = np.random.default_rng(1)
    before = generator.integers(0, 30, 60)
    return Pair(columns(before), columns(before + generator.integers(-2, 9, 60)))


# Intervals.


def test_the_t_interval_is_scipys():
    values = [0.3, 0.1, 0.25, 0.4]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert t_interval(values)[:3] == pytest.approx((np.mean(values), *expected))


def test_the_paired_interval_is_that_of_scipys_paired_test():
    first, second = [0.5, 0.7, 0.6], [0.45, 0.68, 0.5]
    expected = stats.ttest_rel(first, second).confidence_interval(0.95)
    found = paired_t_interval(dict(enumerate(first)), dict(enumerate(second)))
    assert (found.low, found.high) == pytest.approx(tuple(expected))


def test_pairing_is_by_seed_and_not_by_place():
    found = paired_t_interval({2: 0.5, 1: 0.4, 9: 7.0}, {1: 0.3, 2: 0.4})
    assert found.mean == pytest.approx(0.1)
    assert found.count == 2


def test_one_seed_gives_a_mean_and_no_interval():
    found = t_interval([0.2])
    assert found.mean == 0.2
    assert math.isnan(found.low)
    assert interval_text(found) == "+0.200"
    assert t_interval([0.2, math.nan, 0.4]).mean == pytest.approx(0.3)


def test_the_bootstrap_agrees_with_scipys_on_a_mean_of_images(pair: Pair):
    def f1(one: Columns) -> np.ndarray:
        hits, alarms, missed = one.true_positives, one.false_positives, one.false_negatives
        return 2 * hits / (2 * hits + alarms + missed)

    differences = f1(pair.after) - f1(pair.before)
    expected = stats.bootstrap(
        (differences,), np.mean, n_resamples=4000, method="percentile", rng=3
    ).confidence_interval
    found = bootstrap_interval([pair], "pixel/F1-image")
    assert found.mean == pytest.approx(differences.mean())
    reach = expected.high - expected.low
    assert found[1:3] == pytest.approx(tuple(expected), abs=0.06 * reach)


def test_the_pooled_metric_is_resampled_by_image_and_not_averaged(pair: Pair):
    def pooled(one: Columns) -> float:
        counts = one.true_positives, one.false_positives, one.false_negatives
        hits, alarms, missed = (column.sum() for column in counts)
        return 2 * hits / (2 * hits + alarms + missed)

    found = bootstrap_interval([pair], "pixel/F1-pooled")
    assert found.mean == pytest.approx(pooled(pair.after) - pooled(pair.before))
    assert found.low < found.mean < found.high


def test_a_change_of_nothing_has_an_interval_of_no_width(pair: Pair):
    same = Pair(pair.before, pair.before)
    assert bootstrap_interval([same, same], "pixel/F1-pooled")[:3] == (0.0, 0.0, 0.0)


def test_models_measured_on_different_images_are_refused(pair: Pair):
    short = Pair(*(columns(np.array([1, 2])) for _ in range(2)))
    with pytest.raises(ValueError, match="different images"):
        bootstrap_interval([pair, short], "pixel/F1-pooled")


def test_test_sets_of_different_lengths_are_drawn_for_themselves(pair: Pair):
    generator = np.random.default_rng(2)
    before = generator.integers(0, 30, 61)
    other = Pair(columns(before), columns(before + generator.integers(-2, 9, 61)))
    singles = [bootstrap_interval([one], "pixel/F1-image") for one in (pair, other)]
    widths = [single.high - single.low for single in singles]
    both = pooled_interval([[pair], [other]], "pixel/F1-image")
    assert both.high - both.low == pytest.approx(math.hypot(*widths) / 2, rel=0.07)


def test_the_worst_technique_is_named(pair: Pair):
    worse = Pair(pair.after, pair.before)
    line = overall_line("x", "pixel/F1-image", {"splice": {1: [pair]}, "removal": {1: [worse]}})
    assert line["worst"] == "removal"
    assert line["worst_change"] < 0
    assert (line["models"], line["models_gained"]) == (2, 1)
    assert line["worst_model"] == pytest.approx(line["worst_change"])
    assert line["techniques_low"] < 0 < line["techniques_high"]
    assert line["mean"] == pytest.approx(0)


# Rows.


def test_every_file_of_the_ablations_is_a_row_or_the_stage_1_of_one():
    rows = [row for table in TABLES.values() for row in table.rows]
    used = {name for row in rows for name in (row.config, row.first)} - {""}
    # Those of the expert and of other encoders have no table yet.
    others = {path.stem for path in CONFIGS.glob("ifdl_*.yaml")} | {"dinov3_lora"}
    assert {path.stem for path in CONFIGS.glob("*.yaml")} - others == used


@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_rows_of_a_table_differ_but_all_train_the_encoder_or_none(table):
    jobs = [job_of(row, 1, QUICK) for row in table.rows]
    assert len({job_digest(job) for job in jobs}) == len(jobs)
    frozen = {"backbone" in load_config(job.config, job.options).MODEL.FREEZE for job in jobs}
    assert len(frozen) == 1


@pytest.mark.parametrize("config", ["without_fusion", "with_box", "loss_bce_dice", "regions"])
def test_a_row_makes_the_same_difference_at_full_size(config: str):
    row = ROWS[config]
    stage = 2 if row.first else 1
    full = load_config(CONFIGS.parent / f"loupe_stage{stage}.yaml", carried_options(config))
    quick = load_config(CONFIGS / f"{config}.yaml")
    assert full.MODEL.CLASSIFIER.FUSION == quick.MODEL.CLASSIFIER.FUSION
    for key in ("PREDICT_BOXES", "GAMMA", "MASK_ALPHA", "TVERSKY_FALSE_POSITIVE"):
        assert full.MODEL.SEGMENTER[key] == quick.MODEL.SEGMENTER[key]
    assert full.INPUT.TARGETS == quick.INPUT.TARGETS
    assert full.INPUT.SIZE == 336


def test_stage_2_rows_of_one_seed_share_their_stage_1():
    first, second = (job_of(ROWS[name], 1, QUICK).first for name in ("queries_50", "with_box"))
    assert job_digest(first) == job_digest(second)
    assert job_digest(first) != job_digest(job_of(ROWS["with_box"], 2, QUICK).first)


def test_the_digest_knows_the_run_it_starts_from():
    other = QUICK._replace(stage1=("SOLVER.MAX_ITER", "7"))
    digests = {job_digest(job_of(ROWS["with_box"], 1, scale)) for scale in (QUICK, other)}
    assert len(digests) == 2


@pytest.mark.parametrize("digest", ["12e3456789", "0123456789", "1234567890"])
def test_a_digest_that_looks_like_a_number_is_a_name(digest: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runs, "_digest", lambda text: digest)
    assert job_digest(job_of(ROWS["with_box"], 1, QUICK)) == digest


def test_quick_experiments_have_the_data_of_the_quick_configurations():
    cfg = load_config(CONFIGS.parent / "quick" / "loupe_stage2.yaml")
    (train,), (test,) = cfg.DATASETS.TRAIN, cfg.DATASETS.TEST
    assert train == QUICK_TRAIN
    assert test.rpartition("&")[2] == QUICK_TEST.rpartition("&")[2]


def test_steps_on_the_command_line_reach_the_right_stage():
    words = ["table3", "--stage1-steps", "5", "--stage2-steps", "6"]
    job = job_of(ROWS["stage2"], 1, scale_of(parse_arguments(words, "")))
    assert load_config(job.config, job.options).SOLVER.MAX_ITER == 6
    assert load_config(job.first.config, job.first.options).SOLVER.MAX_ITER == 5


def test_an_unknown_technique_is_refused():
    with pytest.raises(ValueError, match="splise"):
        known_techniques(["splise"])
    # No stream takes clones by default.
    assert "clone" not in known_techniques([])
    assert known_techniques(["clone"]) == ("clone",)


# Runs.

TRAINER = """
import pathlib, sys
options = dict(zip(sys.argv[3::1], sys.argv[4::1]))
folder = pathlib.Path(options["OUTPUT_DIR"])
with (folder / "calls.txt").open("a") as file:
    file.write(options.get("MODEL.WEIGHTS", "none") + "\\n")
if options.get("SOLVER.MAX_ITER") == "13":
    sys.exit("bad luck")
(folder / "model_final.pth").write_text("weights")
"""
EVALUATOR = """
import json, pathlib, sys
for task in json.loads(pathlib.Path(sys.argv[1]).read_text())["evaluations"]:
    path = pathlib.Path(task["output"])
    path.parent.mkdir(exist_ok=True)
    path.write_text(task["name"])
"""


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """A runner whose trainer and evaluator are scripts of a moment."""
    for name, text in (("TRAIN", TRAINER), ("EVALUATE", EVALUATOR)):
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        monkeypatch.setattr(runs, name, path)
    return Runner(tmp_path / "out")


def job(name: str, steps: int = 5, first: Job | None = None) -> Job:
    return Job(name, 1, CONFIGS / "stage2.yaml", ("SOLVER.MAX_ITER", str(steps)), first)


def calls(done: runs.Done) -> list[str]:
    return (done.folder / "calls.txt").read_text().splitlines()


def test_a_run_starts_from_the_weights_of_its_stage_1(runner: Runner):
    done = runner.train(job("b", 5, job("a", 6)))
    # The same run under another name is found, not repeated.
    first = runner.train(job("c", 6))
    assert calls(done) == [str(first.folder / "model_final.pth")]
    assert len(calls(first)) == 1


def test_a_failed_run_names_its_log_and_is_tried_again_by_the_next_command(runner: Runner):
    for one in (runner, Runner(runner.output)):
        with pytest.raises(RunError, match=r"train_net|TRAIN\.log"):
            one.train(job("a", 13))
    folder = runner.folder(job("a", 13))
    assert len((folder / "calls.txt").read_text().splitlines()) == 2
    assert "bad luck" in (folder / "TRAIN.log").read_text()


def test_a_stage_1_that_failed_is_not_tried_for_every_row_of_its_seed(runner: Runner):
    for steps in (5, 6, 7):
        with pytest.raises(RunError, match=r"train a, seed 1: .*TRAIN\.log"):
            runner.train(job("b", steps, job("a", 13)))
    assert len((runner.folder(job("a", 13)) / "calls.txt").read_text().splitlines()) == 1


def test_only_what_was_not_measured_is_measured(runner: Runner):
    plain, hot = Evaluation("plain", "set"), Evaluation("hot", "set", ("ADAPTATION.BASE_LR", "1"))
    runner.evaluate(job("a"), [plain])
    paths = runner.evaluate(job("a"), [plain, hot])
    plan = json.loads((runner.folder(job("a")) / "plan.json").read_text())
    assert [task["name"] for task in plan["evaluations"]] == ["hot"]
    assert [path.read_text() for path in paths] == ["plain", "hot"]
