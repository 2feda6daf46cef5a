"""Whole runs: resuming, freezing, averaging, checkpoints, evaluation, events."""

from __future__ import annotations

import errno
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from loupe.checkpoint import load_weights, read_torch
from loupe.trainer import LoupeTrainer
from loupe.trainer.averaging import WeightAverage
from loupe.trainer.best import BestWeights
from loupe.trainer.writers import WINDOW
from tests.trainer.toy import toy_config


def train(cfg: CfgNode, *, resume: bool = False, stop_at: int | None = None) -> LoupeTrainer:
    """Trains; `stop_at` interrupts before that iteration."""
    trainer = LoupeTrainer(cfg)
    trainer.losses = []
    trainer.resume_or_load(resume=resume)
    step = trainer._trainer

    def run(iteration: int) -> None:
        if iteration == stop_at:
            raise KeyboardInterrupt
        type(step).run(step, iteration)
        trainer.losses.append(trainer.storage.latest()["total_loss"][0])

    step.run = run
    if stop_at is None:
        trainer.train()
    else:
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    return trainer


def evaluating(folder: Path, *options: Any) -> CfgNode:
    """A config that also evaluates, every second step."""
    data = str(folder / "manifest.csv")
    return toy_config(
        folder, "DATASETS.TEST", (data,), "TEST.EVAL_PERIOD", 2, "TEST.PANELS", 4, *options
    )


RESUME_CASES = {
    "seed in the config, no workers": ("DATALOADER.NUM_WORKERS", 0),
    "seed in the config, two workers": ("DATALOADER.NUM_WORKERS", 2),
    "no seed, balanced": ("SEED", -1, "DATALOADER.SAMPLER_TRAIN", "BalancedSampler"),
    "an evaluation between": ("TEST.EVAL_PERIOD", 1),
}


@pytest.mark.parametrize("options", RESUME_CASES.values(), ids=RESUME_CASES.keys())
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(folder, options):
    data = str(folder / "manifest.csv")
    common = ("SOLVER.ACCUMULATION_STEPS", 2, "SOLVER.EMA_DECAY", 0.9, *options)
    if "TEST.EVAL_PERIOD" in options:
        common += ("DATASETS.TEST", (data,))
    common += ("SOLVER.MAX_ITER", 6, "SOLVER.WARMUP_FRACTION", 0.5)
    whole = train(toy_config(folder, "SOLVER.CHECKPOINT_PERIOD", 3, *common))
    # What an interruption after the third step would have left behind.
    (folder / "output" / "last_checkpoint").write_text("model_0000002.pth")
    rest = train(toy_config(folder, "SOLVER.CHECKPOINT_PERIOD", 3, *common), resume=True)
    assert rest.losses == whole.losses[3:]
    assert_equal_weights(whole, rest)


def assert_equal_weights(first: LoupeTrainer, second: LoupeTrainer) -> None:
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    for name, average in first.average.averages.items():
        assert torch.equal(average, second.average.averages[name])
    assert first.scheduler.last_epoch == second.scheduler.last_epoch


def test_resuming_without_a_checkpoint_starts_from_the_beginning(folder):
    assert train(toy_config(folder), resume=True).start_iter == 0


def test_the_best_checkpoint_is_not_what_a_run_resumes_from(folder):
    train(evaluating(folder))
    assert (folder / "output" / "last_checkpoint").read_text() == "model_final.pth"


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


# Whatever else a file may be is refused by the reader: tests/checkpoint/test_formats.py.
UNUSABLE = {
    "one byte changed": lambda whole: whole[:2000] + b"#" + whole[2001:],
    "a list": lambda _: saved([torch.zeros(1)]),
    "weights alone": lambda _: saved({"model": {}}),
}


@pytest.mark.parametrize("damage", UNUSABLE.values(), ids=UNUSABLE.keys())
def test_an_unusable_checkpoint_is_named_and_the_one_before_it_is_resumed(folder, damage, caplog):
    cfg = toy_config(folder, "SOLVER.CHECKPOINT_PERIOD", 2)
    train(cfg)
    output = folder / "output"
    final = output / "model_final.pth"
    before = read_torch(final)
    for path in (final, output / "model_0000003.pth"):
        path.write_bytes(damage(path.read_bytes()))
    rest = train(cfg, resume=True)
    assert rest.start_iter == 2
    after = read_torch(final)
    torch.testing.assert_close(after["model"], before["model"], rtol=0, atol=0)
    states = [content["trainer"]["step"]["optimizer"]["state"] for content in (after, before)]
    torch.testing.assert_close(*states, rtol=0, atol=0)
    assert "model_final.pth: " in caplog.text
    assert "model_0000003.pth: " in caplog.text


