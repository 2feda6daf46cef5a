"""The API of a service that runs: results, refusals, cancelling, removal."""

from __future__ import annotations

import hashlib
import io
import re
import socket
from collections.abc import Callable

import httpx
import numpy as np
import pytest
from PIL import Image

from loupe.service.running import RunningService
from loupe.service.store import State
from research.reliability.bomb_files import BOMBS
from tests.service.conftest import PATIENCE, png, upload, wait_until
from tests.service.predictors import CRASHES, FAILS, HELD, map_of

POST = "/v1/predictions"
WAIT = {"wait": PATIENCE}


def test_an_image_gets_its_prediction_with_regions_facts_and_pictures(client: httpx.Client):
    answer = client.post(POST, files=upload(png(), "holiday.png"))
    told = answer.json()
    assert (answer.status_code, told["state"], told["file"]) == (201, "done", "holiday.png")
    assert answer.headers["location"] == told["links"]["self"]
    result = told["result"]
    assert (result["verdict"], result["height"], result["width"]) == ("forged", 20, 30)
    assert result["probability"] == pytest.approx(200 / 255)
    assert result["class"] == "tampered"
    assert result["class_probabilities"]["tampered"] == result["probability"]
    (region,) = result["regions"]
    box = [region[side] for side in ("left", "top", "right", "bottom")]
    assert (box, region["pixels"]) == ([10, 5, 25, 15], 150)
    assert [fact["value"] for fact in result["facts"]] == [len(png())]
    image = np.asarray(Image.open(io.BytesIO(png())))
    stored = Image.open(io.BytesIO(client.get(told["links"]["map"]).content))
    assert np.array_equal(np.asarray(stored), np.rint(map_of(image) * 255))
    mask = Image.open(io.BytesIO(client.get(told["links"]["mask"]).content))
    assert np.array_equal(np.asarray(mask) > 0, map_of(image) > 0.5)
    report = client.get(told["links"]["report"])
    assert report.headers["content-disposition"].startswith("attachment")
    assert hashlib.sha256(png()).hexdigest() in report.text
    assert "<td>authentic 0.22, tampered 0.78</td>" in report.text
    assert "&lt;b&gt;no&lt;/b&gt;" in report.text
    assert "<b>" not in report.text
    assert "<script" not in report.text
    assert "script-src 'none'" in report.text
    assert report.text.count('src="data:image/') == 3
    assert result["text"]["warnings"] == ["No sky."]
    assert "The &lt;i&gt;sky&lt;/i&gt; was changed." in report.text
    assert client.get(told["links"]["preview"]).headers["content-type"] == "image/jpeg"


def test_a_client_may_ask_later(client: httpx.Client, release: Callable[[], None]):
    answer = client.post(POST, files=upload(png(HELD)), params={"wait": 0})
    assert answer.status_code == 202
    place = answer.json()["links"]["self"]
    assert client.get(place).json()["state"] in ("queued", "running")
    release()
    assert client.get(place, params=WAIT).json()["state"] == "done"


@pytest.mark.parametrize(
    ("content", "status", "sentence"),
    [
        (b"GIF no, this is text", 415, "no image of a known format"),
        (b"", 422, "the file is empty"),
        (png()[:-40], 422, "damaged"),
        (BOMBS["png_announced"](), 413, "too many pixels (60000 x 60000)"),
        (BOMBS["jpeg_announced"](), 413, "too many pixels"),
        (b"\x89PNG\r\n\x1a\n" + bytes(2**20 + 2**15), 413, "at most 1048576 bytes"),
    ],
    ids=["text", "empty", "truncated", "png bomb", "jpeg bomb", "too many bytes"],
)
def test_what_is_no_image_is_refused_with_the_readers_sentence(
    client: httpx.Client, service: RunningService, content: bytes, status: int, sentence: str
):
    before = set(service.store.files.iterdir())
    answer = client.post(POST, files=upload(content, "odd.png"))
    assert (answer.status_code, sentence in answer.json()["error"]) == (status, True), answer.text
    assert set(service.store.files.iterdir()) == before


def test_damage_that_only_decoding_finds_is_the_clients_fault(client: httpx.Client):
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(stream, "GIF")
    torn = stream.getvalue()[:2000]
    answer = client.post(POST, files=upload(torn, "torn.gif"))
    assert answer.json()["id"]
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("torn.gif: the file is damaged")


def test_a_request_without_a_file_says_what_is_missing(client: httpx.Client):
    answer = client.post(POST, data={"picture": "none"})
    assert (answer.status_code, "body.file" in answer.json()["error"]) == (422, True)
    assert answer.json()["error"].endswith("; send the image as the multipart field file")
    assert client.post(POST, content=b"x").status_code == 422


def test_the_frameworks_own_errors_have_a_remedy(client: httpx.Client):
    answer = client.put(POST)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json()["error"] == "PUT /v1/predictions: Method Not Allowed; send POST"
    answer = client.get("/v2")
    assert answer.status_code == 404
    assert answer.json()["error"] == "GET /v2: Not Found; see /docs"
    answer = client.get(f"{POST}/{'0' * 32}", params={"wait": "long"})
    assert (answer.status_code, "; see /docs" in answer.json()["error"]) == (422, True)


