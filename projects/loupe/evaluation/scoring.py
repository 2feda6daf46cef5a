"""Scores saved predictions of any detector with the evaluator that training uses.

A prediction that cannot be used is counted with its reason; it ends nothing.
"""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np

from loupe.child_processes import follow_parent
from loupe.evaluation.calibration import scale_scores
from loupe.evaluation.evaluator import EvaluationShard, ForgeryEvaluator
from loupe.evaluation.map_files import PredictionError, SavedMap, read_map
from loupe.evaluation.matching import match_predictions
from loupe.evaluation.predictions import PredictionSet, SavedPrediction
from loupe.evaluation.results import Results
from loupe.structures import GroundTruth

# A process takes seconds to start: it must have enough to do.
IMAGES_PER_PROCESS = 256

# What a file that cannot be used may raise.
UNUSABLE = (ValueError, OSError, cv2.error, MemoryError)

# (dataset dict, the map's size or None) -> truth; None for an unlabelled image.
ReadTruth = Callable[[dict[str, Any], tuple[int, int] | None], GroundTruth | None]


class ScoringOptions(NamedTuple):
    """How predictions are read.

    Attributes:
        size: a map of another size than the truth is an error ("strict") or is resized bilinearly
            ("resize").
        faults: an image without a usable prediction or mask is counted as unreadable with its
            reason ("count"), or is an error ("error").
        map_score: where a detector gives no probability of the image: "none", or its map's "max" or
            "mean".
        temperature: the probabilities' logits are divided by it.
    """

    size: str = "strict"
    faults: str = "count"
    map_score: str = "none"
    temperature: float = 1.0


class ScoredSet(NamedTuple):
    """Results, and what else a caller needs to know.

    Attributes:
        results: all metrics.
        unused: names of predictions that belong to no image.
        scores: (n,) probabilities of labelled images, NaN where there is none.
        labels: (n,) 0 or 1.
        brightest: highest value of any map, NaN without maps.
    """

    results: Results
    unused: list[str]
    scores: np.ndarray
    labels: np.ndarray
    brightest: float


def image_probability(
    entry: SavedPrediction, saved: SavedMap | None, options: ScoringOptions
) -> float | None:
    """The image's probability: listed, else saved with the map, else derived from it if asked."""
    probability = entry.probability
    if probability is None and saved is not None:
        probability = saved.probability
        if probability is None and options.map_score != "none":
            values = saved.forgery_map
            reduced = values.max() if options.map_score == "max" else values.mean()
            largest = np.iinfo(values.dtype).max if values.dtype.kind == "u" else 1
            probability = float(reduced) / largest
    if probability is None or options.temperature == 1.0 or not 0 <= probability <= 1:
        return probability
    return float(scale_scores(np.asarray(probability), options.temperature))


def fit_size(
    forgery_map: np.ndarray, shape: tuple[int, int] | None, options: ScoringOptions
) -> np.ndarray:
    """The map at the truth's (H, W), if it may be resized; else the map as it is."""
    if shape is None or forgery_map.shape == shape or forgery_map.ndim != 2:
        return forgery_map
    if options.size == "strict" and forgery_map.shape != (1, 1):
        return forgery_map
    if forgery_map.dtype == bool:
        forgery_map = forgery_map.astype(np.uint8) * np.uint8(255)
    if forgery_map.dtype == np.float16:
        forgery_map = forgery_map.astype(np.float32)
    return cv2.resize(forgery_map, shape[::-1], interpolation=cv2.INTER_LINEAR)


def score_one(
    evaluator: ForgeryEvaluator,
    item: dict[str, Any],
    entry: SavedPrediction | None,
    read_truth: ReadTruth,
    options: ScoringOptions,
) -> None:
    """Measures one image's saved prediction, or counts why it has none.

    Raises:
        ValueError: map, probability or truth cannot be what it should be; names the image.
    """
    name = str(item["file_name"])
    if entry is None or entry.error:
        evaluator.add_unreadable(name, entry.error if entry else "no prediction")
        return
    saved = None if entry.source is None else read_map(entry.source)
    shape = None if saved is None else saved.forgery_map.shape[:2]
    truth = read_truth(item, shape)
    if truth is None:
        evaluator.process([item | {"ground_truth": None}], [{}])
        return
    forgery_map = None
    if saved is not None:
        wanted = None if truth.mask is None else truth.mask.shape
        forgery_map = fit_size(saved.forgery_map, wanted, options)
    probability = image_probability(entry, saved, options)
    evaluator.add(str(item["image_id"]), name, truth, probability, forgery_map)


