"""What all commands share: one way to read a command line, one shape of error, one exit status.

    loupe COMMAND [options] INPUT... [KEY VALUE ...]

Exit status: 0 = done, 1 = done, but some images failed, 2 = nothing was done; a line
`error: what, value, remedy` on stderr says why. A traceback means a fault of Loupe.

Nothing here imports more than the standard library: `--help` must be quick, so commands import what
they need when they run.
"""

from __future__ import annotations

import argparse
import errno
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from loupe.model_zoo import CONFIGS
from loupe.threads import sleep_while_waiting, use_threads
from loupe.writing import keep_logs_printable, printable

if TYPE_CHECKING:
    from detectron2.config import CfgNode

DEFAULT_CONFIG = CONFIGS / "loupe_tiny.yaml"

INTERRUPTED = 130  # What shells give for SIGINT.
# Keys without a dot are few; the others look like no file that cameras or people name.
_KEY = re.compile(r"OUTPUT_DIR|SEED|CUDNN_BENCHMARK|VIS_PERIOD|[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+")
_FILE_ENDINGS = re.compile(r"\.(JPE?G?|PNG|TIFF?|BMP|WEBP|GIF|P[GP]M|HEI[CF]|AVIF|CSV|JSONL?)$")
# Begins no word of a command line.
_MARK = "\0"
_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)
_FREE_SPACE = "free space and run it again (with --resume, where the command has that)"
# Modules that are installed beside Loupe, and how.
_REMEDIES = {
    "detectron2": "python -m loupe.install_detectron2",
    "torch": "pip install torch torchvision",
    **dict.fromkeys(
        ("fastapi", "uvicorn", "python_multipart", "prometheus_client"),
        "pip install 'loupe[serve]'",
    ),
    **dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "pip install 'loupe[export]'"),
    "ray": "pip install 'loupe[ray]'",
}


class UsageError(ValueError):
    """A command line that cannot be carried out."""


class CommandParser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors have the shape of all others."""

    def error(self, message: str) -> NoReturn:
        """Raises instead of exiting, with the remedy."""
        raise UsageError(f"{message.replace(_MARK, '')}; see {self.prog} --help")


def parse(
    name: str,
    documentation: str,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    words: Sequence[str] | None = None,
) -> argparse.Namespace:
    """Parses the words behind a command's name.

    Args:
        name: Of the command.
        documentation: What `--help` prints before the options.
        add_arguments: Adds the command's arguments to a parser.
        words: Of the command line; by default those of this process.

    Raises:
        UsageError: They cannot be understood.
    """
    parser = CommandParser(
        prog=f"loupe {name}",
        description=documentation,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    marked = _mark_names(list(sys.argv[1:] if words is None else words))
    arguments = parser.parse_intermixed_args(marked)
    for key, value in vars(arguments).items():
        setattr(arguments, key, _unmark(value))
    if isinstance(getattr(arguments, "inputs", None), list) and hasattr(arguments, "opts"):
        # argparse gives all positional words to the first list.
        arguments.inputs, arguments.opts = split_options(arguments.inputs)
        if not arguments.inputs and not getattr(arguments, "files_from", None):
            parser.error("there is no INPUT before KEY VALUE")
    return arguments


def _mark_names(words: list[str]) -> list[str]:
    """Drops `--` and marks the words behind it that begin with a dash.

    argparse itself takes them for options when they stand among other arguments.

    Raises:
        UsageError: One of them is an option.
    """
    if "--" not in words:
        return words
    place = words.index("--")
    names = words[place + 1 :]
    for name in names:
        if name.startswith("--") and not Path(name).exists():
            raise UsageError(
                f"{name} stands behind --, where all words are names; put options before the --"
            )
    marked = [_MARK + name if name.startswith("-") else name for name in names]
    return words[:place] + marked


def _unmark(value: Any) -> Any:
    if isinstance(value, list):
        return [_unmark(one) for one in value]
    if isinstance(value, str | Path) and str(value).startswith(_MARK):
        return type(value)(str(value).removeprefix(_MARK))
    return value


def split_options(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits positional words into inputs and the `KEY VALUE` pairs behind them.

    Example:
        >>> split_options(["DSC_1.JPG", "TEST.IMS_PER_BATCH", "1"])
        (['DSC_1.JPG'], ['TEST.IMS_PER_BATCH', '1'])
    """
    for place, word in enumerate(words):
        if _KEY.fullmatch(word) and not _FILE_ENDINGS.search(word) and not Path(word).exists():
            return list(words[:place]), list(words[place:])
    return list(words), []


