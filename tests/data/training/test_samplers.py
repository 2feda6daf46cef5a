from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from loupe.data.training.samplers import (
    BalancedSampler,
    GroupedBatches,
    TrainingSampler,
    build_sampler,
    own_part,
)

LABELS = np.array([1, 0, 0, 0, 1, 0, 0, 0, 0, 0])
# fmt: off
PINNED_TRAINING = [9, 6, 0, 2, 1, 4, 7, 5, 3, 8, 7, 4, 3, 5, 0, 8, 9, 6, 1, 2, 4, 5, 3, 8]
PINNED_BALANCED = [3, 0, 2, 4, 6, 0, 1, 4, 0, 7, 4, 9, 8, 0, 5, 4, 1, 4, 0, 9, 0, 5, 4, 6]
# fmt: on


def take(sampler, number):
    return list(islice(iter(sampler), number))


def on_rank(sampler, rank, processes):
    sampler.rank, sampler.processes = rank, processes
    return sampler


def test_training_sampler_draws_each_image_once_per_pass():
    indices = [draw.image for draw in take(TrainingSampler(10, seed=0), 30)]
    for start in (0, 10, 20):
        assert sorted(indices[start : start + 10]) == list(range(10))
    assert indices[:10] != indices[10:20]


@pytest.mark.parametrize("processes", [2, 3])
def test_balanced_sampler_is_balanced_on_every_process(processes):
    for rank in range(processes):
        sampler = on_rank(BalancedSampler(LABELS, seed=0), rank, processes)
        labels = [LABELS[draw.image] for draw in take(sampler, 40)]
        assert {sum(labels[i : i + 2]) for i in range(0, 40, 2)} == {1}


def test_balanced_sampler_shows_every_authentic_image():
    drawn = {draw.image for draw in take(BalancedSampler(LABELS, seed=0), 16)}
    assert drawn == set(range(10))


@pytest.mark.parametrize("name", ["TrainingSampler", "BalancedSampler"])
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_draw_in_each_step_what_one_process_draws(name, processes):
    alone = take(build_sampler(name, LABELS, 3), 60)
    parts = [
        take(on_rank(build_sampler(name, LABELS, 3), rank, processes), 60 // processes)
        for rank in range(processes)
    ]
    merged = [draw for together in zip(*parts, strict=True) for draw in together]
    for step in range(0, 60, 2 * processes):
        assert sorted(merged[step : step + 2 * processes]) == alone[step : step + 2 * processes]


def test_balanced_sampler_refuses_one_kind_only():
    with pytest.raises(ValueError, match="3 forged and 0 authentic"):
        BalancedSampler(np.ones(3), seed=0)


def test_unknown_sampler_is_refused():
    with pytest.raises(ValueError, match="'Other'; it must be TrainingSampler or"):
        build_sampler("Other", LABELS, 0)


def test_empty_set_is_refused():
    with pytest.raises(ValueError, match="no training images"):
        TrainingSampler(0, seed=0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("TrainingSampler", PINNED_TRAINING),
        ("BalancedSampler", PINNED_BALANCED),
    ],
)
def test_a_seed_means_the_stream_that_earlier_runs_drew(name, expected):
    assert [draw.image for draw in take(build_sampler(name, LABELS, 3), 24)] == expected


@pytest.mark.parametrize("name", ["TrainingSampler", "BalancedSampler"])
@pytest.mark.parametrize("skipped", [3, 4, 39, 40, 41, 1000])
def test_a_stream_skipped_by_many_passes_goes_on_exactly(name, skipped, monkeypatch):
    whole = take(on_rank(build_sampler(name, LABELS, 3), 1, 3), skipped + 30)
    monkeypatch.setattr("loupe.data.training.samplers._CHUNK", 4)
    sampler = on_rank(build_sampler(name, LABELS, 3), 1, 3)
    sampler.skip(skipped)
    assert take(sampler, 30) == whole[skipped:]


def test_grouped_batches_are_of_one_set_and_hold_pairs():
    batches = take(GroupedBatches([100, 40], [8, 2], [0.5, 0.5], seed=3), 200)
    assert {len(batch) for batch in batches} == {8, 2}
    for batch in batches:
        indices = [draw.image for draw in batch]
        low, high = (0, 100) if len(batch) == 8 else (100, 140)
        assert all(low <= index < high for index in indices)
        assert all((first - low) % 2 == 0 for first in indices[::2])
        assert [first + 1 for first in indices[::2]] == indices[1::2]
    positions = [draw.position for batch in batches for draw in batch]
    assert len(set(positions)) == len(positions)


def test_processes_take_turns_in_one_stream_of_groups():
    groups = {"lengths": [100, 40], "sizes": [8, 2], "shares": [0.7, 0.3], "seed": 3}
    whole = take(GroupedBatches(**groups), 30)
    for rank in range(3):
        assert take(on_rank(GroupedBatches(**groups), rank, 3), 10) == whole[rank::3]
        resumed = on_rank(GroupedBatches(**groups), rank, 3)
        resumed.skip(4)
        assert take(resumed, 6) == whole[12 + rank :: 3]


@pytest.mark.parametrize(
    ("lengths", "sizes", "shares"),
    [([10], [4, 2], [1.0]), ([10], [3], [1.0]), ([10, 10], [2, 2], [0.0, 0.0]), ([1], [2], [1.0])],
)
def test_groups_that_do_not_go_together_are_refused(lengths, sizes, shares):
    with pytest.raises(ValueError, match="GROUP_SIZES"):
        GroupedBatches(lengths, sizes, shares, seed=0)


@pytest.mark.parametrize("size", [0, 1, 4, 9, 11])
def test_processes_share_each_group_of_images_without_overlap(size, monkeypatch):
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        parts.append(list(own_part(size, 4)))
    assert sorted(parts[0] + parts[1]) == list(range(size))
    for step in range(-(-size // 4)):
        together = parts[0][2 * step : 2 * step + 2] + parts[1][2 * step : 2 * step + 2]
        assert {index // 4 for index in together} == {step}
