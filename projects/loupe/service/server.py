"""Runs the application in uvicorn, until a signal or a fault ends it."""

from __future__ import annotations

import errno
import logging
import signal
import socket
from collections.abc import Callable, Sequence
from types import FrameType

import uvicorn

from loupe.service.app import create_app
from loupe.service.connections import limited
from loupe.service.logs import EventHandler
from loupe.service.running import Device, RunningService
from loupe.service.settings import Settings


class ServerError(ValueError):
    """A service that cannot be: the reason and the remedy."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ServerError: The address is taken, or is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        option = "--port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
        raise ServerError(
            f"{host}:{port} cannot be used ({error.strerror or error}); give another {option}"
        ) from error
    return listening


class _Server(uvicorn.Server):
    """A server that tells its service of a signal at once, not when all connections are closed."""

    def __init__(self, config: uvicorn.Config, service: RunningService) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM or SIGINT; a second SIGINT ends what waits, too.

        uvicorn's own sends the signal once more after a clean stop, which would become the
        process' exit status.
        """
        self._service.begin_stop()
        self.force_exit = self.force_exit or (self.should_exit and sig == signal.SIGINT)
        self.should_exit = True


def run_server(
    settings: Settings,
    devices: Sequence[Device],
    listening: socket.socket,
    announce: Callable[[], None] = lambda: None,
) -> None:
    """Serves until SIGTERM or SIGINT.

    Args:
        settings: Limits and places.
        devices: One worker for each.
        listening: Where clients connect; closed at the end.
        announce: Called before the first client is served.

    Raises:
        ServerError: A worker cannot be started.
        KeyboardInterrupt: A second SIGINT did not let it finish.
    """
    reasons: list[str] = []

    def give_up(reason: str) -> None:
        reasons.append(reason)
        server.should_exit = True

    service = RunningService(settings, devices, give_up)
    for name in ("uvicorn", "asyncio"):
        logging.getLogger(name).handlers = [EventHandler(logging.WARNING)]
    config = uvicorn.Config(
        create_app(service),
        http=limited(settings.upload_seconds),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=settings.connections,
        timeout_keep_alive=15,
        # Requests that wait end when their images do, at most `stop_seconds` later.
        timeout_graceful_shutdown=max(1, round(settings.stop_seconds)) + 5,
    )
    server = _Server(config, service)
    announce()
    server.run([listening])
    if reasons:
        raise ServerError(reasons[0])
    if server.force_exit:
        raise KeyboardInterrupt
