"""How much a client may send, and how long it may take."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loupe.service.queue import JobQueue, QueueFullError
from loupe.service.settings import Settings

UPLOADS = "/v1/predictions"
# Room for the boundaries and headers of a multipart body.
_AROUND = 2**14


class BodyLimits:
    """Bounds bodies in bytes and in seconds; refuses uploads early while the queue is full.

    A refused body is read and thrown away as far as it may be long, because a client that is still
    sending would see a broken connection in place of the refusal.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: Settings,
        queue: JobQueue,
        refused: Callable[[], None],
    ) -> None:
        self._app, self._settings, self._queue, self._refused = app, settings, queue, refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        limited = self._limited(receive)
        try:
            announced = Headers(scope=scope).get("content-length", "0")
            if announced.isdigit() and int(announced) > self._most:
                raise self._too_large()
            if scope["method"] == "POST" and scope["path"] == UPLOADS:
                self._queue.check()
        except QueueFullError as error:
            self._refused()
            await _discard(limited)
            await full(error)(scope, receive, send)
        except HTTPException as error:
            await _discard(limited)
            await JSONResponse({"error": error.detail}, error.status_code)(scope, receive, send)
        else:
            await self._app(scope, limited, send)

    @property
    def _most(self) -> int:
        return self._settings.max_bytes + _AROUND

    def _too_large(self) -> HTTPException:
        return HTTPException(
            413, f"an upload has at most {self._settings.max_bytes} bytes; shrink the image"
        )

    def _limited(self, receive: Receive) -> Receive:
        """`receive` that raises once the body is too long or too slow."""
        deadline = time.monotonic() + self._settings.upload_seconds
        total, whole = 0, False

        async def limited() -> Message:
            nonlocal total, whole
            if whole:  # What comes now is the end of the connection, at any time.
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(deadline - time.monotonic(), 0))
            except asyncio.TimeoutError:  # noqa: UP041  Python 3.10 has two of them.
                raise HTTPException(
                    408,
                    f"the body took longer than {self._settings.upload_seconds:g} s; send a "
                    "smaller image, or over a faster connection",
                ) from None
            total += len(message.get("body", b""))
            if total > self._most:
                raise self._too_large()
            whole = not message.get("more_body", False)
            return message

        return limited


async def _discard(limited: Receive) -> None:
    """Reads a body to its end, or to the end of what is allowed."""
    try:
        while (await limited()).get("more_body", False):
            pass
    except HTTPException:
        pass


def full(error: QueueFullError) -> JSONResponse:
    """The response of a full queue."""
    return JSONResponse({"error": str(error)}, 429, {"Retry-After": str(error.retry_after)})
