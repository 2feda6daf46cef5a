"""The command line: options become a config, mistakes become clear errors."""

from __future__ import annotations

import argparse

import pytest
import torch
from detectron2.engine import default_argument_parser

from loupe.commands import train
from loupe.commands.command_line import parse
from loupe.config import load_config
from loupe.writing import LOCK, locked_folder
from tests.trainer.toy import ToyDetector


def test_an_unknown_key_in_a_file_names_the_nearest_known_one(tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text("MODEL:\n  SEGMENTER:\n    NUM_QUERYS: 3\n")
    with pytest.raises(ValueError, match=r"Did you mean MODEL\.SEGMENTER\.NUM_QUERIES\?"):
        load_config(str(path), [])


def test_a_key_that_resembles_none_is_only_named():
    with pytest.raises(ValueError, match=r"Non-existent key: QQQQ$"):
        load_config("", ["QQQQ", "1"])


def test_the_device_is_settled_and_the_config_frozen():
    cfg = load_config("", [])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert device == cfg.MODEL.DEVICE
    assert cfg.is_frozen()


def test_a_device_that_is_named_is_kept():
    assert load_config("", ["MODEL.DEVICE", "cpu"]).MODEL.DEVICE == "cpu"


def test_the_options_are_those_of_detectron2():
    def told(parser: argparse.ArgumentParser) -> dict:
        return {a.dest: (a.option_strings, a.const) for a in parser._actions}

    ours = argparse.ArgumentParser()
    train.add_arguments(ours)
    theirs = default_argument_parser()
    assert told(ours) == told(theirs)
    # Types differ: ours have ranges.
    given = ["--num-gpus", "3", "--num-machines", "2", "--machine-rank", "1"]
    for words in ([], given, ["--dist-url", "tcp://there:1234"]):
        read = [vars(parser.parse_args(words)) | {"opts": []} for parser in (ours, theirs)]
        assert read[0] == read[1]


def test_options_and_keys_may_mix():
    words = ["--resume", "SOLVER.EPOCHS", "2.0", "--num-gpus", "2"]
    arguments = parse("train", "", train.add_arguments, words)
    assert (arguments.resume, arguments.num_gpus) == (True, 2)
    assert load_config("", arguments.opts).SOLVER.EPOCHS == 2.0


def work(*words: str) -> dict:
    return train.work(parse("train", "", train.add_arguments, words))


def options(folder) -> list[str]:
    data = f"('{folder / 'manifest.csv'}',)"
    return [
        *("MODEL.META_ARCHITECTURE", ToyDetector.__name__, "MODEL.DEVICE", "cpu"),
        *("MODEL.FREEZE", "[]", "DATASETS.TRAIN", data, "DATASETS.TEST", data),
        *("DATALOADER.NUM_WORKERS", "0", "INPUT.SIZE", "32", "OUTPUT_DIR", str(folder / "output")),
        *("SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "SEED", "7"),
    ]


def test_training_then_evaluating_gives_the_same_metrics(folder):
    work(*options(folder))
    weights = ["MODEL.WEIGHTS", str(folder / "output" / "model_final.pth")]
    results = work("--eval-only", *options(folder), *weights)
    assert 0 <= results["image"]["AUC"] <= 1
    config = (folder / "output" / "config.yaml").read_text()
    assert "ToyDetector" in config


def test_a_second_run_into_one_folder_is_refused_before_anything_is_done(folder, capsys):
    output = folder / "output"
    with locked_folder(output, "OUTPUT_DIR"):
        assert train.main([*options(folder)]) == 2
    assert capsys.readouterr().err == (
        f"error: {output}: another run is writing there; wait for it or give another OUTPUT_DIR\n"
    )
    assert [path.name for path in output.iterdir()] == [LOCK]


def test_the_processes_of_one_run_share_its_folder(folder, monkeypatch):
    started = []
    monkeypatch.setattr(train, "start", started.append)
    monkeypatch.setenv("RANK", "1")  # As torchrun starts the second of them.
    with locked_folder(folder / "output", "OUTPUT_DIR"):
        assert train.main([*options(folder)]) == 0
    assert len(started) == 1


def test_a_folder_that_cannot_be_written_to_is_one_line(folder, capsys):
    assert train.main([*options(folder), "OUTPUT_DIR", "/proc/output"]) == 2
    assert "error: /proc/output: cannot be written to" in capsys.readouterr().err
