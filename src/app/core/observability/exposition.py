"""Serves the metrics over HTTP on a separate port, which several processes can share.

The process that receives a scrape collects the metrics of the others over Unix sockets. The label `worker` separates the series
of the processes, so only the series of a replaced process restart at zero. Metrics of the whole service, such as the length of
a queue in the database, come only from the process that received the scrape.
"""

import asyncio
import fcntl
import logging
import os
import platform
import shutil
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from tempfile import mkdtemp
from time import monotonic

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, ProcessCollector, generate_latest
from prometheus_client.metrics_core import Metric

from app.core import product
from app.core.config import TelemetrySettings
from app.core.db.failures import is_transient
from app.core.listening import listen
from app.core.observability.metrics import Instrument, Reading, as_families, own_families

# Seconds to wait for another process, and for the database. `metrics_silent_workers` counts the processes that take longer.
_TIMEOUT = 1.0
# Seconds for which metrics from the database are cached.
_LOOKUP_TTL = 10.0
_PATH = b"/metrics"

log = logging.getLogger(__name__)

type Lookup = Callable[[], Awaitable[Iterable[Reading]]]


class Exposition:
    """The listening socket for scrapes, and the directory for the processes' Unix sockets. Opened before the processes are forked."""

    def __init__(self, listener: socket.socket, directory: Path) -> None:
        self._listener = listener
        self._directory = directory

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    @asynccontextmanager
    async def serving(self, instruments: Sequence[Instrument], lookups: Sequence[Lookup]) -> AsyncIterator[None]:
        """Respond to scrapes, and to the other processes, while the block runs."""
        with self._worker_number() as number:
            metrics = _MetricsServer(self._directory, number, instruments, lookups)
            async with AsyncExitStack() as stack:
                stack.callback(metrics.close)
                for server in (
                    await asyncio.start_unix_server(metrics.send_own, metrics.address),
                    # A copy of the socket: the server closes it at the end, and the original stays open.
                    await asyncio.start_server(metrics.handle_scrape, sock=self._listener.dup()),
                ):
                    stack.callback(server.close)
                yield

    @contextmanager
    def _worker_number(self) -> Iterator[int]:
        """Reserve the lowest number that no other live process has, by a file lock. The kernel releases it even after a crash."""
        for number in count():  # pragma: no branch  # Only the return ends this loop.
            with (self._directory / f"{number}.lock").open("w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield number
                return


@contextmanager
def exposition(settings: TelemetrySettings) -> Iterator[Exposition | None]:
    """Open the port for metrics and the directory for the sockets while the block runs. Yield None if the settings name no port."""
    if settings.metrics_port is None:
        yield None
        return
    opened_by = os.getpid()
    with listen(settings.metrics_host, settings.metrics_port, setting="APP_TELEMETRY__METRICS_PORT") as listener:
        directory = Path(mkdtemp(prefix="metrics-"))
        try:
            exposed = Exposition(listener, directory)
            log.info("metrics port opened", extra={"host": settings.metrics_host, "port": exposed.port})
            yield exposed
        finally:
            # Forked processes run this line too. Only the process that made the directory removes it.
            if os.getpid() == opened_by:
                shutil.rmtree(directory, ignore_errors=True)


class _MetricsServer:
    """Serves the metrics of one process to the other processes, and those of all processes to scrapes."""

    def __init__(
        self, directory: Path, number: int, instruments: Sequence[Instrument], lookups: Sequence[Lookup]
    ) -> None:
        self._directory = directory
        self._number = number
        self._instruments = instruments
        self._lookups = lookups
        self._cached_readings: list[Reading] = []
        self._last_lookup_at = -_LOOKUP_TTL
        self._lookup_task: asyncio.Future[None] | None = None
        self._process_collector = ProcessCollector(registry=None)
        self.address = directory / f"{number}.sock"
        # Remove the socket of an earlier process with this number.
        self.address.unlink(missing_ok=True)

    def close(self) -> None:
        if self._lookup_task:
            self._lookup_task.cancel()

    async def send_own(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with _closing(writer):
            writer.write(self._own_metrics())
            await writer.drain()

    async def handle_scrape(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Respond to a scrape, and close the connection: the next scrape, seconds later, may reach another process."""
        async with _closing(writer):
            method, target = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[:2]
            status, body = await self._response(method, target)
            head = (
                f"Content-Type: {CONTENT_TYPE_PLAIN_0_0_4}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            writer.write(b"HTTP/1.1 " + status + b"\r\n" + head.encode() + (b"" if method == b"HEAD" else body))
            await writer.drain()

    async def _response(self, method: bytes, target: bytes) -> tuple[bytes, bytes]:
        """Return the status, with the `Allow` header if there is one, and the body."""
        if target.partition(b"?")[0] != _PATH:
            return b"404 Not Found", b""
        if method not in {b"GET", b"HEAD"}:
            return b"405 Method Not Allowed\r\nAllow: GET, HEAD", b""
        return b"200 OK", await self._all_metrics()

    async def _all_metrics(self) -> bytes:
        others = [address for address in self._directory.glob("*.sock") if address != self.address]
        received = await asyncio.gather(*map(_receive, others))
        silent = Reading(
            "metrics_silent_workers", "Processes that did not send their metrics in time.", received.count(None)
        )
        versions = {"version": product.release(), "python": platform.python_version()}
        build = Reading("build_info", "Version of the application and of Python.", 1, versions)
        shared = generate_latest(_Families(as_families([build, silent, *await self._database_readings()])))
        return _merged([self._own_metrics(), *filter(None, received), shared])

    def _own_metrics(self) -> bytes:
        readings = [reading for instrument in self._instruments for reading in instrument()]
        families = [*own_families(), *self._process_collector.collect(), *as_families(readings)]
        for family in families:
            family.samples = [
                sample._replace(labels={**sample.labels, "worker": str(self._number)}) for sample in family.samples
            ]
        return generate_latest(_Families(families))

    async def _database_readings(self) -> list[Reading]:
        """Return the metrics from the database. Without an answer in time their series are missing, which monitoring can detect."""
        is_running = self._lookup_task is not None and not self._lookup_task.done()
        if monotonic() - self._last_lookup_at >= _LOOKUP_TTL and not is_running:
            self._last_lookup_at = monotonic()
            self._cached_readings = []
            self._lookup_task = asyncio.ensure_future(self._look_up())
            # A slower lookup continues in the background. The next scrape shows its result.
            await asyncio.wait({self._lookup_task}, timeout=_TIMEOUT)
        return self._cached_readings

    async def _look_up(self) -> None:
        try:
            self._cached_readings = [reading for lookup in self._lookups for reading in await lookup()]
        except Exception as error:
            if not is_transient(error):
                log.exception("metrics cannot be read from the database")


class _Families(list[Metric]):
    """Gives metrics to `generate_latest`, which expects a registry with the method `collect`."""

    def collect(self) -> Iterable[Metric]:
        return self


@asynccontextmanager
async def _closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Close the connection when the block ends. A malformed or slow scrape is aborted without a log line."""
    try:
        async with asyncio.timeout(2 * _TIMEOUT):
            yield
    except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        writer.transport.abort()
    finally:
        writer.close()


async def _receive(address: Path) -> bytes | None:
    """Return the metrics of another process: empty if it has ended, None if it does not send them in time."""
    try:
        async with asyncio.timeout(_TIMEOUT):
            reader, writer = await asyncio.open_unix_connection(address)
            try:
                return await reader.read()
            finally:
                writer.close()
    except TimeoutError:
        return None
    except OSError:
        return b""


def _merged(texts: Iterable[bytes]) -> bytes:
    """Merge the metrics of several processes: all samples of one metric follow its description, which appears once."""
    families: dict[str, list[str]] = {}
    for text in texts:
        described: set[str] = set(families)
        name = ""
        for line in text.decode().splitlines():
            if line.startswith("# HELP "):
                name = line.split(" ", 3)[2]
            if not line.startswith("#") or name not in described:
                families.setdefault(name, []).append(line)
    return "".join(f"{line}\n" for lines in families.values() for line in lines).encode()
