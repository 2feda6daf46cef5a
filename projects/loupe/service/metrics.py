"""Counters for Prometheus; each service has its own."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """What is counted.

    Args:
        waiting: Gives the number of images that wait.
        ready: Gives the number of workers that are ready.
    """

    def __init__(self, waiting: Callable[[], int], ready: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.requests = Counter(
            "loupe_requests", "Requests by route and status", ["route", "status"],
            registry=self._registry,
        )  # fmt: skip
        self._predictions = Counter(
            "loupe_predictions", "Images by verdict, or failed", ["verdict"],
            registry=self._registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "loupe_prediction_seconds", "Seconds of a worker for an image", buckets=_SECONDS,
            registry=self._registry,
        )  # fmt: skip
        self.lost_workers = Counter(
            "loupe_lost_workers", "Workers that ended or took too long", registry=self._registry
        )
        self.refused = Counter(
            "loupe_refused_uploads", "Uploads refused because the queue was full",
            registry=self._registry,
        )  # fmt: skip
        for name, text, function in (
            ("loupe_queue_length", "Images that wait", waiting),
            ("loupe_ready_workers", "Workers that are ready", ready),
        ):
            Gauge(name, text, registry=self._registry).set_function(function)

    def predicted(self, verdict: str, seconds: float) -> None:
        """Counts an image that left a worker."""
        self._predictions.labels(verdict).inc()
        self._seconds.observe(seconds)

    def text(self) -> bytes:
        """All of them, in the text format."""
        return generate_latest(self._registry)
