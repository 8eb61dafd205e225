"""Reads the requests of a connection strictly, and with limits.

uvicorn relies on a proxy in front of it that limits and checks what clients send. `Connection` does that itself. The application
also gets a refused request, with the error as `refusal` in its state. So the client gets a problem document with a request id,
and the request is logged.
"""

import asyncio
import re
from collections import deque
from collections.abc import Callable
from functools import cached_property, partial
from types import SimpleNamespace
from typing import Any, override

import httptools
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from app.core.errors import (
    AppError,
    ExpectationFailedError,
    HeadersTooLargeError,
    MalformedRequestError,
    UriTooLongError,
)
from app.core.http.requests.forms import unescape
from app.server.connections import TimedConnection, TooManyConnectionsError
from app.server.responses import ResponseCycle
from app.server.sockets import HandshakeCycle, SocketConnection, checked_handshake, is_handshake

# Sizes in bytes.
_MAX_TARGET = 16_000
_MAX_HEAD = 65_536
_MAX_HEADERS = 128
# A body with its chunk framing may have eight bytes for each byte of content, and some more for extensions and trailers.
_FRAMING_PER_BYTE = 8
_MAX_EXTRAS = 65_536
# Limit of the chunks of a body, because each costs about 1 µs, however small. A large body may have one more for each KiB.
_MAX_CHUNKS = 5_000
_CONTENT_PER_CHUNK = 1024
_HOST = re.compile(rb"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")


