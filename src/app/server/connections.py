"""The client connections of a server process: timeouts, the connection limit, and how a connection is closed."""

import asyncio
import fcntl
import struct
import termios
from itertools import islice
from typing import override

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from app.core.config import ServerSettings
from app.core.errors import AppError, RequestTimeoutError, UnavailableError

# Seconds for which the rest of a request is read and discarded after an early response. Closing at once would reset the
# connection, and the client might lose the response.
_LINGER = 2.0
# Seconds that a connection without a request gets during shutdown: its first request may be on its way.
_FIRST_REQUEST_WAIT = 1.0
# Number of idle connections among which the longest idle one is chosen.
_SAMPLE = 16
# Maximum number of connections over the limit that get a 503 response. Each needs a file descriptor; further ones are
# closed without a response.
_MAX_REFUSED = 64


class TooManyConnectionsError(UnavailableError):
    """The process has reached its connection limit."""

    code = "too_many_connections"
    detail = "This server has reached its connection limit. Try again shortly."


class Connections(ServerState):
    """All connections of a process, and their limits."""

    def __init__(self, settings: ServerSettings, *, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.header_timeout = settings.header_timeout.total_seconds()
        self.body_timeout = settings.body_timeout.total_seconds()
        self.read_timeout = settings.read_timeout.total_seconds()
        self.write_timeout = settings.write_timeout.total_seconds()
        self.keep_alive = settings.keep_alive.total_seconds()
        self.max_message_size = settings.max_message_size
        self.max_frames_per_second = settings.max_frames_per_second
        self.ping_interval = settings.ping_interval.total_seconds()

    def enforce_timeouts(self, now: float) -> None:
        """End every connection that has exceeded a timeout. The server calls this about once a second."""
        for connection in self._all():
            connection.enforce_timeouts(now)

    def make_room(self) -> bool:
        """Close an idle connection if the limit is exceeded. Returns False if the limit is exceeded and none can be closed."""
        if len(self.connections) <= self.limit:
            return True
        idle = ((one.idle_since, one) for one in self._all() if one.idle_since is not None)
        # The search ends after a few: a full search would be slowest when the server is busiest.
        _, longest_idle = min(islice(idle, _SAMPLE), key=lambda pair: pair[0], default=(None, None))
        return longest_idle is not None and longest_idle.close_idle()

    def has_room_for_socket(self) -> bool:
        """Return whether another WebSocket leaves half of the connections to requests."""
        sockets = sum(not isinstance(connection, TimedConnection) for connection in self.connections)
        return sockets < self.limit // 2

    def _all(self) -> "list[LimitedConnection]":
        return [connection for connection in self.connections if isinstance(connection, LimitedConnection)]


class LimitedConnection(asyncio.Protocol):
    """A connection whose timeouts the server enforces."""

    # Since when it waits for a request, or None. A WebSocket never does, so it is never closed to make room.
    idle_since: float | None = None

    def enforce_timeouts(self, now: float) -> None:
        """End the connection if it has exceeded a timeout."""

    def close_idle(self) -> bool:
        """Close the connection if it is idle, and return whether it was."""
        return False


class TimedConnection(HttpToolsProtocol, LimitedConnection):
    """A connection with timeouts. The subclass `Connection` reads the requests."""

    server_state: Connections

    # Times of the event loop. Each is None while the connection is not in that state: reading a head, reading a body, waiting
    # until the client reads what was written.
    _head_since: float | None = None
    _body_since: float | None = None
    _write_paused_since: float | None = None
    _last_read_at = 0.0
    _has_had_request = False
    _is_responding = False
    # Whether further input is discarded.
    _discards_input = False
    # When a connection that is closing is aborted.
    _abort_at: float | None = None

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # As in the parent.
        super().connection_made(transport)
        if len(self.server_state.connections) > self.server_state.limit + _MAX_REFUSED:
            transport.abort()
            return
        has_room = self.server_state.make_room()
        self.idle_since = self._last_read_at = self.loop.time()
        if not has_room:
            self.refuse(TooManyConnectionsError())

    @override
    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_paused_since = self.loop.time()

    @override
    def resume_writing(self) -> None:
        super().resume_writing()
        self._write_paused_since = None

    def refuse(self, error: AppError) -> None:
        """Respond to the current request with this error, and read nothing more."""

    def _update_idle(self) -> None:
        if self._head_since is None and self._body_since is None and not self._is_responding:
            self.idle_since = self.loop.time()

    @override
    def enforce_timeouts(self, now: float) -> None:
        limits = self.server_state
        if self._abort_at is None and self.transport.is_closing():
            # The client may still be reading the end of the response.
            self._abort_at = now + limits.write_timeout
        if _has_passed(self._abort_at, 0, now) or _has_passed(self._write_paused_since, limits.write_timeout, now):
            self.transport.abort()
        elif self._discards_input:
            return
        elif self._keeps_client_waiting():
            # The client cannot continue, so its timeouts start again once the server reads.
            self._last_read_at = now
            self._head_since = None if self._head_since is None else now
            self._body_since = None if self._body_since is None else now
        elif self._is_request_late(now):
            self.refuse(RequestTimeoutError())
        elif _has_passed(self.idle_since, limits.keep_alive if self._has_had_request else limits.header_timeout, now):
            self.close_idle()

    def _keeps_client_waiting(self) -> bool:
        """Return whether the server has paused reading, or has not sent `100 Continue` yet."""
        return self.flow.read_paused or (self._body_since is not None and self.cycle.waiting_for_100_continue)

    def _is_request_late(self, now: float) -> bool:
        limits = self.server_state
        is_body_stalled = self._body_since is not None and now - self._last_read_at > limits.read_timeout
        return (
            is_body_stalled
            or _has_passed(self._head_since, limits.header_timeout, now)
            or (self._body_since is not None and now - self._body_since > self._body_timeout())
        )

    def _body_timeout(self) -> float:
        """Return the time for the current body. The application may set another one in the state of the request."""
        chosen: float = self.cycle.scope["state"].get("body_timeout", self.server_state.body_timeout)
        return chosen

    @override
    def shutdown(self) -> None:
        """Close the connection if it is idle. A request in progress still gets its response, as the last one of the connection.

        A new connection has a second for its first request.
        """
        if self._is_responding:
            self.cycle.keep_alive = False
        elif self._has_had_request and self.idle_since is not None:
            self.close_idle()
        else:
            # The connection is new, and its first request may be on its way, or a request is being read.
            self.loop.call_later(_FIRST_REQUEST_WAIT, self.close_idle)

    @override
    def close_idle(self) -> bool:
        """Close this connection. Returns False if it is not idle, is closing already, or has unread data."""
        if self.idle_since is None or self.transport.is_closing():
            return False
        unread = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.FIONREAD, struct.pack("i", 0))
        if any(unread):
            return False
        self.idle_since = None
        self.transport.close()
        return True

    def close_lingering(self) -> None:
        """Close after a response, so that a client that is still sending can read it."""
        if self._body_since is None and not self._discards_input:
            self.transport.close()
        elif self._abort_at is None and not self.transport.is_closing():
            self._discards_input = True
            self._abort_at = self.loop.time() + _LINGER
            self.flow.resume_reading()
            self.transport.write_eof()


def _has_passed(since: float | None, timeout: float, now: float) -> bool:
    return since is not None and now - since > timeout
