"""The sheet of adaptation: what adaptation did to a labelled set, in one picture."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model
from PIL import Image

from loupe.checkpoint import save_weights
from loupe.commands import adapt
from loupe.config import load_config
from loupe.data.sources.synthetic import make_sample
from loupe.data.training.loaders import build_test_loader
from loupe.evaluation.evaluator import ForgeryEvaluator
from loupe.inference import LoupePredictor
from loupe.structures import GroundTruth
from loupe.trainer.randomness import seed_everything
from loupe.visualization import FORGED_COLOUR, TRUTH_COLOUR, overlay
from research.experiments import adaptation_sheet
from research.experiments.adaptation_sheet import (
    Answer,
    Choice,
    before_and_after,
    captions_of,
    choose,
    draw_row,
    evenly_spaced,
    facts_of,
    patch_pixels,
    tile_size,
)

CONFIG = Path(__file__).parents[2] / "configs" / "quick" / "loupe_adapt.yaml"
SMALL = [
    *("MODEL.PERCEPTION_ENCODER.DEPTH", "1", "MODEL.DEVICE", "cpu", "INPUT.SIZE", "64"),
    *("TEST.IMS_PER_BATCH", "4", "ADAPTATION.IMS_PER_BATCH", "4", "DATALOADER.NUM_WORKERS", "0"),
    # Strong, so that a few steps on a model that knows nothing are seen.
    *("ADAPTATION.BASE_LR", "0.1", "ADAPTATION.IMAGE_WEIGHT", "none"),
]
NAN = math.nan
Truth = tuple[str, str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`images/`, `masks/`, and the weights of a model that knows nothing, `base.pth`."""
    root = tmp_path_factory.mktemp("sheet")
    for name in ("images", "masks"):
        (root / name).mkdir()
    for index in range(8):
        sample = make_sample("test", 0, index, 64, 0)
        cv2.imwrite(str(root / "images" / f"{index}.png"), sample.image[..., ::-1])
        mask = np.zeros((64, 64), np.uint8)
        mask[:, : 8 * (index + 1)] = 255
        cv2.imwrite(str(root / "masks" / f"{index}.png"), mask)
    torch.manual_seed(0)
    model = build_model(load_config(CONFIG, SMALL))
    save_weights(model.state_dict(), root / "base.pth")
    return root


def listed(folder: Path, truths: list[Truth], name: str = "set") -> str:
    """A list of the images, each with (label, number of its mask or nothing)."""
    path = folder / f"{name}.csv"
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "mask", "label", "technique"])
        for index, (label, mask) in enumerate(truths):
            masked = f"masks/{mask}.png" if mask else ""
            table.writerow([f"images/{index}.png", masked, label, "splice" if mask else ""])
    return str(path)


FORGED_AND_NOT = [("1", str(i)) if i < 5 else ("0", "") for i in range(8)]


def run(folder: Path, dataset: str, output: Path, *options: str) -> int:
    words = [dataset, "--output", str(output), "--config-file", str(CONFIG)]
    words += ["--weights", str(folder / "base.pth")]
    return adaptation_sheet.main(adaptation_sheet.parse_arguments([*words, *SMALL, *options]))


def answers(folder: Path, dataset: str, *options: str) -> tuple[list, list]:
    cfg = load_config(CONFIG, [*SMALL, *options])
    seed_everything(cfg.SEED)
    predictor = LoupePredictor(cfg, folder / "base.pth")
    return before_and_after(predictor, build_test_loader(cfg, dataset), 64)[:2]


def test_the_best_the_middle_and_the_worst_are_chosen_best_first():
    changes = [0.0, 0.3, -0.1, 0.1, -0.4, 0.2, NAN]
    assert choose(changes, [NAN] * 7, rows=2) == Choice([1, 5], [3, 0], [2, 4], [])


def test_an_image_that_did_not_change_has_neither_gained_nor_lost():
    changes = [0.5, 0.009, 0.0, -0.009, -0.5]
    assert choose(changes, [NAN] * 5, rows=3) == Choice([0], [1, 2, 3], [4], [])


def test_equal_changes_keep_the_order_of_the_data_set():
    assert choose([0.2, 0.0, 0.2, 0.0, 0.2], [NAN] * 5, rows=2).gained == [0, 2]


