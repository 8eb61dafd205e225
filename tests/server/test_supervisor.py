"""The supervisor, with workers that do nothing but obey: real processes, real signals."""

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

OBEDIENT = "s.sendall(b'ready\\n'); s.recv(99)"
DEAF = "s.sendall(b'ready\\n'); time.sleep(60)"
NEVER_READY = "time.sleep(60)"
BROKEN = "sys.exit(3)"
CRASHING = "s.sendall(b'ready\\n'); time.sleep(0.05)"
PATIENCE = 10.0


class Crew:
    """Starts a process for each worker that is asked for, by the script that is due, and remembers their ids."""

    def __init__(self, *scripts: str) -> None:
        self._scripts = scripts
        self.pids: list[int] = []
        self.troubles: list[OSError] = []

    def spawn(self, control: socket.socket, _others: Sequence[socket.socket]) -> int:
        if self.troubles:
            raise self.troubles.pop()
        script = self._scripts[min(len(self.pids), len(self._scripts) - 1)]
        os.set_inheritable(control.fileno(), True)  # noqa: FBT003  # The one argument it has.
        program = f"import socket, sys, time; s = socket.socket(fileno={control.fileno()}); {script}"
        self.pids.append(os.posix_spawn(sys.executable, [sys.executable, "-I", "-S", "-c", program], {}))
        return self.pids[-1]

    def alive(self) -> list[int]:
        """Give the workers that have not ended."""
        return [pid for pid in self.pids if _is_alive(pid)]


def _is_alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def _no_signal_is_lost() -> Iterator[None]:
    """Whatever a test gets wrong, a signal to this process must not end the run."""
    told = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {one: signal.signal(one, signal.SIG_IGN) for one in told}
    yield
    for one, handler in before.items():
        signal.signal(one, handler)


def supervise(
    crew: Crew, count: int, act: Callable[[], None] = lambda: None, *, start: float = PATIENCE, stop: float = PATIENCE
) -> list[str]:
    """Run until it ends; once all are ready `act` runs beside it. Give what went wrong there."""
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
        Supervisor(crew.spawn, count, start_patience=start, stop_patience=stop).run(on_ready)
    finally:
        if ready:
            thread.join()
        assert crew.alive() == []
    assert len(ready) == 1
    return errors


def tell(*signals: signal.Signals) -> None:
    for one in signals:
        os.kill(os.getpid(), one)
        time.sleep(0.1)


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_all_start_and_all_end_when_told(told: signal.Signals) -> None:
    crew = Crew(OBEDIENT)

    errors = supervise(crew, 3, lambda: tell(told))

    assert errors == []
    assert len(crew.pids) == 3


def test_a_worker_that_is_killed_is_replaced_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    crew = Crew(OBEDIENT)

    def act() -> None:
        first, second = crew.pids
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: len(crew.pids) == 3)
        assert second in crew.alive()
        tell(signal.SIGTERM)

    assert supervise(crew, 2, act) == []
    assert [record.exit_code for record in caplog.records if record.message == "worker ended unasked"] == [-9]  # type: ignore[attr-defined]  # Extra.


def test_a_worker_that_crashes_again_and_again_is_started_ever_more_rarely() -> None:
    crew = Crew(OBEDIENT, CRASHING)

    def act() -> None:
        wait_until(lambda: len(crew.pids) >= 5)
        tell(signal.SIGTERM)

    began = time.monotonic()
    assert supervise(crew, 2, act) == []
    # Pauses of 0.1, 0.2 and 0.4 seconds before the third, fourth and fifth.
    assert time.monotonic() - began > 0.7


def test_renewing_replaces_one_after_the_other() -> None:
    crew = Crew(OBEDIENT)
    least: list[int] = []

    def act() -> None:
        old = list(crew.pids)
        tell(signal.SIGHUP)

        def is_renewed() -> bool:
            least.append(len(crew.alive()))
            return len(crew.pids) == 4 and not set(old) & set(crew.alive())

        wait_until(is_renewed)
        tell(signal.SIGTERM)

    assert supervise(crew, 2, act) == []
    assert min(least) >= 2


def test_renewing_by_workers_that_do_not_start_leaves_the_old_ones(caplog: pytest.LogCaptureFixture) -> None:
    crew = Crew(OBEDIENT, OBEDIENT, BROKEN)

    def act() -> None:
        old = list(crew.pids)
        tell(signal.SIGHUP)
        wait_until(lambda: "worker cannot be renewed; the older ones go on" in caplog.text)
        assert crew.alive() == old
        tell(signal.SIGTERM)

    assert supervise(crew, 2, act) == []
    assert len(crew.pids) == 3


def test_a_worker_that_cannot_start_is_told_with_its_exit_code() -> None:
    with pytest.raises(WorkerError, match="ended with exit code 3 before it served"):
        supervise(Crew(BROKEN), 2)


def test_a_worker_that_is_never_ready_is_given_up() -> None:
    with pytest.raises(WorkerError, match="ended with exit code -9"):
        supervise(Crew(NEVER_READY), 1, start=0.2)


def test_a_worker_that_does_not_end_is_killed(caplog: pytest.LogCaptureFixture) -> None:
    crew = Crew(DEAF)

    assert supervise(crew, 1, lambda: tell(signal.SIGTERM), stop=0.2) == []
    assert "worker takes too long and is killed" in caplog.text


def test_ctrl_c_twice_waits_for_nobody() -> None:
    began = time.monotonic()

    assert supervise(Crew(DEAF), 1, lambda: tell(signal.SIGINT, signal.SIGINT), stop=60) == []
    assert time.monotonic() - began < PATIENCE


def test_without_a_process_to_be_had_it_ends_or_goes_on_with_those_it_has(caplog: pytest.LogCaptureFixture) -> None:
    hopeless = Crew(OBEDIENT)
    hopeless.troubles.append(BlockingIOError("no process to be had"))
    with pytest.raises(BlockingIOError):
        supervise(hopeless, 1)

    crew = Crew(OBEDIENT)

    def act() -> None:
        crew.troubles.append(BlockingIOError("no process to be had"))
        os.kill(crew.pids[0], signal.SIGKILL)
        wait_until(lambda: len(crew.pids) == 3)
        tell(signal.SIGTERM)

    with caplog.at_level(logging.ERROR):
        assert supervise(crew, 2, act) == []
    assert "worker cannot be started" in caplog.text


def test_a_worker_that_had_served_for_a_while_is_replaced_without_a_pause() -> None:
    supervisor = Supervisor(Crew(OBEDIENT).spawn, 1, start_patience=1, stop_patience=1)
    now = time.monotonic()

    pauses = [supervisor._pause(0, ready_at) for ready_at in (now, now, now - 2, now)]

    assert pauses == [0.1, 0.2, 0.0, 0.1]
