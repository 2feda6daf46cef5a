"""The API: see PATHS of OpenAPI at /openapi.json, and docs/service.md."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, File, HTTPException, Query, Request, Response, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse

from loupe.service.bodies import full
from loupe.service.queue import Job, QueueFullError
from loupe.service.report import report
from loupe.service.running import RefusedError, RunningService
from loupe.service.schemas import Error, Health, Model, Prediction, prediction_of
from loupe.service.store import PICTURES, Record, State

router = APIRouter()

MEDIA = {".png": "image/png", ".jpg": "image/jpeg"}
_REFUSALS = {
    400: "The request is malformed",
    401: "The token is missing or wrong",
    403: "A page of another origin, or another name of the host",
    408: "The body came too slowly",
    413: "Too many bytes or pixels",
    415: "No image of a known format",
    422: "A damaged image, or one that takes too long",
    429: "The queue is full: see Retry-After",
    503: "The service starts or stops",
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Responses for OpenAPI."""
    return {s: {"model": Error, "description": _REFUSALS[s]} for s in (401, 403, *statuses)}


def _missing(what: str = "there is no such prediction") -> dict[int | str, dict[str, Any]]:
    return {404: {"model": Error, "description": what}}


def _text(media: str, what: str) -> dict[int | str, dict[str, Any]]:
    """A 200 that is no JSON. A `response_class` would give refusals its media type, too."""
    return {200: {"content": {media: {"schema": {"type": "string"}}}, "description": what}}


Wait = Annotated[
    float | None,
    Query(ge=0, le=3600, description="Seconds to wait for the end; default: the limit of an image"),
]


def service_of(request: Request) -> RunningService:
    """The service behind a request."""
    return request.app.state.service


@router.post(
    "/v1/predictions",
    status_code=201,
    summary="Predict one image",
    response_model=Prediction,
    responses={
        201: {"description": "The prediction"},
        202: {"model": Prediction, "description": "Accepted; ask again at links.self"},
        **refusals(400, 408, 413, 415, 422, 429, 503),
        500: {"model": Error, "description": "The model or a worker failed on it"},
    },
)
async def create(
    request: Request,
    response: Response,
    file: Annotated[UploadFile, File(description="The image")],
    wait: Wait = None,
) -> Any:
    """Accepts an image and waits for its prediction, or sends 202 when `wait` is over.

    A client that leaves while it waits cancels the prediction.
    """
    service = service_of(request)

    def write(path: Path) -> None:
        with path.open("wb") as target:
            shutil.copyfileobj(file.file, target)

    try:
        job = await run_in_threadpool(service.accept, file.filename or "", write)
    except QueueFullError as error:
        service.metrics.refused.inc()
        return full(error)
    except RefusedError as error:
        return JSONResponse({"error": str(error)}, error.status)
    seconds = service.settings.max_seconds if wait is None else wait
    if seconds and not await _ended(request, job, seconds):
        # Only who waits cancels by leaving.
        await run_in_threadpool(service.cancel, job.id)
    record = await run_in_threadpool(service.store.get, job.id)
    if record is None:
        raise HTTPException(404, "the prediction was removed meanwhile")
    if record.state in (State.FAILED, State.CANCELLED, State.INTERRUPTED):
        return JSONResponse({"error": record.error, "id": record.id}, record.status or 500)
    if record.state is not State.DONE:
        response.status_code = 202
    response.headers["Location"] = f"/v1/predictions/{job.id}"
    return prediction_of(record, service.queue.position(job.id))


async def _ended(request: Request, job: Job, seconds: float) -> bool:
    """Waits for the end of a job, or of the time; False if the client left before both."""
    end = asyncio.ensure_future(asyncio.shield(asyncio.wrap_future(job.ended)))
    left = asyncio.ensure_future(_leaving(request))
    done, _ = await asyncio.wait((end, left), timeout=seconds, return_when="FIRST_COMPLETED")
    for task in (end, left):
        task.cancel()
    return left not in done or end in done


