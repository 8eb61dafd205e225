"""The ASGI middleware of every WebSocket: what `RequestMiddleware` does for HTTP, and the ends that the server decides.

It refuses a handshake with an HTTP response, never with a socket that it accepts and closes. An `AppError` after the accept closes the
socket, with a code that follows from its status.
"""

import asyncio
import logging
from collections.abc import Collection
from http import HTTPStatus
from time import perf_counter

import structlog
from starlette.routing import WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect, WebSocketDisconnected

from app.core.config import LogSettings
from app.core.db.query_log import count_statements
from app.core.errors import (
    AppError,
    ForbiddenError,
    InternalError,
    NotFoundError,
    PayloadTooLargeError,
    UnavailableError,
)
from app.core.http.browsers.cors import OriginRefusedError
from app.core.http.middleware import (
    ShuttingDownError,
    choose_request_id,
    default_headers,
    is_ambiguous,
    refuse_secrets_in_url,
    route_template,
)
from app.core.http.problems import problem_response, routes_at
from app.core.http.sockets.close_codes import APPLICATION, INTERNAL, LOST, NORMAL, close_code, code_in, code_of_status
from app.core.observability.requests import IN_FLIGHT, SOCKETS, RequestLog, measure
from app.core.observability.tracing import current_trace_id

# The subprotocol that the server selects, and after which the client offers its ticket (RFC 6455, 1.9). A URL would get into logs.
TICKET = "ticket"
# Seconds that an endpoint gets to finish its current message after the server has closed the socket. Then it is cancelled.
FINISH_TIME = 5.0

_MAX_REASON = 123
_EXCHANGE, _CREDENTIAL = "socket_exchange", "socket_ticket"
_DENIAL = "websocket.http.response"

log = logging.getLogger(__name__)


class TooManySocketsError(UnavailableError):
    """The process has reached its limit of WebSockets."""

    code = "too_many_sockets"
    detail = "This server has reached its limit of WebSockets. Try again shortly."


class SocketClosedError(OSError):
    """The endpoint sends to a socket that is closed. Starlette turns an `OSError` into `WebSocketDisconnect`."""


def ticket_of(scope: Scope) -> str:
    """Return the ticket of a handshake, or an empty text."""
    ticket: str = scope.get(_CREDENTIAL, "")
    return ticket


def end_socket(scope: Scope, error: AppError) -> None:
    """Refuse the handshake with this error, or close the socket for it. Only the first call counts."""
    exchange: _SocketExchange = scope[_EXCHANGE]
    exchange.end(error)


