"""A service on a socket of this machine, with a predictor that needs no network."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")

from loupe.service.app import create_app  # noqa: E402
from loupe.service.connections import limited  # noqa: E402
from loupe.service.running import Device, RunningService  # noqa: E402
from loupe.service.server import listen  # noqa: E402
from loupe.service.settings import Settings  # noqa: E402
from tests.service.predictors import RELEASED, build  # noqa: E402

# On a machine that does much else.
PATIENCE = 300


@contextmanager
def serving(service: RunningService, patience: float = PATIENCE) -> Iterator[str]:
    """The address of a service that runs in a thread."""
    config = uvicorn.Config(
        create_app(service), http=limited(patience), ws="none", log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    listening = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    wait_until(lambda: service.ready_workers > 0)
    try:
        yield address
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(
        store=tmp_path_factory.mktemp("store"), max_bytes=2**20, max_pixels=4_000_000,
        max_seconds=PATIENCE, queue=20, batch=3, stop_seconds=5, upload_seconds=PATIENCE,
    )  # fmt: skip


@pytest.fixture(scope="session")
def service(settings: Settings) -> RunningService:
    return RunningService(settings, [Device("cpu", build)])


@pytest.fixture(scope="session")
def address(service: RunningService) -> Iterator[str]:
    with serving(service) as address:
        yield address


@pytest.fixture(scope="session")
def client(address: str) -> Iterator[httpx.Client]:
    with client_of(address) as client:
        yield client


@pytest.fixture
def release(settings: Settings) -> Iterator[Callable[[], None]]:
    """`release()` lets held images of the shared service end; tests wait until theirs have."""
    released = settings.store / RELEASED
    released.unlink(missing_ok=True)
    yield released.touch
    released.touch()


@pytest.fixture
def new_service(settings: Settings, tmp_path: Path) -> Callable[..., RunningService]:
    """`new_service(build, key=value)`: a service of its own, not started."""

    def new(builder: Callable = build, **changes: object) -> RunningService:
        own = replace(settings, **({"store": tmp_path / "store"} | changes))
        return RunningService(own, [Device("cpu", builder)])

    return new


def client_of(address: str) -> httpx.Client:
    """A client with patience."""
    return httpx.Client(base_url=address, timeout=PATIENCE)


def wait_until(condition: Callable[[], bool]) -> None:
    """Returns once the condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def png(corner: tuple[int, int, int] = (9, 9, 9), height: int = 20, width: int = 30) -> bytes:
    """A PNG with a bright red rectangle, and a pixel that decides what the predictor does."""
    image = np.full((height, width, 3), 9, np.uint8)
    image[5:15, 10:25, 0] = 200
    image[0, 0] = corner
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def upload(content: bytes, name: str = "a.png") -> dict[str, tuple[str, bytes]]:
    return {"file": (name, content)}
