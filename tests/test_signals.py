"""Signals that must not end `app serve` or `app worker`, above all SIGHUP, also while they start."""

import asyncio
import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from httpx2 import AsyncClient, HTTPError

from app import __main__ as program
from app.core.signals import logging_hangups
from app.dev.ports import free_port
from app.server import serve
from tests.conftest import KEY_SET, make_settings
from tests.servers import SERVE, real_server
from tests.test_workers import until, workers_of

HARMLESS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE)
HANGUP_LOGGED = "SIGHUP ignored: a single process has no workers to renew; changed key files are read anyway"
INFO = {"APP_LOG__LEVEL": "info"}
MODES = pytest.mark.parametrize("arguments", [(), ("--workers", "2")], ids=["one process", "two workers"])


def settings_of(url: str) -> dict[str, str]:
    """Environment for a process that sends no mail."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("APP_", "DATABASE_URL"))}
    return {
        **inherited,
        "APP_ENVIRONMENT": "test",
        "APP_AUTH__SIGNING_KEYS": KEY_SET,
        "APP_MAIL__URL": "console:",
        "DATABASE_URL": url,
    }


@asynccontextmanager
async def app_worker(url: str, log: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `app worker` until the block ends. The block begins when the worker has started."""
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "app", "worker"), stdout=output, stderr=output, env=settings_of(url)
        )
    try:
        await until(lambda: "worker started" in log.read_text())
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@MODES
@pytest.mark.parametrize("sent", HARMLESS)
async def test_a_server_ignores_the_signal(clone_url: str, sent: signal.Signals, arguments: tuple[str, ...]) -> None:
    async with real_server(clone_url, *arguments, **INFO) as running, AsyncClient(base_url=running.base_url) as client:
        for pid in {running.process.pid, *workers_of(running)}:
            os.kill(pid, sent)
        await asyncio.sleep(0.5)

        assert (await client.get("/livez")).status_code == 200
        assert running.records("worker exited unexpectedly") == []
        if sent == signal.SIGHUP:
            await running.wait_for_line("workers renewing" if arguments else HANGUP_LOGGED)
        assert await running.stop() == 0


@pytest.mark.parametrize("sent", HARMLESS)
async def test_a_job_worker_ignores_the_signal(clone_url: str, tmp_path: Path, sent: signal.Signals) -> None:
    log = tmp_path / "log"
    async with app_worker(clone_url, log) as process:
        process.send_signal(sent)
        if sent == signal.SIGHUP:
            await until(lambda: HANGUP_LOGGED in log.read_text())
        await asyncio.sleep(0.5)

        assert process.returncode is None
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_a_signal_during_the_imports_does_not_end_the_command(command: str) -> None:
    # The finder runs just before the first module of the application is imported.
    program = f"""
import os, signal, sys
class Finder:
    def find_spec(self, name, path, target=None):
        if name == "app.cli":
            for sent in {[int(sent) for sent in HARMLESS]}:
                os.kill(os.getpid(), sent)
            print("sent")
from app.__main__ import main
sys.meta_path.insert(0, Finder())
sys.argv = ["app", "{command}"]
main()
"""
    environment = settings_of("mysql://invalid.example/ends/the/command/after/the/imports")

    finished = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )

    assert finished.stdout == "sent\n"
    assert finished.returncode == 1
    assert "The settings cannot be used" in finished.stderr


def test_a_hangup_ends_a_command_that_is_not_a_service() -> None:
    program = """
import os, signal, sys
from app.__main__ import main
class Finder:
    def find_spec(self, name, path, target=None):
        if name == "app.cli":
            os.kill(os.getpid(), signal.SIGHUP)
sys.meta_path.insert(0, Finder())
sys.argv = ["app", "migrate"]
main()
"""

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGHUP


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_a_service_ignores_signals_without_a_meaning(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setattr("sys.argv", ["app", command])
    monkeypatch.setenv("DATABASE_URL", "mysql://invalid.example/ends/the/start")
    ignored = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    before = {one: signal.getsignal(one) for one in ignored}
    try:
        with pytest.raises(SystemExit):
            program.main()
        assert {signal.getsignal(one) for one in ignored} == {signal.SIG_IGN}
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


@MODES
async def test_hangups_during_the_start_do_not_end_a_server(
    clone_url: str, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    environment = settings_of(clone_url) | {"PORT": str(free_port()), **INFO}
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *SERVE, *arguments, stdout=output, stderr=output, env=environment
        )
    try:
        async with AsyncClient(base_url=f"http://127.0.0.1:{environment['PORT']}") as client, asyncio.timeout(60):
            while not ignores_or_handles_hangups(process.pid):  # noqa: ASYNC110  # The state of another process changes.
                await asyncio.sleep(0)
            while not await is_alive(client):
                process.send_signal(signal.SIGHUP)
                await asyncio.sleep(0.02)
        process.send_signal(signal.SIGTERM)

        assert await asyncio.wait_for(process.wait(), 30) == 0
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def ignores_or_handles_hangups(pid: int) -> bool:
    """Return whether this process ignores or handles SIGHUP."""
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    taken = int(status["SigIgn"], 16) | int(status["SigCgt"], 16)
    return bool(taken & 1 << signal.SIGHUP - 1)


async def is_alive(client: AsyncClient) -> bool:
    with suppress(HTTPError):
        return (await client.get("/livez")).status_code == 200
    return False


@MODES
async def test_a_server_continues_when_its_terminal_closes(clone_url: str, arguments: tuple[str, ...]) -> None:
    # Without buffering, the process would have no output left to write at exit.
    environment = settings_of(clone_url) | {"PORT": str(free_port()), "PYTHONUNBUFFERED": ""}
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *SERVE,
        *arguments,
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        # Makes this the controlling terminal. The kernel sends SIGHUP when it closes.
        preexec_fn=lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    try:
        async with AsyncClient(base_url=f"http://127.0.0.1:{environment['PORT']}") as client, asyncio.timeout(60):
            while not await is_alive(client):  # noqa: ASYNC110  # The state of another process changes.
                await asyncio.sleep(0.05)
            os.close(ours)
            # Each response has a line in the log, which is the closed terminal.
            statuses = [(await client.get("/nowhere", headers={"Connection": "close"})).status_code for _ in range(20)]
        process.send_signal(signal.SIGTERM)

        assert await asyncio.wait_for(process.wait(), 30) == 0
        assert statuses == [404] * 20
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


@pytest.mark.usefixtures("restored_logging")
def test_a_single_process_logs_a_hangup(clone_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    def on_ready() -> None:
        for sent in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM):
            os.kill(os.getpid(), sent)
            time.sleep(0.2)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        serve.serve(make_settings(clone_url, server={"port": 0}), announce=on_ready)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)

    assert capsys.readouterr().out.count(HANGUP_LOGGED) == 2


def test_the_handler_of_a_hangup_that_is_not_ignored_stays() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with logging_hangups():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
