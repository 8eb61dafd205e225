"""`python -m benchmarks.http_servers`: the same application behind `app serve`, plain uvicorn and granian.

Rate, latency and processor time are measured in turns with one process each; then two processes of each get SIGTERM, and
one of two is killed, under load.
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
from benchmarks.load import Plan, refuse_to_start_without_tools
from benchmarks.servers import ROOT, Command, Cores, Server, split_cores

_PATIENCE = 20.0
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
    """Load one process of each, in turns."""
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
    """Clients that keep their connections, and count what they sent and got no answer to."""

    port: int
    answered: int = 0
    unanswered: int = 0
    # Refused connections are no lost requests: nothing was sent.
    refused: int = 0
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def begin(self, count: int) -> None:
        """Send, until stopped, over so many connections."""
        self.tasks = [asyncio.create_task(self._send()) for _ in range(count)]

    async def stop(self) -> None:
        """Stop sending."""
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
                await self._converse(reader, writer)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            try:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n")[0]))
            except (asyncio.IncompleteReadError, OSError):
                self.unanswered += 1
                return
            self.answered += 1
            if b"\r\nconnection: close" in head:
                return


async def _end_under_load(server: Server) -> tuple[float, Clients]:
    """Tell a server to end while clients send; give how long it took."""
    clients = Clients(server.port)
    clients.begin(16)
    await asyncio.sleep(1)
    began = time.perf_counter()
    await asyncio.to_thread(server.stop)
    took = time.perf_counter() - began
    await clients.stop()
    return took, clients


async def _kill_under_load(server: Server) -> tuple[float, Clients]:
    """Kill one of two workers while clients send; give how long it took until there were two again."""
    clients = Clients(server.port)
    clients.begin(16)
    await asyncio.sleep(1)
    workers = _workers(server.pid)
    began = time.perf_counter()
    os.kill(workers[0], signal.SIGKILL)
    async with asyncio.timeout(_PATIENCE):
        while len(set(_workers(server.pid)) - {workers[0]}) < len(workers):  # noqa: ASYNC110  # Another process's.
            await asyncio.sleep(0.01)
    took = time.perf_counter() - began
    await asyncio.sleep(2)
    await clients.stop()
    return took, clients


def _workers(pid: int) -> list[int]:
    """Give the processes below this one that answer: those of a server and nothing that helps it."""
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
    yield "| server | what | seconds | answered | sent without an answer |"
    yield "|---|---|--:|--:|--:|"
    for name in COMMANDS:
        for title, act in (("SIGTERM", _end_under_load), ("one of two killed", _kill_under_load)):
            with _start(name, site, cores.all, directory, workers=2) as server:
                # The others must be up as well.
                time.sleep(3)
                took, clients = asyncio.run(act(server))
            yield f"| {name} | {title} | {took:.2f} | {clients.answered:,} | {clients.unanswered} |"


def main() -> None:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.http_servers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each takes its turn")
    parser.add_argument("--seconds", type=float, default=8.0, help="how long a turn lasts")
    options = parser.parse_args()
    refuse_to_start_without_tools()
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
