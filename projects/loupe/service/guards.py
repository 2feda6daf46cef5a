"""Who may ask: the outermost layer, before anything of a request's body is read.

A service on loopback has no token, but every page that the user's browser shows can send requests
to 127.0.0.1. So requests from pages of other origins are refused (`Origin`, `Sec-Fetch-Site`), and
so are those that call the service by a name that is not its own (DNS rebinding).
"""

from __future__ import annotations

import hmac
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loupe.service.logs import log
from loupe.service.metrics import Metrics
from loupe.service.settings import Settings

API, METRICS, HEALTH = "/v1/", "/metrics", "/v1/health"
# Nothing from another host, no inline script or style, no frame around the page, no form.
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}


class Guard:
    """Refuses strangers, adds the headers of security, counts and logs each request."""

    def __init__(self, app: ASGIApp, *, settings: Settings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            refusal = self._refusal(scope)
            await (refusal or self._app)(scope, receive, send_guarded)
        finally:
            self._note(scope, status, time.perf_counter() - start)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        # The template of the path, since each identifier would become a metric of its own.
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.requests.labels(route, str(status)).inc()
        log(
            "request",
            level="error" if status == 500 else "info",
            method=scope["method"],
            path=scope["path"],
            status=status,
            seconds=round(seconds, 4),
            client=(scope.get("client") or ("",))[0],
        )

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        """The response to a request that goes no further."""
        headers = Headers(scope=scope)
        private = scope["path"].startswith((API, METRICS))
        host = headers.get("host", "")
        if self._settings.hosts and _name(host) not in self._settings.hosts:
            return _refuse(403, f"the service is not called {host!r}; use its own address")
        origin = headers.get("origin")
        foreign = origin is not None and urlsplit(origin).netloc != host
        site = headers.get("sec-fetch-site", "none")
        if foreign or (private and site not in ("same-origin", "none")):
            return _refuse(403, "a page of another origin may not use the service")
        if self._settings.token and private and scope["path"] != HEALTH:
            given = headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {self._settings.token}".encode()):
                response = _refuse(401, "send the token as Authorization: Bearer TOKEN")
                response.headers["WWW-Authenticate"] = "Bearer"
                return response
        return None


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host


def _refuse(status: int, error: str) -> JSONResponse:
    return JSONResponse({"error": error}, status)
