"""The connections of a server process: strict about what comes in, limited in time, size and number, closed with care.

uvicorn trusts a client to send its head and its body sooner or later, in whatever size, and to read what it is sent: it
expects a proxy in front that sees to that. This needs none. What is refused here still goes to the application, as a request
whose state holds the `refusal`: so garbage, too, is answered with a problem document and a request id, and has its access line.
"""

import asyncio
import fcntl
import re
import struct
import termios
from itertools import islice
from typing import Any, override

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from app.core.config import ServerSettings
from app.core.errors import (
    AppError,
    ExpectationFailedError,
    HeadersTooLargeError,
    MalformedRequestError,
    RequestTimeoutError,
    UnavailableError,
    UriTooLongError,
)
from app.core.http.forms import unescape

_MAX_TARGET = 16_000
_MAX_HEAD = 65_536
_MAX_HEADERS = 128
# What a body sent in chunks may cost beyond its content: eight bytes for each, and what extensions and trailers need.
_FRAMING_PER_BYTE = 8
_MAX_EXTRAS = 65_536
# Chunks of a body: each costs about 1 µs, however small it is. Large bodies may have one more for each KiB.
_MAX_CHUNKS = 5_000
_CONTENT_PER_CHUNK = 1024
# How long the rest of a request that was answered early is read and thrown away: closing at once would reset the connection,
# and the client might never see the answer.
_LINGER = 2.0
# How long a connection that has not said anything yet may do so while the server ends.
_FIRST_WORDS = 1.0
_SAMPLE = 16
# So many for whom there is no room are told so, which takes a file each while the answer is on its way; others are closed at once.
_TOLD = 64
# Headers of an answer that say how it is sent.
_DECISIVE = frozenset({b"connection", b"transfer-encoding"})
_HOST = re.compile(rb"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")


class TooManyConnectionsError(UnavailableError):
    """All the connections this process may have are in use."""

    code = "too_many_connections"
    detail = "This server has no room for another connection at the moment; try again shortly."