def _score_shard(
    pairs: list[tuple[dict[str, Any], SavedPrediction | None]],
    read_truth: ReadTruth,
    options: ScoringOptions,
    evaluator: ForgeryEvaluator,
) -> EvaluationShard:
    """One process's part; each image's numbers are kept, its map is forgotten."""
    cv2.setNumThreads(1)
    evaluator.reset()
    for item, entry in pairs:
        try:
            score_one(evaluator, item, entry, read_truth, options)
        except UNUSABLE as error:
            if options.faults == "error":
                raise ValueError(str(error)) from error
            evaluator.add_unreadable(str(item["file_name"]), str(error) or type(error).__name__)
        if _progress is not None:
            with _progress.get_lock():
                _progress.value += 1
    return evaluator.shard()


_progress: Any = None


def _start_worker(counter: Any) -> None:
    """Gives a new process the counter of finished images."""
    global _progress
    follow_parent()
    _progress = counter


def _run(
    parts: list[list[tuple[dict[str, Any], SavedPrediction | None]]],
    work: Callable[[list[Any]], EvaluationShard],
    report: Callable[[int], None],
) -> Iterator[EvaluationShard]:
    """Runs the parts, each in a process of its own unless there is one only."""
    if len(parts) == 1:
        yield work(parts[0])
        return
    # Not forked: OpenCV and torch hold threads that do not survive a fork.
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(0.5):
            report(counter.value)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        # Not multiprocessing's Pool: it waits for ever for what a killed process had.
        with ProcessPoolExecutor(len(parts), context, _start_worker, (counter,)) as pool:
            yield from pool.map(work, parts)
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a process that scored was killed, by a lack of memory perhaps; score again with fewer "
            "processes"
        ) from error
    finally:
        finished.set()
        watcher.join()


def score_predictions(
    items: list[dict[str, Any]],
    predictions: PredictionSet,
    read_truth: ReadTruth,
    evaluator: ForgeryEvaluator,
    *,
    options: ScoringOptions | None = None,
    processes: int = 1,
    report: Callable[[int], None] = lambda done: None,
) -> ScoredSet:
    """Scores all images of a data set.

    Args:
        items: dataset dicts: "file_name", "image_id", and what `read_truth` needs.
        predictions: the detector's saved predictions.
        read_truth: picklable if there are several processes.
        evaluator: its options are used; it is emptied first.
        options: how predictions are read.
        processes: how many to use at most; each gets at least IMAGES_PER_PROCESS images.
        report: called now and then with the number of images done (several processes only).

    Raises:
        PredictionError: no image has a prediction, or one fits several images.
        ValueError: with faults "error", a prediction, map or mask is unusable; names the image.
    """
    options = options or ScoringOptions()
    names = [str(item["file_name"]) for item in items]
    found, unused = match_predictions(names, predictions)
    if predictions.kind == "coco":
        # A list of detections names only images where something was found.
        empty = SavedPrediction((), 0.0, [])
        found = [empty if entry is None else entry for entry in found]
    missing = [name for name, entry in zip(names, found, strict=True) if entry is None]
    # If no image has a prediction the folder is the wrong one.
    if missing and (options.faults == "error" or len(missing) == len(names)):
        raise PredictionError(
            f"{len(missing)} of {len(names)} images have no prediction, e.g. {missing[:3]}; "
            "predict them, or give the folder of their predictions"
        )
    pairs = list(zip(items, found, strict=True))
    evaluator.reset()
    processes = max(1, min(processes, len(pairs) // IMAGES_PER_PROCESS))
    parts = [pairs[start::processes] for start in range(processes)]
    work = partial(_score_shard, read_truth=read_truth, options=options, evaluator=evaluator)
    shards = list(_run(parts, work, report))
    columns = [shard.table.columns() for shard in shards]
    brightest = np.concatenate([part.map_maximum for part in columns])
    return ScoredSet(
        evaluator.summarise(shards),
        unused,
        np.concatenate([part.probability for part in columns]),
        np.concatenate([part.label for part in columns]),
        float(np.nanmax(brightest)) if (~np.isnan(brightest)).any() else float("nan"),
    )
