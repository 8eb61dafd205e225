"""The metrics over HTTP: on a port of their own, for one process or for several that share it.

Whichever process is asked asks the others. Each speaks for itself, under the label `worker`: a process that is replaced begins
at zero, and only its own series do. What all would say alike, such as the length of a queue in the database, is looked up by the
one that answers.
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
from app.core.observability.metrics import Instrument, Reading, as_families, counted

# A process that has not spoken by then is left out and counted as silent.
_PATIENCE = 1.0
# How long what was read from the database is shown again.
_LOOKUP_LASTS = 10.0
_PATH = b"/metrics"

log = logging.getLogger(__name__)

type Lookup = Callable[[], Awaitable[Iterable[Reading]]]


class Exposition:
    """Where the processes are asked, and where they find each other; opened once, before they are forked."""

    def __init__(self, listener: socket.socket, directory: Path) -> None:
        self._listener = listener
        self._directory = directory

    @property
    def port(self) -> int:
        """The port that scrapers ask."""
        port: int = self._listener.getsockname()[1]
        return port

    @asynccontextmanager
    async def serving(self, instruments: Sequence[Instrument], lookups: Sequence[Lookup]) -> AsyncIterator[None]:
        """Answer scrapes for as long as this process works."""
        with self._place() as number:
            process = _Process(self._directory, number, instruments, lookups)
            async with AsyncExitStack() as stack:
                stack.callback(process.close)
                for server in (
                    await asyncio.start_unix_server(process.tell, process.address),
                    # A copy: closing it leaves the socket to the other processes.
                    await asyncio.start_server(process.answer, sock=self._listener.dup()),
                ):
                    stack.callback(server.close)
                yield

    @contextmanager
    def _place(self) -> Iterator[int]:
        """Take the lowest number that no living process has; the kernel gives it back however this one ends."""
        for number in count():  # pragma: no branch  # Nothing ends counting but the return.
            with (self._directory / f"{number}.lock").open("w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield number
                return


@contextmanager
def exposition(settings: TelemetrySettings) -> Iterator[Exposition | None]:
    """Open the port for metrics, if there is to be one."""
    if settings.metrics_port is None:
        yield None
        return
    opened_by = os.getpid()
    with listen(settings.metrics_host, settings.metrics_port, setting="APP_TELEMETRY__METRICS_PORT") as listener:
        directory = Path(mkdtemp(prefix="metrics-"))
        try:
            exposed = Exposition(listener, directory)
            log.info("metrics are exposed", extra={"host": settings.metrics_host, "port": exposed.port})
            yield exposed
        finally:
            # A process forked meanwhile comes by here as well.
            if os.getpid() == opened_by:
                shutil.rmtree(directory, ignore_errors=True)


class _Process:
    """One of the processes: it tells the others what it has counted, and answers for all."""

    def __init__(
        self, directory: Path, number: int, instruments: Sequence[Instrument], lookups: Sequence[Lookup]
    ) -> None:
        self._directory = directory
        self._number = number
        self._instruments = instruments
        self._lookups = lookups
        self._looked_up: list[Reading] = []
        self._looked_up_at = -_LOOKUP_LASTS
        self._looking: asyncio.Future[None] | None = None
        self._itself = ProcessCollector(registry=None)
        self.address = directory / f"{number}.sock"
        # Of an earlier process with this number.
        self.address.unlink(missing_ok=True)

    def close(self) -> None:
        """Look for nothing more."""
        if self._looking:
            self._looking.cancel()

    async def tell(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Tell another process what this one has counted."""
        async with _closing(writer):
            writer.write(self._own())
            await writer.drain()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer a scraper, and close: it comes again in a quarter of a minute, and may then meet another process."""
        async with _closing(writer):
            method, target = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[:2]
            if target.partition(b"?")[0] != _PATH:
                status, body = b"404 Not Found", b""
            elif method not in {b"GET", b"HEAD"}:
                status, body = b"405 Method Not Allowed\r\nAllow: GET, HEAD", b""
            else:
                status, body = b"200 OK", await self._everything()
            head = (
                f"Content-Type: {CONTENT_TYPE_PLAIN_0_0_4}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            writer.write(b"HTTP/1.1 " + status + b"\r\n" + head.encode() + (b"" if method == b"HEAD" else body))
            await writer.drain()

    async def _everything(self) -> bytes:
        others = [address for address in self._directory.glob("*.sock") if address != self.address]
        told = await asyncio.gather(*map(_ask, others))
        silent = Reading(
            "metrics_silent_workers", "Processes that did not say in time what they have counted.", told.count(None)
        )
        build = Reading(
            "build_info",
            "What is running.",
            1,
            {"version": product.release(), "python": platform.python_version()},
        )
        shared = generate_latest(_Families(as_families([build, silent, *await self._look_up()])))
        return _merged([self._own(), *filter(None, told), shared])

    def _own(self) -> bytes:
        readings = [reading for instrument in self._instruments for reading in instrument()]
        families = [*counted(), *self._itself.collect(), *as_families(readings)]
        for family in families:
            family.samples = [
                sample._replace(labels={**sample.labels, "worker": str(self._number)}) for sample in family.samples
            ]
        return generate_latest(_Families(families))

    async def _look_up(self) -> list[Reading]:
        """Read what the database knows; when it does not answer those series are missing, and that shows."""
        if monotonic() - self._looked_up_at >= _LOOKUP_LASTS and (self._looking is None or self._looking.done()):
            self._looked_up_at = monotonic()
            self._looked_up = []
            self._looking = asyncio.ensure_future(self._look())
            # One that takes longer ends on its own time, and what it finds is shown the next time.
            await asyncio.wait({self._looking}, timeout=_PATIENCE)
        return self._looked_up

    async def _look(self) -> None:
        try:
            self._looked_up = [reading for lookup in self._lookups for reading in await lookup()]
        except Exception as error:
            if not is_transient(error):
                log.exception("metrics cannot be read from the database")


class _Families:
    """Families of metrics, as the library wants to be handed them."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


@asynccontextmanager
async def _closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Close the connection in any case. A malformed, slow or silent scrape is not logged."""
    try:
        async with asyncio.timeout(2 * _PATIENCE):
            yield
    except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        writer.transport.abort()
    finally:
        writer.close()


async def _ask(address: Path) -> bytes | None:
    """Give what another process says; nothing if it has ended, None if it does not speak."""
    try:
        async with asyncio.timeout(_PATIENCE):
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
    """Put together what several processes say: all samples of a metric stand together, below one description."""
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
