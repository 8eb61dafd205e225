"""What every request needs, as one pure ASGI layer: id, limits, headers, the access line, the last resort."""

import asyncio
import inspect
import logging
import re
from collections.abc import MutableMapping
from http import HTTPStatus
from time import perf_counter
from typing import Any

import structlog
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, ExceptionHandler, Message, Receive, Scope, Send
from uuid_utils import uuid7

from app.core.config import LogSettings
from app.core.db.query_log import Statements, count_statements
from app.core.errors import (
    AppError,
    InternalError,
    MalformedRequestError,
    NotFoundError,
    PayloadTooLargeError,
    UnavailableError,
)
from app.core.http.etags import join_conditions
from app.core.http.forms import field_names
from app.core.http.problems import problem_response
from app.core.observability.logs import access_log, clean_text
from app.core.observability.metrics import Gauge, Histogram
from app.core.observability.tracing import current_trace_id

_REQUEST_ID = re.compile(rb"[A-Za-z0-9_-]{8,64}")
_SECRETS_IN_URL = frozenset({b"access_token", b"password", b"token"})
_CLIENT_CLOSED_REQUEST = 499
# Answers without content; nothing may describe it (RFC 9110, 8.3, 8.6 and 15.4.5).
_STATUSES_WITHOUT_CONTENT = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.RESET_CONTENT, HTTPStatus.NOT_MODIFIED})
_OURS = frozenset({b"x-request-id"})
_WITHOUT_CONTENT = _OURS | {b"content-type", b"content-length"}

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Whatever may be kept says so itself; forgetting it must not leak an account into a cache.
    "Cache-Control": "no-store",
}
_HSTS = {"Strict-Transport-Security": "max-age=31536000; includeSubDomains"}

