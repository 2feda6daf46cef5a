"""Serves predictions on HTTP, and a page to look at them.

    loupe serve
    loupe serve --port 8000 --store predictions --keep-days 30
    loupe serve --host 0.0.0.0 --token SECRET

Then open http://127.0.0.1:8000, or send images:

    curl -F file=@photograph.jpg http://127.0.0.1:8000/v1/predictions

Nothing leaves this machine. Only programs on it can reach the service, unless --host says so; then
everything but the page and its health needs the token (also LOUPE_TOKEN; drawn at random and
printed if none is given).
--write adds a text by a language model to each prediction, as `loupe explain --write` does (5
seconds of a core each). docs/service.md has the API, the limits, and how to put it behind a reverse
proxy. SIGTERM and Ctrl-C let it finish what was accepted; a second Ctrl-C does not.

Exit status: 0 = told to stop, 2 = nothing was done, or a fault ended it, 130 = a second Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import secrets
import tempfile
from functools import partial
from pathlib import Path

from loupe.commands.command_line import (
    DEFAULT_CONFIG,
    UsageError,
    add_config_options,
    check_device,
    positive,
    run_command,
    whole,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--host", default="127.0.0.1", help="address (127.0.0.1)")
    parser.add_argument(
        "--port", type=whole(0, 65535), default=8000, help="port (8000; 0 = a free one)"
    )
    parser.add_argument("--token", help="what clients must send as Authorization: Bearer TOKEN")
    parser.add_argument(
        "--name", action="append", default=[], help="another name of the host, as behind a proxy"
    )
    parser.add_argument("--store", type=Path, help="folder of the results (a temporary one)")
    parser.add_argument(
        "--keep-days", type=float, default=0.0, help="remove results after so many days (0 = never)"
    )
    parser.add_argument(
        "--device", action="append", default=[], help="one worker for each; default: MODEL.DEVICE"
    )
    parser.add_argument("--queue", type=positive, default=32, help="images that may wait (32)")
    parser.add_argument("--batch", type=positive, default=4, help="images sent to a worker (4)")
    parser.add_argument("--max-megabytes", type=positive, default=64, help="of one upload (64)")
    parser.add_argument("--max-megapixels", type=positive, default=60, help="of one image (60)")
    parser.add_argument("--max-seconds", type=positive, default=120, help="for one image (120)")
    parser.add_argument("--stop-seconds", type=positive, default=30, help="to finish in (30)")
    parser.add_argument("--write", action="store_true", help="also a text by a language model")
    parser.add_argument(
        "--explainer", metavar="FILE", help="its configuration; default: the small explainer"
    )
    add_config_options(parser, DEFAULT_CONFIG)


def run(arguments: argparse.Namespace) -> int:
    """Serves until it is told to stop."""
    from loupe.model_zoo import CONFIGS
    from loupe.service.model import ModelBuild
    from loupe.service.running import Device
    from loupe.service.server import listen, run_server
    from loupe.service.settings import LOOPBACK_NAMES, Settings, is_loopback

    if not 0 <= arguments.keep_days < float("inf"):
        raise UsageError(f"--keep-days is {arguments.keep_days}; give a number from 0 on")
    for device in arguments.device or []:
        check_device(device)
    local = is_loopback(arguments.host)
    token = arguments.token or os.environ.get("LOUPE_TOKEN", "")
    if not token and not local:
        token = secrets.token_urlsafe(24)
    settings = Settings(
        store=arguments.store or Path(tempfile.mkdtemp(prefix="loupe-")),
        token=token,
        # A token protects by itself; without one the name has to be the service's own.
        hosts=() if token else (*LOOPBACK_NAMES, arguments.host, *arguments.name),
        max_bytes=arguments.max_megabytes * 2**20,
        max_pixels=arguments.max_megapixels * 10**6,
        max_seconds=arguments.max_seconds,
        queue=arguments.queue,
        batch=arguments.batch,
        keep_days=arguments.keep_days,
        stop_seconds=arguments.stop_seconds,
    )
    options = tuple(arguments.opts)
    writes = arguments.write or arguments.explainer
    explainer = arguments.explainer or str(CONFIGS / "explain_tiny.yaml") if writes else None
    devices = [
        Device(
            name,
            ModelBuild(arguments.config_file, arguments.weights, (*options, *device), explainer),
        )
        for name in arguments.device or [""]
        for device in [("MODEL.DEVICE", name) if name else ()]
    ]
    listening = listen(arguments.host, arguments.port)
    port = listening.getsockname()[1]
    shown = f"[{arguments.host}]" if ":" in arguments.host else arguments.host

    def announce() -> None:
        fragment = f"/#token={token}" if token and not arguments.token else ""
        print(f"http://{shown}:{port}{fragment} (results in {settings.store})", flush=True)

    run_server(settings, devices, listening, announce)
    return 0


main = partial(run_command, "serve", __doc__, add_arguments, run)
