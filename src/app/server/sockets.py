"""WebSockets of the server: the handshake after its HTTP head, and the frames of the open connection, with limits.

The library `websockets` checks the handshake, and reads and writes frames; it does no input or output. Compression is not offered:
a small compressed message can expand to gigabytes, and the size of a compressed one can reveal secrets.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, override

from uvicorn.protocols.http.httptools_impl import HEADER_RE, HEADER_VALUE_RE
from websockets.datastructures import Headers
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol

from app.core.errors import AppError, MalformedRequestError
from app.server.connections import Connections, LimitedConnection
from app.server.responses import ResponseCycle

_VERSION = b"13"
# Bytes that are parsed at once. They contain up to 170 frames, each of which costs about 10 µs.
_PORTION = 1024
# Seconds in which a client may answer a close frame, and read it.
_CLOSE_WAIT = 2.0
# Seconds that an endpoint gets to finish after its connection is lost. Then it is cancelled.
FINISH_TIME = 5.0
_NORMAL, _LOST, _INVALID_TEXT, _NO_ANSWER, _RESTART = 1000, 1006, 1007, 1011, 1012

type _Header = tuple[bytes, bytes]
type _Message = dict[str, Any]


class UpgradeRequiredError(AppError):
    """The handshake names another version of the WebSocket protocol (RFC 6455, 4.4)."""

    status = HTTPStatus.UPGRADE_REQUIRED
    code = "upgrade_required"
    detail = "This server supports version 13 of the WebSocket protocol."

    def __init__(self) -> None:
        super().__init__(headers={"Sec-WebSocket-Version": _VERSION.decode()})


class ClientGoneError(OSError):
    """The application sends to a socket that is closed."""


def is_handshake(method: bytes, version: str, headers: Sequence[_Header]) -> bool:
    """Return whether a request with `Connection: Upgrade` asks for a WebSocket. Other upgrades are ignored (RFC 9110, 7.8)."""
    upgrades = [value.lower() for name, value in headers if name == b"upgrade"]
    return method == b"GET" and version == "1.1" and upgrades == [b"websocket"]


def checked_handshake(headers: Sequence[_Header]) -> Response:
    """Return the response that accepts a handshake, or raise an error if the handshake is invalid."""
    if [value for name, value in headers if name == b"sec-websocket-version"] != [_VERSION]:
        raise UpgradeRequiredError
    decoded = Headers([(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers])
    response = ServerProtocol().accept(Request("/", decoded))
    if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
        raise MalformedRequestError
    return response


class HandshakeCycle(ResponseCycle):
    """A handshake. If the application refuses it, this is a response like any other, and the last one of its connection.

    A proxy that takes a refused handshake for an open socket must not pass further requests through (request smuggling).
    """

    _socket: "SocketConnection | None" = None
    _task: asyncio.Task[Any] | None = None
    _is_connected = False

    def __init__(
        self, *, accepting: Response, open_socket: "Callable[[bytes], SocketConnection]", **options: Any
    ) -> None:
        # The arguments of uvicorn's cycle, which has no types for them.
        super().__init__(**options)
        self._accepting = accepting
        self._open_socket = open_socket

    @override
    async def run_asgi(self, app: Any) -> None:
        async def call(*_http: object) -> None:
            await app(self._socket_scope(), self._receive_message, self._send_message)

        self._task = asyncio.current_task()
        await super().run_asgi(call)
        if self._socket:
            self._socket.close(_NORMAL)

    def _on_lost(self) -> None:
        # An endpoint that only sends does not notice. It would count as an open socket until its next message.
        if self._task:  # pragma: no branch  # Only code outside of a task has none.
            asyncio.get_running_loop().call_later(FINISH_TIME, self._task.cancel)

    def _socket_scope(self) -> _Message:
        offered = [
            value.decode("latin-1") for name, value in self.scope["headers"] if name == b"sec-websocket-protocol"
        ]
        return {
            **self.scope,
            "type": "websocket",
            "scheme": "wss" if self.scope["scheme"] == "https" else "ws",
            "subprotocols": [one.strip() for one in ",".join(offered).split(",") if one.strip()],
            "extensions": {"websocket.http.response": {}},
        }

    async def _receive_message(self) -> _Message:
        if not self._is_connected:
            self._is_connected = True
            return {"type": "websocket.connect"}
        while not self._socket and not self.disconnected:
            self.message_event.clear()
            await self.message_event.wait()
        return await self._socket.receive() if self._socket else {"type": "websocket.disconnect", "code": _LOST}

    async def _send_message(self, message: _Message) -> None:
        kind: str = message["type"]
        if self._socket:
            await self._socket.send(message)
        elif kind == "websocket.accept":
            self._accept(message)
        elif kind == "websocket.close":
            await self.send({"type": "http.response.start", "status": 403, "headers": [(b"content-length", b"0")]})
            await self.send({"type": "http.response.body", "body": b""})
        else:
            await self.send({**message, "type": kind.removeprefix("websocket.")})

    def _accept(self, message: _Message) -> None:
        if self.disconnected or self.transport.is_closing():
            raise ClientGoneError
        headers = list(message.get("headers", ()))
        if subprotocol := message.get("subprotocol"):
            headers.append((b"sec-websocket-protocol", subprotocol.encode("latin-1")))
        for name, value in headers:
            if HEADER_RE.search(name) or HEADER_VALUE_RE.search(value):
                error = "a header of the handshake contains characters that are not allowed"
                raise RuntimeError(error)
            self._accepting.headers[name.decode("latin-1")] = value.decode("latin-1")
        self.response_started = self.response_complete = True
        self._socket = self._open_socket(self._accepting.serialize())
        self._socket.on_lost = self._on_lost
        self.message_event.set()


class _Frames(ServerProtocol):
    """Reads and writes the frames of a connection."""

    failure: int | None = None

    @override
    def fail(self, code: int, reason: str = "") -> None:
        """Close the connection for an error. The library calls this for an invalid or too large frame."""
        self.failure = code
        super().fail(code, reason)


class SocketConnection(LimitedConnection):
    """A connection after its handshake. It reads only as fast as the application receives, and as the limit of frames allows."""

    def __init__(self, transport: asyncio.Transport, connections: Connections) -> None:
        self.transport = transport
        self._limits = connections
        self._frames = _Frames(state=State.OPEN, max_size=connections.max_message_size)
        self._loop = asyncio.get_running_loop()
        self._heard_at = self._pinged_at = self._loop.time()
        self._write_paused_since: float | None = None
        self._abort_at: float | None = None
        self._frames_left = connections.max_frames_per_second
        self._unread = bytearray()
        # The parts of a message that is not complete.
        self._content = bytearray()
        self._is_text = False
        self._messages: deque[_Message] = deque()
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._is_closing = self._has_ended = False
        self._disconnected: _Message | None = None
        # Called when the connection is lost, also after a proper close.
        self.on_lost: Callable[[], None] = lambda: None
        connections.connections.add(self)  # type: ignore[arg-type]  # uvicorn lists its own protocols.

    # For the application

    async def receive(self) -> _Message:
        """Return the next message, or the end after all messages."""
        while not self._messages:
            if self._disconnected:
                return self._disconnected
            self._arrived.clear()
            await self._arrived.wait()
        message = self._messages.popleft()
        self._read()
        return message

    async def send(self, message: _Message) -> None:
        is_close = message["type"] == "websocket.close"
        if not is_close:
            await self._writable.wait()
        if self._is_closing or self._disconnected:
            raise ClientGoneError
        if is_close:
            self.close(message.get("code", _NORMAL), message.get("reason") or "")
            return
        if message.get("text") is not None:
            self._frames.send_text(message["text"].encode())
        else:
            self._frames.send_binary(message["bytes"])
        self._flush()

    def close(self, code: int, reason: str = "") -> None:
        """Send a close frame, and discard what the client still sends."""
        if self._is_closing or self._disconnected:
            return
        self._is_closing = True
        self._messages.clear()
        self._frames.send_close(code, reason)
        self._abort_at = self._loop.time() + _CLOSE_WAIT
        self._flush()
        self._read()

    # For the transport

    @override
    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        self._unread += data
        self._read()

    @override
    def pause_writing(self) -> None:
        self._writable.clear()
        self._write_paused_since = self._loop.time()

    @override
    def resume_writing(self) -> None:
        self._writable.set()
        self._write_paused_since = None
        self._read()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._limits.connections.discard(self)
        self._disconnect(_LOST)
        self._writable.set()
        self.on_lost()

    # For the server

    @override
    def enforce_timeouts(self, now: float) -> None:
        write_timeout = self._limits.write_timeout
        is_stalled = self._write_paused_since is not None and now - self._write_paused_since > write_timeout
        if is_stalled or (self._abort_at is not None and now > self._abort_at):
            self.transport.abort()
            return
        self._frames_left = self._limits.max_frames_per_second
        self._read()
        self._keep_alive(now)

    def shutdown(self) -> None:
        """Close the socket when the server stops."""
        self.close(_RESTART)

    def _keep_alive(self, now: float) -> None:
        if self._unread:
            # The server keeps the client waiting, so it cannot hear the answer to a ping.
            self._heard_at = now
        if self._is_closing or self._disconnected or now - self._pinged_at < self._limits.ping_interval:
            return
        if self._heard_at < self._pinged_at:
            self._frames.fail(_NO_ANSWER, "no answer to a ping")
        else:
            self._pinged_at = now
            self._frames.send_ping(b"")
        self._flush()

    # Frames

    def _read(self) -> None:
        # Not while the client does not read: each ping has an answer.
        while self._unread and not self._messages and self._frames_left > 0 and self._writable.is_set():
            portion = bytes(self._unread[:_PORTION])
            del self._unread[:_PORTION]
            self._frames.receive_data(portion)
            for frame in [one for one in self._frames.events_received() if isinstance(one, Frame)]:
                self._frames_left -= 1
                self._handle(frame)
            self._flush()
        if not self.transport.is_closing():
            self._pace()

    def _pace(self) -> None:
        if self._unread and self.transport.is_reading():
            self.transport.pause_reading()
        elif not self._unread and not self.transport.is_reading():
            self.transport.resume_reading()

    def _handle(self, frame: Frame) -> None:
        if frame.opcode in {Opcode.TEXT, Opcode.BINARY}:
            self._is_text = frame.opcode is Opcode.TEXT
        if frame.opcode in {Opcode.TEXT, Opcode.BINARY, Opcode.CONT} and not self._is_closing:
            self._content += frame.data
            if frame.fin:
                content, self._content = bytes(self._content), bytearray()
                self._deliver(content)
        elif frame.opcode is Opcode.CLOSE and (close := self._frames.close_rcvd):
            self._disconnect(close.code, close.reason)

    def _deliver(self, content: bytes) -> None:
        try:
            value = {"text": content.decode()} if self._is_text else {"bytes": content}
        except UnicodeDecodeError:
            self._frames.fail(_INVALID_TEXT)
            # The library has read further frames already.
            self._is_closing = True
            return
        self._messages.append({"type": "websocket.receive", **value})
        self._arrived.set()

    def _flush(self) -> None:
        """Write what the library wants to send. An empty entry is the end of the output."""
        entries = self._frames.data_to_send()
        if self._frames.failure is not None:
            self._disconnect(self._frames.failure)
        if self._has_ended or self.transport.is_closing():
            return
        self.transport.write(b"".join(entries))
        if b"" in entries:
            self._has_ended = True
            # Closing at once would reset the connection if the client still sends, and it might lose the close frame.
            self._abort_at = self._loop.time() + _CLOSE_WAIT
            self.transport.write_eof()

    def _disconnect(self, code: int, reason: str = "") -> None:
        self._disconnected = self._disconnected or {"type": "websocket.disconnect", "code": code, "reason": reason}
        self._arrived.set()
