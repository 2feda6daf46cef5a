"""Prediction of very many images on a Ray cluster, through Ray Data.

Each worker (a Ray actor with a model of its own) predicts batches of files and writes one file of
rows for each batch. The file's name is a digest of the batch, and it is written whole or not at
all. So when Ray runs a batch anew because a worker died, the second file takes the place of the
first: every image has exactly one row. A run that goes on skips the files that have a row.

    output/rows/DIGEST.parquet    file, probability, error, warning, verdict, reasons, views,
                                  class, class_probabilities, map
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
from pyarrow import parquet

from loupe.inference.earlier import ROWS
from loupe.inference.results import classes_text
from loupe.writing import write_bytes

_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("probability", pa.float64()),
        ("error", pa.string()),
        ("warning", pa.string()),
        ("verdict", pa.string()),
        ("reasons", pa.list_(pa.string())),
        ("views", pa.list_(pa.string())),
        ("class", pa.string()),
        ("class_probabilities", pa.string()),
        # The forgery map as PNG of 8 bits, if asked for.
        ("map", pa.binary()),
    ]
)
# Gives something with `predict_many`; runs in each worker, so it must pickle.
Build = Callable[[], Any]


class RayPlan(NamedTuple):
    """How a cluster is used.

    Attributes:
        workers: Actors, each with a model.
        batch: Images that a worker is given at once; what is lost when it dies.
        processors: Of one worker.
        graphics: GPUs of one worker; may be a fraction.
        maps: Whether rows hold forgery maps.
        cluster: Address; "" = this machine.
    """

    workers: int
    batch: int = 16
    processors: float = 1.0
    graphics: float = 0.0
    maps: bool = False
    cluster: str = ""


class RowWriter:
    """A worker: predicts batches and writes their rows.

    Args:
        build: Makes its predictor.
        folder: Of the rows; on a cluster all machines must see it.
        maps: Whether rows hold forgery maps.
    """

    def __init__(self, build: Build, folder: str, maps: bool) -> None:
        self._predictor = build()
        self._folder, self._maps = Path(folder), maps

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Predicts the files of a batch; gives file and whether it failed."""
        files = [str(file) for file in batch["file"]]
        rows = [row_of(one, self._maps) for one in self._predictor.predict_many(files)]
        table = pa.Table.from_pylist(rows, schema=_SCHEMA)
        stream = io.BytesIO()
        parquet.write_table(table, stream)
        digest = hashlib.sha256("\0".join(files).encode("utf-8", "surrogateescape")).hexdigest()
        write_bytes(self._folder / f"{digest[:32]}.parquet", stream.getvalue())
        failed = [bool(row["error"]) for row in rows]
        return {"file": np.array(files, object), "failed": np.array(failed)}


def row_of(one: Any, maps: bool) -> dict[str, Any]:
    """One image as a row."""
    row = {"file": str(one.file), "error": one.error, "warning": "; ".join(one.warnings)}
    if one.prediction is None:
        return row
    prediction = one.prediction
    row |= {
        "probability": prediction.score,
        "verdict": prediction.verdict,
        "reasons": list(prediction.reasons),
        "views": list(prediction.views),
        "class": prediction.class_name,
        "class_probabilities": classes_text(prediction.class_probabilities),
    }
    if maps:
        grey = np.rint(prediction.forgery_map * 255).astype(np.uint8)
        encoded, data = cv2.imencode(".png", grey)
        assert encoded, one.file
        row["map"] = data.tobytes()
    return row


def done_files(folder: Path) -> set[str]:
    """The files that have a row."""
    done: set[str] = set()
    for path in sorted((folder / ROWS).glob("*.parquet")):
        done.update(parquet.read_table(path, columns=["file"])["file"].to_pylist())
    return done


def all_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of all workers, without maps, sorted by file."""
    names = [name for name in _SCHEMA.names if name != "map"]
    paths = sorted((folder / ROWS).glob("*.parquet"))
    if paths:
        # Rows of an earlier version may lack a column.
        tables = [parquet.read_table(path, columns=names) for path in paths]
        table = pa.concat_tables(tables, promote_options="default")
        yield from table.sort_by("file").to_pylist()


def predict_on_cluster(
    build: Build,
    files: Sequence[str],
    folder: Path,
    plan: RayPlan,
    told: Callable[[int, int], None] = lambda done, failed: None,
) -> None:
    """Predicts files that have no row yet.

    Args:
        build: Makes a worker's predictor.
        files: Their names.
        folder: Where `rows/` is.
        plan: How the cluster is used.
        told: Called with the images done and failed since the start.
    """
    # Before ray is imported: a busy machine starts a cluster in more than its half minute.
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")
    import ray

    left = sorted(set(files) - done_files(folder))
    (folder / ROWS).mkdir(parents=True, exist_ok=True)
    if not left:
        return
    started = not ray.is_initialized()
    if started:
        # A local cluster has as many processors as the workers want, whatever the machine has.
        processors = None if plan.cluster else max(1, round(plan.workers * plan.processors))
        ray.init(plan.cluster or None, num_cpus=processors, include_dashboard=False)
    try:
        blocks = max(plan.workers, -(-len(left) // plan.batch))
        data = ray.data.from_items([{"file": file} for file in left], override_num_blocks=blocks)
        # Ray starts a worker that dies anew, and its batch with it, as often as needed.
        results = data.map_batches(
            RowWriter,
            fn_constructor_args=(build, str((folder / ROWS).resolve()), plan.maps),
            batch_size=plan.batch,
            compute=ray.data.ActorPoolStrategy(size=plan.workers),
            num_cpus=plan.processors,
            num_gpus=plan.graphics or None,
        )
        done = failed = 0
        for batch in results.iter_batches(batch_size=None):
            done += len(batch["failed"])
            failed += int(batch["failed"].sum())
            told(done, failed)
    finally:
        if started:
            ray.shutdown()
