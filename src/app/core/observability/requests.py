"""The metrics and the access line of each request."""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from app.core.config import LogSettings
from app.core.db.query_log import Statements
from app.core.observability.logs import access_log, clean_text
from app.core.observability.metrics import Gauge, Histogram

# A client can send any method. All others share one label, so that it cannot create metrics without limit.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_STATUS_CLASSES = ("", "1xx", "2xx", "3xx", "4xx", "5xx")
IN_FLIGHT = Gauge("http_requests_in_flight", "Requests in progress.")
EVENT_STREAMS = Gauge("http_event_streams", "Event streams in progress. They are not among the requests in progress.")
SOCKETS = Gauge("http_web_sockets", "Open WebSockets. They are not among the requests in progress.")
_DURATION = Histogram(
    "http_request_duration_seconds",
    "Duration of requests until the end of the response; of event streams and WebSockets until its beginning.",
    *("method", "route", "status"),
    buckets=(0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
_STATEMENTS = Histogram(
    "http_request_statements",
    "Number of statements that a request executed.",
    "method",
    "route",
    buckets=(0, 1, 2, 4, 8, 16, 32),
)
_DATABASE = Histogram(
    "http_request_database_seconds",
    "Time that a request waited for its statements.",
    *("method", "route"),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5),
)


def measure(method: str, route: str, status: int, latency: float, statements: Statements) -> None:
    """Record a request in the histograms."""
    known_method = method if method in _METHODS else "(other)"
    _DURATION.observe(latency, known_method, route, _STATUS_CLASSES[status // 100])
    _STATEMENTS.observe(statements.count, known_method, route)
    _DATABASE.observe(statements.seconds, known_method, route)


class RequestLog:
    """Writes one line for each request. Of fast, successful requests to sampled routes (health checks), it writes one in `sample_every`."""

    def __init__(self, settings: LogSettings) -> None:
        self._slow = settings.slow_request.total_seconds()
        self._sampled = frozenset(settings.sampled_routes)
        self._sample_every = settings.sample_every
        self._counts = dict.fromkeys(self._sampled, 0)

    def write(
        self,
        scope: Mapping[str, Any],
        method: str,
        route: str,
        status: int,
        duration: float,
        statements: Statements,
        *,
        latency: float,
        close_code: int | None = None,
    ) -> None:
        is_slow = latency > self._slow
        if route in self._sampled and status < HTTPStatus.BAD_REQUEST and not is_slow and self._skips(route):
            return
        facts: dict[str, Any] = {
            "event": "request",
            "method": method if method in _METHODS else clean_text(method),
            "route": route,
            "status": status,
            "duration_ms": round(duration * 1000, 2),
            "statements": statements.count,
            "database_ms": round(statements.seconds * 1000, 2),
        }
        if "user_id" in scope:
            facts |= {"user_id": str(scope["user_id"]), "session_id": str(scope["session_id"])}
        if close_code is not None:
            facts["close_code"] = close_code
        if is_slow:
            facts["slow"] = True
        access_log.write(logging.WARNING if is_slow else logging.INFO, facts)

    def _skips(self, route: str) -> bool:
        # The first request of each group is logged, so that the log of a new process soon shows that it gets requests.
        count = self._counts[route]
        self._counts[route] = (count + 1) % self._sample_every
        return count != 0
