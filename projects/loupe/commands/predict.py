"""Says of each image how probable it is that it was forged, and where.

    loupe predict photograph.jpg --output predictions
    loupe predict --output predictions folder "*.jpg"
    loupe predict --output predictions --resume folder        # goes on after a stop
    find . -name "*.jpg" | loupe predict --files-from - --json > predictions.jsonl

INPUT: images, folders (with their subfolders) and patterns such as "*.jpg". Without a configuration
it is the small Loupe that comes with the code (weights/README.md).

Writes to the output folder, at each image's own size and under its name:

    predictions.csv      file, probability, error (why there is no probability, if so), warning,
                         verdict (authentic, forged, undecided), reasons of an undecided one, views
                         (what the network saw: shrunk how far, how many windows), class and
                         class_probabilities of models that tell classes (ForgeryExpert)
    regions.json         boxes, areas, scores and outlines of what is marked
    regions.coco.json    the same for tools that read COCO
    maps/<name>.png      probability of each pixel, 8 bit, 255 = forged
    masks/<name>.png     0 or 255 = forged
    overlays/<name>.png  the image with its map drawn on it

--json prints a line of JSON for each image. Results of an earlier run in the folder are
replaced once the first new one is there, unless --resume goes on with them: it leaves out images
whose results are whole and of the same file and settings.

Exit status: 0 = all images predicted, 1 = some were not readable (the table says which and why),
2 = nothing was done.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loupe.commands.command_line import (
    DEFAULT_CONFIG,
    UsageError,
    add_config_options,
    add_image_options,
    read_config,
    run_command,
)

ENGINES = ("pytorch", "onnxruntime", "ray")

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from loupe.inference import LoupePredictor
    from loupe.inference.results import Written


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_image_options(parser, nargs="*")
    parser.add_argument("--output", help="folder to write to")
    parser.add_argument("--no-overlays", action="store_true", help="do not draw overlays")
    parser.add_argument("--files-from", metavar="FILE", help="names, one a line; - = stdin")
    parser.add_argument("--no-maps", action="store_true", help="write no pictures")
    parser.add_argument("--resume", action="store_true", help="go on with what --output holds")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each image")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: CUDA if there is one")
    parser.add_argument("--engine", choices=ENGINES, default=ENGINES[0], help="what runs the model")
    parser.add_argument("--graph", type=Path, help="of loupe export, for onnxruntime")
    parser.add_argument("--cluster", help="address of a Ray cluster; default: this machine")
    add_config_options(parser, DEFAULT_CONFIG)


def inputs_of(arguments: argparse.Namespace) -> list[str]:
    """Inputs of the command line and of `--files-from`.

    Raises:
        UsageError: There is none.
    """
    inputs = list(arguments.inputs)
    if arguments.files_from:
        source = arguments.files_from
        if source == "-" and sys.stdin is None:
            raise UsageError("stdin is closed; give --files-from a file")
        # Names may hold any bytes.
        try:
            data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        except OSError as error:
            raise UsageError(
                f"--files-from {source}: cannot be read ({error.strerror or error}); give a file "
                "with a name on each line, or -"
            ) from error
        lines = data.split(b"\0" if b"\0" in data else b"\n")
        names = [line.rstrip(b"\r").decode("utf-8", "surrogateescape") for line in lines]
        inputs += [name for name in names if name]
    if not inputs:
        raise UsageError("there is no INPUT; give images, folders or --files-from")
    if arguments.output is None and not arguments.json:
        raise UsageError("there is no place for results; give --output DIR or --json")
    if (arguments.engine == "onnxruntime") != (arguments.graph is not None):
        raise UsageError("--engine onnxruntime and --graph FILE go together; give both")
    if arguments.output is None and arguments.engine == "ray":
        raise UsageError("--engine ray writes tables into a folder; give --output DIR")
    if arguments.output is None and arguments.resume:
        raise UsageError("--resume goes on in a folder; give --output DIR")
    return inputs


def run(arguments: argparse.Namespace) -> int:
    """Predicts and writes."""
    inputs = inputs_of(arguments)
    if arguments.device:
        arguments.opts = [*arguments.opts, "MODEL.DEVICE", arguments.device]
    cfg = read_config(arguments)
    from loupe.inference import find_images, output_folder
    from loupe.inference.earlier import PREDICTED, check_earlier, parts_beside
    from loupe.inference.engines import Share

    names = find_images(inputs)
    if arguments.output is None:
        with tempfile.TemporaryDirectory() as folder:
            arguments.no_maps = True
            return predict(arguments, make_predictor(arguments, cfg), names, Path(folder))
    if arguments.engine == "ray":
        from loupe.inference.cluster import predict_on_ray

        return predict_on_ray(arguments, cfg, names)
    share = Share.of_environment()
    output = Path(arguments.output)
    own = names if share is None else share.names(names)
    place = output if share is None else share.folder(output)
    together = nullcontext() if share is None else share.together(output, names)
    beside = parts_beside(output, place)
    if not arguments.resume:
        for other in beside:
            check_earlier(other, PREDICTED)
    with (
        together,
        output_folder(place, inputs, results=PREDICTED, resume=arguments.resume) as folder,
    ):
        # One process removes what lies beside the parts of all.
        beside = beside if share is None or share.rank == 0 else []
        return predict(arguments, make_predictor(arguments, cfg), own, folder, beside)


def make_predictor(arguments: argparse.Namespace, cfg: CfgNode) -> LoupePredictor:
    """The predictor, on the engine that was asked for."""
    from loupe.inference import LoupePredictor

    predictor = LoupePredictor(cfg, arguments.weights)
    if arguments.engine == "onnxruntime":
        from loupe.inference.engines import use_graph

        use_graph(predictor, arguments.graph)
    return predictor


def predict(
    arguments: argparse.Namespace,
    predictor: LoupePredictor,
    names: dict[str, str],
    folder: Path,
    beside: Sequence[Path] = (),
) -> int:
    """Predicts what is not done yet.

    Args:
        arguments: Of the command line.
        predictor: On its engine.
        names: Name of each file's results.
        folder: To write to.
        beside: Others of which earlier results are removed, too.

    Returns:
        The exit status.
    """
    from loupe.inference.earlier import PREDICTED, remove_earlier, with_first
    from loupe.inference.journal import Journal, settings_digest
    from loupe.inference.progress import Progress
    from loupe.inference.results import write_predictions

    maps, overlays = not arguments.no_maps, not (arguments.no_maps or arguments.no_overlays)
    writes = [*["maps"] * maps, *["overlays"] * overlays]
    settings = settings_digest(predictor.cfg.dump(), predictor.cfg.MODEL.WEIGHTS, writes)
    progress = Progress(len(names), quiet=arguments.quiet)
    start, failed = time.perf_counter(), 0
    predictions = None
    if not arguments.resume:
        predictions = with_first(predictor.predict_many(list(names), arguments.workers))
        for place in (folder, *beside):
            remove_earlier(place, PREDICTED)

    def told(written: Written) -> None:
        progress.add(is_new=written.is_new)
        if arguments.json:
            print(json.dumps(as_json(written)), flush=True)

    with Journal(folder, settings, resume=arguments.resume) as journal:
        left = [file for file in names if journal.done(file) is None]
        others = journal.others(names)
        if predictions is None:
            predictions = predictor.predict_many(left, arguments.workers)
        done, failed = write_predictions(
            predictions, names, folder, overlays=overlays, maps=maps, journal=journal, told=told
        )
    progress.close()
    seconds = time.perf_counter() - start
    if not arguments.quiet:
        known = f", {len(names) - len(left)} of them before" if arguments.resume else ""
        line = f"{done} images predicted{known} in {seconds:.1f} s, {failed} not readable"
        stream = sys.stderr if arguments.json else sys.stdout
        print(line if arguments.output is None else f"{line}: {folder}", file=stream)
        if others:
            print(f"{others} images of earlier runs are no INPUT: not in the tables", file=stream)
    return 1 if failed else 0


def as_json(written: Written) -> dict[str, Any]:
    """One image of `--json`."""
    row = written.row
    return written.entry() | {
        "reasons": [one for one in row["reasons"].split("; ") if one],
        "views": [one for one in row["views"].split("; ") if one],
        "error": row["error"] or None,
        "warning": row["warning"] or None,
    }


main = partial(run_command, "predict", __doc__, add_arguments, run)
