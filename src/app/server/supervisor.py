"""Starts worker processes, replaces those that exit, renews them on SIGHUP, and stops them.

A worker and its supervisor share a socket pair. The worker sends READY when it serves, and follows the commands below. If one
of the two exits, the other reads end of file. The supervisor then replaces the worker, or the worker shuts down.
"""

import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import KW_ONLY, dataclass, field

READY = b"ready\n"
# The service stops: keep serving during the drain delay, then stop.
DRAIN = b"drain\n"
# Only this worker stops: as DRAIN, but leave new connections to the other workers.
RETIRE = b"retire\n"
# Stop as soon as the running requests have their responses.
QUIT = b"quit\n"

# Seconds. A worker that was ready for less than the first is replaced after a pause, which doubles each time.
_STABLE_AFTER = 1.0
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 10.0

log = logging.getLogger(__name__)

# Starts a worker process, which gets this socket, and returns its process id. The other sockets belong to the supervisor: a
# process that inherits them must close them, or the other workers would not read end of file when the supervisor exits.
type Spawn = Callable[[socket.socket, Sequence[socket.socket]], int]


class WorkerError(Exception):
    """No worker can be started. The text is for the operator."""


@dataclass(eq=False)
class _Worker:
    slot: int
    generation: int
    pid: int
    control: socket.socket
    started_at: float = field(default_factory=time.monotonic)
    ready_at: float | None = None
    is_stopping: bool = False
    is_killed: bool = False

    def send(self, command: bytes) -> None:
        self.is_stopping = True
        # If the worker has just exited, the supervisor will read end of file from its socket, and handle the exit then.
        with suppress(OSError):
            self.control.sendall(command)

    def kill(self) -> None:
        self.is_killed = True
        # The process id cannot be reused before `waitpid`, so this reaches no other process.
        os.kill(self.pid, signal.SIGKILL)


