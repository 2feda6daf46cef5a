from __future__ import annotations

import logging
import os
import pickle
import signal
from itertools import islice

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from loupe.data.sources.catalog import load_dataset
from loupe.data.sources.entries import DatasetError
from loupe.data.training.loaders import build_test_loader, build_train_loader
from loupe.data.training.samplers import Draw


@pytest.fixture
def folder(tmp_path, save):
    """Eight images of 20 x 20: three forged, five authentic."""
    generator = np.random.default_rng(0)
    mask = np.zeros((20, 20), np.uint8)
    mask[5:15, 5:15] = 255
    for number in range(8):
        save(tmp_path / f"images/{number}.png", generator.integers(0, 255, (20, 20, 3), np.uint8))
        if number < 3:
            save(tmp_path / f"masks/{number}.png", mask)
    return tmp_path


@pytest.fixture
def train_cfg(cfg, folder):
    cfg.DATASETS.TRAIN = (str(folder),)
    cfg.INPUT.SIZE = 16
    for name in cfg.INPUT.AUGMENTATION:
        cfg.INPUT.AUGMENTATION[name] = 0.5
    return cfg


def take(cfg, number, **options):
    return list(islice(iter(build_train_loader(cfg, **options)), number))


def pixels(batches):
    return torch.stack([item["image"] for batch in batches for item in batch])


def test_batches_do_not_depend_on_the_number_of_workers(train_cfg):
    alone = take(train_cfg, 6)
    train_cfg.DATALOADER.NUM_WORKERS = 2
    together = take(train_cfg, 6)
    torch.testing.assert_close(pixels(alone), pixels(together), rtol=0, atol=0)


def test_another_seed_gives_other_batches(train_cfg):
    first = pixels(take(train_cfg, 4))
    train_cfg.SEED = 8
    assert (pixels(take(train_cfg, 4)) != first).any()


def test_an_image_is_augmented_differently_each_time(train_cfg):
    seen: dict[str, set[bytes]] = {}
    for item in (item for batch in take(train_cfg, 10) for item in batch):
        seen.setdefault(item["image_id"], set()).add(item["image"].numpy().tobytes())
    assert all(len(views) >= 3 for views in seen.values())


def test_resumed_stream_goes_on_exactly(train_cfg):
    whole = take(train_cfg, 7)
    rest = take(train_cfg, 2, start_batch=5)
    torch.testing.assert_close(pixels(whole[5:]), pixels(rest), rtol=0, atol=0)


def test_loading_leaves_numpys_generator_alone(train_cfg):
    np.random.seed(1)
    expected = np.random.random(3)
    np.random.seed(1)
    take(train_cfg, 2)
    np.testing.assert_array_equal(np.random.random(3), expected)


def test_balanced_batches_are_half_forged(train_cfg):
    train_cfg.DATALOADER.SAMPLER_TRAIN = "BalancedSampler"
    assert {sum(item["label"] for item in batch) for batch in take(train_cfg, 6)} == {2}


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_is_replaced_counted_and_logged_once(train_cfg, folder, caplog, workers):
    (folder / "images/6.png").write_text("no image")
    train_cfg.DATALOADER.NUM_WORKERS = workers
    loader = build_train_loader(train_cfg)
    with caplog.at_level(logging.WARNING, logger="loupe.data.training.loaders"):
        batches = list(islice(iter(loader), 12))
    assert [len(batch) for batch in batches] == [4] * 12
    names = {item["image_id"] for batch in batches for item in batch}
    assert "6.png" not in names
    assert not any("skipped" in item for batch in batches for item in batch)
    assert loader.skipped[str(folder / "images/6.png")] >= 2
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    messages = [record.getMessage() for record in warnings]
    assert len(messages) == 1
    assert "6.png: the content is no image" in messages[0]


def test_unreadable_set_is_an_error_with_the_reason(train_cfg, folder):
    for number in range(8):
        (folder / f"images/{number}.png").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"100 training images in a row .* the file is empty"):
        take(train_cfg, 1)


@pytest.fixture
def of_another_size(train_cfg, folder, save):
    """Two of the three masks have another size than their images."""
    for number in range(2):
        save(folder / f"masks/{number}.png", np.full((10, 10), 255, np.uint8))
    return train_cfg


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("training", [True, False])
def test_a_mask_of_another_size_ends_a_strict_run_with_one_line(
    of_another_size, folder, training, workers
):
    of_another_size.INPUT.MASK_SIZE_MISMATCH = "strict"
    of_another_size.DATALOADER.NUM_WORKERS = workers
    loader = build_train_loader if training else build_test_loader
    words = (of_another_size,) if training else (of_another_size, str(folder))
    with pytest.raises(ValueError, match="the mask is 10 x 10 pixels") as caught:
        list(islice(iter(loader(*words)), 20))
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith(str(folder / "masks"))


@pytest.mark.parametrize("workers", [0, 2])
def test_masks_that_are_resized_are_counted_in_one_warning(
    of_another_size, folder, caplog, workers
):
    of_another_size.DATALOADER.NUM_WORKERS = workers
    items = [item for batch in build_test_loader(of_another_size, str(folder)) for item in batch]
    assert not any("resized_mask" in item for item in items)
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    first = f"{folder / 'masks/0.png'}: the mask is 10 x 10 pixels"
    assert f": 2, the first: {first}" in said


def test_training_names_one_mask_that_is_resized(of_another_size, folder, caplog):
    loader = build_train_loader(of_another_size)
    items = [item for batch in islice(iter(loader), 12) for item in batch]
    assert not any("resized_mask" in item for item in items)
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "the mask is 10 x 10 pixels" in said
    assert loader.resized_masks == sum(item["image_id"] in ("0.png", "1.png") for item in items) > 1


