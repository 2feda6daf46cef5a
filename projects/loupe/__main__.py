"""`loupe COMMAND ...`, also as `python -m loupe COMMAND ...`."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module, metadata

# Name (a module of `loupe.commands`) and what it is for.
COMMANDS = {
    "predict": "say of each image how probable it is that it was forged, and where",
    "report": "predict, and write a page to look at, print and keep",
    "explain": "say what can be measured of an image and of what is marked in it",
    "serve": "serve predictions on HTTP, and a page to look at them",
    "train": "train a model (several processes, resume, --eval-only as in Detectron2)",
    "evaluate": "measure a model on labelled data sets",
    "adapt": "adapt a model to unlabelled images, and predict them",
    "score": "score the saved maps of any detector under every protocol",
    "diagnose": "say why a model's numbers are what they are, and what to do first",
    "robustness": "measure how scores fall as images get worse",
    "doctor": "examine data sets before a model learns their faults",
    "synthesize": "write a data set of synthetic forgeries",
    "visualize": "draw a contact sheet of a data set",
    "submit": "turn predictions into a submission to a challenge",
    "validate": "say what is wrong with a submission",
    "convert": "turn released checkpoints into ours, and back",
    "export": "write the model as a graph that runs without Loupe, and check it",
    "publish": "write a checkpoint to weights/, with its hash",
    "demo": "do all of it on synthetic forgeries, in minutes",
    "info": "versions, the operator and the threads of this installation",
}


def overview() -> str:
    """What `loupe --help` prints."""
    lines = [f"  {name:<12}{text}" for name, text in COMMANDS.items()]
    return (
        "usage: loupe COMMAND [options] INPUT... [KEY VALUE ...]\n\n"
        "Was a photograph forged, and where?\n\ncommands:\n" + "\n".join(lines) + "\n\n"
        "`loupe COMMAND --help` says more. KEY VALUE pairs change the configuration.\n"
        "Exit status: 0 = done, 1 = some images failed, 2 = nothing was done."
    )


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    words = list(sys.argv[1:] if words is None else words)
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    name, *rest = words
    if name == "--version":
        print(f"loupe {metadata.version('loupe')}")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        remedy = f"did you mean {near[0]}?" if near else "see loupe --help"
        print(f"error: there is no command {name!r}; {remedy}", file=sys.stderr)
        return 2
    return import_module(f"loupe.commands.{name}").main(rest)


if __name__ == "__main__":
    sys.exit(main())