class Connections(ServerState):
    """All connections of a process, and what each of them may take."""

    def __init__(self, settings: ServerSettings, *, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.header_timeout = settings.header_timeout.total_seconds()
        self.body_timeout = settings.body_timeout.total_seconds()
        self.read_timeout = settings.read_timeout.total_seconds()
        self.write_timeout = settings.write_timeout.total_seconds()
        self.keep_alive = settings.keep_alive.total_seconds()

    def enforce(self, now: float) -> None:
        """End what takes too long; to be called about once a second."""
        for connection in self._all():
            connection.enforce(now)

    def make_room(self) -> bool:
        """Close a connection that waits for a request, if there are too many; say whether there is room for one more."""
        if len(self.connections) <= self.limit:
            return True
        quiet = ((one.quiet_since, one) for one in self._all() if one.quiet_since is not None)
        # Not the quietest of all: looking at each would cost most when there is least to spare.
        _, victim = min(islice(quiet, _SAMPLE), key=lambda pair: pair[0], default=(None, None))
        return victim is not None and victim.close_quiet()

    def _all(self) -> "list[Connection]":
        return [connection for connection in self.connections if isinstance(connection, Connection)]


class Connection(HttpToolsProtocol):
    """One connection: it waits for a request, reads one, answers one, or is about to be closed."""

    server_state: Connections

    def __init__(
        self,
        config: Config,
        server_state: Connections,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        # Time of the event loop since when, or None while it is not so: nothing is going on; a head is read; a body is
        # read; the client leaves unread what it was sent.
        self.quiet_since: float | None = None
        self._head_since: float | None = None
        self._body_since: float | None = None
        self._unread_since: float | None = None
        self._heard_at = 0.0
        # What has come of the head, or of the body with its framing; and of the body alone.
        self._size = 0
        self._content = 0
        self._chunks = 0
        # The header that says how long the body is, if there is one.
        self._framing: bytes | None = None
        # Whether a request has been read ever, and whether one is answered now.
        self._has_asked = False
        self._is_answering = False
        # Whatever else comes is thrown away.
        self._is_deaf = False
        self._gone_by: float | None = None

    # What the transport tells

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # As in the class above.
        super().connection_made(transport)
        if len(self.server_state.connections) > self.server_state.limit + _TOLD:
            transport.abort()
            return
        has_room = self.server_state.make_room()
        self.quiet_since = self._heard_at = self.loop.time()
        if not has_room:
            self.refuse(TooManyConnectionsError())

    @override
    def data_received(self, data: bytes) -> None:
        self._heard_at = self.loop.time()
        # In parts, for what is counted is looked at between them.
        for start in range(0, len(data), _MAX_HEAD):
            if self._is_deaf:
                return
            self._take(data[start : start + _MAX_HEAD])

    def _take(self, data: bytes) -> None:
        self._size += len(data)
        try:
            self._feed(data)
            self._refuse_endless()
        except AppError as error:
            self.refuse(error)
        except httptools.HttpParserError as error:
            # What a callback below raises arrives as the context of an error of the parser.
            self.refuse(error.__context__ if isinstance(error.__context__, AppError) else MalformedRequestError())

    @override
    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_since = self.loop.time()

    @override
    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread_since = None

    # What the parser tells

    def _feed(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                # No other protocol is spoken here: the client is answered as if it had not asked for one.
                data = data[upgrade.args[0] :]
                if self._framing:
                    self._read_body_of_upgrade(self._framing)
            else:
                return

    def _read_body_of_upgrade(self, framing: bytes) -> None:
        # The parser takes even the body for the other protocol. A second one, which has not seen the wish, reads it.
        self.parser = httptools.HttpRequestParser(_BodyOnly(self))
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % framing)
        # It knows nothing of a request that might follow.
        self.cycle.keep_alive = False

    @override
    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.quiet_since = None
        self._head_since = self.loop.time()

    @override
    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > _MAX_TARGET:
            raise UriTooLongError

    @override
    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        # Now, and not when all are there: short headers cost most.
        if len(self.headers) > _MAX_HEADERS:
            raise HeadersTooLargeError if self._body_since is None else MalformedRequestError

    @override
    def on_headers_complete(self) -> None:
        version = self.parser.get_http_version()
        self._framing = self._check_head(version)
        self._fill_scope(version)
        is_next = not self._has_asked or self.cycle.response_complete
        self.cycle = self._new_cycle(
            _Farewell(self) if self._framing else self.transport,
            expects_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
        )
        if is_next:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))
        self._has_asked = self._is_answering = True
        self._head_since = None
        self._size = self._content = self._chunks = 0
        # Trailers are added to this list; they must not pass for headers.
        self.headers = []
        if self._framing:
            self._body_since = self.loop.time()

    def _fill_scope(self, version: str) -> None:
        target = httptools.parse_url(self.url)
        path = target.path.decode("ascii")
        self.scope["method"] = self.parser.get_method().decode("ascii")
        self.scope["http_version"] = version
        self.scope["path"] = unescape(target.path).decode("utf-8", "replace") if "%" in path else path
        self.scope["raw_path"] = target.path
        self.scope["query_string"] = target.query or b""

    def _new_cycle(self, transport: Any, *, expects_continue: bool = False, keep_alive: bool = False) -> "_Cycle":
        return _Cycle(
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

    @override
    def on_body(self, body: bytes) -> None:
        self._content += len(body)
        self._chunks += 1
        if self._chunks > _MAX_CHUNKS + self._content // _CONTENT_PER_CHUNK:
            raise MalformedRequestError
        super().on_body(body)

    @override
    def on_message_complete(self) -> None:
        if self._framing and self.parser.should_upgrade():
            # So says the parser, and the body is still to come.
            return
        super().on_message_complete()
        self._framing = self._body_since = None
        self._size = 0
        self._note_quiet()

    @override
    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        self._is_answering = bool(self.pipeline) and not self.transport.is_closing()
        if self._is_answering:
            self._start_asgi_task(*self.pipeline.pop())
        if not self._is_deaf and not self.transport.is_closing():
            self.flow.resume_reading()
            self._note_quiet()

    def _note_quiet(self) -> None:
        if self._head_since is None and self._body_since is None and not self._is_answering:
            self.quiet_since = self.loop.time()

    # What is refused

    def _check_head(self, version: str) -> bytes | None:
        """Refuse what servers understand in different ways; give the header that announces a body."""
        names = [name for name, _ in self.headers]
        headers = dict(self.headers)
        if self._size > _MAX_HEAD and self._length_of_head() > _MAX_HEAD:
            raise HeadersTooLargeError
        # Only HTTP/1.0 may leave the host out.
        has_host = names.count(b"host") == 1 and _HOST.fullmatch(headers[b"host"])
        is_sound = has_host or (version == "1.0" and b"host" not in headers)
        # Other forms of the target are for proxies; a fragment is for nobody but the client.
        is_ours = self.url.startswith(b"/") and b"#" not in self.url and self.parser.get_method() != b"CONNECT"
        if version not in {"1.0", "1.1"} or not is_sound or not is_ours:
            raise MalformedRequestError
        if headers.get(b"expect", b"100-continue").lower() != b"100-continue":
            raise ExpectationFailedError
        if (coding := headers.get(b"transfer-encoding")) is not None:
            if coding.lower() != b"chunked" or names.count(b"transfer-encoding") > 1 or version == "1.0":
                raise MalformedRequestError
            return b"transfer-encoding: chunked"
        length = headers.get(b"content-length")
        return None if length is None else b"content-length: " + length

    def _length_of_head(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _refuse_endless(self) -> None:
        if self._body_since is None:
            if self._size > _MAX_HEAD:
                raise HeadersTooLargeError
        elif self._size > _MAX_EXTRAS + _FRAMING_PER_BYTE * self._content:
            raise MalformedRequestError

    def refuse(self, error: AppError) -> None:
        """Answer what is being read with this error, and read nothing more."""
        self._is_deaf = True
        if not self._is_answering and self._body_since is None:
            self._answer(error)
        elif not self._is_answering:
            # The request has its answer; what went wrong is the rest of its body.
            self.leave()
        elif self.cycle.more_body and self.cycle.response_started:
            self.transport.close()
        else:
            # It is being answered, or one that came before it; that answer is the last.
            self.cycle.keep_alive = False
            if self.cycle.more_body:
                self.cycle.scope["state"]["refusal"] = error
                self.cycle.message_event.set()

    def _answer(self, error: AppError) -> None:
        if self._head_since is None:
            super().on_message_begin()
        self.quiet_since = self._head_since = None
        # No head, or no more than a part: the parser knows the method as soon as it has begun with the target.
        self.scope["method"] = self.parser.get_method().decode() if self.url else "(none)"
        self.scope["path"], self.scope["raw_path"], self.scope["query_string"] = "/", b"/", b""
        self.scope["state"]["refusal"] = error
        self.cycle = self._new_cycle(_Farewell(self))
        self.cycle.more_body = False
        self._is_answering = True
        self._start_asgi_task(self.cycle, self.app)

    # How it ends

    def enforce(self, now: float) -> None:
        """End what has taken too long."""
        limits = self.server_state
        if self._gone_by is None and self.transport.is_closing():
            # What has been written is still on its way.
            self._gone_by = now + limits.write_timeout
        if _is_over(self._gone_by, 0, now) or _is_over(self._unread_since, limits.write_timeout, now):
            self.transport.abort()
        elif self._is_deaf:
            return
        elif self._waits_for_us():
            # The client is not to blame: its time begins again when we read on.
            self._heard_at = now
            self._head_since = None if self._head_since is None else now
            self._body_since = None if self._body_since is None else now
        elif self._is_late(now):
            self.refuse(RequestTimeoutError())
        elif _is_over(self.quiet_since, limits.keep_alive if self._has_asked else limits.header_timeout, now):
            self.close_quiet()

    def _waits_for_us(self) -> bool:
        """Say whether nothing is read, or the client has not been asked yet for the body that it announced."""
        return self.flow.read_paused or (self._body_since is not None and self.cycle.waiting_for_100_continue)

    def _is_late(self, now: float) -> bool:
        """Say whether a head or a body takes too long to arrive."""
        limits = self.server_state
        is_silent = self._body_since is not None and now - self._heard_at > limits.read_timeout
        return (
            is_silent
            or _is_over(self._head_since, limits.header_timeout, now)
            or _is_over(self._body_since, limits.body_timeout, now)
        )

    @override
    def shutdown(self) -> None:
        if self._is_answering:
            self.cycle.keep_alive = False
        elif self._has_asked and self.quiet_since is not None:
            self.close_quiet()
        else:
            # Accepted a moment ago, perhaps, and the request is on its way.
            self.loop.call_later(_FIRST_WORDS, self._close_if_silent)

    def _close_if_silent(self) -> None:
        if self.quiet_since is not None:
            self.close_quiet()

    def close_quiet(self) -> bool:
        """Close a connection that waits for a request, unless one has just come in or it is closing already."""
        if self.transport.is_closing():
            return False
        waiting = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.FIONREAD, struct.pack("i", 0))
        if any(waiting):
            return False
        self.quiet_since = None
        self.transport.close()
        return True

    def leave(self) -> None:
        """Close after an answer, in a way that lets the client read it although it may still be sending."""
        if self._body_since is None and not self._is_deaf:
            self.transport.close()
        elif self._gone_by is None and not self.transport.is_closing():
            self._is_deaf = True
            self._gone_by = self.loop.time() + _LINGER
            self.flow.resume_reading()
            self.transport.write_eof()


class _Cycle(RequestResponseCycle):
    """One request and its answer. The head of one of known length leaves with its body: a write is a system call, and a packet."""

    _head = b""

    @override
    async def send(self, message: Any) -> None:
        if not self.response_started:
            self._head = self._plain_head(message)
            if self._head:
                self.response_started = True
                self.waiting_for_100_continue = False
                return
        elif self._head:
            # To the class above it is the beginning of the body.
            self.expected_content_length += len(self._head)
            message = {**message, "body": self._head + message.get("body", b"")}
            self._head = b""
        await super().send(message)

    def _plain_head(self, message: Any) -> bytes:
        """Write the head of an answer of known length. Of any other give nothing: that is left to the class above."""
        headers = [*self.default_headers, *message.get("headers", ())]
        given = dict(headers)
        if b"content-length" not in given or self.scope["method"] == "HEAD" or not given.keys().isdisjoint(_DECISIVE):
            return b""
        if HEADER_RE.search(b"".join(given)) or HEADER_VALUE_RE.search(b"".join([value for _, value in headers])):
            return b""
        self.expected_content_length = int(given[b"content-length"])
        self.chunked_encoding = False
        if not self.keep_alive:
            headers.append((b"connection", b"close"))
        return STATUS_LINE[message["status"]] + b"\r\n".join(map(b": ".join, headers)) + b"\r\n\r\n"


class _Farewell:
    """The transport of an answer after which the rest of the request may still be arriving."""

    def __init__(self, connection: Connection) -> None:
        self.write = connection.transport.write
        self.is_closing = connection.transport.is_closing
        self.close = connection.leave


class _BodyOnly:
    """Hears of a message's body and nothing else."""

    def __init__(self, connection: Connection) -> None:
        self.on_body = connection.on_body
        self.on_message_complete = connection.on_message_complete


def _is_over(since: float | None, limit: float, now: float) -> bool:
    return since is not None and now - since > limit