class SocketMiddleware:
    """Handles WebSockets, and passes on everything else."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        origins: Collection[str],
        max_sockets: int,
        max_message_size: int,
        hsts: bool,
        log_settings: LogSettings | None = None,
    ) -> None:
        self._app = app
        self._origins = None if "*" in origins else frozenset(origin.encode() for origin in origins)
        self._max_sockets = max_sockets
        self.max_message_size = max_message_size
        self.headers = default_headers(hsts=hsts)
        self.request_log = RequestLog(log_settings or LogSettings())
        self._count = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await self._app(scope, receive, send)
            return
        self._count += 1
        try:
            await _SocketExchange(scope, receive, send, self).run(self._app)
        finally:
            self._count -= 1

    def check(self, scope: Scope) -> None:
        """Refuse a handshake before the application sees it."""
        if refusal := scope.get("state", {}).get("refusal"):
            raise refusal
        if is_ambiguous(scope) or not _has_socket(scope):
            raise NotFoundError
        refuse_secrets_in_url(scope)
        # A client without `Origin` is not a browser, and cannot be made to act for its user by a page.
        origins = [value for name, value in scope["headers"] if name == b"origin"]
        if self._origins is not None and origins and (len(origins) > 1 or origins[0] not in self._origins):
            raise OriginRefusedError
        if self._count > self._max_sockets:
            raise TooManySocketsError


class _SocketExchange:
    """One handshake, and the socket that it opens."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, rules: SocketMiddleware) -> None:
        self._scope = scope = _without_ticket(scope)
        self._receive = receive
        self._send = send
        self._rules = rules
        headers = dict(reversed(scope["headers"]))
        self._request_id = scope["request_id"] = choose_request_id(headers.get(b"x-request-id"))
        scope[_EXCHANGE] = self
        self._status: int | None = None
        self._latency: float | None = None
        # Why the server ends the socket.
        self._ended: AppError | None = None
        self._close_code: int | None = None
        self._closing: asyncio.Task[None] | None = None
        self._waiting: asyncio.Timeout | None = None

    @property
    def _is_accepted(self) -> bool:
        return self._status == HTTPStatus.SWITCHING_PROTOCOLS

    async def run(self, app: ASGIApp) -> None:
        self._started = perf_counter()
        IN_FLIGHT.value += 1
        self._statements = count_statements()
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=self._request_id)
        if "fastapi.telemetry" in self._scope and (trace_id := current_trace_id()):
            self._scope["trace_id"] = trace_id
            structlog.contextvars.bind_contextvars(trace_id=trace_id)
        try:
            self._rules.check(self._scope)
            await self._call(app)
        except AppError as error:
            await self._fail(error)
        except asyncio.CancelledError:
            # The server cancels what is still running after the shutdown grace period.
            await self._fail(ShuttingDownError())
        except Exception as error:
            known = _app_error(error)
            if known:
                await self._fail(known)
            elif not _is_end(error):
                log.exception("unhandled error")
                await self._fail(InternalError())
        finally:
            await self._finish()

    async def _call(self, app: ASGIApp) -> None:
        try:
            async with asyncio.timeout(None) as self._limit:
                await app(self._scope, self._receive_checked, self._send_checked)
        except TimeoutError:
            if not self._limit.expired():
                raise
        if self._status is None:
            # The endpoint has returned without an answer.
            raise self._ended or ForbiddenError()

    async def _finish(self) -> None:
        if self._closing:
            await self._closing
        if self._is_accepted:
            await self._close(NORMAL)
            SOCKETS.value -= 1
        else:
            IN_FLIGHT.value -= 1
        duration, route = perf_counter() - self._started, route_template(self._scope)
        latency = duration if self._latency is None else self._latency
        status = self._status or HTTPStatus.INTERNAL_SERVER_ERROR
        measure("GET", route, status, latency, self._statements)
        self._rules.request_log.write(
            *(self._scope, "GET", route, int(status), duration, self._statements),
            latency=latency,
            close_code=self._close_code,
        )

    def end(self, error: AppError) -> None:
        if self._ended:
            return
        self._ended = error
        now = asyncio.get_running_loop().time()
        if self._is_accepted:
            # A task, because the endpoint may be waiting for anything.
            self._closing = asyncio.create_task(self._close(close_code(error), error.code))
            self._limit.reschedule(now + FINISH_TIME)
        if self._waiting:
            self._waiting.reschedule(now)

    async def _receive_checked(self) -> Message:
        if not self._is_accepted:
            return await self._receive()
        message = None if self._ended else await self._next()
        if message is None or self._ended:
            # Also a message that arrives together with the end: its sender may no longer be allowed to send it.
            return {"type": "websocket.disconnect", "code": self._close_code or INTERNAL, "reason": ""}
        return message

    async def _next(self) -> Message | None:
        self._waiting = asyncio.timeout(None)
        try:
            async with self._waiting:
                message = await self._receive()
        except TimeoutError:
            if not self._waiting.expired():
                raise
            return None
        finally:
            self._waiting = None
        if message["type"] == "websocket.disconnect":
            self._close_code = self._close_code or message.get("code", NORMAL)
        elif _size(message) > self._rules.max_message_size:
            self.end(PayloadTooLargeError())
        return message

    async def _send_checked(self, message: Message) -> None:
        kind: str = message["type"]
        if kind == "websocket.accept":
            await self._accept(message)
        elif kind.startswith(_DENIAL):
            await (self._close_for(message) if self._is_accepted else self._refuse(message))
        elif kind == "websocket.close":
            await self._close_or_refuse(message)
        elif self._ended or self._close_code is not None:
            raise SocketClosedError
        else:
            await self._send(message)

    async def _accept(self, message: Message) -> None:
        if self._ended:
            raise self._ended
        self._status = HTTPStatus.SWITCHING_PROTOCOLS
        IN_FLIGHT.value -= 1
        SOCKETS.value += 1
        self._latency = perf_counter() - self._started
        # A browser closes the socket if the server selects none of the offered subprotocols.
        selected = message.get("subprotocol") or (TICKET if _CREDENTIAL in self._scope else None)
        headers = [*message.get("headers", ()), (b"x-request-id", self._request_id.encode())]
        await self._send({**message, "subprotocol": selected, "headers": headers})

    async def _close_or_refuse(self, message: Message) -> None:
        if self._is_accepted:
            await self._close(message.get("code", NORMAL), message.get("reason") or "")
        else:
            # Starlette closes a socket for which there is no route.
            await self._fail(ForbiddenError() if "route" in self._scope else NotFoundError())

    async def _close_for(self, message: Message) -> None:
        """Close the socket for an error response, which cannot be sent after the accept."""
        if message["type"] == f"{_DENIAL}.start":
            self._late_status: int = message["status"]
        else:
            await self._close(code_of_status(self._late_status), code_in(message["body"]))

    async def _close(self, code: int, reason: str = "") -> None:
        if self._close_code is not None:
            return
        self._close_code = code
        short = reason.encode()[:_MAX_REASON].decode(errors="ignore")
        try:
            await self._send({"type": "websocket.close", "code": code, "reason": short})
        except OSError:
            # The client has gone without a message to the endpoint.
            self._close_code = LOST

    async def _fail(self, error: AppError) -> None:
        if self._is_accepted:
            await self._close(close_code(error), error.code)
        elif self._status is None:
            await problem_response(self._scope, error)(self._scope, self._receive, self._refuse)

    async def _refuse(self, message: Message) -> None:
        """Send an error response instead of the accept. Servers without this extension of ASGI send 403."""
        if message["type"] == f"{_DENIAL}.start":
            self._status = message["status"]
            present = {name for name, _ in message["headers"]}
            headers = [*message["headers"], *(header for header in self._rules.headers if header[0] not in present)]
            message = {**message, "headers": [*headers, (b"x-request-id", self._request_id.encode())]}
        if _DENIAL in self._scope.get("extensions", {}):
            await self._send(message)
        elif message["type"] == f"{_DENIAL}.start":
            await self._send({"type": "websocket.close", "code": APPLICATION + HTTPStatus.FORBIDDEN, "reason": ""})


