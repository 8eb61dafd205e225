"""The supervisor, with small worker processes and real signals."""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import pytest

from app.server.supervisor import Supervisor, WorkerError

NORMAL = "s.sendall(b'ready\\n'); s.recv(99)"
NEVER_STOPPING = "s.sendall(b'ready\\n'); time.sleep(60)"
NEVER_READY = "time.sleep(60)"
FAILING = "sys.exit(3)"
CRASHING = "s.sendall(b'ready\\n'); time.sleep(0.05)"
TIMEOUT = 10.0


class Workers:
    """Starts the worker processes, each with the next script, and keeps their ids. The last script repeats."""

    def __init__(self, *scripts: str) -> None:
        self._scripts = scripts
        self.pids: list[int] = []
        self.errors: list[OSError] = []

    def spawn(self, control: socket.socket, _others: Sequence[socket.socket]) -> int:
        if self.errors:
            raise self.errors.pop()
        script = self._scripts[min(len(self.pids), len(self._scripts) - 1)]
        os.set_inheritable(control.fileno(), True)  # noqa: FBT003  # It has only this argument.
        program = f"import socket, sys, time; s = socket.socket(fileno={control.fileno()}); {script}"
        self.pids.append(os.posix_spawn(sys.executable, [sys.executable, "-I", "-S", "-c", program], {}))
        return self.pids[-1]

    def alive(self) -> list[int]:
        """Return the workers that have not exited."""
        return [pid for pid in self.pids if _is_alive(pid)]


def _is_alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def _ignored_signals() -> Iterator[None]:
    """Ignore the signals outside of the supervisor, so that a failing test does not end the test run."""
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {one: signal.signal(one, signal.SIG_IGN) for one in signals}
    yield
    for one, handler in before.items():
        signal.signal(one, handler)


def supervise(
    workers: Workers,
    count: int,
    act: Callable[[], None] = lambda: None,
    *,
    start: float = TIMEOUT,
    stop: float = TIMEOUT,
    on_renewed: Callable[[bool], None] = lambda _: None,
) -> list[str]:
    """Run a supervisor until it stops, and `act` in a thread once all workers are ready. Returns the failed assertions of `act`."""
    errors: list[str] = []
    ready: list[None] = []

    def on_ready() -> None:
        ready.append(None)
        thread.start()

    def run_act() -> None:
        try:
            act()
        except AssertionError as error:
            errors.append(str(error))
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=run_act)
    try:
        Supervisor(workers.spawn, count, start_timeout=start, stop_timeout=stop, on_renewed=on_renewed).run(on_ready)
    finally:
        if ready:
            thread.join()
        assert workers.alive() == []
    assert len(ready) == 1
    return errors


def send(*signals: signal.Signals) -> None:
    for one in signals:
        os.kill(os.getpid(), one)
        time.sleep(0.1)


@pytest.mark.parametrize("received", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_all_workers(received: signal.Signals) -> None:
    workers = Workers(NORMAL)

    errors = supervise(workers, 3, lambda: send(received))

    assert errors == []
    assert len(workers.pids) == 3


def test_a_killed_worker_is_replaced_and_the_others_continue(caplog: pytest.LogCaptureFixture) -> None:
    workers = Workers(NORMAL)

    def act() -> None:
        first, second = workers.pids
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: len(workers.pids) == 3)
        assert second in workers.alive()
        send(signal.SIGTERM)

    assert supervise(workers, 2, act) == []
    assert [record.exit_code for record in caplog.records if record.message == "worker exited unexpectedly"] == [-9]  # type: ignore[attr-defined]  # Extra.


def test_the_pause_before_a_restart_grows_with_each_crash() -> None:
    workers = Workers(NORMAL, CRASHING)

    def act() -> None:
        wait_until(lambda: len(workers.pids) >= 5)
        send(signal.SIGTERM)

    began = time.monotonic()
    assert supervise(workers, 2, act) == []
    # Pauses of 0.1, 0.2 and 0.4 seconds before the third, fourth and fifth.
    assert time.monotonic() - began > 0.7


def test_renewal_replaces_one_worker_after_the_other() -> None:
    workers = Workers(NORMAL)
    least: list[int] = []

    def act() -> None:
        old = list(workers.pids)
        send(signal.SIGHUP)

        def is_renewed() -> bool:
            least.append(len(workers.alive()))
            return len(workers.pids) == 4 and not set(old) & set(workers.alive())

        wait_until(is_renewed)
        send(signal.SIGTERM)

    assert supervise(workers, 2, act) == []
    assert min(least) >= 2


def test_renewal_keeps_the_old_workers_if_a_new_one_does_not_start(caplog: pytest.LogCaptureFixture) -> None:
    workers = Workers(NORMAL, NORMAL, FAILING, NORMAL)
    ends: list[bool] = []

    def act() -> None:
        old = list(workers.pids)
        send(signal.SIGHUP)
        wait_until(lambda: "worker not renewed; the old workers continue" in caplog.text)
        assert workers.alive() == old
        wait_until(lambda: ends == [False])
        send(signal.SIGHUP)
        wait_until(lambda: ends == [False, True])
        send(signal.SIGTERM)

    assert supervise(workers, 2, act, on_renewed=ends.append) == []
    assert len(workers.pids) == 5


def test_the_error_names_the_exit_code_of_a_worker_that_does_not_start() -> None:
    with pytest.raises(WorkerError, match="exited with code 3 before it was ready"):
        supervise(Workers(FAILING), 2)


def test_a_worker_that_does_not_become_ready_is_killed() -> None:
    with pytest.raises(WorkerError, match="exited with code -9"):
        supervise(Workers(NEVER_READY), 1, start=0.2)


def test_a_worker_that_does_not_stop_is_killed(caplog: pytest.LogCaptureFixture) -> None:
    workers = Workers(NEVER_STOPPING)

    assert supervise(workers, 1, lambda: send(signal.SIGTERM), stop=0.2) == []
    assert "worker killed after a timeout" in caplog.text


def test_a_second_ctrl_c_kills_the_workers() -> None:
    began = time.monotonic()

    assert supervise(Workers(NEVER_STOPPING), 1, lambda: send(signal.SIGINT, signal.SIGINT), stop=60) == []
    assert time.monotonic() - began < TIMEOUT


def test_a_fork_that_fails_ends_the_supervisor_only_if_no_worker_is_ready(caplog: pytest.LogCaptureFixture) -> None:
    failing = Workers(NORMAL)
    failing.errors.append(BlockingIOError("no free process"))
    with pytest.raises(BlockingIOError):
        supervise(failing, 1)

    workers = Workers(NORMAL)

    def act() -> None:
        workers.errors.append(BlockingIOError("no free process"))
        os.kill(workers.pids[0], signal.SIGKILL)
        wait_until(lambda: len(workers.pids) == 3)
        send(signal.SIGTERM)

    with caplog.at_level(logging.ERROR):
        assert supervise(workers, 2, act) == []
    assert "worker not started" in caplog.text


def test_a_stable_worker_is_replaced_without_a_pause() -> None:
    supervisor = Supervisor(Workers(NORMAL).spawn, 1, start_timeout=1, stop_timeout=1)
    now = time.monotonic()

    pauses = [supervisor._pause(0, ready_at) for ready_at in (now, now, now - 2, now)]

    assert pauses == [0.1, 0.2, 0.0, 0.1]
