"""The application: routes inside limits inside guards."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from loupe import __version__
from loupe.service import page, routes
from loupe.service.bodies import BodyLimits
from loupe.service.guards import Guard
from loupe.service.running import RunningService


def create_app(service: RunningService) -> FastAPI:
    """The ASGI application of a service, which it starts and stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await run_in_threadpool(service.stop)

    app = FastAPI(
        title="Loupe",
        version=__version__,
        summary="Was a photograph forged, and where?",
        lifespan=lifespan,
        # FastAPI's own pages of documentation load their scripts from another host.
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    app.include_router(routes.router)
    app.include_router(page.router)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(Exception, _fault)
    # The last one added is the first that a request meets.
    app.add_middleware(
        BodyLimits,
        settings=service.settings,
        queue=service.queue,
        refused=service.metrics.refused.inc,
    )
    app.add_middleware(Guard, settings=service.settings, metrics=service.metrics)
    return app


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    told = str(error.detail)
    if told == HTTPStatus(error.status_code).phrase:  # Of the framework, without a remedy.
        allowed = (error.headers or {}).get("Allow")
        remedy = f"send {allowed}" if allowed else "see /docs"
        told = f"{request.method} {request.url.path}: {told}; {remedy}"
    return JSONResponse({"error": told}, error.status_code, error.headers)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    told = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
    no_file = any(one["loc"] == ("body", "file") for one in error.errors())
    remedy = "send the image as the multipart field file" if no_file else "see /docs"
    return JSONResponse({"error": f"{', '.join(told)}; {remedy}"}, 422)


async def _fault(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": "a fault of the service; see its log"}, 500)
