"""Prometheus metrics of one server process."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The metrics and where they are kept."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: Any = {"registry": self.registry}
        self.requests = Counter("mld_requests_total", "Requests", ("method", "route", "status"), **own)
        spent = ("mld_request_seconds", "Time to answer a request", ("method", "route"))
        self.seconds = Histogram(*spent, buckets=_BUCKETS, **own)
        self.received = Counter("mld_received_bytes_total", "Bytes of blobs that arrived", **own)
        self.blobs = Counter("mld_blobs_completed_total", "Blobs completed by this process", **own)
        self.seals = Counter("mld_seals_total", "Ranks sealed through this process", **own)
        self.refused = Counter("mld_wrong_keys_total", "Requests with a wrong or missing key", **own)
        self.uploads_open = Gauge("mld_uploads_open", "Uploads open now", **own)
        self.checks_waiting = Gauge("mld_checks_waiting", "Blobs that wait to be checked", **own)
        self.jobs = Gauge("mld_jobs", "Evaluations by state", ("state",), **own)
        self.free = Gauge("mld_disk_free_bytes", "Free bytes where uploads arrive", **own)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return bytes(generate_latest(self.registry))
