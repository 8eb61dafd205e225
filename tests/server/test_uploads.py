"""Large uploads to a real server process."""

import asyncio
import json
import re
import sys
from pathlib import Path

import pytest

from tests.servers import server_by

FILES = 20
SIZE = 100_000_000
_CHUNK = b"x" * 250_000
_MAX_GROWTH = 50_000_000
# `app serve` with two more operations.
_SERVER = """
import sys

from fastapi import Request, UploadFile

from app.__main__ import main
from app.core.http import routing
from app.core.http.access import public
from app.server import serve

router = routing.router()
large = {"max_body_size": 200_000_000, "body_timeout": 3600}


@router.post("/form", openapi_extra=public | routing.options(**large))
async def receive_form(file: UploadFile) -> int:
    return file.size or 0


@router.post("/raw", openapi_extra=public | routing.options(**large, consumes="text/csv"))
async def receive_raw(request: Request) -> int:
    return sum([len(chunk) async for chunk in request.stream()])


create_app = serve.create_app


def create_app_with_uploads(*arguments, **options):
    app = create_app(*arguments, **options)
    routing.include(app, router)
    return app


serve.create_app = create_app_with_uploads
sys.argv = ["app", "serve"]
main()
"""


def memory(pid: int, name: str, file: str = "status") -> int:
    """Return a figure of a process in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{pid}/{file}").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def names(folder: Path) -> list[str]:
    """Return the names of the files in a folder."""
    return [one.name for one in folder.iterdir()]


async def upload(base_url: str, path: str) -> int:
    """Send one large body, and return the size that the server received."""
    before = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n\r\n' if path == "/form" else b""
    after = b"\r\n--b--\r\n" if path == "/form" else b""
    media_type = "multipart/form-data; boundary=b" if path == "/form" else "text/csv"
    length = len(before) + SIZE + len(after)
    host, port = base_url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Type: {media_type}\r\n"
    writer.write(f"{head}Content-Length: {length}\r\n\r\n".encode() + before)
    for _ in range(SIZE // len(_CHUNK)):
        writer.write(_CHUNK)
        await writer.drain()
    writer.write(after)
    response = await reader.read()
    writer.close()
    assert response.startswith(b"HTTP/1.1 200"), response
    received: int = json.loads(response.partition(b"\r\n\r\n")[2])
    return received


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/form", "/raw"])
async def test_twenty_large_bodies_at_once_do_not_grow_the_memory(clone_url: str, tmp_path: Path, path: str) -> None:
    script = tmp_path / "uploading.py"
    script.write_text(_SERVER)
    environment = {"APP_SERVER__READ_TIMEOUT": "120s", "TMPDIR": str(tmp_path)}

    async with server_by((sys.executable, str(script)), clone_url, environment) as server:
        pid = server.process.pid
        before, private = memory(pid, "VmHWM"), memory(pid, "Anonymous", "smaps_rollup")
        sizes = await asyncio.gather(*(upload(server.base_url, path) for _ in range(FILES)))
        peak, private_after = memory(pid, "VmHWM"), memory(pid, "Anonymous", "smaps_rollup")

    assert sizes == [SIZE] * FILES
    assert peak - before < _MAX_GROWTH
    assert private_after - private < _MAX_GROWTH
    assert names(tmp_path) == ["uploading.py"]