def run_command(
    name: str,
    documentation: str,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], int],
    words: Sequence[str] | None = None,
) -> int:
    """Parses and runs a command; a user's mistake becomes one line on stderr.

    Returns:
        The exit status.
    """
    # File names may hold any bytes.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    keep_logs_printable()
    sleep_while_waiting()
    try:
        return run(parse(name, documentation, add_arguments, words))
    except (ValueError, OSError) as error:
        full = isinstance(error, OSError) and error.errno in _DISK_IS_FULL
        return fail(f"{error}; {_FREE_SPACE}" if full else str(error))
    except ModuleNotFoundError as error:
        remedy = _REMEDIES.get(error.name or "")
        if remedy is None:
            raise
        return fail(f"{error.name} is not installed; run {remedy}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def fail(message: str) -> int:
    """Prints an error; returns the exit status for it."""
    print(printable(f"error: {message}"), file=sys.stderr)
    return 2


def add_image_options(
    parser: argparse.ArgumentParser, *, nargs: str = "+", workers: bool = True
) -> None:
    """Adds the images, and what the processes that read and predict them may use and say."""
    parser.add_argument("inputs", nargs=nargs, metavar="INPUT", help="image, folder or pattern")
    if workers:
        parser.add_argument(
            "--workers", type=whole(0), default=1, help="processes that decode (1; 0 = this one)"
        )
    parser.add_argument(
        "--threads", type=whole(0, 4096), default=0, help="0 = as many as suit the machine"
    )
    parser.add_argument("--quiet", action="store_true", help="say nothing but errors")


def add_config_options(
    parser: argparse.ArgumentParser, default: Path | None = None, *, required: bool = False
) -> None:
    """Adds `--config-file`, `--weights` and the `KEY VALUE` pairs, which `read_config` reads."""
    parser.add_argument(
        "--config-file",
        default=None if default is None else str(default),
        required=required,
        help="configuration of the model"
        + ("" if default is None else "; default: the small Loupe that comes with the code"),
    )
    parser.add_argument("--weights", help="checkpoint; default: MODEL.WEIGHTS")
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the `KEY VALUE` pairs that change the configuration, which come last."""
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="changes to the configuration")


def read_config(arguments: argparse.Namespace) -> CfgNode:
    """The configuration that a command line asks for; sets the number of threads, too.

    `arguments.threads`, where a command has it, is the number asked for.

    Raises:
        ValueError: A key or a value is wrong, or the device is not there.
    """
    from loupe.config import load_config

    cfg = load_config(arguments.config_file or "", arguments.opts)
    check_device(cfg.MODEL.DEVICE)
    use_threads(getattr(arguments, "threads", 0))
    return cfg


def check_device(device: str) -> None:
    """Checks that a device is there, before anything is loaded.

    Raises:
        ValueError: PyTorch does not know or find it.
    """
    import torch

    try:
        asked = torch.device(device)
    except RuntimeError:
        raise ValueError(
            f"MODEL.DEVICE is {device}, which PyTorch does not know; give cpu, cuda or cuda:1"
        ) from None
    # It counts none where there is no driver.
    count = torch.cuda.device_count()
    if asked.type == "cuda" and not count:
        raise ValueError(
            f"MODEL.DEVICE is {device}, but PyTorch finds no CUDA device here; "
            "give MODEL.DEVICE cpu"
        )
    if asked.type == "cuda" and (asked.index or 0) >= count:
        raise ValueError(
            f"MODEL.DEVICE is {device}, but PyTorch finds {count} CUDA devices here; count from 0"
        )


def add_challenge_options(parser: argparse.ArgumentParser) -> None:
    """Adds what every command on submissions asks: which challenge, and its images."""
    parser.add_argument(
        "--format",
        type=one_of("loupe.challenge.writers", "FORMATS"),
        required=True,
        help="which challenge: ddl2025 or ddlx2026",
    )
    parser.add_argument("--images", type=Path, required=True, help="the challenge's images")


def one_of(module: str, attribute: str) -> Callable[[str], str]:
    """Type of an option whose value is one of a tuple's names; the tuple is loaded when needed."""

    def check(text: str) -> str:
        known = tuple(getattr(import_module(module), attribute))
        if text not in known:
            raise argparse.ArgumentTypeError(f"{text!r} is unknown; choose from {', '.join(known)}")
        return text

    return check


def some_of(module: str, attribute: str) -> Callable[[str], list[str]]:
    """Type of an option whose value is several names, separated by commas; see `one_of`."""
    check = one_of(module, attribute)
    return lambda text: [check(name) for name in text.split(",") if name]


def whole(smallest: int, largest: int | None = None) -> Callable[[str], int]:
    """Type of an option whose value is a whole number of a range."""
    through = "on" if largest is None else f"to {largest}"

    def check(text: str) -> int:
        # More digits than these are no number of anything.
        number = int(text) if text.isdecimal() and len(text) < 20 else -1
        if number < smallest or (largest is not None and number > largest):
            raise argparse.ArgumentTypeError(
                f"{text!r} is no whole number from {smallest} {through}"
            )
        return number

    return check


def positive(text: str) -> int:
    """Type of an option that counts something, from 1 on."""
    return whole(1)(text)
