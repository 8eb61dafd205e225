"""Hostile forms with files. No operation of the application receives files, so these attacks have one of their own."""

import asyncio
import gc
import json
import socket
import struct
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, override

import pytest
from fastapi import Form, Request, UploadFile
from sqlalchemy import text

from app.core.db.connections import pool_of
from app.core.db.database import Database
from app.core.http import routing
from app.core.http.access import public
from app.core.http.dependencies import DatabaseDep
from tests.conftest import make_settings
from tests.core.applications import application, with_state
from tests.hostile.attack import Reply, exchange
from tests.server.local_server import LocalServer, local_server

LIMIT = 2_000_000
TYPE = "multipart/form-data; boundary=b"
FILE = b'Content-Disposition: form-data; name="file"; filename="a.txt"\r\n'
TITLE = b'Content-Disposition: form-data; name="title"\r\n'

router = routing.router()


@router.post("/upload", openapi_extra=public | routing.options(max_body_size=LIMIT))
async def upload(file: UploadFile, title: Annotated[str, Form()] = "none") -> Any:
    """Receive a file."""
    return [file.filename, len(await file.read()), title]


@router.post("/patient", openapi_extra=public | routing.options(body_timeout=60))
async def upload_slowly(file: UploadFile) -> int:
    """Receive a file for a minute."""
    return file.size or 0


@router.post("/waiting", openapi_extra=public | routing.options(max_body_size=LIMIT))
async def wait(file: UploadFile, database: DatabaseDep, request: Request) -> None:
    """Receive a file, and hold a connection until the client disconnects."""
    assert file.size
    async with database.sessions() as session:
        await session.execute(text("SELECT 1"))
        while not await request.is_disconnected():  # noqa: ASYNC110  # A request has no event for this.
            await asyncio.sleep(0.01)


def form(*parts: bytes, boundary: bytes = b"b", end: bytes = b"--b--\r\n") -> bytes:
    return b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + end


def named(name: bytes) -> bytes:
    return form(b'Content-Disposition: form-data; name="file"; filename="' + name + b'"\r\n\r\nx')


async def send(body: bytes | Sequence[bytes], content_type: str | None = TYPE, *more: tuple[str, str]) -> Reply:
    app = with_state(application(router, max_body_size=10_000))
    headers = [*([("Content-Type", content_type)] if content_type is not None else []), *more]
    return await exchange(app, "POST", b"/upload", [("Host", "test"), *headers], body)


VALID = form(FILE + b"\r\nx", TITLE + b"\r\ny")


async def test_a_valid_form_is_accepted() -> None:
    for end in (b"", b"\r\n"):
        for size in (1, 1000):
            body = VALID.removesuffix(b"\r\n") + end
            reply = await send([body[start : start + size] for start in range(0, len(body), size)])

            assert json.loads(reply.body) == ["a.txt", 1, "y"]


BOUNDARIES = {
    "missing": "multipart/form-data",
    "empty": "multipart/form-data; boundary=",
    "empty and quoted": 'multipart/form-data; boundary=""',
    "71 characters": "multipart/form-data; boundary=" + "b" * 71,
    "10,000 characters": "multipart/form-data; boundary=" + "b" * 10_000,
    "twice": "multipart/form-data; boundary=b; boundary=b",
    "twice in one": "multipart/form-data; boundary=b, multipart/form-data; boundary=c",
    "continued (RFC 2231)": "multipart/form-data; boundary*0=b; boundary*1=c",
    "ends with a space": 'multipart/form-data; boundary="b "',
    "control character": "multipart/form-data; boundary=b\x01",
    "not ASCII": "multipart/form-data; boundary=\xe9",
    "unclosed quote": 'multipart/form-data; boundary="b',
    "another charset": "multipart/form-data; charset=utf-16; boundary=b",
    "another parameter": "multipart/form-data; x=y; boundary=b",
    "many spaces": "multipart/form-data;" + " " * 30_000 + "x",
}


@pytest.mark.parametrize("content_type", BOUNDARIES.values(), ids=BOUNDARIES)
async def test_a_content_type_without_one_valid_boundary_is_malformed(content_type: str) -> None:
    began = time.thread_time()

    reply = await send(VALID, content_type)

    assert time.thread_time() - began < 0.5
    assert (reply.status, reply.document["code"]) == (400, "malformed_form")
    assert reply.header("connection") == "close" or reply.status == 400


@pytest.mark.parametrize("content_type", [None, "", "multipart/mixed; boundary=b", "multipart/form-datax; boundary=b"])
async def test_another_content_type_is_refused(content_type: str | None) -> None:
    assert (await send(VALID, content_type)).status == 415


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip"])
async def test_a_compressed_form_is_refused(encoding: str) -> None:
    assert (await send(VALID, TYPE, ("Content-Encoding", encoding))).status == 415


