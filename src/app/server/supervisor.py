"""Several processes that do the same work: started, watched, replaced, renewed and stopped together.

A worker and its supervisor share a pair of connected sockets. The worker says READY once it serves, and obeys the commands
below. When one of the two ends, however that happens, the other reads the end of the stream: a worker that died is replaced,
and no worker outlives its supervisor.
"""

import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

READY = b"ready\n"
# The whole service ends: be of use until those who send the requests have noticed.
DRAIN = b"drain\n"
# This worker ends and the others go on: new connections are theirs from now on.
RETIRE = b"retire\n"
# End as soon as the running requests are answered.
QUIT = b"quit\n"

# A worker that served for less than this crashed at once, and is replaced after a pause that doubles each time.
_AT_ONCE = 1.0
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 10.0

log = logging.getLogger(__name__)

# Starts a process that works at the other end of this socket, and gives its id. The sockets that follow are the supervisor's
# own: a process that inherits them closes them, or the end of their other ends would go unnoticed.
type Spawn = Callable[[socket.socket, Sequence[socket.socket]], int]


class WorkerError(Exception):
    """No worker can be started; the text is for an operator."""


@dataclass(eq=False)
class _Worker:
    slot: int
    generation: int
    pid: int
    control: socket.socket
    started_at: float = field(default_factory=time.monotonic)
    ready_at: float | None = None
    is_leaving: bool = False
    is_killed: bool = False

    def tell(self, command: bytes) -> None:
        self.is_leaving = True
        # One that has just died cannot be told anything; its end is about to be read.
        with suppress(OSError):
            self.control.sendall(command)

    def kill(self) -> None:
        self.is_killed = True
        # Its id is ours until it is waited for, so this reaches nobody else.
        os.kill(self.pid, signal.SIGKILL)


class Supervisor:
    """Keeps `count` workers running until SIGTERM or SIGINT; SIGHUP renews them one by one.

    `on_stop` is called when they are told to end, after which none is started any more.
    """

    def __init__(
        self,
        spawn: Spawn,
        count: int,
        *,
        start_patience: float,
        stop_patience: float,
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        self._spawn = spawn
        self._on_stop = on_stop
        self._start_patience = start_patience
        self._stop_patience = stop_patience
        self._selector = selectors.PollSelector()
        self._workers: list[_Worker] = []
        self._generation = 0
        # When to start a worker for a slot that has none, and how often in a row that slot's worker crashed at once.
        self._due = dict.fromkeys(range(count), 0.0)
        self._crashes = [0] * count
        self._stop_by: float | None = None
        self._is_interrupted = False

    def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Return once all have ended as they were told; raise `WorkerError` when none can be started."""
        with ExitStack() as stack:
            stack.enter_context(self._selector)
            stack.enter_context(self._signals())
            stack.callback(self._end_all)
            is_announced = False
            while self._workers or self._due:
                self._act()
                is_complete = bool(self._workers) and all(worker.ready_at for worker in self._workers)
                if is_complete and not is_announced and self._stop_by is None:
                    is_announced = True
                    on_ready()
                self._wait()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Have signals arrive as bytes on a socket, so that there is one thing to wait for."""
        receiving, sending = socket.socketpair()
        # A signal that comes while the socket is full is one of many alike.
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

    def _act(self) -> None:
        """Do whatever the time has come for."""
        now = time.monotonic()
        for slot, due in list(self._due.items()):
            if due <= now:
                self._start(slot)
        for worker in self._workers:
            if self._deadline(worker) <= now:
                log.error("worker takes too long and is killed", extra={"pid": worker.pid})
                worker.kill()
        if self._stop_by is None:
            self._renew()

    def _renew(self) -> None:
        """Take the next step of replacing workers of an older generation, one at a time."""
        old = [worker for worker in self._workers if worker.generation < self._generation]
        if not old or any(worker.is_leaving for worker in old):
            return
        successors = [worker for worker in self._workers if worker.slot == old[0].slot and worker is not old[0]]
        if not successors:
            self._start(old[0].slot)
        elif successors[0].ready_at:
            old[0].tell(RETIRE)

    def _start(self, slot: int) -> None:
        self._due.pop(slot, None)
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                pid = self._spawn(theirs, [ours, *(worker.control for worker in self._workers)])
        except OSError:
            # No memory or no process to be had at the moment: what runs goes on, and without anything running it ends here.
            ours.close()
            if not self._serving():
                raise
            log.exception("worker cannot be started")
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
        return float("inf") if worker.ready_at else worker.started_at + self._start_patience

    def _serving(self) -> bool:
        return any(worker.ready_at for worker in self._workers)

    def _wait(self) -> None:
        wait = min([*self._due.values(), *map(self._deadline, self._workers)]) - time.monotonic()
        for key, _ in self._selector.select(None if wait == float("inf") else max(wait, 0)):
            worker: _Worker | None = key.data
            said = heard(key.fileobj)  # type: ignore[arg-type]  # Sockets are all there is.
            if worker is None:
                for number in said:
                    self._on_signal(signal.Signals(number))
            elif said:
                worker.ready_at = time.monotonic()
                log.info("worker serves", extra={"pid": worker.pid})
            else:
                self._on_end(worker)

    def _on_signal(self, told: signal.Signals) -> None:
        if told == signal.SIGHUP:
            log.info("renewing the workers")
            self._generation += 1
        elif told == signal.SIGINT and self._is_interrupted:
            self._stop_by = 0
        else:
            self._is_interrupted = told == signal.SIGINT
            self._stop(QUIT if self._is_interrupted else DRAIN)

    def _stop(self, command: bytes) -> None:
        self._due.clear()
        self._stop_by = self._stop_by or time.monotonic() + self._stop_patience
        for worker in self._workers:
            worker.tell(command)
        self._on_stop()

    def _on_end(self, worker: _Worker) -> None:
        self._forget(worker)
        _, status = os.waitpid(worker.pid, 0)
        ending = {"pid": worker.pid, "exit_code": os.waitstatus_to_exitcode(status)}
        has_double = any(other.slot == worker.slot for other in self._workers)
        if worker.is_leaving:
            log.info("worker ended", extra=ending)
        elif has_double and not worker.ready_at:
            log.error("worker cannot be renewed; the older ones go on", extra=ending)
            for other in self._workers:
                other.generation = self._generation
        elif worker.ready_at or self._serving():
            log.error("worker ended unasked", extra=ending)
            if not has_double:
                self._due[worker.slot] = time.monotonic() + self._pause(worker.slot, worker.ready_at)
        else:
            message = f"a worker ended with exit code {ending['exit_code']} before it served; what it wrote says why"
            raise WorkerError(message)

    def _pause(self, slot: int, ready_at: float | None = None) -> float:
        """Say how long to wait before the next start; no time at all after a worker that had served for a while."""
        if ready_at and time.monotonic() - ready_at >= _AT_ONCE:
            self._crashes[slot] = 0
            return 0.0
        self._crashes[slot] += 1
        return float(min(_FIRST_PAUSE * 2 ** (self._crashes[slot] - 1), _LONGEST_PAUSE))

    def _forget(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        self._selector.unregister(worker.control)
        worker.control.close()

    def _end_all(self) -> None:
        """Leave nobody behind, however `run` ends."""
        for worker in list(self._workers):
            worker.kill()
            self._forget(worker)
            os.waitpid(worker.pid, 0)


def heard(control: socket.socket) -> bytes:
    """Give what the other side has said; nothing when it has ended."""
    # One that was killed before it read what it was told resets the connection: an end like any other.
    with suppress(ConnectionResetError):
        return control.recv(4096)
    return b""
