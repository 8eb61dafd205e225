"""`python -m benchmarks.uploads`: the memory of a worker process while it receives 20 files of 100 MB at once.

Each round starts a server. A file is sent as a form, which the server writes to the disk, and as the body of a streaming operation.
"""

import argparse
import asyncio
import json
import re
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from app.dev.postgres.cluster import server_for_tests
from benchmarks.lab import Lab
from benchmarks.load import LoadError
from benchmarks.servers import ROOT, Command, Server, split_cores

FILES = 20
SIZE = 100_000_000
PATHS = ("/form", "/raw")
COMMAND = ("-m", "benchmarks.upload_server")
SETTINGS = {"APP_SERVER__READ_TIMEOUT": "120s"}
_CHUNK = b"x" * 250_000


@dataclass(frozen=True)
class Growth:
    """Growth of the memory of a process in bytes: the peak of its resident set, and the private memory that it kept."""

    peak: int
    kept: int


async def measure(pid: int, port: int, path: str) -> Growth:
    """Upload all files at once to a server process. Raises `LoadError` if one response is wrong."""
    peak, private = _memory(pid, "VmHWM"), _memory(pid, "Anonymous", "smaps_rollup")
    await asyncio.gather(*(_upload(port, path) for _ in range(FILES)))
    return Growth(_memory(pid, "VmHWM") - peak, _memory(pid, "Anonymous", "smaps_rollup") - private)


def _memory(pid: int, name: str, file: str = "status") -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{pid}/{file}").read_text(), re.MULTILINE)
    if found is None:
        message = f"/proc/{pid}/{file} has no {name}"
        raise LoadError(message)
    return int(found[1]) * 1024


async def _upload(port: int, path: str) -> None:
    before = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n\r\n' if path == "/form" else b""
    after = b"\r\n--b--\r\n" if path == "/form" else b""
    media_type = "multipart/form-data; boundary=b" if path == "/form" else "text/csv"
    length = len(before) + SIZE + len(after)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Type: {media_type}\r\n"
    writer.write(f"{head}Content-Length: {length}\r\n\r\n".encode() + before)
    for _ in range(SIZE // len(_CHUNK)):
        writer.write(_CHUNK)
        await writer.drain()
    writer.write(after)
    response = await reader.read()
    writer.close()
    if not response.startswith(b"HTTP/1.1 200") or json.loads(response.partition(b"\r\n\r\n")[2]) != SIZE:
        message = f"wrong response: {response[:200]!r}"
        raise LoadError(message)


def main() -> None:
    """Run the command, which prints a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.uploads", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="number of servers for each kind of upload")
    rounds = parser.parse_args().rounds
    cores = split_cores()
    with (
        server_for_tests(ROOT) as url,
        tempfile.TemporaryDirectory(prefix="uploads-") as scratch,
        Lab(url, cores, users=10, rows=0, against=None) as lab,
    ):
        environment = lab.site.environment() | SETTINGS | {"TMPDIR": scratch, "PYTHONPATH": str(ROOT)}
        print(f"| {FILES} files of {SIZE / 1e6:.0f} MB at once | peak, MB | kept, MB |\n|---|--:|--:|")
        for path in PATHS:
            grown = []
            for number in range(rounds):
                with Server(Command(COMMAND, environment), cores.server, Path(scratch) / f"{number}.log") as server:
                    grown.append(asyncio.run(measure(server.pid, server.port, path)))
            peak, kept = (statistics.median(getattr(one, name) / 1e6 for one in grown) for name in ("peak", "kept"))
            print(f"| `{path}` | +{peak:.1f} | {kept:+.1f} |", flush=True)


if __name__ == "__main__":
    main()
