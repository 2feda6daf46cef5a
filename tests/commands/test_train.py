"""The command line: options become a config, mistakes become clear errors."""

from __future__ import annotations

import pytest
import torch

from loupe.commands.train import load_config, main, parse_arguments
from tests.trainer.toy import ToyDetector


def test_an_unknown_key_on_the_command_line_names_the_nearest_known_one():
    with pytest.raises(ValueError, match=r"SOLVER\.EPOCH\. Did you mean SOLVER\.EPOCHS\?"):
        load_config("", ["SOLVER.EPOCH", "1"])


def test_an_unknown_key_in_a_file_names_the_nearest_known_one(tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text("MODEL:\n  SEGMENTER:\n    NUM_QUERYS: 3\n")
    with pytest.raises(ValueError, match=r"Did you mean MODEL\.SEGMENTER\.NUM_QUERIES\?"):
        load_config(str(path), [])


def test_a_key_that_resembles_none_is_only_named():
    with pytest.raises(ValueError, match=r"Non-existent key: QQQQ$"):
        load_config("", ["QQQQ", "1"])


def test_a_key_without_value_is_an_error():
    with pytest.raises(ValueError, match="odd length"):
        load_config("", ["SOLVER.EPOCHS"])


def test_the_device_is_settled_and_the_config_frozen():
    cfg = load_config("", [])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert device == cfg.MODEL.DEVICE
    assert cfg.is_frozen()


def test_a_device_that_is_named_is_kept():
    assert load_config("", ["MODEL.DEVICE", "cpu"]).MODEL.DEVICE == "cpu"


def test_options_follow_the_flags():
    arguments = parse_arguments(["--resume", "--num-gpus", "2", "SOLVER.EPOCHS", "2.0"])
    assert arguments.resume
    assert arguments.num_gpus == 2
    assert load_config("", arguments.opts).SOLVER.EPOCHS == 2.0


def options(folder) -> list[str]:
    data = f"('{folder / 'manifest.csv'}',)"
    return [
        *("MODEL.META_ARCHITECTURE", ToyDetector.__name__, "MODEL.DEVICE", "cpu"),
        *("MODEL.FREEZE", "[]", "DATASETS.TRAIN", data, "DATASETS.TEST", data),
        *("DATALOADER.NUM_WORKERS", "0", "INPUT.SIZE", "32", "OUTPUT_DIR", str(folder / "output")),
        *("SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "SEED", "7"),
    ]


def test_training_then_evaluating_gives_the_same_metrics(folder):
    main(parse_arguments(options(folder)))
    weights = ["MODEL.WEIGHTS", str(folder / "output" / "model_final.pth")]
    results = main(parse_arguments(["--eval-only", *options(folder), *weights]))
    assert 0 <= results["image"]["AUC"] <= 1
    config = (folder / "output" / "config.yaml").read_text()
    assert "ToyDetector" in config


def test_resuming_goes_on_behind_the_last_checkpoint(folder):
    main(parse_arguments(options(folder)))
    main(parse_arguments(["--resume", *options(folder), "SOLVER.MAX_ITER", "4"]))
    state = torch.load(folder / "output" / "model_final.pth")
    assert state["iteration"] == 3
    assert state["trainer"]["hooks"]["LRScheduler"]["last_epoch"] == 4