def test_a_checkpoint_that_the_disk_cannot_give_is_passed_over(folder, monkeypatch):
    cfg = toy_config(folder, "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.MAX_ITER", 6)
    train(cfg, stop_at=4)

    def read(path: Path) -> Any:
        if path.name == "model_0000003.pth":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read_torch(path)

    monkeypatch.setattr("loupe.trainer.checkpointing.read_torch", read)
    assert train(cfg, resume=True).start_iter == 2


def test_a_checkpoint_that_cannot_be_written_costs_none_before(folder, monkeypatch):
    trainer = train(toy_config(folder, "SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.MAX_ITER", 3))
    output = folder / "output"
    before = {path.name: path.read_bytes() for path in output.glob("*model*")}
    before["last_checkpoint"] = (output / "last_checkpoint").read_bytes()

    def fail(content: object, path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("loupe.trainer.checkpointing.write_torch", fail)
    with pytest.raises(OSError, match="No space left"):
        trainer.checkpointer.save(3)
    assert {name: (output / name).read_bytes() for name in before} == before


def test_a_run_killed_just_before_its_final_checkpoint_gets_one(folder):
    cfg = toy_config(folder, "SOLVER.CHECKPOINT_PERIOD", 2)
    train(cfg)
    output = folder / "output"
    (output / "model_final.pth").unlink()
    (output / "last_checkpoint").write_text("model_0000003.pth")
    train(cfg, resume=True)
    weights = [load_weights(output / f"model_{name}.pth") for name in ("final", "0000003")]
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_a_damaged_checkpoint_of_a_signal_does_not_stay(folder):
    cfg = toy_config(folder, "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.MAX_ITER", 6)
    trainer = train(cfg, stop_at=3)
    trainer.iter = 2
    trainer.checkpointer.save(2)
    (folder / "output" / "model_0000002.pth").write_bytes(b"")
    assert train(cfg, resume=True).start_iter == 2
    names = [path.name for path in (folder / "output").glob("model_0*")]
    assert sorted(names) == ["model_0000003.pth", "model_0000005.pth"]


def test_without_a_checkpoint_that_is_whole_the_run_does_not_start_again_in_silence(folder):
    train(toy_config(folder))
    (folder / "output" / "model_final.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"can be resumed from(.|\n)*model_final\.pth: "):
        train(toy_config(folder), resume=True)


@pytest.mark.parametrize(
    "content", [b"", b"model_0000009.pth", b"../model_final.pth", b"\xff\0", b"long" * 2000]
)
def test_a_damaged_last_checkpoint_leads_to_the_newest(folder, content, caplog):
    train(toy_config(folder, "SOLVER.CHECKPOINT_PERIOD", 2), stop_at=2)
    (folder / "model_final.pth").touch()
    (folder / "output" / "last_checkpoint").write_bytes(content)
    rest = train(toy_config(folder, "SOLVER.CHECKPOINT_PERIOD", 2), resume=True)
    assert rest.start_iter == 2
    assert "last_checkpoint names no checkpoint" in caplog.text


def test_another_run_in_the_same_folder_loses_nothing_and_is_not_resumed(folder):
    train(toy_config(folder, "SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.MAX_ITER", 3))
    (folder / "output" / "model_final.pth").unlink()
    options = ("SOLVER.CHECKPOINT_PERIOD", 4, "SOLVER.MAX_ITER", 6)
    train(toy_config(folder, *options), stop_at=5)
    names = [f"model_000000{number}.pth" for number in (1, 2, 3)]
    assert sorted(path.name for path in (folder / "output").glob("model_0*")) == names
    (folder / "output" / "last_checkpoint").unlink()
    # A longer run left it, long ago.
    longer = folder / "output" / "model_0000009.pth"
    longer.write_bytes((folder / "output" / names[0]).read_bytes())
    os.utime(longer, (1, 1))
    assert train(toy_config(folder, *options), resume=True).start_iter == 4
    assert longer.exists()


def test_rows_of_a_run_without_a_checkpoint_are_taken_back_and_new_ones_are_on_the_disk(
    folder, monkeypatch
):
    rows, synced = folder / "output" / "metrics.json", []
    rows.parent.mkdir(exist_ok=True)
    rows.write_text('{"iteration": 0, "of": "a killed run"}\n')

    def note(handle: int) -> None:
        about = os.fstat(handle)
        synced.append((about.st_ino, about.st_size))

    monkeypatch.setattr(os, "fsync", note)
    train(toy_config(folder), resume=True)
    assert "killed" not in rows.read_text()
    assert (rows.stat().st_ino, rows.stat().st_size) in synced


def test_curves_are_on_their_way_before_a_checkpoint_says_so(folder, monkeypatch):
    done = []

    def write(content: object, path: Path) -> None:
        done.append("checkpoint")

    monkeypatch.setattr(SummaryWriter, "flush", lambda writer: done.append("curves"))
    monkeypatch.setattr("loupe.trainer.checkpointing.write_torch", write)
    # The first row follows the first evaluation.
    train(evaluating(folder, "SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.MAX_ITER", 3))
    assert done == ["checkpoint", "checkpoint", "curves", "checkpoint", "curves", "checkpoint"]


def test_resuming_with_other_weights_names_every_key_that_does_not_fit(folder):
    trainer = train(toy_config(folder))
    path = folder / "output" / "model_final.pth"
    content = torch.load(path)
    content["model"]["segmenter.surplus"] = content["model"].pop("segmenter.bias")
    torch.save(content, path)
    with pytest.raises(ValueError, match="missing: segmenter.bias") as error:
        train(trainer.cfg, resume=True)
    assert "unexpected: segmenter.surplus" in str(error.value)


def test_initial_weights_may_lack_a_part_that_is_declared_new(folder):
    source = train(toy_config(folder)).model
    weights = {k: v for k, v in source.state_dict().items() if not k.startswith("segmenter.")}
    torch.save({"model": weights}, folder / "stage1.pth")
    options = ("MODEL.WEIGHTS", str(folder / "stage1.pth"))
    trainer = LoupeTrainer(toy_config(folder, *options, "MODEL.NEW_PARTS", ["segmenter"]))
    trainer.resume_or_load(resume=False)
    assert torch.equal(trainer.model.classifier.weight, source.classifier.weight)
    with pytest.raises(ValueError, match="missing: segmenter.weight"):
        LoupeTrainer(toy_config(folder, *options)).resume_or_load(resume=False)


def test_the_average_starts_from_the_initial_weights_that_were_loaded(folder):
    train(toy_config(folder))
    options = ("MODEL.WEIGHTS", str(folder / "output" / "model_final.pth"))
    trainer = LoupeTrainer(toy_config(folder, *options, "SOLVER.EMA_DECAY", 0.9))
    trainer.resume_or_load(resume=False)
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(trainer.average.averages[name], parameter)


def test_frozen_parts_do_not_change(folder):
    trainer = LoupeTrainer(toy_config(folder, "MODEL.FREEZE", ["backbone", "classifier"]))
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    changed = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"segmenter.weight", "segmenter.bias"}


def test_a_run_in_epochs_has_as_many_steps_as_the_data_ask_for(folder):
    cfg = toy_config(folder, "SOLVER.EPOCHS", 1.5, "SOLVER.ACCUMULATION_STEPS", 3)
    assert LoupeTrainer(cfg).max_iter == 2


def test_a_long_run_keeps_the_values_that_smoothing_asks_for_and_no_more(folder):
    trainer = train(toy_config(folder, "SOLVER.MAX_ITER", 30))
    kept = {name: len(history.values()) for name, history in trainer.storage.histories().items()}
    # What a hook notes after the last step comes on top.
    assert max(kept[name] for name in kept if name != "time") <= WINDOW + 1
    assert kept["time"] > WINDOW + 1


def test_a_run_without_decay_reaches_its_end(folder):
    train(toy_config(folder, "SOLVER.DECAY_FRACTION", 0.0))
    assert (folder / "output" / "model_final.pth").is_file()


def test_only_the_last_periodic_checkpoints_are_kept(folder):
    train(toy_config(folder, "SOLVER.CHECKPOINT_PERIOD", 1))
    files = sorted(path.name for path in (folder / "output").glob("model*"))
    assert files == ["model_0000002.pth", "model_0000003.pth", "model_final.pth"]


def test_the_average_follows_the_weights_by_its_decay():
    model = torch.nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, decay=0.15)
    torch.nn.init.ones_(model.weight)
    average.reset()
    torch.nn.init.constant_(model.weight, 2.0)
    average.update()  # decay 0.1 at first
    assert average.averages["weight"].item() == pytest.approx(0.1 * 1 + 0.9 * 2)
    torch.nn.init.constant_(model.weight, 3.0)
    average.update()  # then 0.15
    assert average.averages["weight"].item() == pytest.approx(0.15 * 1.9 + 0.85 * 3)