@pytest.mark.parametrize("total", range(1, 8))
def test_no_image_is_chosen_twice(total: int):
    changes = [0.3 - 0.1 * index for index in range(total)]
    chosen = [index for kind in choose(changes, [NAN] * total, rows=3) for index in kind]
    assert len(chosen) == len(set(chosen)) == min(total, 9)


def test_false_alarms_are_ranked_by_size_whatever_their_direction():
    alarms = [NAN, 0.02, -0.3, 0.005, 0.1]
    assert choose([0.0, NAN, NAN, NAN, NAN], alarms, rows=1).authentic == [2, 4]


def answer(label: int, f1: float, called: float) -> Answer:
    empty = np.zeros((32, 64), np.float16)
    return Answer(GroundTruth(label, None, "splice"), 0.75, f1, called, 0.25, 0.125, empty, empty)


def test_gains_and_losses_are_counted_and_means_are_those_of_their_kind():
    before = [answer(1, f1, 0.5) for f1 in (0.2, 0.4, 0.6)] + [None, answer(0, NAN, 0.1)]
    after = [answer(1, f1, 0.5) for f1 in (0.5, 0.3, 0.601)] + [None, answer(0, NAN, 0.3)]
    facts = facts_of(before, after)
    assert (facts["gained"], facts["lost"], facts["unchanged"], facts["left_out"]) == (1, 1, 1, 1)
    assert (facts["f1_before"], facts["f1_after"], facts["patch_map_f1"]) == (0.4, 0.467, 0.25)
    assert (facts["authentic_called_before"], facts["authentic_called_after"]) == (0.1, 0.3)


def test_above_the_maps_stand_f1_or_the_share_called_forged():
    assert captions_of(answer(1, 0.5, 0.1), answer(1, 0.25, 0.1)) == [
        *("patch map: F1 0.25", "before: F1 0.50", "after: F1 0.25 (-0.25)")
    ]
    assert captions_of(answer(0, NAN, 0.1), answer(0, NAN, 0.2)) == [
        *("patch map: 12.5%", "before: 10.0%", "after: 20.0% (+10.0%)")
    ]


def test_a_row_is_image_truth_patch_map_before_and_after():
    half = np.zeros((32, 64), bool)
    half[:, 32:] = True
    item = {
        "image": torch.full((3, 64, 64), 200, dtype=torch.uint8),
        "valid_size": (32, 64),
        "window": (0, 0, 64, 32),
        "ground_truth": GroundTruth(1, half, "splice"),
    }
    old, new = answer(1, 0.0, 0.0), answer(1, 1.0, 0.5)
    old = old._replace(patch_map=1 - half.astype(np.float16))
    row = draw_row(item, old, new._replace(forgery_map=half.astype(np.float16)), 64)[-32:]
    plain = np.full((32, 64, 3), 200, np.uint8)
    masks = [half, 1.0 - half, np.zeros((32, 64)), half]
    colours = [TRUTH_COLOUR, *[FORGED_COLOUR] * 3]
    cells = [overlay(plain, mask, colour=c) for mask, c in zip(masks, colours, strict=True)]
    for index, cell in enumerate([plain, *cells]):
        assert np.array_equal(row[:, 68 * index : 68 * index + 64], cell), index


def test_a_limit_takes_images_from_the_whole_set():
    cfg = load_config(CONFIG, SMALL)
    loader = build_test_loader(cfg, "synthetic://test?size=64&count=10")
    few = [item["file_name"] for batch in evenly_spaced(loader, 5) for item in batch]
    everything = [item["file_name"] for batch in loader for item in batch]
    assert few == everything[::2]
    assert evenly_spaced(loader, 10) is loader


def test_a_patch_is_drawn_where_the_network_saw_it():
    # A picture twice as wide as high on a square canvas of 4 x 4 patches, the lower half padding.
    item = {"height": 64, "width": 128, "valid_size": (32, 64), "window": (0, 0, 128, 64)}
    patch_map = torch.zeros(4, 4)
    patch_map[1, 3] = 1.0
    patch_map[2:] = 1.0
    pixels = patch_pixels(item, patch_map, 16)
    assert pixels.shape == (64, 128)
    assert (pixels[40:, 104:] > 0.5).all()
    assert pixels[:24].max() == pixels[:, :88].max() == 0
    assert tile_size(item, 100) == (50, 100)


