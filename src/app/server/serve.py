"""Runs the application under uvicorn: in one process, or in several that share a listening socket."""

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
from functools import partial
from types import FrameType
from typing import NoReturn, override

import uvicorn

from app.core.config import ServerSettings, Settings
from app.core.listening import listen
from app.core.observability.exposition import Exposition, exposition
from app.core.shutdown import Shutdown
from app.core.signals import logging_hangups
from app.main import create_app
from app.server.connections import Connections
from app.server.requests import Connection
from app.server.supervisor import DRAIN, READY, RETIRE, Supervisor, receive
from app.startup import prepare
from app.systemd import ServiceManager

# Seconds from the start of a worker process until it is ready.
_START_TIMEOUT = 60.0
# Seconds for shutdown beyond the drain delay and the grace period: to cancel requests and close database connections.
_CLEANUP_TIME = 10.0
# Files of a process other than client connections: database connections, the log, the files of the event loop.
_OTHER_FILES = 200
_TICKS_PER_SECOND = 10
_SERVING = "serving"
_NOT_RENEWED = "serving; the reload failed, and old workers continue: see the log, and reload again"
# Blocked around a fork. Until the child has its own handlers, a signal to it would reach the supervisor through the shared
# wake-up socket, and would stop the whole service.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

log = logging.getLogger(__name__)


def serve(settings: Settings, *, announce: Callable[[], None] = lambda: None) -> None:
    """Serve until SIGINT or SIGTERM. `announce` is called when the server accepts connections."""
    manager = ServiceManager.from_environment()
    prepare(settings)
    _raise_file_limit(settings.server.max_connections + _OTHER_FILES)
    with exposition(settings.telemetry) as exposed, listen(settings.server.host, settings.server.port) as listener:

        def on_ready() -> None:
            # With PORT=0, the log is the only place that names the port.
            host, port, *_ = listener.getsockname()
            log.info("listening", extra={"host": host, "port": port})
            manager.ready(_SERVING)
            announce()

        if settings.server.workers == 1:
            _Server(settings, exposed, on_ready, manager=manager).run(sockets=[listener])
        else:  # pragma: no cover  # Coverage does not survive a fork; tests/test_workers.py runs it in processes.
            _supervise(settings, listener, exposed, on_ready, manager)


def _supervise(  # pragma: no cover  # As above.
    settings: Settings,
    listener: socket.socket,
    exposed: Exposition | None,
    on_ready: Callable[[], None],
    manager: ServiceManager,
) -> None:
    def spawn(control: socket.socket, others: Sequence[socket.socket]) -> int:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            return os.fork() or _run_worker(settings, listener, exposed, control, others)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    # The workers share the pages of the loaded modules. A garbage collection would write to them, and so copy them.
    gc.freeze()
    stop_timeout = (settings.drain_delay + settings.server.shutdown_grace).total_seconds() + _CLEANUP_TIME

    def on_stop() -> None:
        manager.stopping("draining")
        # An open socket would accept connections into its backlog after the last worker has stopped.
        listener.close()

    Supervisor(
        spawn,
        settings.server.workers,
        start_timeout=_START_TIMEOUT,
        stop_timeout=stop_timeout,
        on_stop=on_stop,
        on_renewal=lambda: manager.reloading("renewing the workers"),
        # The service works, so it is ready. systemd has no message for a reload that failed.
        on_renewed=lambda is_complete: manager.ready(_SERVING if is_complete else _NOT_RENEWED),
    ).run(on_ready)


def _run_worker(  # pragma: no cover  # As above.
    settings: Settings,
    listener: socket.socket,
    exposed: Exposition | None,
    control: socket.socket,
    others: Sequence[socket.socket],
) -> NoReturn:
    """Serve in a forked process, and exit from it, so that no code of the supervisor runs in this process."""
    code = 1
    try:
        for one in others:
            one.close()
        _reset_signals()
        _Server(settings, exposed, lambda: control.sendall(READY), control).run(sockets=[listener])
        code = 0
    except SystemExit:
        # uvicorn exits when the application does not start, and has logged the reason.
        pass
    except BaseException:
        log.exception("worker failed")
    finally:
        # The process that reads standard output may have exited.
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(code)