# Any word may stand for a method; those nobody knows are one.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_CLASSES = ("", "1xx", "2xx", "3xx", "4xx", "5xx")
_IN_FLIGHT = Gauge("http_requests_in_flight", "Requests that are being answered.")
_DURATION = Histogram(
    "http_request_duration_seconds",
    "How long requests took, to the end of the response.",
    *("method", "route", "status"),
    buckets=(0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
_STATEMENTS = Histogram(
    "http_request_statements", "Statements that a request executed.", "method", "route", buckets=(0, 1, 2, 4, 8, 16, 32)
)
_DATABASE = Histogram(
    "http_request_database_seconds",
    "How long a request waited for its statements.",
    *("method", "route"),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5),
)

log = logging.getLogger(__name__)


class SecretInUrlError(MalformedRequestError):
    """A credential came in the address, where logs and histories keep it."""

    code = "secret_in_url"
    detail = (
        "Secrets do not belong in the address; send them in the body or the Authorization header, and replace this one."
    )


class ShuttingDownError(UnavailableError):
    """This process ends before the request is done."""

    code = "shutting_down"
    detail = "This server is shutting down; try again shortly."


class RequestMiddleware:
    """Wraps the whole application; no request passes it by, and no exception gets past it."""

    def __init__(
        self, app: ASGIApp, *, max_body_size: int, hsts: bool, log_settings: LogSettings | None = None
    ) -> None:
        self._app = app
        self._max_body_size = max_body_size
        self._access_lines = _AccessLines(log_settings or LogSettings())
        # As bytes, as they are sent: Starlette's own way to add a header goes through all of them for each.
        self._headers = [
            (name.lower().encode(), value.encode()) for name, value in (_HEADERS | (_HSTS if hsts else {})).items()
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # A copy: the server goes by its own `method` when it decides whether a body may follow.
        exchange = _Exchange(dict(scope), receive, send, self._max_body_size, self._headers, self._access_lines)
        await exchange.run(self._app)


class _Exchange:
    """One request and its response."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        max_body_size: int,
        headers: list[tuple[bytes, bytes]],
        access_lines: "_AccessLines",
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._max_body_size = max_body_size
        self._headers = headers
        self._access_lines = access_lines
        self._received = 0
        self._status: int | None = None
        self._method: str = scope["method"]
        # The first of each counts.
        request_headers = dict(reversed(scope["headers"]))
        join_conditions(scope, request_headers)
        self._request_id = scope["request_id"] = _request_id(request_headers.get(b"x-request-id"))
        self._content_length: bytes = request_headers.get(b"content-length", b"")

    async def run(self, app: ASGIApp) -> None:
        started = perf_counter()
        _IN_FLIGHT.value += 1
        self._statements = count_statements()
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=self._request_id)
        if "fastapi.telemetry" in self._scope and (trace_id := current_trace_id()):
            self._scope["trace_id"] = trace_id
            structlog.contextvars.bind_contextvars(trace_id=trace_id)
        if self._method == "HEAD":
            # Whatever answers GET answers HEAD; the body is dropped on the way out.
            self._scope["method"] = "GET"
        try:
            self._refuse_early()
            await app(self._scope, self._receive_counted, self._send_completed)
        except ClientDisconnect:
            self._status = self._status or _CLIENT_CLOSED_REQUEST
        except AppError as error:
            await self._fail(error)
        except asyncio.CancelledError:
            # Only the server gives up a request, once its grace at the end is over; what it has done is rolled back by now.
            await self._fail(ShuttingDownError())
        except Exception as error:
            # The one place where a defect becomes an answer. The traceback is in this line and nowhere else.
            log.exception("unhandled error")
            await self._answer_defect(error)
        finally:
            _IN_FLIGHT.value -= 1
            duration, route = perf_counter() - started, _template(self._scope)
            self._measure(duration, route)
            self._access_lines.write(self._scope, self._method, route, self._final_status, duration, self._statements)

    def _refuse_as_told(self) -> None:
        # What the server finds wrong with the form of the request, or with the time it takes.
        if refusal := self._scope.get("state", {}).get("refusal"):
            raise refusal

    def _refuse_early(self) -> None:
        self._refuse_as_told()
        if _is_ambiguous(self._scope):
            raise NotFoundError
        query: bytes = self._scope["query_string"]
        if query and not _SECRETS_IN_URL.isdisjoint(field_names(query)):
            raise SecretInUrlError
        self._refuse_announced(self._max_body_size)

    def _refuse_announced(self, limit: int) -> None:
        if self._content_length.isdigit() and int(self._content_length[:20]) > limit:
            raise _too_large()

    async def _receive_counted(self) -> Message:
        # An operation may set a lower limit before it reads.
        limit: int = min(self._scope.get("max_body_size", self._max_body_size), self._max_body_size)
        self._refuse_announced(limit)
        message = await self._receive()
        self._refuse_as_told()
        if message["type"] == "http.request":
            self._received += len(message.get("body", b""))
            if self._received > limit:
                raise _too_large()
        return message

    async def _send_completed(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = int(message["status"])
            left_out = _WITHOUT_CONTENT if self._status in _STATUSES_WITHOUT_CONTENT else _OURS
            headers = [header for header in message.get("headers", ()) if header[0] not in left_out]
            present = {name for name, _ in headers}
            headers += [header for header in self._headers if header[0] not in present]
            message = {**message, "headers": [*headers, (b"x-request-id", self._request_id.encode())]}
        elif self._method == "HEAD":
            message = {**message, "body": b""}
        await self._send(message)

    async def _fail(self, error: AppError) -> None:
        # Once a response has begun there is nothing to say; returning makes the server close the connection.
        if self._status is None:
            await problem_response(self._scope, error)(self._scope, self._receive, self._send_completed)

    async def _answer_defect(self, error: Exception) -> None:
        # No exception reaches the layer of the framework that calls this handler.
        if handler := _handler_of_defects(self._scope):
            try:
                request = Request(self._scope, self._receive)
                response = await _called(handler, request, error)
                if self._status is None:
                    await response(self._scope, self._receive, self._send_completed)
            except Exception:
                log.exception("the handler of unhandled errors failed")
        await self._fail(InternalError())

    @property
    def _final_status(self) -> int:
        return self._status or _CLIENT_CLOSED_REQUEST

    def _measure(self, duration: float, route: str) -> None:
        method = self._method if self._method in _METHODS else "(other)"
        _DURATION.observe(duration, method, route, _CLASSES[self._final_status // 100])
        _STATEMENTS.observe(self._statements.count, method, route)
        _DATABASE.observe(self._statements.seconds, method, route)


class _AccessLines:
    """One line for each request, but for the many that only ask whether the process is well."""

    def __init__(self, settings: LogSettings) -> None:
        self._slow = settings.slow_request.total_seconds()
        self._sampled = frozenset(settings.sampled_routes)
        self._every = settings.sample_every
        self._asked = dict.fromkeys(self._sampled, 0)

    def write(
        self, scope: Scope, method: str, route: str, status: int, duration: float, statements: Statements
    ) -> None:
        is_slow = duration > self._slow
        if route in self._sampled and status < HTTPStatus.BAD_REQUEST and not is_slow and self._leaves_out(route):
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
        if is_slow:
            facts["slow"] = True
        access_log.write(logging.WARNING if is_slow else logging.INFO, facts)

    def _leaves_out(self, route: str) -> bool:
        # The first of each lot is written: a process that has just begun shows that it is asked.
        place = self._asked[route]
        self._asked[route] = (place + 1) % self._every
        return place != 0


def _request_id(given: bytes | None) -> str:
    return given.decode() if given and _REQUEST_ID.fullmatch(given) else uuid7().hex


def _template(scope: MutableMapping[str, Any]) -> str:
    # The template, never the path: an address may carry what somebody pasted into it.
    context = scope.get("fastapi", {}).get("effective_route_context")
    return getattr(context, "path_format", None) or getattr(scope.get("route"), "path_format", None) or "(none)"


def _is_ambiguous(scope: Scope) -> bool:
    """Tell whether a proxy may read the address as another path than the router, or the path contains NUL.

    Routes match the decoded path, and their patterns also end before a final newline. So an encoded slash or newline would
    bypass the path rules of a proxy. No file and no column takes a NUL. An ASGI server need not send `raw_path`.
    """
    raw: bytes = scope.get("raw_path") or b""
    path: str = scope["path"]
    return "\0" in path or path.endswith("\n") or b"%2f" in raw.lower()


def _handler_of_defects(scope: Scope) -> ExceptionHandler | None:
    # The framework knows it by two keys; what was registered last counts.
    handlers = scope["app"].exception_handlers if "app" in scope else {}
    return next((handlers[key] for key in reversed(handlers) if key in (500, Exception)), None)


async def _called(handler: Any, request: Request, error: Exception) -> Response:
    response: Response = (
        await handler(request, error)
        if inspect.iscoroutinefunction(handler)
        else await run_in_threadpool(handler, request, error)
    )
    return response


def _too_large() -> PayloadTooLargeError:
    # The rest of the body is on its way: the connection cannot be used for anything else.
    return PayloadTooLargeError(headers={"Connection": "close"})