def test_the_average_is_lent_and_given_back():
    model = torch.nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, decay=0.5)
    before = model.weight.item()
    torch.nn.init.constant_(model.weight, 5.0)
    with average.applied():
        assert model.weight.item() == before
    assert model.weight.item() == 5.0
    assert average.averages["weight"].item() == before


def test_the_final_average_loads_strictly_and_is_what_was_evaluated(folder):
    trainer = train(evaluating(folder, "SOLVER.EMA_DECAY", 0.9, "SOLVER.MAX_ITER", 3))
    path = folder / "output" / "model_final_ema.pth"
    weights = load_weights(path)
    for name, average in trainer.average.averages.items():
        assert torch.equal(weights[name], average)
        own = dict(trainer.model.named_parameters())[name]
        assert name == "spare" or not torch.equal(weights[name], own)
    cfg = evaluating(folder, "MODEL.WEIGHTS", str(path))
    results = LoupeTrainer.evaluate_weights(cfg)
    assert results["pixel"] == pytest.approx(trainer._last_eval_results["pixel"], nan_ok=True)


def test_evaluating_without_weights_is_an_error(folder):
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS is empty"):
        LoupeTrainer.evaluate_weights(evaluating(folder))


def test_results_that_differ_from_the_expected_ones_fail_the_run(folder):
    train(evaluating(folder))
    weights = ("MODEL.WEIGHTS", str(folder / "output" / "model_final.pth"))
    right = [["image", "AUC", 0.5, 0.5]]
    LoupeTrainer.evaluate_weights(evaluating(folder, *weights, "TEST.EXPECTED_RESULTS", right))
    wrong = [["image", "AUC", 7.0, 0.5]]
    with pytest.raises(SystemExit):
        LoupeTrainer.evaluate_weights(evaluating(folder, *weights, "TEST.EXPECTED_RESULTS", wrong))


