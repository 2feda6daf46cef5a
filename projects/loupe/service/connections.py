"""Connections that do not wait for ever: slow headers and slow readers lose theirs.

uvicorn bounds how long a connection may be idle between two requests, but neither how long a client
takes for its headers nor how long it takes to read a response. Slow bodies are dealt with in
bodies.py.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol


class PatientProtocol(H11Protocol):
    """HTTP/1.1 whose patience ends."""

    # Seconds for the headers of a request, and for reading what was written; set by `limited`.
    patience = 60.0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The headers of the first request must come."""
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        """Headers that began must end."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._relax()
        elif self._deadline is None:
            self._expect()

    def pause_writing(self) -> None:
        """The client has to read."""
        super().pause_writing()
        self._expect()

    def resume_writing(self) -> None:
        """It has read."""
        super().resume_writing()
        self._relax()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        super().connection_lost(exc)
        self._relax()

    def _expect(self) -> None:
        self._relax()
        self._deadline = self.loop.call_later(self.patience, self.transport.abort)

    def _relax(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def limited(seconds: float) -> type[PatientProtocol]:
    """The protocol with a patience of so many seconds."""
    return type("LimitedProtocol", (PatientProtocol,), {"patience": seconds})