def test_missing_mask_file_is_replaced_and_counted(train_cfg, folder):
    rows = "".join(f"images/{n}.png,{'masks/gone.png' if n == 0 else ''}\n" for n in range(8))
    (folder / "manifest.csv").write_text("image,mask\n" + rows)
    loader = build_train_loader(train_cfg)
    list(islice(iter(loader), 6))
    assert set(loader.skipped) == {str(folder / "masks/gone.png")}


def test_unlabelled_images_are_refused_for_training(train_cfg, folder):
    train_cfg.DATASETS.TRAIN = (str(folder / "images"),)
    with pytest.raises(ValueError, match=r"8 of 8 images .* have no label \(first .*0\.png"):
        build_train_loader(train_cfg)


def test_batch_that_cannot_be_shared_out_is_refused(train_cfg, monkeypatch):
    monkeypatch.setattr("loupe.data.training.loaders.comm.get_world_size", lambda: 3)
    with pytest.raises(ValueError, match="IMS_PER_BATCH is 4; it must be a multiple of the 3"):
        build_train_loader(train_cfg)


def test_test_loader_gives_every_image_once_in_order(cfg, folder):
    cfg.TEST.IMS_PER_BATCH = 3
    cfg.DATALOADER.NUM_WORKERS = 2
    batches = list(build_test_loader(cfg, str(folder)))
    assert [len(batch) for batch in batches] == [3, 3, 2]
    assert [item["image_id"] for batch in batches for item in batch] == [
        f"{number}.png" for number in range(8)
    ]


def test_test_loaders_of_three_processes_make_up_the_set(cfg, folder, monkeypatch):
    monkeypatch.setattr("loupe.data.training.loaders.comm.get_world_size", lambda: 3)
    seen = []
    for rank in range(3):
        monkeypatch.setattr("loupe.data.training.loaders.comm.get_rank", lambda rank=rank: rank)
        loader = build_test_loader(cfg, str(folder))
        seen += [item["image_id"] for batch in loader for item in batch]
    assert seen == [f"{number}.png" for number in range(8)]


def test_unreadable_test_image_keeps_its_place(cfg, folder):
    (folder / "images/1.png").write_bytes(b"")
    items = [item for batch in build_test_loader(cfg, str(folder)) for item in batch]
    assert len(items) == 8
    assert ["error" in item for item in items] == [False, True] + [False] * 6


def test_a_set_of_somebody_else_is_trained_on_with_all_its_keys(train_cfg, folder):
    entries = [entry | {"height": 20} for entry in load_dataset(str(folder))]
    DatasetCatalog.register("theirs", lambda: entries)
    try:
        train_cfg.DATASETS.TRAIN = (str(folder), "theirs")
        loader = build_train_loader(train_cfg)
    finally:
        DatasetCatalog.remove("theirs")
    assert len(loader.dataset) == 16
    assert loader.dataset.entries[9]["height"] == 20
    assert len(next(iter(loader))) == 4


def test_a_data_set_that_goes_to_a_spawned_worker_gives_the_same_items(train_cfg):
    dataset = build_train_loader(train_cfg).dataset
    there = pickle.loads(pickle.dumps(dataset))
    for index in range(8):
        first, second = (one[Draw(5, index)]["image"] for one in (dataset, there))
        torch.testing.assert_close(first, second, rtol=0, atol=0)


class _Killing:
    """A mapper; whoever maps 6.png is killed."""

    def __init__(self, mapper) -> None:
        self.mapper = mapper

    def __call__(self, entry: dict) -> dict:
        if entry["image_id"] == "6.png":
            os.kill(os.getpid(), signal.SIGKILL)
        return self.mapper(entry)


def test_an_image_that_kills_its_workers_is_skipped_in_training_and_an_error_in_evaluation(
    train_cfg, cfg, folder, monkeypatch
):
    wait = _MultiProcessingDataLoaderIter._try_get_data
    monkeypatch.setattr(wait, "__defaults__", (0.2,))
    train_cfg.DATALOADER.NUM_WORKERS = 1
    train, test = build_train_loader(train_cfg), build_test_loader(cfg, str(folder))
    for loader in (train, test):
        loader.dataset.mapper = _Killing(loader.dataset.mapper)
    batches = list(islice(iter(train), 3))
    assert "6.png" not in {item["image_id"] for batch in batches for item in batch}
    assert list(train.skipped) == [str(folder / "images/6.png")]
    items = [item for batch in test for item in batch]
    assert ["error" in item for item in items] == [False] * 6 + [True, False]
    assert items[6]["ground_truth"].label == 0


class _Listening:
    """A mapper; an item says whether its worker minds the scheduler's signal."""

    def __init__(self, mapper) -> None:
        self.mapper = mapper

    def __call__(self, entry: dict) -> dict:
        minds = signal.getsignal(signal.SIGUSR1) is not signal.SIG_IGN
        return self.mapper(entry) | {"minds": minds}


def test_workers_of_training_and_of_evaluation_leave_signals_to_their_parent(
    train_cfg, cfg, folder
):
    train_cfg.DATALOADER.NUM_WORKERS = 1
    train, test = build_train_loader(train_cfg), build_test_loader(cfg, str(folder))
    for loader in (train, test):
        loader.dataset.mapper = _Listening(loader.dataset.mapper)
        assert [item["minds"] for item in next(iter(loader))] == [False] * loader.batch_size
