"""Metrics over HTTP, from one process and from several."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from httpx2 import AsyncClient

from app.core.config import TelemetrySettings
from app.core.db.failures import DatabaseUnavailableError
from app.core.listening import PortInUseError
from app.core.observability import exposition as module
from app.core.observability.exposition import Exposition, exposition
from app.core.observability.metrics import Counter, Reading
from tests.conftest import ROOT
from tests.core.scrape import Scrape, scrape

SPOKEN = Counter("test_spoken", "Words of this test.", language=("de", "en"))


@pytest.fixture
def exposed() -> Iterator[Exposition]:
    """Any free port, open until the test ends."""
    with exposition(TelemetrySettings(metrics_port=0)) as opened:
        assert opened
        yield opened


async def test_counters_are_shown(exposed: Exposition) -> None:
    async with exposed.serving([], []):
        before = await scrape(exposed.port)
        SPOKEN.count("de")
        SPOKEN.count("de")
        after = await scrape(exposed.port)

    assert after.types["test_spoken"] == "counter"
    assert after.value("test_spoken_total", language="de") - before.value("test_spoken_total", language="de") == 2
    assert (
        after.values("test_spoken_total", language="en")
        == before.values("test_spoken_total", language="en")
        == {"0": 0}
    )


async def test_instruments_are_read_at_each_scrape(exposed: Exposition) -> None:
    levels = iter([3, 4])

    def gauge() -> Iterable[Reading]:
        return [Reading("tank_level", "How full.", next(levels), {"tank": "a"})]

    async with exposed.serving([gauge], []):
        shown = [(await scrape(exposed.port)).values("tank_level", tank="a") for _ in range(2)]

    assert shown == [{"0": 3}, {"0": 4}]


async def test_no_series_with_creation_times_is_shown(exposed: Exposition) -> None:
    async with exposed.serving([], []):
        text = (await scrape(exposed.port)).text

    assert "_created" not in text


async def test_metrics_of_the_process_and_the_versions_are_shown(exposed: Exposition) -> None:
    async with exposed.serving([], []):
        shown = await scrape(exposed.port)

    assert shown.value("process_resident_memory_bytes") > 1_000_000
    assert shown.value("build_info", python=sys.version.split()[0]) == 1


# Metrics from the database


async def test_metrics_from_the_database_are_cached(exposed: Exposition, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    async def look() -> Iterable[Reading]:
        asked.append(1)
        return [Reading("queue_length", "How long.", len(asked))]

    async with exposed.serving([], [look]):
        shown = [(await scrape(exposed.port)).values("queue_length") for _ in range(2)]
        monkeypatch.setattr(module, "_LOOKUP_TTL", 0.0)
        later = (await scrape(exposed.port)).values("queue_length")

    assert shown == [{"": 1}, {"": 1}]
    assert later == {"": 2}


@pytest.mark.parametrize(("error", "is_logged"), [(DatabaseUnavailableError(), False), (ZeroDivisionError(), True)])
async def test_without_the_database_the_other_metrics_are_shown(
    exposed: Exposition, caplog: pytest.LogCaptureFixture, error: Exception, is_logged: bool
) -> None:
    async def look() -> Iterable[Reading]:
        raise error

    async with exposed.serving([], [look]):
        shown = await scrape(exposed.port)

    assert shown.value("build_info") == 1
    assert any(record.message == "metrics cannot be read from the database" for record in caplog.records) == is_logged


async def test_a_scrape_does_not_wait_for_a_slow_database(exposed: Exposition, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TIMEOUT", 0.1)
    monkeypatch.setattr(module, "_LOOKUP_TTL", 0.0)
    answers = asyncio.Event()
    asked: list[int] = []

    async def look() -> Iterable[Reading]:
        asked.append(1)
        await answers.wait()
        return [Reading("queue_length", "How long.", 7)]

    async with exposed.serving([], [look]):
        without = [(await scrape(exposed.port)).values("queue_length") for _ in range(3)]
        answers.set()
        async with asyncio.timeout(5):
            while not (await scrape(exposed.port)).values("queue_length"):
                pass

    assert without == [{}, {}, {}]
    # The first three scrapes share one lookup: a slow database does not get more and more queries.
    assert len(asked) <= 2


# HTTP


@pytest.mark.parametrize(
    ("method", "path", "status", "has_body"),
    [
        ("GET", "/metrics", 200, True),
        ("GET", "/metrics?name[]=x", 200, True),
        ("HEAD", "/metrics", 200, False),
        ("POST", "/metrics", 405, False),
        ("GET", "/", 404, False),
        ("GET", "/metricsx", 404, False),
    ],
)
async def test_only_get_and_head_of_the_metrics_succeed(
    exposed: Exposition, method: str, path: str, status: int, has_body: bool
) -> None:
    async with exposed.serving([], []), AsyncClient() as client:
        response = await client.request(method, f"http://127.0.0.1:{exposed.port}{path}")

    assert (response.status_code, bool(response.content)) == (status, has_body)
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert (response.headers.get("allow") == "GET, HEAD") == (status == 405)


@pytest.mark.parametrize("sent", [b"", b"nonsense\r\n\r\n", b"GET /metrics HTTP/1.1\r\n", b"x" * 100_000])
async def test_the_connection_of_a_malformed_or_slow_scrape_is_closed(
    exposed: Exposition, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(module, "_TIMEOUT", 0.1)
    async with exposed.serving([], []):
        reader, writer = await asyncio.open_connection("127.0.0.1", exposed.port)
        writer.write(sent)
        answer = b""
        try:
            answer = await asyncio.wait_for(reader.read(), 5)
        except ConnectionResetError:
            pass
        finally:
            writer.close()
        next_one = await scrape(exposed.port)

    assert not answer.startswith(b"HTTP/1.1 200")
    assert next_one.value("build_info") == 1
    assert caplog.records == []


def test_no_port_is_opened_without_the_setting() -> None:
    with exposition(TelemetrySettings()) as none:
        assert none is None


def test_by_default_only_the_loopback_address_is_open() -> None:
    assert TelemetrySettings().metrics_host == "127.0.0.1"


def test_the_error_for_a_port_in_use_names_the_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]

        with (
            pytest.raises(PortInUseError, match=f"APP_TELEMETRY__METRICS_PORT={port + 1}$"),
            exposition(TelemetrySettings(metrics_port=port)),
        ):
            pass


# Several processes


class Processes:
    """The processes of `counting_processes.py`, which share a port."""

    def __init__(self, port: int, pids: list[int]) -> None:
        self.port = port
        self.pids = pids


@asynccontextmanager
async def counting(*numbers: int) -> AsyncIterator[Processes]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.core.counting_processes", *map(str, numbers)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdin
    assert process.stdout
    try:
        said = json.loads(await asyncio.wait_for(process.stdout.readline(), 60))
        yield Processes(said["port"], said["pids"])
    finally:
        process.stdin.close()
        await asyncio.wait_for(process.wait(), 20)


async def test_every_process_shows_the_metrics_of_all() -> None:
    async with counting(3, 5) as processes:
        shown = [await scrape(processes.port) for _ in range(10)]

    assert [one.values("test_counted_total", what="things") for one in shown] == [{"0": 3, "1": 5}] * 10
    assert [one.values("metrics_silent_workers") for one in shown] == [{"": 0}] * 10
    # The series of all processes are below one description.
    assert all(one.text.count("# TYPE test_counted_total counter") == 1 for one in shown)
    assert len(shown[0].values("process_resident_memory_bytes")) == 2


async def test_a_killed_process_is_missing_and_a_stopped_one_counts_as_silent() -> None:
    async with counting(3, 5, 7) as processes:
        os.kill(processes.pids[0], signal.SIGKILL)
        os.kill(processes.pids[1], signal.SIGSTOP)
        async with asyncio.timeout(20):
            shown = await scrape_running_process(processes.port)

    assert shown.values("test_counted_total", what="things") == {"2": 7}
    assert shown.values("metrics_silent_workers") == {"": 1}


async def scrape_running_process(port: int) -> Scrape:
    """Retry until the running process accepts the connection. The stopped process accepts connections too."""
    while True:
        try:
            async with asyncio.timeout(2):
                return await scrape(port)
        except TimeoutError:
            continue


async def test_a_scrape_does_not_wait_for_ended_or_silent_processes(
    exposed: Exposition, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TIMEOUT", 0.1)

    async def say_nothing(_reader: object, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(1)
        writer.close()

    with socket.socket(socket.AF_UNIX) as ended:
        ended.bind(str(exposed._directory / "7.sock"))
        async with (
            await asyncio.start_unix_server(say_nothing, exposed._directory / "8.sock"),
            exposed.serving([], []),
        ):
            shown = await scrape(exposed.port)

    assert shown.values("metrics_silent_workers") == {"": 1}
    assert shown.values("test_spoken_total", language="de").keys() == {"0"}


async def test_a_free_worker_number_is_reused(exposed: Exposition) -> None:
    async with exposed.serving([], []):
        async with exposed.serving([], []):
            both = await scrape(exposed.port)
        one = await scrape(exposed.port)
        async with exposed.serving([], []):
            again = await scrape(exposed.port)

    workers = [set(each.values("test_spoken_total", language="de")) for each in (both, one, again)]
    assert workers == [{"0", "1"}, {"0"}, {"0", "1"}]


def test_the_directory_of_the_sockets_is_private_and_removed_with_the_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    with exposition(TelemetrySettings(metrics_port=0)):
        (place,) = tmp_path.iterdir()
        mode = place.stat().st_mode

    assert mode & 0o077 == 0
    assert list(tmp_path.iterdir()) == []


def test_a_forked_process_does_not_remove_the_directory_of_the_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    with exposition(TelemetrySettings(metrics_port=0)):
        monkeypatch.setattr("os.getpid", lambda: -1)

    assert len(list(tmp_path.iterdir())) == 1