@pytest.mark.parametrize(
    ("count", "entry"),
    [(0, ["image", "AUC", 0.5, 0.5]), (2, ["image", "AUC", 0.5, 0.5]), (1, ["image/AUC", 0.5])],
)
def test_results_that_cannot_be_compared_fail_before_the_run(folder, count, entry):
    sets = (str(folder / "manifest.csv"), "synthetic://valid?size=48&seed=1&count=4")[:count]
    options = ("DATASETS.TEST", sets, "TEST.EXPECTED_RESULTS", [entry])
    with pytest.raises(ValueError, match=r"TEST\.EXPECTED_RESULTS"):
        LoupeTrainer(toy_config(folder, *options))
    with pytest.raises(ValueError, match=r"TEST\.EXPECTED_RESULTS"):
        LoupeTrainer.evaluate_weights(toy_config(folder, *options, "MODEL.WEIGHTS", "none.pth"))


def test_several_test_sets_are_reported_by_their_names(folder):
    names = (str(folder / "manifest.csv"), "synthetic://valid?size=48&seed=1&count=4")
    trainer = train(evaluating(folder, "DATASETS.TEST", names))
    assert tuple(trainer._last_eval_results) == names
    assert (folder / "output" / "model_best.json").is_file()


class ScriptedScores(LoupeTrainer):
    """Evaluations give these scores of "image/AUC", in turn."""

    scores: list[float]

    @classmethod
    def test(cls, cfg: CfgNode, model: Any, evaluators: Any = None) -> dict[str, Any]:
        return {"image": {"AUC": cls.scores.pop(0)}}


def test_the_best_checkpoint_holds_the_weights_of_the_highest_score(folder):
    ScriptedScores.scores = [float("nan"), 0.7, 0.9, 0.8]
    cfg = evaluating(folder, "TEST.EVAL_PERIOD", 1, "SOLVER.CHECKPOINT_PERIOD", 1)
    ScriptedScores(cfg).train()
    record = json.loads((folder / "output" / "model_best.json").read_text())
    assert record == {"metric": "image/AUC", "value": 0.9, "steps": 3}
    best = load_weights(folder / "output" / "model_best.pth")
    third = load_weights(folder / "output" / "model_0000002.pth")
    assert all(torch.equal(best[name], third[name]) for name in third)