MALFORMED = {
    "empty": b"",
    "no boundary at all": b"x" * 100,
    "only the last boundary of another form": b"--c--\r\n",
    "another boundary": form(FILE + b"\r\nx", boundary=b"c", end=b"--c--"),
    "no final boundary": form(FILE + b"\r\nx", end=b""),
    "truncated in the final boundary": form(FILE + b"\r\nx", end=b"--b-"),
    "truncated in the headers": b"--b\r\n" + FILE[:30],
    "truncated after the headers": b"--b\r\n" + FILE + b"\r\n",
    "truncated in the data": b"--b\r\n" + FILE + b"\r\nxxxx",
    "a part after the end": VALID + form(TITLE + b"\r\nz"),
    "text after the end": VALID + b"x",
    "a line after the end": VALID + b"\r\n",
    "an empty form and text": b"--b--x",
    "line feeds only": VALID.replace(b"\r\n", b"\n"),
    "carriage returns only": VALID.replace(b"\r\n", b"\r"),
    "line feed after the boundary": VALID.replace(b"--b\r\n", b"--b\n"),
    "line feed after a header": VALID.replace(b'txt"\r\n', b'txt"\n'),
    "a folded header": form(b'Content-Disposition: form-data;\r\n name="file"; filename="a"\r\n\r\nx'),
    "a header without a colon": form(FILE + b"X-Header\r\n\r\nx"),
    "a header without a name": form(FILE + b": x\r\n\r\nx"),
    "a space before the colon": form(FILE + b"X-Header : x\r\n\r\nx"),
    "NUL in a header": form(FILE + b"X-\x00: x\r\n\r\nx"),
    "too many headers": form(FILE + b"".join(b"X-%d: x\r\n" % n for n in range(8)) + b"\r\nx"),
    "a header of 2 KiB": form(FILE + b"X-Header: " + b"x" * 2048 + b"\r\n\r\nx"),
    "a header without an end": b"--b\r\nX-Header: " + b"x" * 1_000_000,
    "a name of a header without an end": b"--b\r\n" + b"x" * 1_000_000,
    "no headers": form(b"\r\nx"),
    "no disposition": form(b"Content-Type: text/plain\r\n\r\nx"),
    "the disposition twice": form(FILE + FILE + b"\r\nx"),
    "the disposition twice in other letters": form(FILE + FILE.lower() + b"\r\nx"),
    "the content type twice": form(FILE + b"Content-Type: a/b\r\ncontent-type: c/d\r\n\r\nx"),
    "another disposition": form(b'Content-Disposition: attachment; name="file"; filename="a"\r\n\r\nx'),
    "no name": form(b'Content-Disposition: form-data; filename="a"\r\n\r\nx'),
    "an empty name": form(b'Content-Disposition: form-data; name=""\r\n\r\nx'),
    "an unquoted name": form(b"Content-Disposition: form-data; name=file; filename=a\r\n\r\nx"),
    "an unclosed name": form(b'Content-Disposition: form-data; name="file\r\n\r\nx'),
    "the name twice": form(b'Content-Disposition: form-data; name="title"; name="file"\r\n\r\nx'),
    "the file name twice": form(b'Content-Disposition: form-data; name="file"; filename="a"; filename="b"\r\n\r\nx'),
    "an extended file name": form(b"Content-Disposition: form-data; name=\"file\"; filename*=UTF-8''a\r\n\r\nx"),
    "both file names": form(FILE.rstrip() + b"; filename*=UTF-8''b\r\n\r\nx"),
    "a name that is not UTF-8": form(b'Content-Disposition: form-data; name="\xff"\r\n\r\nx'),
    "a file name that is not UTF-8": named(b"\xff.txt"),
    "a title that is not UTF-8": form(FILE + b"\r\nx", TITLE + b"\r\n\xff"),
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("size", [1_000_000, 3])
async def test_a_malformed_form_is_refused(body: bytes, size: int) -> None:
    parts = [body[start : start + size] for start in range(0, min(len(body), 5000), size)] or [b""]

    reply = await send(parts if size < 10 else body)

    assert (reply.status, reply.document["code"]) == (400, "malformed_form"), reply
    assert reply.header("connection") == "close"


async def test_the_error_names_the_part() -> None:
    reply = await send(form(FILE + b"\r\nx", TITLE + b"\r\n\xff"))

    assert reply.document["detail"] == "Part 2 of the form is not UTF-8."


ENCODINGS = {
    "base64": form(FILE + b"Content-Transfer-Encoding: base64\r\n\r\neA=="),
    "quoted-printable": form(TITLE + b"Content-Transfer-Encoding: quoted-printable\r\n\r\n=78"),
    "a nested form": form(FILE + b"Content-Type: multipart/mixed; boundary=c\r\n\r\n--c\r\n\r\nx\r\n--c--"),
    "another charset": form(FILE + b"\r\nx", TITLE + b"Content-Type: text/plain; charset=utf-7\r\n\r\nx"),
}


@pytest.mark.parametrize("body", ENCODINGS.values(), ids=ENCODINGS)
async def test_a_part_with_another_encoding_is_refused(body: bytes) -> None:
    reply = await send(body)

    assert (reply.status, reply.document["code"]) == (415, "unsupported_part")
    assert reply.document["detail"].startswith("Part ")


NAMES = {
    "absolute": b"/etc/passwd",
    "relative": b"../../etc/passwd",
    "parent": b"..",
    "this": b".",
    "folder": b"a/b.txt",
    "of Windows": b"C:\\\\a.txt",
    "of a share": b"\\\\\\\\host\\\\a.txt",
    "backslash": b"..\\\\a.txt",
    "NUL": b"a.txt\x00.exe",
    "tab": b"a\t.txt",
    "escape": b"a\x1b[31m.txt",
    "delete": b"a\x7f.txt",
    "reversed": "a\u202egpj.exe".encode(),
    "invisible": "a\u200b.txt".encode(),
    "256 bytes": b"a" * 256,
    "256 bytes of letters of two": "é".encode() * 128,
    "1,900 bytes": b"a" * 1900,
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
async def test_a_file_name_with_a_path_or_invisible_characters_is_refused(name: bytes) -> None:
    reply = await send(named(name))

    assert reply.status == 422, reply
    assert [(one["pointer"], one["code"]) for one in reply.document["errors"]] == [("#/file", "file_name")]


async def test_a_windows_path_that_the_parser_would_shorten_is_refused() -> None:
    assert (await send(named(b"C:\\a.txt"))).status == 422


@pytest.mark.parametrize(
    ("body", "pointer", "code"),
    [
        (form(FILE + b"\r\nx", FILE + b"\r\ny"), "#/file", "duplicate_parameter"),
        (form(TITLE + b"\r\nx", TITLE + b"\r\nx"), "#/title", "duplicate_parameter"),
        (form(FILE + b"\r\nx", b'Content-Disposition: form-data; name="FILE"\r\n\r\nx'), "#/FILE", "extra_forbidden"),
        (form(b'Content-Disposition: form-data; name="file[]"; filename="a"\r\n\r\nx'), "#/file%5B%5D", "extra_forbidden"),
        (form(b'Content-Disposition: form-data; name="%b"\r\n\r\nx' % (b"n" * 1900)), "#/" + "n" * 64, "extra_forbidden"),
        (form(*[TITLE + b"\r\nx"] * 200), "#/", "too_many_parts"),
        (form(b"x: y\r\n\r\n--b" + b"\r\n--bx" * 200_000), "#/", "too_many_parts"),
        (form(TITLE + b"\r\n" + b"x" * 65_537), "#/title", "too_long"),
        (form(b"", end=b"--b--"), None, None),
    ],
)  # fmt: skip
async def test_a_form_with_wrong_parts_is_refused(body: bytes, pointer: str | None, code: str | None) -> None:
    reply = await send(body)

    if pointer is None:
        assert reply.status == 400
    else:
        assert [(one["pointer"], one["code"]) for one in reply.document["errors"]] == [(pointer, code)]


async def test_a_form_is_limited_before_and_while_it_is_read() -> None:
    large = form(FILE + b"\r\n" + b"x" * LIMIT)

    counted = await send([large[start : start + 100_000] for start in range(0, len(large), 100_000)])
    announced = await send(b"", TYPE, ("Content-Length", str(LIMIT + 1)))

    assert (counted.status, announced.status) == (413, 413)
    assert counted.header("connection") == announced.header("connection") == "close"


@pytest.mark.parametrize(
    "body",
    [
        form(FILE + b"\r\n" + b"\r\n--" * 400_000),
        form(FILE + b"\r\n" + b"\r" * 1_900_000),
        b"\r\n" + b"-" * 1_900_000,
        form(FILE + b"\r\n" + b"\r\n--bx" * 300_000),
        form(FILE + b"".join(b"x%d:\r\n" % n for n in range(7)) + b"\r\nx"),
        form(b'Content-Disposition: form-data; name="%b"\r\n\r\nx' % (b"\\" * 1900)),
        form(b"Content-Disposition: form-data" + b"; name=" * 250 + b"\r\n\r\nx"),
    ],
    ids=["half boundaries", "returns", "hyphens", "false boundaries", "headers", "escapes", "parameters"],
)
async def test_no_form_keeps_the_event_loop_busy(body: bytes) -> None:
    """Each chunk takes less than 20 ms, as for every other refusal."""
    longest = 0.0
    chunks = [body[start : start + 65_536] for start in range(0, len(body), 65_536)]
    app = with_state(application(router, max_body_size=10_000))
    began = time.thread_time()

    class Chunks(list[bytes]):
        @override
        def pop(self, *index: Any) -> bytes:
            nonlocal began, longest
            longest = max(longest, time.thread_time() - began)
            began = time.thread_time()
            return super().pop(*index)

    parts = Chunks(chunks)
    headers = [("Host", "test"), ("Content-Type", TYPE)]
    await exchange(app, "POST", b"/upload", headers, parts)

    assert longest < 0.02


# Real sockets


def open_temporary_files() -> int:
    """Return the number of temporary files that this process has open. They have no name."""
    gc.collect()
    links = [str(one.readlink()) for one in Path("/proc/self/fd").iterdir() if one.is_symlink()]
    return sum(one.startswith(f"{tempfile.gettempdir()}/") and one.endswith("(deleted)") for one in links)


@asynccontextmanager
async def server(database: Database | None = None, **settings: Any) -> AsyncIterator[LocalServer]:
    app = application(router, max_body_size=10_000)
    async with local_server(app=app, state={"database": database}, **settings) as running:
        yield running


def head(path: str, length: int, *more: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: test", f"Content-Type: {TYPE}", f"Content-Length: {length}", *more]
    return "\r\n".join([*lines, "", ""]).encode()


async def test_an_upload_over_a_socket_is_complete() -> None:
    body = form(FILE + b"\r\n" + b"x" * 1_000_000)

    async with server() as running, running.client() as client:
        await client.send(head("/upload", len(body)) + body)

        assert json.loads((await client.receive()).body) == ["a.txt", 1_000_000, "none"]


@pytest.mark.parametrize("path", ["/upload", "/waiting"])
async def test_a_client_that_disconnects_leaves_no_file_and_no_connection(clone_url: str, path: str) -> None:
    database = Database(make_settings(clone_url, database={"pool_size": 2}).database)
    before = open_temporary_files()
    body = form(FILE + b"\r\n" + b"x" * 1_000_000)
    sent = len(body) if path == "/waiting" else 500_000

    async with server(database) as running:
        for _ in range(5):
            async with running.client() as client:
                await client.send(head(path, len(body)) + body[:sent])
                await running.wait_until(lambda: open_temporary_files() > before)
                # A connection reset, as from a crashed client.
                linger = struct.pack("ii", 1, 0)
                client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                client.writer.transport.abort()
            await running.wait_until(lambda: not running.connections.tasks)
            assert open_temporary_files() == before

        assert pool_of(database.engine).checkedout() == 0
        async with running.client() as client:
            await client.send(head("/upload", len(body)) + body)
            assert (await client.receive()).status == 200
    await database.dispose()


async def test_a_slow_upload_gets_408_and_leaves_no_file() -> None:
    before = open_temporary_files()
    body = form(FILE + b"\r\n" + b"x" * 1_000_000)

    async with server() as running, running.client() as client:
        await client.send(head("/upload", len(body)) + body[:500_000])
        await running.wait_until(lambda: open_temporary_files() > before)
        await asyncio.sleep(0.05)
        running.enforce_timeouts_in(11)

        assert (await client.receive()).status == 408
        await running.wait_until(lambda: open_temporary_files() == before)


async def test_an_operation_may_wait_longer_for_its_body() -> None:
    body = form(FILE + b"\r\nx")

    async with server(read_timeout="300s") as running, running.client() as client, running.client() as other:
        await client.send(head("/patient", len(body)) + body[:20])
        await other.send(head("/upload", len(body)) + body[:20])
        await running.wait_until(lambda: len(running.connections.tasks) == 2)
        await asyncio.sleep(0.05)
        running.enforce_timeouts_in(50)

        assert (await other.receive()).status == 408
        await client.send(body[20:])
        assert (await client.receive()).status == 200


async def test_a_refused_form_is_answered_before_its_end() -> None:
    body = form(b'Content-Disposition: form-data; name="other"; filename="a"\r\n\r\n' + b"x" * 1_000_000)

    async with server() as running, running.client() as client:
        await client.send(head("/upload", len(body)) + body[:1000])
        response = await client.receive()

        assert (response.status, response.headers["connection"]) == (422, "close")


async def test_a_client_that_expects_100_continue_learns_the_limit_first() -> None:
    async with server() as running, running.client() as client:
        await client.send(head("/upload", LIMIT + 1, "Expect: 100-continue"))

        assert (await client.receive()).status == 413
