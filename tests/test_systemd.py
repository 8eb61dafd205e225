"""What systemd hears from `app serve` and `app worker` over its datagram socket."""

import asyncio
import logging
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from uuid import uuid4

import pytest

from app.dev.ports import free_port
from app.systemd import ServiceManager
from tests.conftest import KEY_SET
from tests.servers import SERVE
from tests.test_signals import settings_of
from tests.test_workers import until

WORKER = (sys.executable, "-m", "app", "worker")


class Listener:
    """The socket of a service manager, and what it has received: the process id of the sender, and the lines."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.setblocking(False)  # noqa: FBT003  # It has only this argument.
        self._socket.bind(address.replace("@", "\0", 1))
        self._received: list[tuple[int, list[str]]] = []

    def received(self) -> list[tuple[int, list[str]]]:
        with suppress(BlockingIOError):
            while True:
                content, credentials, *_ = self._socket.recvmsg(4096, socket.CMSG_SPACE(struct.calcsize("3i")))
                pid, _, _ = struct.unpack("3i", credentials[0][2])
                self._received.append((pid, content.decode().splitlines()))
        return self._received

    def states(self) -> list[str]:
        """Return the first line of each message."""
        return [lines[0] for _, lines in self.received()]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["file", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listener]:
    listener = Listener(str(tmp_path / "notify") if request.param == "file" else f"@{uuid4()}")
    yield listener
    listener.close()


@asynccontextmanager
async def service(
    command: tuple[str, ...],
    url: str,
    log: Path,
    notify_socket: str,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[asyncio.subprocess.Process]:
    environment = settings_of(url) | {
        "PORT": str(free_port()),
        "APP_SERVER__DRAIN_DELAY": "200ms",
        "NOTIFY_SOCKET": notify_socket,
        **variables,
    }
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


@pytest.mark.parametrize("listener", ["abstract"], indirect=True)
@pytest.mark.parametrize(
    ("command", "renewed"),
    [(SERVE, 0), ((*SERVE, "--workers", "2"), 2), (WORKER, 0)],
    ids=["one process", "two workers", "job worker"],
)
async def test_a_service_reports_its_start_its_reload_and_its_stop(
    clone_url: str, tmp_path: Path, command: tuple[str, ...], renewed: int, listener: Listener
) -> None:
    log = tmp_path / "log"
    async with service(command, clone_url, log, listener.address) as process:
        await until(lambda: listener.states() == ["READY=1"])
        asked_at = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        process.send_signal(signal.SIGHUP)
        await until(lambda: listener.states() == ["READY=1", "RELOADING=1", "READY=1"])
        # The reload is over when the last old worker has gone.
        assert log.read_text().count('"worker stopped"') == renewed
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0

        states = listener.states()
        assert states[:3] == ["READY=1", "RELOADING=1", "READY=1"]
        assert set(states[3:]) == {"STOPPING=1"}
        assert {pid for pid, _ in listener.received()} == {process.pid}
    assert all(lines[-1].startswith("STATUS=") for _, lines in listener.received())
    reloading = dict(line.split("=", 1) for line in listener.received()[1][1])
    assert int(reloading["MONOTONIC_USEC"]) >= asked_at


async def test_a_reload_that_fails_leaves_the_service_ready_and_says_so(
    clone_url: str, tmp_path: Path, listener: Listener
) -> None:
    log, keys = tmp_path / "log", tmp_path / "keys.json"
    keys.write_text(KEY_SET)
    variables = {"APP_AUTH__SIGNING_KEYS": "", "APP_AUTH__SIGNING_KEYS_FILE": str(keys)}

    def status() -> str:
        return listener.received()[-1][1][-1]

    async with service((*SERVE, "--workers", "2"), clone_url, log, listener.address, variables) as process:
        await until(lambda: listener.states() == ["READY=1"])
        keys.write_text("damaged")
        process.send_signal(signal.SIGHUP)
        await until(lambda: listener.states() == ["READY=1", "RELOADING=1", "READY=1"])
        assert status().startswith("STATUS=serving; the reload failed, and old workers continue")
        assert '"worker not renewed; the old workers continue"' in log.read_text()

        keys.write_text(KEY_SET)
        process.send_signal(signal.SIGHUP)
        await until(lambda: listener.states()[3:] == ["RELOADING=1", "READY=1"])
        assert status() == "STATUS=serving"


async def test_a_service_runs_although_its_service_manager_is_gone(clone_url: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with service(SERVE, clone_url, log, str(tmp_path / "gone")) as process:
        await until(lambda: "service manager not notified" in log.read_text())
        await asyncio.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0


def test_the_address_is_taken_out_of_the_environment(listener: Listener) -> None:
    environment = {"NOTIFY_SOCKET": listener.address, "PATH": "/bin"}

    ServiceManager.from_environment(environment).confirm_reload("serving")

    assert environment == {"PATH": "/bin"}
    assert listener.states() == ["RELOADING=1", "READY=1"]


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}])
def test_nothing_happens_without_a_service_manager(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> None:
        raise AssertionError

    monkeypatch.setattr(socket, "socket", refuse)

    ServiceManager.from_environment(environment).ready("serving")


@pytest.mark.parametrize("address", ["/nowhere", "nowhere", "vsock:2:9999", "/" + "x" * 200])
def test_an_address_that_cannot_be_used_is_logged(address: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ServiceManager(address).stopping("stopping")

    assert caplog.messages == ["service manager not notified"]


def test_a_service_manager_that_does_not_read_does_not_stop_the_service(
    listener: Listener, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.systemd._TIMEOUT", 0.01)
    with caplog.at_level(logging.WARNING):
        for _ in range(2000):
            ServiceManager(listener.address).ready("serving")
            if caplog.messages:
                break

    assert "service manager not notified" in caplog.messages
