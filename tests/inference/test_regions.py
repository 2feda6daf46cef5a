"""Regions as JSON and COCO."""

from __future__ import annotations

import json

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from loupe.inference.regions import describe_regions, write_regions
from loupe.structures import Prediction


def test_coco_reads_the_outlines_that_were_written(tmp_path):
    forgery_map = np.zeros((60, 80), np.float32)
    forgery_map[10:30, 5:25] = 0.9
    forgery_map[12:14, 5:60] = 0.8
    forgery_map[40:50, 30:41] = 0.7
    regions = describe_regions(Prediction(0.9, forgery_map, None))
    assert [region["area"] for region in regions] == [20 * 20 + 2 * 35, 110]
    entry = {"width": 80, "height": 60, "verdict": "", "probability": 0.9, "regions": regions}
    write_regions(tmp_path, [entry | {"file": "a.png"}, entry | {"file": "b.png"}])
    found = COCO(str(tmp_path / "regions.coco.json"))
    assert [image["file_name"] for image in found.loadImgs([1, 2])] == ["a.png", "b.png"]
    first, second = found.loadAnns(found.getAnnIds(imgIds=[2]))
    assert second["bbox"] == [30, 40, 11, 10]
    # A polygon runs through the centres of border pixels: a drawing of it loses less than them.
    drawn = coco_mask.decode(found.annToRLE(second))
    assert 90 <= drawn.sum() <= 110
    assert (forgery_map[drawn > 0] > 0.5).all()
    written = json.loads((tmp_path / "regions.json").read_text())
    assert written["version"] == 1
    assert written["images"][1]["regions"][0]["box"] == [5, 10, 60, 30]
    assert first["image_id"] == 2


def test_a_speck_has_an_outline_of_three_points():
    forgery_map = np.zeros((20, 20), np.float32)
    forgery_map[3, 4] = 1
    (region,) = describe_regions(Prediction(0.9, forgery_map, None))
    assert region["outline"] == [[4, 3, 4, 3, 4, 3]]