def _reset_signals() -> None:  # pragma: no cover  # As above.
    """Replace the handlers of the supervisor. SIGTERM ends this process until the server handles it."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # A terminal sends both to the whole process group. The supervisor handles them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _raise_file_limit(wanted: int) -> None:
    # Each connection needs a file descriptor, and the default limit is often 1024.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))


def _accept_backlog(listener: socket.socket) -> Iterator[socket.socket]:
    """Accept every connection in the backlog, until it is empty. Other workers that share the socket may accept some of them."""
    # On an error, the backlog is empty, `_retire` has closed the socket of this worker, or no file descriptor is free.
    with suppress(OSError):
        # With a backlog of zero, a client that connects after the last accept is refused before it sends a request.
        listener.listen(0)
        while True:
            client, _ = listener.accept()
            client.settimeout(0)
            yield client


def _connection_limit(settings: ServerSettings) -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return settings.max_connections
    # If the limit is low, clients get half of the files.
    return min(settings.max_connections, max(files - _OTHER_FILES, files // 2))


class _Server(uvicorn.Server):
    """The server of one process. At shutdown, it still responds to requests in progress, and to those in the backlog."""

    def __init__(
        self,
        settings: Settings,
        exposed: Exposition | None,
        on_ready: Callable[[], None],
        control: socket.socket | None = None,
        *,
        manager: ServiceManager | None = None,
    ) -> None:
        self._shutdown = Shutdown()
        # Only one process of a service notifies: the supervisor, or the server without one.
        self._manager = manager or ServiceManager()
        super().__init__(
            uvicorn.Config(
                create_app(
                    settings,
                    exposition=lambda: nullcontext(exposed),
                    readiness=(self._unready,),
                    shutdown=lambda: nullcontext(self._shutdown),
                ),
                http=Connection,
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                # uvicorn must not read forwarded headers, because a client could set its own address.
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
        return "it is shutting down" if self._is_draining else None

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # These objects live until the process exits, so the garbage collector can skip them.
        gc.freeze()
        self._loop = asyncio.get_running_loop()
        if self._control:
            self._loop.add_reader(self._control, self._on_command, self._control)
        await asyncio.to_thread(self._on_ready)

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._shutdown.begin()
        self._manager.stopping("finishing the running requests")
        # Closing the listening socket would reset the connections in its backlog.
        backlog = [client for listener in sockets or () for client in _accept_backlog(listener)]
        accepting = [asyncio.create_task(self._serve_last_request(client)) for client in backlog]
        # The main loop, which has enforced the timeouts, has ended.
        enforcing = asyncio.create_task(self._enforce_timeouts())
        await super().shutdown(sockets)
        await asyncio.gather(*accepting)
        enforcing.cancel()

    async def _enforce_timeouts(self) -> None:
        while True:
            self._connections.enforce_timeouts(self._loop.time())
            await asyncio.sleep(1 / _TICKS_PER_SECOND)

    async def _serve_last_request(self, client: socket.socket) -> None:
        """Serve one request on a connection from the backlog, if the client sends it at once."""
        _, connection = await self._loop.connect_accepted_socket(
            lambda: Connection(config=self.config, server_state=self._connections, app_state=self.lifespan.state),
            client,
        )
        connection.shutdown()

    @override
    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        # In a worker process, SIGHUP is ignored: the supervisor handles it.
        with nullcontext() if self._control else logging_hangups(partial(self._manager.confirm_reload, _SERVING)):
            await super().serve(sockets)

    @override
    async def on_tick(self, counter: int) -> bool:
        if counter % _TICKS_PER_SECOND == 0:
            self._connections.enforce_timeouts(self._loop.time())
        return await super().on_tick(counter)

    @override
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn's method also records the signal, and raises it again after shutdown. The exit code would be that of a crash.
        if sig == signal.SIGINT and self._control:
            # Ctrl-C reaches the whole process group. The supervisor handles it.
            return
        if sig == signal.SIGTERM and self.started and not self._is_draining:
            self._loop.call_soon_threadsafe(self._retire if self._control else self._drain)
        elif sig == signal.SIGINT and self.should_exit:
            self.force_exit = True
        else:
            self.should_exit = True

    def _on_command(self, control: socket.socket) -> None:
        """Follow a command of the supervisor, or shut down because the supervisor has exited."""
        command = receive(control)
        if command == DRAIN:
            self._drain()
        elif command == RETIRE:
            self._retire()
        else:
            self._loop.remove_reader(control)
            self.should_exit = True

    def _retire(self) -> None:
        """Drain this worker alone, and leave new connections to the other workers."""
        for server in self.servers:
            server.close()
        self._drain()

    def _drain(self) -> None:
        """Keep serving until load balancers have noticed that readiness fails. Each response closes its connection."""
        self._is_draining = True
        self._manager.stopping("draining")
        last = (b"connection", b"close")
        self.config.encoded_headers.append(last)
        self.server_state.default_headers = [*self.server_state.default_headers, last]
        log.info("draining", extra={"seconds": self._drain_delay})
        self._loop.call_later(self._drain_delay, self._quit)

    def _quit(self) -> None:
        self.should_exit = True
