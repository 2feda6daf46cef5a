"""What outlives a service, and how it stops."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from loupe.commands import serve
from loupe.service.queue import Job, JobQueue, QueueFullError
from loupe.service.running import RunningService
from loupe.service.store import State, Store, StoreError
from tests.service.conftest import PATIENCE, client_of, png, serving, upload, wait_until
from tests.service.predictors import HANGS, HELD, SLOW, build_that_fails

POST = "/v1/predictions"
ROOT = Path(__file__).parents[2]
SERVE = """
import sys
from pathlib import Path
from loupe.commands.command_line import run_command
from loupe.service.running import Device
from loupe.service.server import listen, run_server
from loupe.service.settings import Settings
from tests.service.predictors import build

def run(arguments):
    listening = listen("127.0.0.1", 0)
    port = listening.getsockname()[1]
    devices = [Device("cpu", build)]
    run_server(Settings(Path(sys.argv[1])), devices, listening, lambda: print(port, flush=True))
    return 0

if __name__ == "__main__":
    sys.exit(run_command("serve", "", lambda parser: None, run, []))
"""


def test_a_restart_keeps_what_is_finished_and_marks_the_rest(tmp_path: Path):
    store = Store(tmp_path)
    for identifier in ("a" * 32, "b" * 32, "c" * 32):
        store.folder(identifier).mkdir()
        (store.folder(identifier) / ".unfinished-x").touch()
        store.add(identifier, "x.png")
    store.start(["a" * 32, "b" * 32])
    store.finish("a" * 32, {"probability": 0.5})
    (store.files / ("d" * 32)).mkdir()  # Its row was not added before the end came.
    store.close()
    store = Store(tmp_path)
    assert store.recover() == 2
    states = [store.get(one * 32).state for one in "abc"]
    assert states == [State.DONE, State.INTERRUPTED, State.INTERRUPTED]
    assert store.get("a" * 32).result == {"probability": 0.5}
    assert "send it again" in store.get("b" * 32).error
    assert not (store.files / ("d" * 32)).exists()
    assert list(store.files.glob("*/.unfinished-*")) == []
    assert store.expire(1.0) == 0
    assert store.expire(0.0) == 3
    assert list(store.files.iterdir()) == []


def test_two_services_do_not_share_a_folder(tmp_path: Path):
    store = Store(tmp_path)
    with pytest.raises(StoreError, match="another service uses it"):
        Store(tmp_path)
    store.close()
    Store(tmp_path).close()


def test_stopping_finishes_what_runs_and_hands_back_what_waits(
    new_service: Callable[..., RunningService], tmp_path: Path
):
    service = new_service(stop_seconds=10, batch=1)
    with serving(service) as address, client_of(address) as client:
        told = [
            client.post(POST, files=upload(png(corner)), params={"wait": 0}).json()
            for corner in (SLOW, HELD, SLOW)
        ]
        assert client.get(told[2]["links"]["self"]).json()["state"] == "queued"
    store = Store(tmp_path / "store")
    states = [store.get(one["id"]).state for one in told]
    assert states == [State.DONE, State.INTERRUPTED, State.INTERRUPTED]
    store.close()


def test_a_clean_stop_ends_with_status_0(tmp_path: Path):
    runs = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        words = [sys.executable, "-W", "ignore", "-c", SERVE, str(tmp_path / number.name)]
        with (tmp_path / f"{number.name}.log").open("w") as log:
            runs[number] = subprocess.Popen(
                words, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT
            )
    try:
        for number, process in runs.items():
            with client_of(f"http://127.0.0.1:{int(process.stdout.readline())}") as client:
                wait_until(lambda client=client: is_ready(client))
            process.send_signal(number)
            assert process.wait(PATIENCE) == 0
            last = (tmp_path / f"{number.name}.log").read_text().splitlines()[-1]
            assert '"service stops"' in last
    finally:
        for process in runs.values():
            process.kill()
            process.communicate()


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/v1/health").status_code == 200
    except httpx.ConnectError:  # It is announced a little before it listens.
        return False


def test_an_image_that_takes_too_long_ends_with_a_sentence(
    new_service: Callable[..., RunningService],
):
    service = new_service(max_seconds=1.0)
    with serving(service) as address, client_of(address) as client:
        answer = client.post(POST, files=upload(png(HANGS), "slow.png"), params={"wait": PATIENCE})
        assert answer.status_code == 422
        assert answer.json()["error"] == "slow.png: it took longer than 1 s; shrink it"


def test_a_worker_that_cannot_start_gives_its_reason(new_service: Callable[..., RunningService]):
    reasons: list[str] = []
    service = new_service(build_that_fails)
    service.supervisors[0]._give_up = reasons.append
    service.start()
    wait_until(lambda: bool(reasons))
    service.stop()
    assert reasons == ["ValueError: no weights: give a checkpoint, or set MODEL.WEIGHTS"]


def test_a_worker_that_starts_too_slowly_is_given_up(
    new_service: Callable[..., RunningService], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("loupe.service.supervisor._START_SECONDS", 0.0)
    reasons: list[str] = []
    service = new_service()
    service.supervisors[0]._give_up = reasons.append
    service.start()
    wait_until(lambda: bool(reasons))
    service.stop()
    assert reasons == ["the worker of cpu did not start in 3 attempts"]


def test_a_queue_is_bounded_and_in_order(tmp_path: Path):
    queue = JobQueue(3)
    jobs = [Job(str(number), "x", tmp_path) for number in range(4)]
    for job in jobs[:3]:
        queue.put(job)
    with pytest.raises(QueueFullError):
        queue.put(jobs[3])
    assert queue.position("2") == 2
    assert queue.cancel("1") is jobs[1]
    jobs[2].suspect = True
    assert queue.take(5, 0) == [jobs[0]]
    queue.put(jobs[3])
    assert queue.take(5, 0) == [jobs[2]]
    queue.put_back([jobs[0]])
    assert queue.take(5, 0) == [jobs[0], jobs[3]]


def test_a_taken_port_is_an_error_with_a_remedy(capsys, address: str, tmp_path: Path):
    port = address.rpartition(":")[2]
    assert serve.main(["--port", port, "--store", str(tmp_path)]) == 2
    assert "give another --port" in capsys.readouterr().err
    shutil.rmtree(tmp_path)
