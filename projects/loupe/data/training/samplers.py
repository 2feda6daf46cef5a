"""Endless, seeded streams of images to train on, shared out over processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import NamedTuple

import numpy as np
from detectron2.utils import comm
from torch.utils.data import Sampler

_CHUNK = 1 << 16


class Draw(NamedTuple):
    """One draw of the stream.

    Attributes:
        position: Global index of the draw, the same for any number of processes; seeds all that
            is drawn for this image.
        image: Index of the image.
    """

    position: int
    image: int


class StreamSampler(Sampler):
    """An endless stream of draws; process r of n takes every n-th, from the r-th on."""

    def __init__(self, size: int, seed: int) -> None:
        """Takes the number of images and the seed, which must be the same in all processes."""
        if size < 1:
            raise ValueError("there are no training images; name a data set in DATASETS.TRAIN")
        self.size = size
        self.seed = seed
        self.rank = comm.get_rank()
        self.processes = comm.get_world_size()
        self._skipped = 0

    def skip(self, draws: int) -> None:
        """Lets the stream begin behind the first so many draws of this process."""
        self._skipped = draws

    def __iter__(self) -> Iterator[Draw]:
        """Draws of this process."""
        first = self.rank + self._skipped * self.processes
        return islice(self.draws(first), 0, None, self.processes)

    def draws(self, start: int = 0) -> Iterator[Draw]:
        """All processes' draws from one on, without drawing those before it."""
        raise NotImplementedError


class TrainingSampler(StreamSampler):
    """All images in random order, then all again in another."""

    def draws(self, start: int = 0) -> Iterator[Draw]:
        """All processes' draws from one on."""
        indices = shuffled_forever(np.arange(self.size), (self.seed, 0), start)
        return map(Draw, count(start), indices)


class BalancedSampler(StreamSampler):
    """As many forged as authentic images, each kind in random order before it repeats.

    Each process's stream holds one of each in every two draws, so that its batches are balanced.
    Several processes together draw what one process draws, in another order.
    """

    def __init__(self, labels: np.ndarray, seed: int) -> None:
        """Takes the labels of all images, 0 or 1.

        Raises:
            ValueError: one kind is missing.
        """
        super().__init__(len(labels), seed)
        self.forged = np.flatnonzero(labels == 1)
        self.authentic = np.flatnonzero(labels == 0)
        if not len(self.forged) or not len(self.authentic):
            raise ValueError(
                f"BalancedSampler needs both kinds; there are {len(self.forged)} forged and "
                f"{len(self.authentic)} authentic images; set DATALOADER.SAMPLER_TRAIN to "
                "TrainingSampler"
            )

    def draws(self, start: int = 0) -> Iterator[Draw]:
        """All processes' draws from one on."""
        # In a block each process draws one of a kind and one of the other.
        blocks, drawn = divmod(start, 2 * self.processes)
        return islice(self._blocks(blocks), drawn, None)

    def _blocks(self, start: int) -> Iterator[Draw]:
        first = start * self.processes
        streams = (
            shuffled_forever(self.authentic, (self.seed, 1), first),
            shuffled_forever(self.forged, (self.seed, 2), first),
        )
        # Which kind each process draws in a block, by the kind that the first of them begins with.
        kinds = [
            [(process + begin + half) % 2 for half in range(2) for process in range(self.processes)]
            for begin in range(2)
        ]
        # One process draws pairs: which kind a pair begins with decides the draws' positions.
        coins = _coins((self.seed, 3), first)
        for pair in count(first, self.processes):
            begins = list(islice(coins, self.processes))
            positions = [
                [2 * number + (begin != kind) for number, begin in enumerate(begins, pair)]
                for kind in range(2)
            ]
            for kind in kinds[begins[0]]:
                yield Draw(positions[kind].pop(0), next(streams[kind]))


