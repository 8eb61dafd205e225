"""`python -m benchmarks.http_servers`: the same application behind `app serve`, plain uvicorn and granian.

First the servers take turns with one process each, for rate, latency and CPU time. Then each server runs two processes under
load: all get SIGTERM, or one is killed.
"""

import argparse
import asyncio
import os
import secrets
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from app.dev.postgres.cluster import server_for_tests
from benchmarks.cases import CALLERS, CPU, FAILED, ME, P50, P99, RATE, Sample, bearer, send
from benchmarks.lab import Lab, Site
from benchmarks.load import Plan, check_tools
from benchmarks.servers import ROOT, Command, Cores, Server, split_cores

_TIMEOUT = 20.0
_APPLICATION = "app.asgi:app"
_UVICORN = ("--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning")
_GRANIAN = ("--interface", "asgi", "--loop", "uvloop", "--no-ws", "--log-level", "warning")
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "app serve": ("-m", "app", "serve", "--workers", "{workers}"),
    "uvicorn": ("-m", "uvicorn", *_UVICORN, "--workers", "{workers}", "--port", "{port}", _APPLICATION),
    "granian": (
        *("-m", "granian", *_GRANIAN, "--workers", "{workers}", "--port", "{port}"),
        *("--respawn-failed-workers", _APPLICATION),
    ),
}


def _start(name: str, site: Site, cores: Sequence[int], directory: Path, *, workers: int) -> Server:
    arguments = tuple(argument.replace("{workers}", str(workers)) for argument in COMMANDS[name])
    log = directory / f"{secrets.token_hex(4)}.log"
    environment = site.environment() | {"PYTHONPATH": str(ROOT)}
    return Server(Command(arguments, environment), cores, log)


def _turns(
    site: Site, cores: Cores, directory: Path, *, rounds: int, seconds: float
) -> dict[str, dict[str, list[Sample]]]:
    """Measure one process of each server, in turns."""
    tokens = [caller.access_token for caller in site.callers(CALLERS)]
    plans = {
        "`/livez`, 16 connections": (Plan("/livez", "ok"), 16),
        "`/users/me`, 16 connections": (bearer(ME, "email", tokens), 16),
        "`/users/me`, 64 connections": (bearer(ME, "email", tokens), 64),
    }
    measured: dict[str, dict[str, list[Sample]]] = {title: {name: [] for name in COMMANDS} for title in plans}
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(_start(name, site, cores.server, directory, workers=1)) for name in COMMANDS
        }
        for _ in range(rounds):
            for title, (plan, connections) in plans.items():
                for name, server in servers.items():
                    measured[title][name].append(send(server, plan, connections=connections, seconds=seconds))
    return measured


@dataclass
class Clients:
    """Clients with persistent connections. They count the requests that got no response."""

    port: int
    responses: int = 0
    without_response: int = 0
    # A refused connection is not a lost request, because no request was sent on it.
    refused: int = 0
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self, count: int) -> None:
        """Send requests over this number of connections, until stopped."""
        self.tasks = [asyncio.create_task(self._send()) for _ in range(count)]

    async def stop(self) -> None:
        """Stop sending requests."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _send(self) -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                self.refused += 1
                await asyncio.sleep(0.01)
                continue
            with suppress(OSError):
                await self._send_requests(reader, writer)
            writer.close()

    async def _send_requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            try:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n")[0]))
            except (asyncio.IncompleteReadError, OSError):
                self.without_response += 1
                return
            self.responses += 1
            if b"\r\nconnection: close" in head:
                return


async def _stop_under_load(server: Server) -> tuple[float, Clients]:
    """Stop a server under load. Returns the seconds until it has exited."""
    clients = Clients(server.port)
    clients.start(16)
    await asyncio.sleep(1)
    began = time.perf_counter()
    await asyncio.to_thread(server.stop)
    took = time.perf_counter() - began
    await clients.stop()
    return took, clients


async def _kill_under_load(server: Server) -> tuple[float, Clients]:
    """Kill one of two workers under load. Returns the seconds until there are two again."""
    clients = Clients(server.port)
    clients.start(16)
    await asyncio.sleep(1)
    workers = _workers(server.pid)
    began = time.perf_counter()
    os.kill(workers[0], signal.SIGKILL)
    async with asyncio.timeout(_TIMEOUT):
        while len(set(_workers(server.pid)) - {workers[0]}) < len(workers):  # noqa: ASYNC110  # The state of another process changes.
            await asyncio.sleep(0.01)
    took = time.perf_counter() - began
    await asyncio.sleep(2)
    await clients.stop()
    return took, clients


def _workers(pid: int) -> list[int]:
    """Return the worker processes of a server, without the resource tracker of Python."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes()]


def _rows(measured: dict[str, dict[str, list[Sample]]]) -> Iterator[str]:
    yield "| case | server | requests/s | p50, ms | p99, ms | CPU, µs | rate, ratio to `app serve` (spread) | failed |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|"
    for title, samples in measured.items():
        for name, turns in samples.items():
            ratios = [one[RATE] / ours[RATE] for one, ours in zip(turns, samples["app serve"], strict=True)]
            rate, p50, p99, cpu = (
                statistics.median(turn[figure] for turn in turns) for figure in (RATE, P50, P99, CPU)
            )
            yield (
                f"| {title} | {name} | {rate:,.0f} | {p50:.1f} | {p99:.1f} | {cpu:,.0f} | "
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | "
                f"{sum(turn[FAILED] for turn in turns):.0f} |"
            )


def _faults(site: Site, cores: Cores, directory: Path) -> Iterator[str]:
    yield "| server | event | seconds | responses | requests without a response |"
    yield "|---|---|--:|--:|--:|"
    for name in COMMANDS:
        for title, act in (("SIGTERM", _stop_under_load), ("one of two killed", _kill_under_load)):
            with _start(name, site, cores.all, directory, workers=2) as server:
                # The first response may come before all workers are ready.
                time.sleep(3)
                took, clients = asyncio.run(act(server))
            yield f"| {name} | {title} | {took:.2f} | {clients.responses:,} | {clients.without_response} |"


def main() -> None:
    """Run the command, which prints two tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.http_servers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="number of turns of each server")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of a turn in seconds")
    options = parser.parse_args()
    check_tools()
    cores = split_cores()
    with (
        server_for_tests(ROOT) as url,
        tempfile.TemporaryDirectory(prefix="servers-") as scratch,
        Lab(url, cores, users=10_000, rows=0, against=None) as lab,
    ):
        directory, site = Path(scratch), lab.site
        print("\n".join(_rows(_turns(site, cores, directory, rounds=options.rounds, seconds=options.seconds))))
        print()
        for line in _faults(site, cores, directory):
            print(line, flush=True)


if __name__ == "__main__":
    main()
