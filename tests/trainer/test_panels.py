from __future__ import annotations

import numpy as np
import torch

from loupe.structures import GroundTruth
from loupe.trainer.panels import PanelCollector, draw_panel
from loupe.visualization import TRUTH_COLOUR


def item(name: str, label: int, mask: np.ndarray | None = None) -> dict:
    """An image of 20 x 40 that the network sees as the upper half of 16 x 16."""
    image = torch.zeros(3, 16, 16, dtype=torch.uint8)
    image[:, :8] = 100
    truth = GroundTruth(label, mask)
    window = (0.0, 0.0, 40.0, 20.0)
    return {
        "file_name": name,
        "image": image,
        "valid_size": (8, 16),
        "window": window,
        "ground_truth": truth,
    }


PREDICTION = {"forgery_score": 0.5, "forgery_map": torch.zeros(20, 40)}


def collect(labels: list[int], num_panels: int) -> list[str]:
    collector = PanelCollector(num_panels)
    for number, label in enumerate(labels):
        collector.process([item(f"{number}", label)], [PREDICTION])
    return [name for name, _ in collector.panels()]


def test_half_of_the_pictures_are_forged_wherever_these_stand():
    assert collect([0, 0, 0, 0, 1, 1, 1], 4) == ["4", "5", "0", "1"]


def test_one_kind_fills_up_what_the_other_lacks():
    assert collect([0, 0, 0, 1], 4) == ["3", "0", "1", "2"]
    assert collect([1, 1, 1, 0], 3) == ["0", "1", "3"]
    assert collect([1, 1, 1, 1], 3) == ["0", "1", "2"]


def test_images_that_could_not_be_read_are_left_out():
    collector = PanelCollector(2)
    collector.process([{"file_name": "a", "error": "broken"}], [{"error": "broken"}])
    assert collector.panels() == []


def test_the_truth_is_drawn_where_the_network_sees_it():
    mask = np.zeros((20, 40), bool)
    mask[:, 20:] = True  # the right half
    picture = draw_panel(item("a", 1, mask), PREDICTION, GroundTruth(1, mask))[-8:]
    middle = picture[:, 20:36].astype(int)
    blueness = middle[..., 2] - middle[..., 0]
    assert (blueness[:, :7] == 0).all()
    assert (blueness[:, 9:] > 0).all()
    assert TRUTH_COLOUR[2] > TRUTH_COLOUR[0]


def test_a_crop_shows_its_window_only():
    one = item("a", 1) | {"window": (20.0, 0.0, 36.0, 8.0)}
    forgery_map = torch.zeros(20, 40)
    forgery_map[:8, 20:36] = 1.0
    prediction = {"forgery_score": 1.0, "forgery_map": forgery_map}
    predicted = draw_panel(one, prediction, None)[-8:, 40:56]
    assert (predicted[..., 0] > predicted[..., 1]).all()