async def _leaving(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@router.get(
    "/v1/predictions/{identifier}",
    summary="How far a prediction is",
    response_model=Prediction,
    responses=refusals(422) | _missing(),
)
async def read(request: Request, identifier: str, wait: Wait = 0.0) -> Prediction:
    """A prediction; waits for its end at most `wait` seconds."""
    service = service_of(request)
    job = service.job(identifier)
    if job is not None and wait:
        await _ended(request, job, wait)
    record = await _record(service, identifier)
    return prediction_of(record, service.queue.position(identifier))


@router.delete(
    "/v1/predictions/{identifier}",
    status_code=204,
    summary="Cancel and remove a prediction",
    responses=refusals(422) | _missing(),
)
async def remove(request: Request, identifier: str) -> Response:
    """Removes a prediction, its image and its pictures; cancels it if it is not done."""
    service = service_of(request)
    await _record(service, identifier)
    await run_in_threadpool(service.cancel, identifier, remove=True)
    return Response(status_code=204)


@router.get(
    "/v1/predictions/{identifier}/report",
    summary="The report of a finished prediction, one HTML file",
    response_class=Response,
    responses=_text("text/html", "The report")
    | refusals(422)
    | _missing("There is no such prediction, or it is not done"),
)
async def read_report(request: Request, identifier: str) -> HTMLResponse:
    """Verdict, pictures, regions, facts, the file's hash and the model. A file to keep."""
    service = service_of(request)
    record = await _finished(service, identifier)
    folder = service.store.folder(identifier)
    text = await run_in_threadpool(report, record, folder, service.model)
    # Never shown as a page of this service: the names and words in it are a client's.
    headers = {"Content-Disposition": f'attachment; filename="loupe_{identifier[:8]}.html"'}
    return HTMLResponse(text, headers=headers)


@router.get(
    "/v1/predictions/{identifier}/{picture}",
    summary="A picture of a finished prediction",
    response_class=FileResponse,
    responses={
        200: {"content": {media: {} for media in MEDIA.values()}, "description": "The picture"},
        **refusals(422),
        **_missing("There is no such prediction, or it is not done"),
    },
)
async def picture(request: Request, identifier: str, picture: str) -> FileResponse:
    """`map.png`, `mask.png`, `preview.jpg` or `preview_map.png`."""
    service = service_of(request)
    await _finished(service, identifier)
    if picture not in PICTURES:
        raise HTTPException(404, f"there is no such picture; there are {', '.join(PICTURES)}")
    path = service.store.folder(identifier) / picture
    return FileResponse(path, media_type=MEDIA[path.suffix])


async def _record(service: RunningService, identifier: str) -> Record:
    record = await run_in_threadpool(service.store.get, identifier)
    if record is None:
        raise HTTPException(404, "there is no such prediction; it may have been removed")
    return record


async def _finished(service: RunningService, identifier: str) -> Record:
    record = await _record(service, identifier)
    if record.state is not State.DONE:
        raise HTTPException(404, f"the prediction is {record.state.value}, so it has no files")
    return record


@router.get(
    "/v1/health",
    summary="Whether images can be predicted",
    response_model=Health,
    responses={503: {"model": Health, "description": "It starts or stops"}},
)
async def health(request: Request, response: Response) -> Health:
    """503 while no worker is ready. Needs no token."""
    service = service_of(request)
    ready = service.ready_workers
    ok = ready > 0 and not service.stopping
    if not ok:
        response.status_code = 503
    return Health(
        status="ok" if ok else "stopping" if service.stopping else "starting",
        waiting=len(service.queue),
        places=service.queue.places,
        ready_workers=ready,
        workers=len(service.supervisors),
    )


@router.get("/v1/model", summary="Which model predicts", responses=refusals())
async def model(request: Request) -> Model:
    """The model, the hash of its weights, versions and limits; empty until a worker is ready."""
    service = service_of(request)
    settings = service.settings
    return Model(
        model=service.model,
        max_bytes=settings.max_bytes,
        max_pixels=settings.max_pixels,
        max_seconds=settings.max_seconds,
        keep_days=settings.keep_days,
    )


@router.get(
    "/metrics",
    summary="Counters for Prometheus",
    response_class=Response,
    responses=_text("text/plain", "The counters") | refusals(),
)
async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    return Response(service_of(request).metrics.text(), media_type="text/plain; version=0.0.4")