def test_a_resumed_run_knows_the_score_to_beat(folder):
    options = ("TEST.EVAL_PERIOD", 2, "SOLVER.CHECKPOINT_PERIOD", 3)
    ScriptedScores.scores = [0.9, 0.1]
    ScriptedScores(evaluating(folder, *options)).train()
    (folder / "output" / "last_checkpoint").write_text("model_0000002.pth")
    ScriptedScores.scores = [0.8]
    trainer = ScriptedScores(evaluating(folder, *options))
    trainer.resume_or_load(resume=True)
    trainer.train()
    assert json.loads((folder / "output" / "model_best.json").read_text())["value"] == 0.9


@pytest.mark.parametrize(("lost", "best"), [("model_best.pth", 0.8), ("model_best.json", 0.9)])
def test_a_damaged_file_of_the_best_is_written_again(folder, lost, best, caplog):
    options = ("TEST.EVAL_PERIOD", 2, "SOLVER.CHECKPOINT_PERIOD", 3)
    ScriptedScores.scores = [0.9]
    with pytest.raises(IndexError):
        ScriptedScores(evaluating(folder, *options)).train()
    (folder / "output" / "last_checkpoint").write_text("model_0000002.pth")
    # Valid JSON, but not what was written.
    (folder / "output" / lost).write_text('{"metric": "image/AUC", "value": 0.7, "steps": 2}')
    ScriptedScores.scores = [0.8]
    trainer = ScriptedScores(evaluating(folder, *options))
    trainer.resume_or_load(resume=True)
    assert lost == "model_best.json" or lost in caplog.text
    trainer.train()
    assert json.loads((folder / "output" / "model_best.json").read_text())["value"] == best
    load_weights(folder / "output" / "model_best.pth")


def test_a_score_of_another_metric_is_not_to_be_beaten(folder):
    ScriptedScores.scores = [0.9]
    trainer = ScriptedScores(evaluating(folder, "TEST.EVAL_PERIOD", 0))
    trainer.train()
    known = trainer.best.state_dict()
    best = BestWeights(trainer.checkpointer, "image/AUC")
    best.load_state_dict(known)
    assert (best.best, best.steps) == (0.9, 4)
    other = BestWeights(trainer.checkpointer, "image/Brier")
    other.load_state_dict(known)
    assert (other.best, other.steps) == (-math.inf, 0)


@pytest.mark.parametrize("decays", [(0.0, 0.9), (0.9, 0.0)])
def test_a_run_is_not_resumed_with_or_without_the_average_that_it_lacked_or_had(folder, decays):
    first, second = (toy_config(folder, "SOLVER.EMA_DECAY", decay) for decay in decays)
    train(first)
    with pytest.raises(ValueError, match=r"another SOLVER\.EMA_DECAY"):
        train(second, resume=True)


def test_a_new_run_does_not_compare_with_an_older_one_in_the_same_folder(folder):
    for score in (0.9, 0.5):
        ScriptedScores.scores = [score]
        ScriptedScores(evaluating(folder, "TEST.EVAL_PERIOD", 0)).train()
    assert json.loads((folder / "output" / "model_best.json").read_text())["value"] == 0.5


def test_an_unknown_best_metric_is_an_error_that_names_the_known_ones(folder):
    with pytest.raises(ValueError, match=r"'image/ACU', but the evaluation gives .*'image/AUC'"):
        train(evaluating(folder, "TEST.BEST_METRIC", "image/ACU"))


def test_no_best_metric_keeps_no_best_checkpoint(folder):
    train(evaluating(folder, "TEST.BEST_METRIC", ""))
    assert not list((folder / "output").glob("model_best*"))


@pytest.fixture
def events(folder: Path) -> EventAccumulator:
    """TensorBoard's own reader on the events of a run."""
    train(evaluating(folder))
    accumulator = EventAccumulator(str(folder / "output"), size_guidance={"images": 0})
    return accumulator.Reload()


def test_scalars_are_written_for_tensorboard(events):
    tags = set(events.Tags()["scalars"])
    assert {"total_loss", "loss_image", "loss_mask", "lr", "gradient_norm", "data_time"} <= tags
    assert {"image/AUC", "pixel/F1-pooled"} <= tags
    assert [event.step for event in events.Scalars("image/AUC")] == [1, 4]


def test_pictures_of_forged_and_authentic_images_are_written_for_tensorboard(events):
    tags = events.Tags()["images"]
    assert len(tags) == 4
    assert {tag.rsplit("/", 1)[-1] for tag in tags} == {
        "image0.png",
        "image1.png",
        "image2.png",
        "image3.png",
    }
    picture = events.Images(tags[0])[0]
    # Three squares of the network's 32 pixels with two gaps, below a caption.
    assert (picture.width, picture.height) == (3 * 32 + 2 * 4, 32 + 12)
