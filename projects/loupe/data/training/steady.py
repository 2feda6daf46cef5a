"""A loader that outlives its workers.

A worker process can be killed: by the kernel when memory runs out, or by a decoder that crashes.
PyTorch then ends the run. Here the images of the lost batch are read one by one, each in a worker
of its own, and new workers go on behind them, so that the batches are those of an undisturbed run.
An image that takes two more workers along counts as unreadable.

Workers hand tensors over in shared memory. Where there is too little (a container has 64 MB unless
it is told otherwise), PyTorch notices in the worker's thread that sends: the batch is gone, and
whoever waits for it waits for ever. Here such a batch goes through the worker's pipe.

An error about a file or a setting, raised in a worker, comes out as it would without workers, in
its own words. PyTorch would put the worker's whole traceback into its message.
"""

from __future__ import annotations

import logging
import pickle
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import islice
from typing import Any, NamedTuple, cast

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from loupe.child_processes import Failure

# Workers that one image may take along, after the batch that it was in.
_ATTEMPTS = 2
# How PyTorch's message of a lost worker begins, and that of an error of the data set's own code.
_LOST = "DataLoader worker (pid"
_RAISED = "Caught "

_logger = logging.getLogger(__name__)


class SteadyDataset(Dataset):
    """A data set that can do without an image, and whose errors keep their words."""

    def __getitem__(self, draw: Any) -> dict[str, Any]:
        """The item of a draw."""
        raise NotImplementedError

    def without(self, draw: Any, reason: str) -> dict[str, Any]:
        """The item of a draw whose image cannot be read for that reason."""
        raise NotImplementedError

    def __getitems__(self, draws: list[Any]) -> list[Any]:
        """The items of a batch, as PyTorch asks for them."""
        try:
            return [self[draw] for draw in draws]
        except (ValueError, OSError) as error:
            if get_worker_info() is None:
                raise
            return [Failure.of(error)]


class SteadyLoader(DataLoader):
    """A DataLoader whose batches are lists of items, and whose iteration survives its workers.

    Its dataset is a `SteadyDataset`; its sampler gives the same draws each time it is iterated.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Takes what a DataLoader takes."""
        super().__init__(*arguments, **options)
        self.collate_fn = _Collate(self.collate_fn)

    def __iter__(self) -> Any:  # PyTorch's type of it is private.
        """Batches (lists of items) in order, each once."""
        if self.num_workers == 0:
            yield from super().__iter__()
            return
        done, batches = 0, self._started(super().__iter__)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except Exception as error:
                if not _is_loss(error):
                    raise
                _logger.warning("%s; its batch is read again in new workers", error)
                sampler = self.batch_sampler
                assert sampler is not None  # PyTorch makes one, unless `batch_size` is None.
                draws = next(islice(iter(sampler), done, None))
                batch = [self._alone(draw) for draw in draws]
                rest = islice(iter(sampler), done + 1, None)
                batches = self._started(self._like_this(rest, self.num_workers).__iter__)
            done += 1
            yield _checked(batch)

    def _alone(self, draw: Any) -> dict[str, Any]:
        """The item of one draw, read by a worker of its own."""
        for _ in range(_ATTEMPTS):
            try:
                (batch,) = self._started(self._like_this([[draw]], 1).__iter__)
            except Exception as error:
                if not _is_loss(error):
                    raise
                reason = str(error)
            else:
                (item,) = _checked(batch)
                return item
        dataset = cast(SteadyDataset, self.dataset)
        return dataset.without(draw, f"the process that reads it is lost ({reason})")

    def _like_this(self, batches: Iterable[list[Any]], workers: int) -> DataLoader:
        return DataLoader(
            self.dataset,
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=self.collate_fn,
            pin_memory=self.pin_memory,
            worker_init_fn=self.worker_init_fn,
            multiprocessing_context=self.multiprocessing_context,
            # PyTorch draws a seed here. Of the global generator it would change what is drawn next.
            generator=torch.Generator(),
        )

    def _started(self, start: Any) -> Iterator[list[dict[str, Any]]]:
        with _no_handler_of_children():
            return map(_received, start())


def _is_loss(error: Exception) -> bool:
    """Whether a worker is lost.

    One that is killed closes its connections a moment before it counts as dead. Who fetches a
    tensor then sees an end or a missing socket, and PyTorch raises that.
    """
    is_cut = isinstance(error, EOFError | ConnectionError | FileNotFoundError)
    return str(error).startswith(_LOST) or (is_cut and not str(error).startswith(_RAISED))


class _Piped(NamedTuple):
    """A batch for which there was no shared memory.

    Attributes:
        content: The batch, for the pipe.
        reason: Why it goes there.
    """

    content: bytes
    reason: str


def _checked(batch: Any) -> Any:
    """The batch; raises what its worker raised."""
    if isinstance(batch, Failure):
        batch.raise_again()
    return batch


class _Collate:
    """Collates; in a worker also moves the tensors to shared memory, where failing is noticed."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, items: list[Any]) -> Any:
        if items and isinstance(items[0], Failure):
            return items[0]
        batch = self.collate(items)
        if get_worker_info() is None:
            return batch
        try:
            for tensor in _tensors(batch):
                tensor.share_memory_()
        except (RuntimeError, OSError) as error:
            return _Piped(pickle.dumps(batch), str(error).splitlines()[0])
        return batch


def _tensors(content: Any) -> Iterator[torch.Tensor]:
    """Those on the CPU, in containers of containers too."""
    if isinstance(content, torch.Tensor):
        if content.device.type == "cpu":
            yield content
    elif isinstance(content, dict):
        yield from _tensors(list(content.values()))
    elif isinstance(content, list | tuple):
        for part in content:
            yield from _tensors(part)


def _received(batch: Any) -> Any:
    if not isinstance(batch, _Piped):
        return batch
    _say_once(batch.reason.partition(" </")[0])
    return pickle.loads(batch.content)  # Of a process of ours.


@cache
def _say_once(reason: str) -> None:
    _logger.warning(
        "There is too little shared memory for images (%s): they take a slower way. Make /dev/shm "
        "larger (docker run --shm-size 1g), or have fewer workers",
        reason,
    )


@contextmanager
def _no_handler_of_children() -> Iterator[None]:
    """Undoes PyTorch's handler of SIGCHLD, which would raise in the middle of a training step.

    Without it a loss is seen by whoever waits for the batch, within five seconds.
    """
    yield
    handler = signal.getsignal(signal.SIGCHLD)
    is_torch = str(getattr(handler, "__module__", "")).startswith("torch.")
    if is_torch and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
