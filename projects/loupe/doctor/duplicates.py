"""Equal images, by digests, and nearly equal ones, by perceptual hashes in an index of bands.

Two hashes of 64 bits that differ in at most 7 are, in one of 4 bands of 16 bits, equal but for at
most one bit. So the partners of a hash are among those that share one of 4 x 17 band values: the
search is complete, and its cost grows with the number of hits, not with the square of the images.
"""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from loupe.doctor.facts import ImageFacts

# Largest distance for which the bands find every pair.
MAX_DISTANCE = 7

# What thumbnails of near duplicates must do, see `look_alike`.
_LEAST_CORRELATION = 0.9
_LEAST_AGREEMENT = 0.5
_EQUAL_GREY = 6
_BANDS = 4
_BAND_BITS = 16
# Pairs looked at together: bounds memory.
_PAIRS_AT_ONCE = 4_000_000
_THUMBNAILS_AT_ONCE = 10_000
# Of more images with one hash, each is compared with the first only.
_SAME_HASH_LIMIT = 50


def equal_groups(digests: Sequence[str]) -> list[list[int]]:
    """Positions that share a digest, in order; empty digests are left out."""
    positions = defaultdict(list)
    for position, digest in enumerate(digests):
        if digest:
            positions[digest].append(position)
    return [group for group in positions.values() if len(group) > 1]


def near_duplicates(facts: Sequence[ImageFacts], max_distance: int) -> list[tuple[int, int]]:
    """Pairs (i < j) of images that look alike but do not have equal pixels.

    Candidates are pairs with close hashes of the whole or of one quarter. A hash keeps signs only,
    so that different images of one plain composition can be close: the thumbnails decide.

    Args:
        facts: of all images; unreadable and flat ones have no partners.
        max_distance: largest number of differing bits, at most MAX_DISTANCE.
    """
    hashes = [fact.fingerprints.split(",") for fact in facts]
    thumbnails = [fact.thumbnail for fact in facts]
    found: set[tuple[int, int]] = set()
    for part in range(max(map(len, hashes), default=0)):
        usable = [i for i, parts in enumerate(hashes) if part < len(parts) and parts[part]]
        positions = np.array(usable, np.int64)
        values = np.array([int(hashes[i][part], 16) for i in usable], np.uint64)
        for first, second in candidate_pairs(values, max_distance):
            pairs = zip(positions[first].tolist(), positions[second].tolist(), strict=True)
            new = [
                (i, j)
                for i, j in pairs
                if (i, j) not in found and facts[i].pixel_digest != facts[j].pixel_digest
            ]
            found.update(_alike_pairs(new, thumbnails))
    return sorted(found)


def look_alike(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whether thumbnails look alike: (N, 256) and (N, 256) grey values -> (N,) bool.

    Either they correlate (whatever brightness and contrast), or half of their cells are equal up to
    a common shift (whatever was pasted into the rest).
    """
    first, second = first.astype(np.float32), second.astype(np.float32)
    difference = first - second
    shift = np.median(difference, axis=1, keepdims=True)
    agreement = (np.abs(difference - shift) <= _EQUAL_GREY).mean(axis=1)
    first = first - first.mean(axis=1, keepdims=True)
    second = second - second.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    correlation = (first * second).sum(axis=1) / np.maximum(lengths, 1e-6)
    return (correlation >= _LEAST_CORRELATION) | (agreement >= _LEAST_AGREEMENT)


def _alike_pairs(
    pairs: list[tuple[int, int]], thumbnails: Sequence[str]
) -> Iterator[tuple[int, int]]:
    for start in range(0, len(pairs), _THUMBNAILS_AT_ONCE):
        block = pairs[start : start + _THUMBNAILS_AT_ONCE]
        sides = [
            np.stack([_thumbnail(thumbnails[p]) for p in side]) for side in zip(*block, strict=True)
        ]
        alike = look_alike(*sides)
        yield from (pair for pair, is_alike in zip(block, alike, strict=True) if is_alike)


def candidate_pairs(
    hashes: np.ndarray, max_distance: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of positions (i < j) of hashes (N,) uint64 that differ in at most some bits.

    A pair may come more than once. Of more than 50 equal hashes only pairs with the first come.
    """
    assert 0 <= max_distance <= MAX_DISTANCE, max_distance
    distinct, where = np.unique(hashes, return_inverse=True)
    order = np.argsort(where, kind="stable")
    starts = np.searchsorted(where[order], np.arange(len(distinct) + 1))
    groups = [order[a:b] for a, b in zip(starts[:-1], starts[1:], strict=True)]
    same = [_pairs_within(group) for group in groups if len(group) > 1]
    if same:
        first, second = (np.concatenate(sides) for sides in zip(*same, strict=True))
        yield first, second
    for first, second in _distinct_pairs(distinct, max_distance):
        pairs = [_pairs_between(groups[i], groups[j]) for i, j in zip(first, second, strict=True)]
        if pairs:
            left, right = (np.concatenate(sides) for sides in zip(*pairs, strict=True))
            yield np.minimum(left, right), np.maximum(left, right)


def _pairs_within(group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(group) > _SAME_HASH_LIMIT:
        return np.full(len(group) - 1, group[0]), group[1:]
    first, second = np.triu_indices(len(group), 1)
    return group[first], group[second]


def _pairs_between(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(left) > _SAME_HASH_LIMIT:
        left = left[:1]
    if len(right) > _SAME_HASH_LIMIT:
        right = right[:1]
    return np.repeat(left, len(right)), np.tile(right, len(left))


def _distinct_pairs(
    hashes: np.ndarray, max_distance: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same for hashes of which no two are equal."""
    flips = [0, *(1 << bit for bit in range(_BAND_BITS))]
    for band in range(_BANDS):
        shift = np.uint64(band * _BAND_BITS)
        values = ((hashes >> shift) & np.uint64((1 << _BAND_BITS) - 1)).astype(np.int64)
        order = np.argsort(values, kind="stable")
        starts = np.searchsorted(values[order], np.arange((1 << _BAND_BITS) + 1))
        for flip in flips:
            partners = values ^ flip
            # Each pair of bands once, from the one without the bit.
            searched = (values & flip) == 0
            begin = np.where(searched, starts[partners], 0)
            end = np.where(searched, starts[partners + 1], 0)
            for first, place in _expand(begin, end):
                second = order[place]
                close = np.bitwise_count(hashes[first] ^ hashes[second]) <= max_distance
                if flip == 0:
                    close &= first < second
                if close.any():
                    yield first[close], second[close]


def _expand(begin: np.ndarray, end: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks (i, k) of all k in begin[i]:end[i]."""
    counts = end - begin
    total = np.concatenate([[0], np.cumsum(counts)])
    start = 0
    while start < len(counts):
        stop = int(np.searchsorted(total, total[start] + _PAIRS_AT_ONCE, side="right")) - 1
        stop = min(max(stop, start + 1), len(counts))
        part = counts[start:stop]
        first = np.repeat(np.arange(start, stop), part)
        within = np.arange(len(first)) - np.repeat(total[start:stop] - total[start], part)
        yield first, np.repeat(begin[start:stop], part) + within
        start = stop


def _thumbnail(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.uint8)
