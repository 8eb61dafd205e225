"""The HTTP server around the application: one process, or several that share a listening socket; and how it ends."""

import asyncio
import gc
import logging
import math
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from types import FrameType
from typing import NoReturn, override

import uvicorn

from app.core.config import ServerSettings, Settings
from app.core.listening import listen
from app.core.observability.exposition import Exposition, exposition
from app.core.signals import noting_hangups
from app.main import create_app
from app.server.clients import Connection, Connections
from app.server.supervisor import DRAIN, READY, RETIRE, Supervisor, heard
from app.startup import prepare

_START_PATIENCE = 60.0
# What an end may take beyond its delay and its grace: to give up requests and to close connections to the database.
_LAST_STEPS = 10.0
# Files of a process that are no connections of clients: the database's, the log, the event loop's own.
_OTHER_FILES = 200
_TICKS_PER_SECOND = 10
# What is blocked around a fork: until the child has handlers of its own, it would run the supervisor's, and by the shared
# wake-up socket have the whole service end for what was said to one worker.
_TOLD = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

log = logging.getLogger(__name__)


def serve(settings: Settings, *, announce: Callable[[], None] = lambda: None) -> None:
    """Serve until SIGINT or SIGTERM; `announce` is called once connections are accepted."""
    prepare(settings)
    _allow_files(settings.server.max_connections + _OTHER_FILES)
    with exposition(settings.telemetry) as exposed, listen(settings.server.host, settings.server.port) as listener:

        def on_ready() -> None:
            # With PORT=0 nothing else tells.
            host, port, *_ = listener.getsockname()
            log.info("listening", extra={"host": host, "port": port})
            announce()

        if settings.server.workers == 1:
            _Server(settings, exposed, on_ready).run(sockets=[listener])
        else:  # pragma: no cover  # Forks, which no measuring survives: tests/test_workers.py runs it as processes.
            _supervise(settings, listener, exposed, on_ready)


def _supervise(  # pragma: no cover  # As above.
    settings: Settings, listener: socket.socket, exposed: Exposition | None, on_ready: Callable[[], None]
) -> None:
    def spawn(control: socket.socket, others: Sequence[socket.socket]) -> int:
        signal.pthread_sigmask(signal.SIG_BLOCK, _TOLD)
        try:
            return os.fork() or _become_worker(settings, listener, exposed, control, others)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _TOLD)

    # What is loaded stays, and stays shared: a collector that looked at it would copy its pages into each worker.
    gc.freeze()
    patience = (settings.drain_delay + settings.server.shutdown_grace).total_seconds() + _LAST_STEPS
    Supervisor(
        spawn,
        settings.server.workers,
        start_patience=_START_PATIENCE,
        stop_patience=patience,
        # Kept open here, it would go on taking connections that no worker is left to answer.
        on_stop=listener.close,
    ).run(on_ready)


def _become_worker(  # pragma: no cover  # As above.
    settings: Settings,
    listener: socket.socket,
    exposed: Exposition | None,
    control: socket.socket,
    others: Sequence[socket.socket],
) -> NoReturn:
    """Serve in a process that has just been forked, and end it: nothing of the supervisor's code runs here after that."""
    code = 1
    try:
        for one in others:
            one.close()
        _take_signals()
        _Server(settings, exposed, lambda: control.sendall(READY), control).run(sockets=[listener])
        code = 0
    except SystemExit:
        # uvicorn's way to say that the application did not start; it has logged why.
        pass
    except BaseException:
        log.exception("worker failed")
    finally:
        # Where nobody reads standard output any more, this process must end all the same.
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(code)