class GroupedBatches(Sampler):
    """An endless stream of batches, each of one data set, of as many pairs as that set's batch has.

    Sets of images of unlike sizes can so be trained on together, small images in large batches. A
    pair is an even index and the next one. Batch b depends on the seed and b alone; process r of n
    takes every n-th, from the r-th on. So n processes learn in a step what one process learns with
    n times as many ACCUMULATION_STEPS.
    """

    def __init__(
        self, lengths: Sequence[int], sizes: Sequence[int], shares: Sequence[float], seed: int
    ) -> None:
        """Takes, of each data set, its length, its images per batch and its share of the batches.

        Raises:
            ValueError: the three do not go together.
        """
        if not len(lengths) == len(sizes) == len(shares) or min(lengths, default=0) < 2:
            raise ValueError(
                f"DATALOADER.GROUP_SIZES has {len(sizes)} entries, DATALOADER.GROUP_SHARES "
                f"{len(shares)}; each of the {len(lengths)} sets of DATASETS.TRAIN needs one, and "
                "two images"
            )
        if any(size < 2 or size % 2 for size in sizes) or min(shares) < 0 or not sum(shares):
            raise ValueError(
                f"DATALOADER.GROUP_SIZES {list(sizes)} must be even, DATALOADER.GROUP_SHARES "
                f"{list(shares)} not negative"
            )
        self.lengths, self.sizes, self.seed = tuple(lengths), tuple(sizes), seed
        self.shares = np.array(shares) / sum(shares)
        self.rank = comm.get_rank()
        self.processes = comm.get_world_size()
        self._skipped = 0

    def skip(self, batches: int) -> None:
        """Lets the stream begin behind the first so many batches of this process."""
        self._skipped = batches

    def __iter__(self) -> Iterator[list[Draw]]:
        """Batches of this process."""
        starts = np.concatenate([[0], np.cumsum(self.lengths)])
        for number in count(self.rank + self._skipped * self.processes, self.processes):
            group = int(
                np.random.default_rng((self.seed, number)).choice(len(self.shares), p=self.shares)
            )
            generator = np.random.default_rng((self.seed, number, 0))
            pairs = generator.integers(self.lengths[group] // 2, size=self.sizes[group] // 2)
            first = number * max(self.sizes)
            yield [
                Draw(first + place, int(starts[group] + 2 * pairs[place // 2] + place % 2))
                for place in range(self.sizes[group])
            ]


def build_sampler(name: str, labels: np.ndarray, seed: int) -> StreamSampler:
    """The sampler that DATALOADER.SAMPLER_TRAIN names."""
    if name == "TrainingSampler":
        return TrainingSampler(len(labels), seed)
    if name == "BalancedSampler":
        return BalancedSampler(labels, seed)
    raise ValueError(
        f"DATALOADER.SAMPLER_TRAIN is {name!r}; it must be TrainingSampler or BalancedSampler"
    )


def own_part(size: int, group: int) -> Sequence[int]:
    """This process's part of each `group` of consecutive images, in order.

    Args:
        size: Number of images.
        group: Images that the processes share at a time; the last group may be smaller.
    """
    rank, processes = comm.get_rank(), comm.get_world_size()
    if processes == 1:
        return range(size)
    part: list[int] = []
    for start in range(0, size, group):
        images = min(group, size - start)
        bounds = [start + images * one // processes for one in (rank, rank + 1)]
        part += range(*bounds)
    return part


def shuffled_forever(indices: np.ndarray, seed: tuple[int, ...], start: int = 0) -> Iterator[int]:
    """All indices in random order, again and again, each time in another order.

    Args:
        indices: (N,) what is drawn.
        seed: of the orders.
        start: position in the stream to begin at.
    """
    generator = np.random.default_rng(seed)
    passes, drawn = divmod(start, len(indices))
    for _ in range(passes):
        generator.permutation(indices)
    while True:
        order = generator.permutation(indices)
        # In parts: a list of a million numbers would take ten times the array's memory.
        for part in range(drawn, len(order), _CHUNK):
            yield from order[part : part + _CHUNK].tolist()
        drawn = 0


def _coins(seed: tuple[int, ...], start: int) -> Iterator[int]:
    """Endless random 0 and 1, from a position on."""
    generator = np.random.default_rng(seed)
    for _ in range(start // _CHUNK):
        generator.integers(2, size=_CHUNK)
    generator.integers(2, size=start % _CHUNK)
    while True:
        yield from generator.integers(2, size=_CHUNK).tolist()