def _has_socket(scope: Scope) -> bool:
    """Return whether there is a WebSocket at this path. A mounted application gets none: static files would fail with an error."""
    routes = (getattr(route, "original_route", route) for route in routes_at(scope.get("app"), scope))
    return any(isinstance(route, WebSocketRoute) for route in routes)


def _without_ticket(scope: Scope) -> Scope:
    """Return a copy of the scope whose ticket is apart from the headers, so that nothing copies it to a log or to a trace."""
    offered: list[str] = list(scope.get("subprotocols", ()))
    headers = [header for header in scope["headers"] if header[0] != b"sec-websocket-protocol"]
    scope = {**scope, "headers": headers, "subprotocols": offered}
    if TICKET in offered:
        position = offered.index(TICKET)
        scope[_CREDENTIAL] = "".join(offered[position + 1 : position + 2])
        del offered[position : position + 2]
    return scope


def _size(message: Message) -> int:
    text: str | None = message.get("text")
    return len(text.encode("utf-8", "surrogatepass")) if text is not None else len(message.get("bytes") or b"")


def _app_error(error: BaseException) -> AppError | None:
    """Return the only error in a group, which a task group makes of it, if it is part of the API."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error if isinstance(error, AppError) else None


def _is_end(error: BaseException) -> bool:
    # A task group wraps the errors of its tasks.
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_end, error.exceptions))
    return isinstance(error, WebSocketDisconnect | WebSocketDisconnected | SocketClosedError)
