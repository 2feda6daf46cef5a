"""The process of one device: takes batches of images, predicts them, tells each one's end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from loupe.child_processes import serve_parent
from loupe.service.outcome import Describe, write_outcome
from loupe.service.store import UPLOAD
from loupe.structures import Prediction

UNPROCESSABLE, SERVER_FAULT = 422, 500
# What `loupe.modeling.guarded` says of an image that the model fails on: no fault of the client.
_MODEL_FAULT = "the model failed on it"


class Found(Protocol):
    """What came of one file: see `loupe.inference.FilePrediction`."""

    @property
    def prediction(self) -> Prediction | None: ...  # noqa: D102
    @property
    def error(self) -> str: ...  # noqa: D102
    @property
    def warnings(self) -> tuple[str, ...]: ...  # noqa: D102


class Predictor(Protocol):
    """What a worker needs of a `LoupePredictor`."""

    def predict_many(self, files: Sequence[str | Path]) -> Iterator[Found]:
        """One result for each file, in order."""


class Ready(NamedTuple):
    """The worker is ready; facts of its model."""

    model: dict[str, Any]


class Failed(NamedTuple):
    """The worker cannot start."""

    error: str


class Ended(NamedTuple):
    """One image is done.

    Attributes:
        id: Of the prediction.
        seconds: That the worker took.
        status: HTTP status.
        error: Why there is no prediction; "" otherwise.
        result: What the API tells.
    """

    id: str
    seconds: float
    status: int
    error: str
    result: dict[str, Any]


class Made(NamedTuple):
    """What a worker works with.

    Attributes:
        predictor: Gives predictions.
        describe: Gives regions and facts of one.
        model: What /v1/model tells.
    """

    predictor: Predictor
    describe: Describe
    model: dict[str, Any]


# Runs in the worker, so it must pickle.
Build = Callable[[], Made]


def serve_jobs(connection: Connection, build: Build) -> None:
    """Serves until the connection ends.

    Args:
        connection: Receives lists of (id, name of the file, folder), sends `Ready` or `Failed`,
            then an `Ended` for each.
        build: Makes what it works with.
    """
    serve_parent()
    try:
        made = build()
    except Exception as error:  # Wrong weights, no such device, a package that is missing, ...
        connection.send(Failed(f"{type(error).__name__}: {error}"))
        return
    connection.send(Ready(made.model))
    while True:
        try:
            jobs = connection.recv()
        except EOFError:
            return
        for ended in predict_jobs(made, jobs):
            connection.send(ended)


def predict_jobs(made: Made, jobs: list[tuple[str, str, Path]]) -> Iterator[Ended]:
    """Predicts a batch; yields each image's end."""
    start = time.perf_counter()
    found = made.predictor.predict_many([folder / UPLOAD for _, _, folder in jobs])
    for (identifier, name, folder), one in zip(jobs, found, strict=True):
        status, error, result = _outcome(made, name, folder, one)
        now = time.perf_counter()
        yield Ended(identifier, now - start, status, error, result)
        start = now


def _outcome(made: Made, name: str, folder: Path, one: Found) -> tuple[int, str, dict[str, Any]]:
    if one.prediction is None:
        # Errors name the file by its place in the store, which the client does not know.
        sentence = one.error.replace(str(folder / UPLOAD), name)
        return SERVER_FAULT if _MODEL_FAULT in sentence else UNPROCESSABLE, sentence, {}
    try:
        return 200, "", write_outcome(folder, one.prediction, one.warnings, made.describe)
    except Exception as error:  # A full disk, or memory: the next image may have more luck.
        return SERVER_FAULT, f"{name}: the result cannot be written ({error})", {}