@dataclass(eq=False)
class Supervisor:
    """Keeps `count` workers running until SIGTERM or SIGINT. SIGHUP renews them one by one.

    `on_stop` is called when the workers get the command to stop. No worker is started after that. `on_renewal` is called when a
    renewal begins, and `on_renewed` when it has ended: with False if a new worker did not start, so that old ones continue.
    """

    spawn: Spawn
    count: int
    _: KW_ONLY
    start_timeout: float
    stop_timeout: float
    on_stop: Callable[[], None] = lambda: None
    on_renewal: Callable[[], None] = lambda: None
    on_renewed: Callable[[bool], None] = lambda _: None

    def __post_init__(self) -> None:
        self._selector = selectors.PollSelector()
        self._workers: list[_Worker] = []
        self._generation = 0
        # For each slot without a worker, when to start one; and for each slot, how many workers in a row crashed early.
        self._due = dict.fromkeys(range(self.count), 0.0)
        self._crashes = [0] * self.count
        self._stop_by: float | None = None
        self._is_interrupted = False
        self._is_renewing = False
        self._is_given_up = False

    def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Run until all workers have stopped. Raises `WorkerError` if none can be started."""
        with ExitStack() as stack:
            stack.enter_context(self._selector)
            stack.enter_context(self._signals())
            stack.callback(self._kill_all)
            is_announced = False
            while self._workers or self._due:
                self._handle_due()
                is_complete = bool(self._workers) and all(worker.ready_at for worker in self._workers)
                if is_complete and not is_announced and self._stop_by is None:
                    is_announced = True
                    on_ready()
                self._wait()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Receive signals as bytes on a socket, so that the selector waits for signals and workers together."""
        receiving, sending = socket.socketpair()
        # If the socket is full, its bytes already stand for the same signals.
        sending.settimeout(0)
        with receiving, sending:
            handlers = {
                one: signal.signal(one, lambda *_: None) for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
            }
            wakeup = signal.set_wakeup_fd(sending.fileno())
            self._selector.register(receiving, selectors.EVENT_READ)
            try:
                yield
            finally:
                signal.set_wakeup_fd(wakeup)
                for one, handler in handlers.items():
                    signal.signal(one, handler)

    def _handle_due(self) -> None:
        """Start workers that are due, kill workers past their deadline, and continue a renewal."""
        now = time.monotonic()
        for slot, due in list(self._due.items()):
            if due <= now:
                self._start(slot)
        for worker in self._workers:
            if self._deadline(worker) <= now:
                log.error("worker killed after a timeout", extra={"pid": worker.pid})
                worker.kill()
        if self._stop_by is None:
            self._renew()

    def _renew(self) -> None:
        """Take the next step in replacing old workers one at a time: start a successor, then retire the old one once it is ready."""
        old = [worker for worker in self._workers if worker.generation < self._generation]
        if not old:
            self._end_renewal()
        if not old or any(worker.is_stopping for worker in old):
            return
        successors = [worker for worker in self._workers if worker.slot == old[0].slot and worker is not old[0]]
        if not successors:
            self._start(old[0].slot)
        elif successors[0].ready_at:
            old[0].send(RETIRE)

    def _end_renewal(self) -> None:
        if self._is_renewing and all(worker.ready_at for worker in self._workers):
            self._is_renewing = False
            self.on_renewed(not self._is_given_up)

    def _start(self, slot: int) -> None:
        self._due.pop(slot, None)
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                pid = self.spawn(theirs, [ours, *(worker.control for worker in self._workers)])
        except OSError:
            # No memory or no free process. The running workers continue; without any, the supervisor fails.
            ours.close()
            if not self._has_ready_worker():
                raise
            log.exception("worker not started")
            self._due[slot] = time.monotonic() + self._pause(slot)
            return
        worker = _Worker(slot, self._generation, pid, ours)
        self._workers.append(worker)
        self._selector.register(ours, selectors.EVENT_READ, worker)

    def _deadline(self, worker: _Worker) -> float:
        if worker.is_killed:
            return float("inf")
        if self._stop_by is not None:
            return self._stop_by
        return float("inf") if worker.ready_at else worker.started_at + self.start_timeout

    def _has_ready_worker(self) -> bool:
        return any(worker.ready_at for worker in self._workers)

    def _wait(self) -> None:
        wait = min([*self._due.values(), *map(self._deadline, self._workers)]) - time.monotonic()
        for key, _ in self._selector.select(None if wait == float("inf") else max(wait, 0)):
            worker: _Worker | None = key.data
            received = receive(key.fileobj)  # type: ignore[arg-type]  # Every registered file is a socket.
            if worker is None:
                for number in received:
                    self._on_signal(signal.Signals(number))
            elif received:
                worker.ready_at = time.monotonic()
                log.info("worker ready", extra={"pid": worker.pid})
            else:
                self._on_exit(worker)

    def _on_signal(self, received: signal.Signals) -> None:
        """Renew the workers on SIGHUP, drain them on SIGTERM, stop them on SIGINT, and kill them on a second SIGINT."""
        if received == signal.SIGHUP:
            log.info("workers renewing")
            self._generation += 1
            self._is_renewing, self._is_given_up = True, False
            self.on_renewal()
        elif received == signal.SIGINT and self._is_interrupted:
            self._stop_by = 0
        else:
            self._is_interrupted = received == signal.SIGINT
            self._due.clear()
            self._stop_by = self._stop_by or time.monotonic() + self.stop_timeout
            for worker in self._workers:
                worker.send(QUIT if self._is_interrupted else DRAIN)
            self.on_stop()

    def _on_exit(self, worker: _Worker) -> None:
        self._forget(worker)
        _, status = os.waitpid(worker.pid, 0)
        extra = {"pid": worker.pid, "exit_code": os.waitstatus_to_exitcode(status)}
        is_slot_filled = any(other.slot == worker.slot for other in self._workers)
        if worker.is_stopping:
            log.info("worker stopped", extra=extra)
        elif is_slot_filled and not worker.ready_at:
            log.error("worker not renewed; the old workers continue", extra=extra)
            self._is_given_up = True
            for other in self._workers:
                other.generation = self._generation
        elif worker.ready_at or self._has_ready_worker():
            log.error("worker exited unexpectedly", extra=extra)
            if not is_slot_filled:
                self._due[worker.slot] = time.monotonic() + self._pause(worker.slot, worker.ready_at)
        else:
            message = f"a worker exited with code {extra['exit_code']} before it was ready; see its log for the reason"
            raise WorkerError(message)

    def _pause(self, slot: int, ready_at: float | None = None) -> float:
        """Return the seconds until the next start: zero if the worker had been stable."""
        if ready_at and time.monotonic() - ready_at >= _STABLE_AFTER:
            self._crashes[slot] = 0
            return 0.0
        self._crashes[slot] += 1
        return float(min(_FIRST_PAUSE * 2 ** (self._crashes[slot] - 1), _LONGEST_PAUSE))

    def _forget(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        self._selector.unregister(worker.control)
        worker.control.close()

    def _kill_all(self) -> None:
        """Kill the remaining workers, also when `run` raises."""
        for worker in list(self._workers):
            worker.kill()
            self._forget(worker)
            os.waitpid(worker.pid, 0)


def receive(control: socket.socket) -> bytes:
    """Return what the other side has sent, or nothing if it has exited."""
    # A process that is killed with unread data in its socket resets the connection.
    with suppress(ConnectionResetError):
        return control.recv(4096)
    return b""
