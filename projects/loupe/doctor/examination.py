"""Examines all images of data sets in parallel processes; what was measured once is not again."""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import TextIO

import cv2

from loupe.child_processes import follow_parent
from loupe.data.sources.entries import DatasetDict
from loupe.doctor.facts import (
    FACTS_VERSION,
    Grid,
    ImageFacts,
    facts_from_json,
    facts_to_json,
    measure_image,
)

# Images sent to a worker at a time, and what is lost at most, per process, when a run is killed.
_CHUNK = 16
# Submitted ahead of the results: bounds memory whatever the number of images.
_CHUNKS_AHEAD = 4

_logger = logging.getLogger(__name__)

Job = tuple[str, str | None, str]


def examine_all(
    entries: Sequence[DatasetDict],
    grid: Grid,
    *,
    processes: int = 1,
    cache: Path | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> list[ImageFacts]:
    """ImageFacts of each entry, in order.

    Args:
        entries: dataset dicts.
        grid: the network's.
        processes: 1 = this one.
        cache: file of facts; is read, and gets a line for every image that is not in it. A file
            that changed (size or time) is examined anew.
        report: called with the number of images that are done.

    Raises:
        ValueError: the cache is no cache of the doctor's.
    """
    known = {} if cache is None else _read_cache(cache)
    jobs = [_job(entry) for entry in entries]
    keys = [_key(job, grid) for job in jobs]
    missing = {key: job for key, job in zip(keys, jobs, strict=True) if key not in known}
    done = len(set(keys)) - len(missing)
    report(done)
    file = None if cache is None else _open_for_append(cache)
    try:
        for batch in _examined(list(missing.items()), grid, processes):
            known.update(batch)
            if file is not None:
                _append(file, batch)
            done += len(batch)
            report(done)
    finally:
        if file is not None:
            file.close()
    return [known[key] for key in keys]


def _job(entry: DatasetDict) -> Job:
    return entry["file_name"], entry["mask_file_name"], entry.get("mask_rule", "")


def _key(job: Job, grid: Grid) -> str:
    """Says which files, in which state, and what was asked of them."""
    image, mask, rule = job
    return json.dumps([FACTS_VERSION, *grid, rule, *_state(image), *_state(mask)])


def _state(path: str | None) -> tuple[str, int, int]:
    if path is None:
        return "", 0, 0
    try:
        status = os.stat(path)
    except OSError:
        return os.path.abspath(path), -1, -1
    return os.path.abspath(path), status.st_size, status.st_mtime_ns


def _examined(
    missing: list[tuple[str, Job]], grid: Grid, processes: int
) -> Iterator[list[tuple[str, ImageFacts]]]:
    """Batches of (key, facts), in order."""
    chunks = [missing[start : start + _CHUNK] for start in range(0, len(missing), _CHUNK)]
    if processes <= 1 or len(chunks) <= 1:
        for chunk in chunks:
            yield _examine_chunk(chunk, grid)
        return
    done = 0
    while done < len(chunks):
        # A worker that is killed takes its pool along: what it had is measured one by one.
        for facts in _pooled(chunks[done:], grid, processes):
            yield facts
            done += 1
        if done < len(chunks):
            yield [_measure_alone(*one, grid) for one in chunks[done]]
            done += 1


def _pooled(
    chunks: list[list[tuple[str, Job]]], grid: Grid, processes: int
) -> Iterator[list[tuple[str, ImageFacts]]]:
    """Results of chunks in order, until a worker is lost."""
    with _pool(processes) as pool:
        ahead: deque[Future] = deque()
        try:
            for chunk in chunks:
                ahead.append(pool.submit(_examine_chunk, chunk, grid))
                if len(ahead) > processes * _CHUNKS_AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        except BrokenProcessPool as error:
            _logger.warning("%s; its images are examined one by one", error)
        finally:
            for future in ahead:
                future.cancel()


def _measure_alone(key: str, job: Job, grid: Grid) -> tuple[str, ImageFacts]:
    """One image in a process of its own, which it may take along."""
    with _pool(1) as pool:
        try:
            return pool.submit(_examine_chunk, [(key, job)], grid).result()[0]
        except BrokenProcessPool:
            return key, ImageFacts(image_error="the process that reads it is lost; remove it")


def _pool(processes: int) -> ProcessPoolExecutor:
    # Not fork: the caller may have threads (OpenCV's, torch's), whose locks a fork would copy.
    return ProcessPoolExecutor(processes, get_context("spawn"), _start_worker)


def _start_worker() -> None:
    follow_parent()
    cv2.setNumThreads(1)


def _examine_chunk(chunk: list[tuple[str, Job]], grid: Grid) -> list[tuple[str, ImageFacts]]:
    return [(key, measure_image(*job, grid)) for key, job in chunk]


def _read_cache(path: Path) -> dict[str, ImageFacts]:
    """ImageFacts by key. A last line that a killed run left unfinished is passed over."""
    if not path.exists():
        return {}
    known = {}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                content = json.loads(line)
                known[content["key"]] = facts_from_json(content["facts"])
            except (ValueError, TypeError, KeyError):
                if number == 1 and line.endswith("\n"):
                    raise ValueError(
                        f"{path}: is no cache of the doctor's; give another --cache"
                    ) from None
    return known


def _open_for_append(path: Path) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size:
        with open(path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            cut = file.read() != b"\n"
        if cut:
            with open(path, "a", encoding="utf-8") as text:
                text.write("\n")
    return open(path, "a", encoding="utf-8")


def _append(file: TextIO, batch: list[tuple[str, ImageFacts]]) -> None:
    for key, facts in batch:
        line = {"key": key, "facts": facts_to_json(facts)}
        file.write(json.dumps(line, separators=(",", ":")) + "\n")
    file.flush()
