"""The ASGI middleware of every request: request id, limits, security headers, access log, metrics, and the last exception handler."""

import asyncio
import inspect
import logging
import re
from collections.abc import Callable, MutableMapping
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
from app.core.db.query_log import count_statements
from app.core.errors import (
    AppError,
    InternalError,
    MalformedRequestError,
    NotFoundError,
    PayloadTooLargeError,
    UnavailableError,
)
from app.core.http.etags import join_conditions
from app.core.http.problems import largest_body_limit, problem_response
from app.core.http.requests.forms import field_names
from app.core.observability.requests import EVENT_STREAMS, IN_FLIGHT, RequestLog, measure
from app.core.observability.tracing import current_trace_id

_REQUEST_ID = re.compile(rb"[A-Za-z0-9_-]{8,64}")
_SECRETS_IN_URL = frozenset({b"access_token", b"password", b"token"})
_CLIENT_CLOSED_REQUEST = 499
# Responses without content. They must not have headers that describe content (RFC 9110, 8.3, 8.6 and 15.4.5).
_STATUSES_WITHOUT_CONTENT = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.RESET_CONTENT, HTTPStatus.NOT_MODIFIED})
_REPLACED_HEADERS = frozenset({b"x-request-id"})
_REPLACED_OR_CONTENT_HEADERS = _REPLACED_HEADERS | {b"content-type", b"content-length"}

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    # A cacheable response sets its own header. The default must not let a cache store account data.
    "Cache-Control": "no-store",
}
# Sent with event streams. FastAPI sets `no-cache`, which allows caches to store the events.
_STREAM_HEADERS = [(b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]
_REPLACED_IN_STREAMS = frozenset({b"cache-control", b"x-accel-buffering"})
_HSTS = {"Strict-Transport-Security": "max-age=31536000; includeSubDomains"}

log = logging.getLogger(__name__)

type _Header = tuple[bytes, bytes]


class SecretInUrlError(MalformedRequestError):
    """The URL contains a credential. Logs and browser histories store URLs."""

    code = "secret_in_url"
    detail = "The URL contains a secret. Send secrets in the body or the Authorization header, and replace this one: it may be in logs."


class ShuttingDownError(UnavailableError):
    """The process stops before the request is complete."""

    code = "shutting_down"
    detail = "This server is shutting down. Try again shortly."


class RequestMiddleware:
    """Wraps the whole application: it sees every request, and no exception leaves it."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body_size: int,
        hsts: bool,
        log_settings: LogSettings | None = None,
        others: Callable[[ASGIApp], ASGIApp] = lambda app: app,
    ) -> None:
        self._app = app
        # For the scopes that are not HTTP: WebSockets, and the lifespan.
        self._others = others(app)
        self._max_body_size = max_body_size
        self._request_log = RequestLog(log_settings or LogSettings())
        self._headers = default_headers(hsts=hsts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._others(scope, receive, send)
            return
        # A copy: the server reads `method` from its own scope to decide whether the response has a body.
        exchange = _Exchange(dict(scope), receive, send, self._max_body_size, self._headers, self._request_log)
        await exchange.run(self._app)


def default_headers(*, hsts: bool) -> list[_Header]:
    """Return the headers of every response that does not set its own, as bytes: `MutableHeaders` searches all for each one."""
    return [(name.lower().encode(), value.encode()) for name, value in (_HEADERS | (_HSTS if hsts else {})).items()]


class _Exchange:
    """One request and its response."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        max_body_size: int,
        headers: list[tuple[bytes, bytes]],
        request_log: RequestLog,
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._max_body_size = max_body_size
        self._headers = headers
        self._request_log = request_log
        self._received = 0
        self._status: int | None = None
        # For an event stream, the seconds until its beginning. It may last for hours, which says nothing about its speed.
        self._latency: float | None = None
        self._method: str = scope["method"]
        # The first header of each name is used.
        request_headers = dict(reversed(scope["headers"]))
        join_conditions(scope, request_headers)
        # An operation may set another limit before it reads the body.
        scope["max_body_size"] = max_body_size
        self._request_id = scope["request_id"] = choose_request_id(request_headers.get(b"x-request-id"))
        self._content_length: bytes = request_headers.get(b"content-length", b"")

    async def run(self, app: ASGIApp) -> None:
        self._started = perf_counter()
        IN_FLIGHT.value += 1
        self._statements = count_statements()
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=self._request_id)
        if "fastapi.telemetry" in self._scope and (trace_id := current_trace_id()):
            self._scope["trace_id"] = trace_id
            structlog.contextvars.bind_contextvars(trace_id=trace_id)
        if self._method == "HEAD":
            # Every GET operation also serves HEAD. `_send_with_headers` removes the body.
            self._scope["method"] = "GET"
        try:
            self._refuse_early()
            await app(self._scope, self._receive_limited, self._send_with_headers)
        except AppError as error:
            await self._fail(error)
        except asyncio.CancelledError:
            # The server cancels requests that are still running after the shutdown grace period. Their transaction is rolled back.
            await self._fail(ShuttingDownError())
        except Exception as error:
            if _is_disconnect(error):
                self._status = self._final_status
            else:
                # Every unexpected exception ends here. Its traceback is logged here and nowhere else.
                log.exception("unhandled error")
                await self._fail_unexpectedly(error)
        finally:
            self._end()

    def _end(self) -> None:
        duration, route = perf_counter() - self._started, route_template(self._scope)
        if self._latency is None:
            IN_FLIGHT.value -= 1
        else:
            EVENT_STREAMS.value -= 1
        latency = duration if self._latency is None else self._latency
        measure(self._method, route, self._final_status, latency, self._statements)
        self._request_log.write(
            self._scope, self._method, route, self._final_status, duration, self._statements, latency=latency
        )

    def _raise_refusal(self) -> None:
        # The server sets `refusal` for a malformed request, and for one that takes too long.
        if refusal := self._scope.get("state", {}).get("refusal"):
            raise refusal

    def _refuse_early(self) -> None:
        self._raise_refusal()
        if self._scope.get("is_preflight"):
            # The request itself is refused. If its preflight were, a page could not read why.
            return
        if is_ambiguous(self._scope):
            raise NotFoundError
        refuse_secrets_in_url(self._scope)
        if self._is_longer_than(self._max_body_size):
            self._check_content_length(max(self._max_body_size, largest_body_limit(self._scope)))

    def _is_longer_than(self, limit: int) -> bool:
        return self._content_length.isdigit() and int(self._content_length[:20]) > limit

    def _check_content_length(self, limit: int) -> None:
        if self._is_longer_than(limit):
            raise _too_large()

    async def _receive_limited(self) -> Message:
        limit: int = self._scope["max_body_size"]
        self._check_content_length(limit)
        message = await self._receive()
        self._raise_refusal()
        if message["type"] == "http.request":
            self._received += len(message.get("body", b""))
            if self._received > limit:
                raise _too_large()
        return message

    async def _send_with_headers(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = int(message["status"])
            has_content = self._status not in _STATUSES_WITHOUT_CONTENT
            removed = _REPLACED_HEADERS if has_content else _REPLACED_OR_CONTENT_HEADERS
            headers = [header for header in message.get("headers", ()) if header[0] not in removed]
            if _is_event_stream(headers):
                headers = self._begin_stream(headers)
            present = {name for name, _ in headers}
            headers += [header for header in self._headers if header[0] not in present]
            message = {**message, "headers": [*headers, (b"x-request-id", self._request_id.encode())]}
        elif self._method == "HEAD":
            message = {**message, "body": b""}
        await self._send(message)
        if self._method == "HEAD" and self._latency is not None:
            # The stream has no end, but the response to HEAD has no body.
            await self._send({"type": "http.response.body"})
            raise ClientDisconnect

    def _begin_stream(self, headers: list[_Header]) -> list[_Header]:
        IN_FLIGHT.value -= 1
        EVENT_STREAMS.value += 1
        self._latency = perf_counter() - self._started
        return [*(header for header in headers if header[0] not in _REPLACED_IN_STREAMS), *_STREAM_HEADERS]

    async def _fail(self, error: AppError) -> None:
        # A response that has started cannot be replaced. The server notices that it is incomplete, and closes the connection.
        if self._status is None:
            await problem_response(self._scope, error)(self._scope, self._receive, self._send_with_headers)

    async def _fail_unexpectedly(self, error: Exception) -> None:
        # Starlette's `ServerErrorMiddleware` would call the handler, but it wraps this middleware and sees no exception.
        if handler := _server_error_handler(self._scope):
            try:
                request = Request(self._scope, self._receive)
                response = await _call(handler, request, error)
                if self._status is None:
                    await response(self._scope, self._receive, self._send_with_headers)
            except Exception:
                log.exception("the handler of unhandled errors failed")
        await self._fail(InternalError())

    @property
    def _final_status(self) -> int:
        return self._status or _CLIENT_CLOSED_REQUEST


def refuse_secrets_in_url(scope: Scope) -> None:
    """Raise an error if the query contains a credential."""
    query: bytes = scope["query_string"]
    if query and not _SECRETS_IN_URL.isdisjoint(field_names(query)):
        raise SecretInUrlError


def choose_request_id(given: bytes | None) -> str:
    """Return the id that the client has sent, if it has the form of one, or a new id."""
    return given.decode() if given and _REQUEST_ID.fullmatch(given) else uuid7().hex


def route_template(scope: MutableMapping[str, Any]) -> str:
    """Return the path of the route for logs and metrics."""
    # The template, never the path: a client may have pasted a secret into the path.
    context = scope.get("fastapi", {}).get("effective_route_context")
    return getattr(context, "path_format", None) or getattr(scope.get("route"), "path_format", None) or "(none)"


def _is_event_stream(headers: list[_Header]) -> bool:
    # A loop: this runs for every response, and a generator costs four calls.
    for name, value in headers:
        if name == b"content-type":
            return value.startswith(b"text/event-stream")
    return False


def _is_disconnect(error: Exception) -> bool:
    # FastAPI runs the generator of an event stream in a task group, which wraps the error of the response.
    if isinstance(error, ExceptionGroup):
        return all(map(_is_disconnect, error.exceptions))
    return isinstance(error, ClientDisconnect)


def is_ambiguous(scope: Scope) -> bool:
    """Return whether a proxy may see a different path than the router, or the path contains NUL.

    Routes match the decoded path, and their patterns also match before a final newline. So an encoded slash or newline could
    bypass path rules of a proxy. Files and columns cannot contain NUL. `raw_path` is optional in ASGI.
    """
    raw: bytes = scope.get("raw_path") or b""
    path: str = scope["path"]
    return "\0" in path or path.endswith("\n") or b"%2f" in raw.lower()


def _server_error_handler(scope: Scope) -> ExceptionHandler | None:
    # An application can register it under two keys: 500 and `Exception`. The last registration counts.
    handlers = scope["app"].exception_handlers if "app" in scope else {}
    return next((handlers[key] for key in reversed(handlers) if key in (500, Exception)), None)


async def _call(handler: Any, request: Request, error: Exception) -> Response:
    response: Response = (
        await handler(request, error)
        if inspect.iscoroutinefunction(handler)
        else await run_in_threadpool(handler, request, error)
    )
    return response


def _too_large() -> PayloadTooLargeError:
    # The client is still sending the rest of the body, so the connection cannot be reused.
    return PayloadTooLargeError(headers={"Connection": "close"})
