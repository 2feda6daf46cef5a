"""Who may ask, how much and how slowly."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from loupe.service.running import Device, RunningService
from loupe.service.settings import Settings
from tests.service.conftest import PATIENCE, client_of, png, serving, upload
from tests.service.predictors import HELD, RELEASED, SLOW, build

POST = "/v1/predictions"
# Seconds after which an impatient service ends what is slow.
SHORT = 3.0


@pytest.fixture(scope="module")
def impatient(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service that waits for no client."""
    own = replace(settings, store=tmp_path_factory.mktemp("impatient"), upload_seconds=SHORT)
    with serving(RunningService(own, [Device("cpu", build)]), SHORT) as address:
        yield address


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https:" + "//elsewhere.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Host": "rebound.example"},
    ],
    ids=lambda headers: next(iter(headers)),
)
def test_pages_of_other_origins_are_refused(client: httpx.Client, headers: dict[str, str]):
    assert client.post(POST, files=upload(png()), headers=headers).status_code == 403
    assert client.get("/v1/model", headers=headers).status_code == 403


def test_the_services_own_page_is_not_refused(client: httpx.Client, address: str):
    headers = {"Origin": address, "Sec-Fetch-Site": "same-origin"}
    assert client.post(POST, files=upload(png()), headers=headers).status_code == 201


def test_a_token_is_asked_of_everything_but_the_page_and_its_health(
    new_service: Callable[..., RunningService],
):
    service = new_service(token="secret", hosts=())
    with serving(service) as address, client_of(address) as client:
        for path in ("/v1/model", "/metrics", f"{POST}/{'0' * 32}"):
            assert client.get(path).status_code == 401, path
            wrong = client.get(path, headers={"Authorization": "Bearer secrét".encode()})
            assert wrong.status_code == 401
        assert client.post(POST, files=upload(png())).status_code == 401
        assert {client.get(path).status_code for path in ("/", "/v1/health")} == {200}
        client.headers["Authorization"] = "Bearer secret"
        assert client.post(POST, files=upload(png())).status_code == 201


def test_a_full_queue_says_when_to_come_back(
    new_service: Callable[..., RunningService], tmp_path: Path
):
    service = new_service(queue=2, batch=1)
    with serving(service) as address, client_of(address) as client:
        answers = [client.post(POST, files=upload(png(HELD)), params={"wait": 0}) for _ in range(6)]
        assert {answer.status_code for answer in answers} == {202, 429}
        refused = [answer for answer in answers if answer.status_code == 429]
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        accepted = [answer.json()["links"]["self"] for answer in answers if answer not in refused]
        (tmp_path / "store" / RELEASED).touch()
        ends = [client.get(place, params={"wait": PATIENCE}).json()["state"] for place in accepted]
        assert set(ends) == {"done"}
        assert client.post(POST, files=upload(png())).status_code == 201


@pytest.mark.parametrize(
    ("begin", "says"),
    [
        (b"GET /v1/health HT", b""),
        (
            b"POST /v1/predictions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n",
            b"408",
        ),
    ],
    ids=["headers", "body"],
)
def test_slow_clients_lose_their_connection(impatient: str, begin: bytes, says: bytes):
    host, port = impatient.removeprefix("http://").split(":")
    start = time.monotonic()
    with socket.create_connection((host, int(port)), timeout=2 * PATIENCE) as slow:
        slow.sendall(begin)
        answer = b""
        try:
            while part := slow.recv(4096):
                answer += part
        except ConnectionResetError:
            pass
    assert says in answer.split(b"\r\n")[0]
    # Not sooner than it has to, and not as late as the shared service would.
    assert 0.5 * SHORT < time.monotonic() - start < PATIENCE


def keep_sending(connection: socket.socket, content: bytes) -> None:
    """As much as fits; the server stops reading once its own responses are not read."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            connection.send(content)
        except BlockingIOError:
            time.sleep(0.1)


def test_who_does_not_read_the_responses_loses_the_connection(impatient: str):
    asked = b"GET /page.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
    host, port = impatient.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as deaf:
        deaf.setblocking(False)
        with pytest.raises(ConnectionError):
            keep_sending(deaf, 1000 * asked)
    with client_of(impatient) as client:
        assert client.get("/v1/health").status_code == 200


def test_a_quick_client_keeps_its_connection(impatient: str):
    with client_of(impatient) as client:
        client.get("/v1/health")
        time.sleep(1.2 * SHORT)
        assert client.post(POST, files=upload(png(SLOW))).status_code == 201