def test_a_worker_that_dies_costs_its_image_alone(
    client: httpx.Client, release: Callable[[], None]
):
    blocker = client.post(POST, files=upload(png(HELD)), params={"wait": 0}).json()
    waiting = [
        client.post(POST, files=upload(png(corner), name), params={"wait": 0}).json()
        for corner, name in (((9, 9, 9), "a.png"), (CRASHES, "b.png"), ((9, 9, 9), "c.png"))
    ]
    release()
    ends = [client.get(one["links"]["self"], params=WAIT).json() for one in [blocker, *waiting]]
    assert [one["state"] for one in ends] == ["done", "done", "failed", "done"]
    assert ends[2]["error"].startswith("b.png: the worker ended on it")
    assert b"loupe_lost_workers_total 2.0" in client.get("/metrics").content


def test_an_image_on_which_the_model_fails_is_no_fault_of_the_client(client: httpx.Client):
    answer = client.post(POST, files=upload(png(FAILS), "wide.png"))
    assert answer.status_code == 500
    assert answer.json()["error"] == "wide.png: the model failed on it (too wide)"


def test_a_client_that_leaves_cancels(
    client: httpx.Client, address: str, service: RunningService, release: Callable[[], None]
):
    def states() -> list[tuple[str]]:
        asked = "SELECT state FROM predictions WHERE file = 'left.png'"
        return service.store._rows.execute(asked).fetchall()

    held = client.post(POST, files=upload(png(HELD)), params={"wait": 0}).json()
    request = client.build_request("POST", POST, files=upload(png(), "left.png"))
    lines = [f"{name}: {value}".encode() for name, value in request.headers.items()]
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as hasty:
        head = b"\r\n".join([f"POST {POST} HTTP/1.1".encode(), *lines])
        hasty.sendall(head + b"\r\n\r\n" + request.read())
        wait_until(lambda: states() != [])
        assert states() == [(State.QUEUED.value,)]
    wait_until(lambda: states() == [(State.CANCELLED.value,)])
    release()
    assert client.get(held["links"]["self"], params=WAIT).json()["state"] == "done"


def test_removal_leaves_nothing(
    client: httpx.Client, service: RunningService, release: Callable[[], None]
):
    running = client.post(POST, files=upload(png(HELD)), params={"wait": 0}).json()
    waiting = client.post(POST, files=upload(png()), params={"wait": 0}).json()
    wait_until(lambda: client.get(running["links"]["self"]).json()["state"] == "running")
    job = service.job(running["id"])
    assert job is not None
    for one in (waiting, running):
        assert client.delete(one["links"]["self"]).status_code == 204
        assert client.get(one["links"]["self"]).status_code == 404
    release()
    job.ended.result(PATIENCE)
    folders = [service.store.folder(one["id"]) for one in (waiting, running)]
    wait_until(lambda: not any(folder.exists() for folder in folders))


@pytest.mark.parametrize(
    "path",
    ["..%2f..%2fpredictions.sqlite", "../predictions.sqlite", "0" * 32, "%00", "upload"],
)
def test_no_path_leads_out_of_a_prediction(client: httpx.Client, path: str):
    known = client.post(POST, files=upload(png(), "../../../../etc/passwd")).json()
    assert known["file"] == "passwd"
    assert client.get(f"{POST}/{path}").status_code in (404, 422)
    assert client.get(f"{POST}/{path}/map.png").status_code in (404, 422)
    assert client.get(f"{known['links']['self']}/{path}").status_code == 404


def test_a_prediction_of_an_authentic_image_has_no_text(client: httpx.Client):
    dark = io.BytesIO()
    Image.new("RGB", (30, 20), (9, 9, 9)).save(dark, "PNG")
    told = client.post(POST, files=upload(dark.getvalue())).json()
    assert (told["result"]["verdict"], told["result"]["text"]) == ("authentic", None)
    report = client.get(told["links"]["report"]).text
    assert "language model" not in report


def test_the_document_says_what_each_response_holds(client: httpx.Client):
    paths = client.get("/openapi.json").json()["paths"]
    one = {
        operation["summary"]: operation for path in paths.values() for operation in path.values()
    }
    for summary, operation in one.items():
        for status, response in operation["responses"].items():
            kinds = set(response.get("content", {}))
            assert status < "400" or kinds == {"application/json"}, (summary, status, kinds)
    whole = {summary: set(one[summary]["responses"]["200"]["content"]) for summary in one
             if "200" in one[summary]["responses"]}  # fmt: skip
    assert whole["Counters for Prometheus"] == {"text/plain"}
    assert whole["The report of a finished prediction, one HTML file"] == {"text/html"}
    assert client.get("/metrics").headers["content-type"].startswith("text/plain")


def test_pages_load_nothing_from_another_host(client: httpx.Client):
    for path in ("/", "/docs"):
        page = client.get(path)
        assert "default-src 'none'" in page.headers["content-security-policy"]
        loaded = re.findall(r'(?:src|href)="([^"#]+)"', page.text)
        assert loaded
        assert [one for one in loaded if not one.startswith("/")] == []
        for one in loaded:
            assert client.get(one).status_code == 200, one
        assert "style=" not in page.text
        assert "<script>" not in page.text


def test_what_is_there_says_so(client: httpx.Client):
    assert client.get("/v1/health").json()["status"] == "ok"
    assert client.get("/v1/model").json()["model"]["weights"] == "red.safetensors"
    client.get("/nowhere")
    counted = client.get("/metrics").text
    assert 'loupe_requests_total{route="/v1/health",status="200"}' in counted
    assert 'loupe_requests_total{route="other",status="404"}' in counted
    assert client.get("/openapi.json").json()["info"]["title"] == "Loupe"