@pytest.mark.parametrize("mode", ["offline", "online", "episodic"])
def test_a_picture_and_a_line_of_numbers_come_out(
    mode: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    dataset, output = listed(folder, FORGED_AND_NOT), tmp_path / "new" / "sheet.png"
    small = ("--tile", "64", "--rows", "1", "ADAPTATION.MODE", mode)
    assert run(folder, dataset, output, *small) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["images"], facts["forged"], facts["left_out"]) == (8, 5, 0)
    assert facts["gained"] + facts["lost"] + facts["unchanged"] == 5
    assert (facts["adaptation"]["mode"], facts["adaptation"]["steps"]) == (mode, 2)
    picture = np.asarray(Image.open(output))
    assert picture.shape[1] >= 5 * 64
    assert picture.shape[0] > 2 * 64


def test_the_mean_f1_before_is_the_metric_of_an_evaluation(folder: Path):
    dataset = listed(folder, FORGED_AND_NOT)
    before, _ = answers(folder, dataset)
    cfg = load_config(CONFIG, SMALL)
    predictor = LoupePredictor(cfg, folder / "base.pth")
    evaluator = ForgeryEvaluator("set", resamples=0, protocols=())
    results = inference_on_dataset(predictor.model, build_test_loader(cfg, dataset), evaluator)
    expected = results["pixel"]["F1-image"]
    assert expected > 0
    assert facts_of(before, before)["f1_before"] == pytest.approx(expected, abs=1e-4)


def test_the_masks_after_are_those_that_adapt_writes(folder: Path, tmp_path: Path):
    # Enough steps to meet all parts of the schedule.
    many = ("ADAPTATION.STEPS", "8")
    _, after = answers(folder, listed(folder, FORGED_AND_NOT), *many)
    words = [str(folder / "images"), "--output", str(tmp_path), "--config-file", str(CONFIG)]
    words += ["--weights", str(folder / "base.pth"), "--workers", "0", "--no-overlays"]
    adapt.main(adapt.parse_arguments([*words, *SMALL, *many]))
    for index, answer in enumerate(after):
        written = cv2.imread(str(tmp_path / "maps" / f"{index}.png"), cv2.IMREAD_GRAYSCALE)
        assert abs(answer.forgery_map.astype(float) * 255 - written).max() <= 0.6


@pytest.mark.parametrize("mode", ["offline", "online", "episodic"])
def test_labels_cannot_reach_the_adaptation(mode: str, folder: Path):
    shuffled = [("0", "") if i < 3 else ("1", str(7 - i)) for i in range(8)]
    true, false = (
        answers(folder, listed(folder, truths, name), "ADAPTATION.MODE", mode)
        for truths, name in ((FORGED_AND_NOT, "true"), (shuffled, "shuffled"))
    )
    assert [one.truth for one in true[1]] != [one.truth for one in false[1]]
    for old, new, other in zip(*true, false[1], strict=True):
        assert np.array_equal(new.forgery_map, other.forgery_map)
        assert not np.array_equal(new.forgery_map, old.forgery_map), "nothing was adapted"


def test_images_without_label_or_mask_are_counted_and_end_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    some = [("", ""), ("1", ""), *FORGED_AND_NOT[2:]]
    assert run(folder, listed(folder, some), tmp_path / "sheet.jpg", "--tile", "64") == 1
    facts = json.loads(capsys.readouterr().out)
    assert (facts["images"], facts["left_out"], facts["forged"]) == (8, 2, 3)


@pytest.mark.parametrize("truth", [("", ""), ("1", ""), ("0", "")])
def test_a_set_without_labels_or_masks_is_refused(truth: Truth, folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="of 8 images none is readable, labelled forged and has"):
        run(folder, listed(folder, [truth] * 8), tmp_path / "sheet.jpg")


def test_a_mode_is_asked_for(folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="ADAPTATION.MODE is none, so nothing would change: add"):
        run(folder, "synthetic://test", tmp_path / "sheet.jpg", "ADAPTATION.MODE", "none")


def test_an_output_that_is_no_picture_is_refused_at_once(folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="sheet.txt: name a picture"):
        run(folder, "synthetic://test", tmp_path / "sheet.txt")


@pytest.mark.parametrize("option", ["--rows", "--limit", "--tile"])
def test_no_picture_is_made_of_nothing(option: str, folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="must be at least 1"):
        run(folder, "synthetic://test", tmp_path / "sheet.jpg", option, "0")