class Connection(TimedConnection):
    """A connection: it reads requests, hands each one to the application, and refuses those that are not valid."""

    # Bytes received of the current head, or of the current body with its framing; and bytes and chunks of the body alone.
    _received_size = 0
    _body_size = 0
    _chunks = 0
    # The header that gives the length of the body, if there is a body.
    _framing: bytes | None = None
    # What a client sends after the handshake of a WebSocket, before it is accepted. None if there is no handshake.
    _early: bytes | None = None

    @cached_property
    def _pipelined(self) -> deque[RequestResponseCycle]:
        """Requests that arrived before the response to an earlier one was complete."""
        return deque()

    # Input from the transport

    @override
    def data_received(self, data: bytes) -> None:
        self._last_read_at = self.loop.time()
        # The limits are checked after each part.
        for start in range(0, len(data), _MAX_HEAD):
            if self._discards_input:
                return
            self._read(data[start : start + _MAX_HEAD])

    def _read(self, data: bytes) -> None:
        self._received_size += len(data)
        try:
            self._parse(data)
            self._check_size()
        except AppError as error:
            self.refuse(error)
        except httptools.HttpParserError as error:
            # The parser wraps an exception of a callback in its own error.
            self.refuse(error.__context__ if isinstance(error.__context__, AppError) else MalformedRequestError())

    def _parse(self, data: bytes) -> None:
        while data:
            if self._early is not None:
                self._early += data
                return
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                # A client that asks for another protocol gets its response in HTTP/1.1 (RFC 9110, 7.8).
                data = data[upgrade.args[0] :]
                if self._framing:
                    self._read_body_after_upgrade(self._framing)
            else:
                return

    def _read_body_after_upgrade(self, framing: bytes) -> None:
        # After an Upgrade header, the first parser does not read a body. A second parser, without that header, reads it.
        self.parser = httptools.HttpRequestParser(
            SimpleNamespace(on_body=self.on_body, on_message_complete=self.on_message_complete)
        )
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % framing)
        # It has no callbacks for another request.
        self.cycle.keep_alive = False

    def _check_size(self) -> None:
        if self._body_since is None:
            if self._received_size > _MAX_HEAD:
                raise HeadersTooLargeError
        elif self._received_size > _MAX_EXTRAS + _FRAMING_PER_BYTE * self._body_size:
            raise MalformedRequestError

    # Callbacks of the parser

    @override
    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.idle_since = None
        self._head_since = self.loop.time()

    @override
    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > _MAX_TARGET:
            raise UriTooLongError

    @override
    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        # Counted here and not at the end of the head: short headers cost most.
        if len(self.headers) > _MAX_HEADERS:
            raise HeadersTooLargeError if self._body_since is None else MalformedRequestError

    @override
    def on_headers_complete(self) -> None:
        version = self.parser.get_http_version()
        self._framing = self._check_head(version)
        self._fill_scope(version)
        is_next = not self._has_had_request or self.cycle.response_complete
        if self.parser.should_upgrade() and self._is_handshake(version):
            self.cycle = self._new_handshake(is_next=is_next)
        else:
            self.cycle = self._new_cycle(
                self._lingering_transport() if self._framing else self.transport,
                expects_continue=self.expect_100_continue,
                keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            )
        if is_next:
            self._start(self.cycle)
        else:
            self.flow.pause_reading()
            self._pipelined.append(self.cycle)
        self._has_had_request = self._is_responding = True
        self._head_since = None
        self._received_size = self._body_size = self._chunks = 0
        # The parser adds trailers to this list. They must not appear among the headers of the request.
        self.headers = []
        if self._framing:
            self._body_since = self.loop.time()

    def _check_head(self, version: str) -> bytes | None:
        """Refuse a head that servers interpret in different ways. Returns the header that gives the length of the body."""
        names = [name for name, _ in self.headers]
        headers = dict(self.headers)
        if self._received_size > _MAX_HEAD and self._head_size() > _MAX_HEAD:
            raise HeadersTooLargeError
        # Only HTTP/1.0 allows a request without a host.
        has_host = names.count(b"host") == 1 and _HOST.fullmatch(headers[b"host"])
        is_host_valid = has_host or (version == "1.0" and b"host" not in headers)
        # Other forms of the target are for proxies, and a client must not send a fragment.
        is_target_valid = self.url.startswith(b"/") and b"#" not in self.url and self.parser.get_method() != b"CONNECT"
        if version not in {"1.0", "1.1"} or not is_host_valid or not is_target_valid:
            raise MalformedRequestError
        if headers.get(b"expect", b"100-continue").lower() != b"100-continue":
            raise ExpectationFailedError
        if (coding := headers.get(b"transfer-encoding")) is not None:
            if coding.lower() != b"chunked" or names.count(b"transfer-encoding") > 1 or version == "1.0":
                raise MalformedRequestError
            return b"transfer-encoding: chunked"
        length = headers.get(b"content-length")
        return None if length is None else b"content-length: " + length

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _fill_scope(self, version: str) -> None:
        target = httptools.parse_url(self.url)
        path = target.path.decode("ascii")
        self.scope["method"] = self.parser.get_method().decode("ascii")
        self.scope["http_version"] = version
        self.scope["path"] = unescape(target.path).decode("utf-8", "replace") if "%" in path else path
        self.scope["raw_path"] = target.path
        self.scope["query_string"] = target.query or b""

    def _is_handshake(self, version: str) -> bool:
        return not self._framing and is_handshake(self.parser.get_method(), version, self.headers)

    def _new_handshake(self, *, is_next: bool) -> ResponseCycle:
        accepting = checked_handshake(self.headers)
        if not is_next:
            # The client does not know whether an earlier response closes the connection.
            raise MalformedRequestError
        if not self.server_state.has_room_for_socket():
            raise TooManyConnectionsError
        self._early = b""
        self.flow.pause_reading()
        return self._new_cycle(
            self.transport, kind=partial(HandshakeCycle, accepting=accepting, open_socket=self._open_socket)
        )

    def _open_socket(self, head: bytes) -> SocketConnection:
        """Leave the connection to its WebSocket."""
        self.server_state.connections.discard(self)
        self.server_state.total_requests += 1
        socket = SocketConnection(self.transport, self.server_state)
        self.transport.set_protocol(socket)
        self.transport.write(head)
        socket.data_received(self._early or b"")
        return socket

    def _new_cycle(
        self,
        transport: Any,
        *,
        kind: Callable[..., ResponseCycle] = ResponseCycle,
        expects_continue: bool = False,
        keep_alive: bool = False,
    ) -> ResponseCycle:
        return kind(
            scope=self.scope,
            transport=transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=expects_continue,
            keep_alive=keep_alive,
            on_response=self.on_response_complete,
        )

    def _start(self, cycle: RequestResponseCycle) -> None:
        task = self.loop.create_task(cycle.run_asgi(self.app))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def _lingering_transport(self) -> SimpleNamespace:
        """Return a transport that closes in such a way that a client that is still sending can read the response."""
        return SimpleNamespace(
            write=self.transport.write, is_closing=self.transport.is_closing, close=self.close_lingering
        )

    @override
    def on_body(self, body: bytes) -> None:
        self._body_size += len(body)
        self._chunks += 1
        if self._chunks > _MAX_CHUNKS + self._body_size // _CONTENT_PER_CHUNK:
            raise MalformedRequestError
        super().on_body(body)

    @override
    def on_message_complete(self) -> None:
        if self._framing and self.parser.should_upgrade():
            # For a request with an Upgrade header, the parser calls this after the head, but the body has not been read yet.
            return
        super().on_message_complete()
        self._framing = self._body_since = None
        self._received_size = 0
        self._update_idle()

    # Callback of the response

    @override
    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        self._is_responding = bool(self._pipelined) and not self.transport.is_closing()
        if self._is_responding:
            self._start(self._pipelined.popleft())
        if not self._discards_input and not self.transport.is_closing():
            self.flow.resume_reading()
            self._update_idle()

    # Refusals

    @override
    def refuse(self, error: AppError) -> None:
        self._discards_input = True
        if not self._is_responding and self._body_since is None:
            self._respond_with(error)
        elif not self._is_responding:
            # The request has had its response. Only the rest of its body is refused.
            self.close_lingering()
        elif self.cycle.more_body and self.cycle.response_started:
            self.transport.close()
        else:
            # The response in progress, to this request or to an earlier one, is the last of the connection.
            self.cycle.keep_alive = False
            if self.cycle.more_body:
                self.cycle.scope["state"]["refusal"] = error
                self.cycle.message_event.set()

    def _respond_with(self, error: AppError) -> None:
        """Let the application respond with this error to a request whose head is incomplete or invalid, or to no request at all."""
        if self._head_since is None:
            # No request has begun. This creates an empty scope for the response.
            super().on_message_begin()
        self.idle_since = self._head_since = None
        # The parser knows the method once it has read a part of the target.
        self.scope["method"] = self.parser.get_method().decode() if self.url else "(none)"
        self.scope["path"], self.scope["raw_path"], self.scope["query_string"] = "/", b"/", b""
        self.scope["state"]["refusal"] = error
        self.cycle = self._new_cycle(self._lingering_transport())
        self.cycle.more_body = False
        self._is_responding = True
        self._start(self.cycle)