def _take_signals() -> None:  # pragma: no cover  # As above.
    """Let this worker alone act on what it is told: by ending, until the server has something to drain."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Both reach the whole group from a terminal; the supervisor is the one to act on them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _TOLD)


def _allow_files(wanted: int) -> None:
    # Each connection is a file, and the limit a process is born with is one for interactive programs.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def _waiting(listener: socket.socket) -> Iterator[socket.socket]:
    """Accept all who wait; where several processes share the socket, another may be quicker or has closed it."""
    with suppress(OSError):
        # The backlog is closed: a client that connects after the last accept is refused before it has sent anything.
        listener.listen(0)
        while True:
            client, _ = listener.accept()
            client.settimeout(0)
            yield client


def _connection_limit(settings: ServerSettings) -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return settings.max_connections
    # Where files are that few, half of them.
    return min(settings.max_connections, max(files - _OTHER_FILES, files // 2))


class _Server(uvicorn.Server):
    """One process: it serves, and on being told to end first sees to it that no request is lost."""

    def __init__(
        self,
        settings: Settings,
        exposed: Exposition | None,
        on_ready: Callable[[], None],
        control: socket.socket | None = None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                create_app(settings, exposition=lambda: nullcontext(exposed), readiness=(self._unready,)),
                http=Connection,
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                # uvicorn must not read forwarded headers: a client would choose its own address.
                proxy_headers=False,
                timeout_graceful_shutdown=math.ceil(settings.server.shutdown_grace.total_seconds()),
                lifespan="on",
            )
        )
        self.server_state = self._connections = Connections(settings.server, limit=_connection_limit(settings.server))
        self._drain_delay = settings.drain_delay.total_seconds()
        self._on_ready = on_ready
        self._control = control
        self._is_draining = False

    def _unready(self) -> str | None:
        return "it is about to end" if self._is_draining else None

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # What has been built stays: the collector need not look at it again.
        gc.freeze()
        self._loop = asyncio.get_running_loop()
        if self._control:
            self._loop.add_reader(self._control, self._obey, self._control)
        await asyncio.to_thread(self._on_ready)

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Connected clients are in the backlog; closing the socket would reset their connections.
        waiting = [client for listener in sockets or () for client in _waiting(listener)]
        arrivals = [asyncio.create_task(self._welcome(client)) for client in waiting]
        # The main loop, which enforces the time-outs until now, has ended.
        enforcing = asyncio.create_task(self._enforce())
        await super().shutdown(sockets)
        await asyncio.gather(*arrivals)
        enforcing.cancel()

    async def _enforce(self) -> None:
        while True:
            self._connections.enforce(self._loop.time())
            await asyncio.sleep(1 / _TICKS_PER_SECOND)

    async def _welcome(self, client: socket.socket) -> None:
        """Take a connection when no more are listened for: it has one request, if that comes at once."""
        _, connection = await self._loop.connect_accepted_socket(
            lambda: Connection(config=self.config, server_state=self._connections, app_state=self.lifespan.state),
            client,
        )
        connection.shutdown()

    @override
    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        # A worker's SIGHUP is the supervisor's business.
        with nullcontext() if self._control else noting_hangups():
            await super().serve(sockets)

    @override
    async def on_tick(self, counter: int) -> bool:
        if counter % _TICKS_PER_SECOND == 0:
            self._connections.enforce(self._loop.time())
        return await super().on_tick(counter)

    @override
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGINT and self._control:
            # Ctrl-C reaches the whole group; the supervisor is the one to act on it.
            return
        if sig == signal.SIGTERM and self.started and not self._is_draining:
            self._loop.call_soon_threadsafe(self._retire if self._control else self._drain)
            return
        super().handle_exit(sig, frame)
        # uvicorn would raise the signal again once everything is closed, and an orderly end would look like a crash.
        self._captured_signals.clear()

    def _obey(self, control: socket.socket) -> None:
        """Do as the supervisor says; when it has ended without a word, end as well."""
        command = heard(control)
        if command == DRAIN:
            self._drain()
        elif command == RETIRE:
            self._retire()
        else:
            self._loop.remove_reader(control)
            self.should_exit = True

    def _retire(self) -> None:
        """End alone: new connections are for the others from now on."""
        for server in self.servers:
            server.close()
        self._drain()

    def _drain(self) -> None:
        """Be of use until those who send the requests have noticed: each answer is the last on its connection."""
        self._is_draining = True
        last = (b"connection", b"close")
        self.config.encoded_headers.append(last)
        self.server_state.default_headers = [*self.server_state.default_headers, last]
        log.info("draining", extra={"seconds": self._drain_delay})
        self._loop.call_later(self._drain_delay, self._quit)

    def _quit(self) -> None:
        self.should_exit = True
