"""Loaders whose workers are killed."""

from __future__ import annotations

import logging
import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from loupe.data.training import steady
from loupe.data.training.steady import SteadyDataset, SteadyLoader
from tests.limited_time import within


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """PyTorch looks after its workers every 0.2 seconds."""
    wait = _MultiProcessingDataLoaderIter._try_get_data
    monkeypatch.setattr(wait, "__defaults__", (0.2,))


class Fragile(Dataset):
    """Twelve numbers. Whoever reads number 5 is killed, so many times."""

    def __init__(self, folder: Path, deaths: int) -> None:
        self.folder, self.deaths = folder, deaths

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict:
        if index == 5 and len(list(self.folder.iterdir())) < self.deaths:
            (self.folder / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"number": index}

    def without(self, index: int, reason: str) -> dict:
        return {"number": index, "error": reason}


def load(dataset: Dataset, workers: int = 2) -> list[list[dict]]:
    return list(SteadyLoader(dataset, batch_size=4, num_workers=workers, collate_fn=list))


@pytest.mark.parametrize("deaths", [1, 2])
def test_a_killed_worker_costs_no_image_and_no_order(tmp_path, deaths):
    assert load(Fragile(tmp_path, deaths)) == load(Fragile(tmp_path, 0), workers=0)
    assert len(list(tmp_path.iterdir())) == deaths


def test_an_image_that_kills_every_worker_is_an_error_and_the_rest_is_read(tmp_path):
    items = [item for batch in load(Fragile(tmp_path, 99)) for item in batch]
    assert [item["number"] for item in items] == list(range(12))
    assert ["error" in item for item in items] == [number == 5 for number in range(12)]
    assert items[5]["error"].startswith("the process that reads it is lost (")


def test_a_loss_draws_nothing_from_the_global_generator(tmp_path):
    states = []
    for deaths in (0, 1):
        torch.manual_seed(0)
        load(Fragile(tmp_path, deaths))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_a_worker_that_dies_does_not_raise_in_the_middle_of_a_step(tmp_path):
    batches = iter(SteadyLoader(Fragile(tmp_path, 0), 4, num_workers=1, collate_fn=list))
    next(batches)
    assert signal.getsignal(signal.SIGCHLD) in (signal.SIG_DFL, None)


@pytest.mark.parametrize("error", [ConnectionResetError, EOFError, FileNotFoundError])
def test_a_batch_whose_worker_dies_while_it_is_fetched_is_read_again(tmp_path, monkeypatch, error):
    fetch, then = _MultiProcessingDataLoaderIter._try_get_data, iter([None, error])

    def fetch_or_fail(batches: object, *seconds: float) -> tuple:
        if (fault := next(then, None)) is not None:
            raise fault
        return fetch(batches, *seconds)

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_try_get_data", fetch_or_fail)
    assert load(Fragile(tmp_path, 0)) == load(Fragile(tmp_path, 0), workers=0)
    assert next(then, "all came") == "all came"


class Faulty(Fragile):
    """A data set whose code fails."""

    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def __getitem__(self, index: int) -> dict:
        raise self.error("a fault")


@pytest.mark.parametrize("error", [RuntimeError, FileNotFoundError])
def test_errors_of_the_data_set_are_not_swallowed(error):
    # PyTorch takes five seconds to end each worker after one.
    with pytest.raises(error, match="a fault"):
        load(Faulty(error), workers=1)


class UnsendableError(ValueError):
    """An error that pickle cannot make again."""

    def __init__(self, text: str, _: int) -> None:
        super().__init__(text)


class Talking(SteadyDataset):
    """A data set whose files cannot be used, and which says so."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 12

    def __getitem__(self, draw: int) -> dict:
        raise self.error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("in its words"), ValueError),
        (UnsendableError("in its words", 1), ValueError),
        (FileNotFoundError(2, "in its words"), FileNotFoundError),
    ],
)
def test_an_error_about_a_file_comes_out_of_a_worker_in_its_own_words(error, kind):
    with pytest.raises(kind) as caught:
        load(Talking(error), workers=1)
    assert str(caught.value) == str(error)
    assert "in __getitem__" in str(caught.value.__cause__)


class Pictures(Fragile):
    """Twelve tensors, some in containers."""

    def __getitem__(self, index: int) -> dict:
        empty, image = torch.zeros(0, 3), torch.full((3, 40, 50), index, dtype=torch.uint8)
        return {"number": index, "image": image, "boxes": empty, "views": [{"image": image + 100}]}


def with_little_shared_memory(worker: int) -> None:
    """For a worker: whatever shared memory it makes cannot hold a picture, as if that were full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))


def test_without_shared_memory_batches_take_another_way_and_are_the_same(tmp_path, caplog):
    steady._say_once.cache_clear()
    dataset = Pictures(tmp_path, 0)
    found = []
    for begin in (None, with_little_shared_memory):
        loader = SteadyLoader(dataset, 4, num_workers=2, collate_fn=list, worker_init_fn=begin)
        with within(120), caplog.at_level(logging.WARNING, steady.__name__):
            found.append([item for batch in loader for item in batch])
        assert caplog.text.count("too little shared memory") == (begin is not None)
    for plain, piped in zip(*found, strict=True):
        assert plain["number"] == piped["number"]
        assert torch.equal(plain["image"], piped["image"])
        assert torch.equal(plain["views"][0]["image"], piped["views"][0]["image"])
        assert piped["boxes"].shape == (0, 3)
