"""CPU time of refused requests: each parser gets its worst input in the largest size that the limits allow.

To test a new parser, add a row to `COSTLY`. The test measures the thread of the event loop, because a busy event loop delays
all requests. Work in other threads, such as password hashing, does not count.
"""

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.hostile.attack import (
    API,
    BOUND,
    FORGOT,
    FORM,
    JSON,
    ME,
    PASSWORD,
    RESET,
    TOKEN,
    USERS,
    Header,
    Target,
    exchange,
)
from tests.servers import Server, real_server

ATTEMPTS = 5
# Size of the parts in which the server passes a body to the application.
_CHUNK = 65_536
BODY = 1_048_576
HEAD = 60_000
QUERY = 15_000
EMAIL = "nobody@example.com"


@dataclass(frozen=True)
class Costly:
    """A request that is expensive to parse. Most are refused; the limit applies to all of them."""

    parser: str
    name: str
    target: str
    method: str = "POST"
    body: bytes = b""
    headers: Sequence[Header] = ()
    who: str = "nobody"


def filled(pattern: bytes, size: int, prefix: bytes = b"", suffix: bytes = b"") -> bytes:
    """Repeat a pattern up to a size."""
    room = size - len(prefix) - len(suffix)
    return prefix + pattern * (room // len(pattern)) + suffix


def distinct(form: bytes, size: int, separator: bytes) -> bytes:
    """Join as many numbered members as fit into a size."""
    parts: list[bytes] = []
    for number in itertools.count():
        part = form % number
        size -= len(part) + len(separator)
        if size < 0:
            return separator.join(parts)
        parts.append(part)
    raise AssertionError


FORMS: dict[str, Callable[[int], bytes]] = {
    "percent signs": lambda size: filled(b"%", size, b"grant_type="),
    "percent signs encoded": lambda size: filled(b"%25", size, b"grant_type="),
    "letters beyond ASCII": lambda size: filled("\u00e9".encode(), size, b"grant_type="),
    "letters beyond ASCII, encoded": lambda size: filled(b"%C3%A9", size, b"grant_type="),
    "letters beyond ASCII, and percent signs": lambda size: filled("\u00e9%".encode(), size, b"grant_type="),
    "members of percent signs, encoded": lambda size: filled(b"%25%25%=%25&", size),
    "ampersands": lambda size: filled(b"&", size),
    "equals signs": lambda size: filled(b"=", size),
    "plus signs": lambda size: filled(b"+", size, b"grant_type="),
    "empty members": lambda size: filled(b"a&", size),
    "nameless members": lambda size: filled(b"=&", size),
    "distinct members": lambda size: distinct(b"%x=", size, b"&"),
    "a long name": lambda size: filled(b"a", size, suffix=b"=1"),
    "a long scope": lambda size: filled(b"a ", size, b"grant_type=password&username=a%40b.co&password=x&scope=", b'"'),
    "a long username": lambda size: filled("\u0301".encode(), size, b"grant_type=password&password=x&username=a", b"%00"),
    "a long password": lambda size: filled("\u0301\u0316".encode(), size, b"grant_type=password&username=a%40b.co&password=a"),
    "a long refresh token": lambda size: filled(b"A", size, b"grant_type=refresh_token&refresh_token=rt1."),
    "not a form": lambda size: filled(b"\xff", size),
}  # fmt: skip


def forms() -> Iterator[Costly]:
    for name, build in FORMS.items():
        for size in (16_000, BODY):
            yield Costly("form", f"{name}, {size}", TOKEN, body=build(size), headers=[FORM])


TEXT = json.dumps({"email": EMAIL, "password": PASSWORD})
JSONS: dict[str, Callable[[int], bytes]] = {
    "open arrays": lambda size: filled(b"[", size),
    "arrays": lambda size: filled(b"[],", size, b"[", b"0]"),
    "arrays of arrays": lambda size: filled(b"[[[[[[]]]]]],", size, b"[", b"0]"),
    "objects": lambda size: filled(b"{},", size, b"[", b"0]"),
    "objects with a member": lambda size: filled(b'{"a":0},', size, b"[", b"0]"),
    "distinct members": lambda size: b"{" + distinct(b'"%x":0', size - 2, b",") + b"}",
    "members of members": lambda size: b'{"email":{' + distinct(b'"%x":{}', size - 12, b",") + b"}}",
    "unknown objects": lambda size: b"{" + distinct(b'"%x":{}', size - 2, b",") + b"}",
    "distinct members, then one twice": lambda size: b"{" + distinct(b'"%x":0', size - 10, b",") + b',"0":0}',
    "distinct members, then nothing": lambda size: b"{" + distinct(b'"%x":0', size - 2, b","),
    "a list for a text": lambda size: filled(b"0,", size, b'{"email":[', b"0]}"),
    "zeros": lambda size: filled(b"0,", size, b"[", b"0]"),
    "floats": lambda size: filled(b"1.5,", size, b"[", b"0]"),
    "floats with exponents": lambda size: filled(b"1e-308,", size, b"[", b"0]"),
    "one long float": lambda size: filled(b"1", size, b"[0.", b"]"),
    "one float of many digits and an exponent": lambda size: filled(b"1", size, b"[", b"e-999]"),
    "one long integer": lambda size: filled(b"1", size, b"[", b"]"),
    "integers as long as they may be": lambda size: filled(b"9" * 4300 + b",", size, b"[", b"0]"),
    "negative integers": lambda size: filled(b"-" + b"9" * 4299 + b",", size, b"[", b"0]"),
    "nulls": lambda size: filled(b"null,", size, b"[", b"0]"),
    "empty strings": lambda size: filled(b'"",', size, b"[", b"0]"),
    "short strings": lambda size: filled(b'"a",', size, b"[", b"0]"),
    "escapes": lambda size: filled(b"\\u00e9", size, b'["', b'"]'),
    "surrogate pairs": lambda size: filled(b"\\ud83d\\ude00", size, b'{"new_password":"', b'"}'),
    "lone surrogates": lambda size: filled(b"\\ud800", size, b'{"new_password":"', b'"}'),
    "backslashes": lambda size: filled(b"\\\\", size, b'["', b'"]'),
    "a string without end": lambda size: filled(b"\\\\", size, b'["'),
    "brackets in a string": lambda size: filled(b"[", size, b'["', b'"]'),
    "strings without ends": lambda size: filled(b'"\\', size, b"[" * 33),
    "quotes": lambda size: filled(b'"', size, b"[" * 33),
    "spaces": lambda size: filled(b" ", size, suffix=b"{}"),
    "nothing but spaces": lambda size: filled(b" ", size),
    "letters beyond ASCII": lambda size: filled("\u00e9".encode(), size, b'["', b'"]'),
    "wide letters": lambda size: filled("\U0001f98a".encode(), size, b'{"new_password":"', b'"}'),
    "broken UTF-8 at the end": lambda size: filled("\u00e9".encode(), size, suffix=b"\xff"),
    "a long token": lambda size: filled(b"a", size, b'{"new_password":"x","token":"', b'"}'),
    "a long password": lambda size: filled("\u0301\u0316".encode(), size, b'{"token":"x","new_password":"a', b'"}'),
    "a long name of a member": lambda size: filled("\U0001f98a".encode(), size, b'{"', b'":0}'),
}  # fmt: skip


def jsons() -> Iterator[Costly]:
    for name, build in JSONS.items():
        for size in (65_536, BODY):
            yield Costly("JSON", f"{name}, {size}", RESET, body=build(size), headers=[JSON])


def member(parser: str, name: str, target: str, who: str = "nobody", **members: str) -> Costly:
    return Costly(parser, name, target, body=json.dumps(members, ensure_ascii=False).encode(), headers=[JSON], who=who)


MARKS = "\u0301\u0316"
MEMBERS = [
    *(
        member("address", f"{letters!a} {size}", FORGOT, email=f"a@{letters * (size // len(letters))}.co")
        for letters in ("\u0390", "\u00fc", "\u0130", "\ufdfa", "a\u0301", "a.", "\u00fc.", "xn--a.", "\u0301\u0316", "-", "\u06dd")
        for size in (62, 240, 15_000)
    ),
    *(
        member("address", f"local part of {letter!a}", FORGOT, email=f"a{letter * size}@example.com")
        for letter in ("\u0301", "\u0316\u0301", "\U0001f98a", ".", '"', "(", "\\")
        for size in (30, 120, 7000)
    ),
    *(
        member("name", f"{letters!a} {size}", USERS, "admin", email=EMAIL, full_name=letters * (size // len(letters)), role="?")
        for letters in ("a\u200d", "\u200d", "\U0001f98a\u200d", "\ufe0f", "\u0301", "\u0316\u0301", "\u0628\u200c", "\ufffd", "\u2800")
        for size in (128, 15_000)
    ),
    Costly("JSON", "a long address", FORGOT, body=filled("\u00fc".encode(), BODY, b'{"email":"a@', b'.co"}'), headers=[JSON]),
    Costly("JSON", "a long name", ME, "PATCH", filled(b"a", BODY, b'{"full_name":"', b'"}'), [JSON], "user"),
    member("link", "a long secret", RESET, token="lt1." + "A" * 60_000, new_password=PASSWORD),
    member("link", "a long secret beyond ASCII", RESET, token="\u0301\u0316" * 15_000, new_password=PASSWORD),
    Costly(
        "password", "given again, of marks to put in order", f"{API}/auth/reauthenticate", headers=[JSON], who="user",
        body=json.dumps({"password": "a" + MARKS * 15_000}, ensure_ascii=False).encode(),
    ),
]  # fmt: skip
QUERIES = {
    "ampersands": "&" * QUERY,
    "equals signs": "=" * QUERY,
    "percent signs": "%" * QUERY,
    "percent signs, encoded": "%25" * (QUERY // 3),
    "broken UTF-8": "%ff" * (QUERY // 3),
    "letters beyond ASCII, encoded": "%C3%A9" * (QUERY // 6),
    "empty members": "a&" * (QUERY // 2),
    "nameless members": "=&" * (QUERY // 2),
    "distinct members": distinct(b"%x=", QUERY, b"&").decode(),
    "a member again and again": "limit=1&" * (QUERY // 8),
    "a long cursor": f"cursor={'A' * QUERY}",
    "a cursor as long as it may be": f"cursor={'A' * 1024}",
    "a long number": f"limit={'9' * QUERY}",
    "a long address": f"email={'a' * QUERY}%40example.com",
    "a long search": f"q={'%CC%81%CC%96' * (QUERY // 12)}",
    "a long instant": f"created_after={'2' * QUERY}",
    "a long order": f"sort={'email,' * (QUERY // 6)}",
    "a secret": f"{'a=&' * (QUERY // 4)}token=x",
}
HEADERS = {
    "Accept": {
        "commas": "," * HEAD,
        "ranges": "a/b," * (HEAD // 4),
        "distinct ranges": distinct(b"a/%x", HEAD, b",").decode(),
        "parameters": "a/b" + ";q=0" * (HEAD // 4) + "x",
        "spaces": "a/b;" + " " * HEAD + "x",
        "semicolons": "a/b" + "; " * (HEAD // 2),
        "weights": "a/b;q=0.000" + " " * HEAD + "x",
        "zeros": "application/json;q=0." + "0" * HEAD,
    },
    "X-Request-ID": {"a long one": "a" * HEAD},
    "X-Forwarded-For": {
        "commas": "," * HEAD,
        "one address again and again": "127.0.0.1," * (HEAD // 10) + "127.0.0.1",
        "proxies of ours": ",".join(f"10.{first}.{second}.1" for first in range(20) for second in range(250)),
        "a long address": "1" * HEAD,
        "colons": "[" + ":" * HEAD + "]",
    },
    "User-Agent": {"a long one": "\x85" * HEAD},
    "Cookie": {"many": "a=1; " * (HEAD // 5)},
    "Origin": {"a long one": "https://" + "a" * HEAD},
    "Range": {"many": "bytes=" + "0-," * (HEAD // 3)},
    "traceparent": {"a long one": "0" * HEAD},
    "Accept-Encoding": {"many": "gzip," * (HEAD // 5)},
    "Host": {"a long one": "a" * HEAD},
}  # fmt: skip
CONDITIONS = {
    "as long as it may be": '"1",' * (8192 // 4),
    "as many quotes as there may be": '"' * 8192,
    "many": '"1",' * (HEAD // 4),
    "quotes": '"' * HEAD,
    "commas": "," * HEAD,
    "weak ones": 'W/"1", ' * (HEAD // 7),
    "spaces": '"1"' + " " * HEAD + "x",
    "backslashes": '"' + "\\" * HEAD,
    "beyond ASCII": '"' + "\x85" * HEAD + '"',
}
TYPES = {
    "parameters": "application/json" + "; charset=utf-8" * (HEAD // 15),
    "quotes": "application/json; charset=" + '"' * HEAD + "utf-8",
    "quotes and backslashes": "application/json; charset=" + '\\"' * (HEAD // 2),
    "spaces": "application/json" + " " * HEAD,
    "spaces before the charset": "application/json;" + " " * HEAD + "charset=utf-8",
    "semicolons": "application/json" + ";" * HEAD,
    "a long type": "a" * HEAD + "/json",
}
BEARERS = {
    "a long token": "A" * HEAD,
    "dots": "." * HEAD,
    "spaces": " " * HEAD,
    "a deep head": "W1tb" * 120 + ".e30.AAAA",
    "a head of digits": "OTk5" * 120 + ".e30.AAAA",
    "a token as long as it may be": "eyJhbGciOiJFUzI1NiIsImtpZCI6IngiLCJ0eXAiOiJhdCtqd3QifQ." + "A" * 4000 + ".AAAA",
    "beyond ASCII": "\xff" * HEAD,
}
PATHS = {
    "slashes": "/" * QUERY,
    "slashes, encoded": "/api/v1" + "%2f" * (QUERY // 3),
    "dots": "/api/v1" + "/.." * (QUERY // 3),
    "percent signs": "/" + "%" * QUERY,
    "broken UTF-8": "/" + "%ff" * (QUERY // 3),
    "letters beyond ASCII, encoded": "/" + "%C3%A9" * (QUERY // 6),
    "an id": f"{USERS}/{'0' * QUERY}",
    "an id of letters beyond ASCII": f"{USERS}/{'%C3%A9' * (QUERY // 6)}",
    "the name of a problem": f"/problems/{'a' * QUERY}",
    "the name of a page": f"/account/{'a' * QUERY}",
}
OTHERS = [
    *(Costly("query", name, f"{USERS}?{query}", "GET", who="admin") for name, query in QUERIES.items()),
    *(Costly("query", f"without a caller: {name}", f"{USERS}?{query}", "GET") for name, query in QUERIES.items()),
    *(
        Costly(name, what, "/nowhere" if name != "Accept" else USERS, "GET", headers=[(name, value)])
        for name, values in HEADERS.items()
        for what, value in values.items()
    ),
    *(
        Costly(name, what, TOKEN, body=b"grant_type=x", headers=[FORM, (name, value)])
        for name in ("X-Forwarded-For", "User-Agent")
        for what, value in HEADERS[name].items()
    ),
    *(
        Costly("If-Match", what, ME, "PATCH", b'{"full_name":"x"}', [JSON, ("If-Match", value)], "user")
        for what, value in CONDITIONS.items()
    ),
    *(Costly("If-None-Match", what, ME, "GET", headers=[("If-None-Match", value)], who="user") for what, value in CONDITIONS.items()),
    *(Costly("Content-Type", what, RESET, body=b"{}", headers=[("Content-Type", value)]) for what, value in TYPES.items()),
    *(Costly("Authorization", what, ME, "GET", headers=[("Authorization", f"Bearer {value}")]) for what, value in BEARERS.items()),
    *(
        Costly("token", what, f"{API}/auth/revoke", body=b"token=" + value.encode("latin-1").hex().encode()[:15_000], headers=[FORM])
        for what, value in BEARERS.items()
    ),
    Costly("Authorization", "client credentials", TOKEN, body=b"grant_type=x", headers=[FORM, ("Authorization", f"Basic {'A' * HEAD}")]),
    *(Costly("path", what, path, "GET", who="admin") for what, path in PATHS.items()),
    *(Costly("path", f"{what} for a method", path, "DELETE") for what, path in PATHS.items()),
]  # fmt: skip
COSTLY = [*forms(), *jsons(), *MEMBERS, *OTHERS]


async def cost(target: Target, costly: Costly) -> tuple[int, float]:
    """Return the status of the response and the minimum CPU time of several attempts."""
    headers = [*([] if any(name == "Host" for name, _ in costly.headers) else [("Host", "test")]), *costly.headers]
    if costly.who in target.tokens:
        headers.append(("Authorization", f"Bearer {target.tokens[costly.who]}"))
    chunks = [costly.body[start : start + _CHUNK] for start in range(0, len(costly.body), _CHUNK)] or [b""]
    times, status = [], 0
    for _ in range(ATTEMPTS):
        started = time.thread_time()
        reply = await exchange(target.app, costly.method, costly.target.encode("latin-1"), headers, list(chunks))
        times.append(time.thread_time() - started)
        status = reply.status
    return status, min(times)


async def test_no_input_blocks_the_event_loop(target: Target, subtests: pytest.Subtests) -> None:
    for costly in COSTLY:
        with subtests.test(f"{costly.parser}: {costly.name}"):
            status, seconds = await cost(target, costly)

            assert status < 500
            assert seconds < BOUND, f"{seconds * 1000:.1f} ms"


HOST = b"Host: test\r\n"
READ_JSON = b"POST /api/v1/auth/password/reset HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
READ_FORM = b"POST /api/v1/auth/token HTTP/1.1\r\n" + HOST + b"Content-Type: application/x-www-form-urlencoded\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
LENGTH = b"Content-Length: %d\r\n\r\n"
WIRE = {
    "chunks of a byte": READ_JSON + CHUNKED + b"1\r\n \r\n" * BODY,
    "as many chunks as are read": READ_JSON + CHUNKED + b"1\r\n \r\n" * 8000 + b"0\r\n\r\n",
    "chunks of 64 bytes": READ_JSON + CHUNKED + (b"40\r\n" + b" " * 64 + b"\r\n") * (BODY // 64) + b"0\r\n\r\n",
    "a form in chunks": READ_FORM + CHUNKED + b"1\r\n&\r\n" * BODY,
    "a long extension of a chunk": READ_JSON + CHUNKED + b"1;".ljust(BODY, b"a"),
    "trailers": READ_JSON + CHUNKED + b"0\r\n" + b"a:\r\n" * 16_000,
    "a body as long as it may be": READ_JSON + LENGTH % BODY + b" " * BODY,
    "a body of 10 MB": READ_FORM + LENGTH % 10_000_000 + b"%" * 10_000_000,
    "ends of lines": b"\r\n" * (BODY // 2),
    "letters": b"A" * BODY,
    "short headers": b"GET / HTTP/1.1\r\n" + HOST + b"a:\r\n" * (BODY // 4),
    "a long header": b"GET / HTTP/1.1\r\n" + HOST + b"a: ".ljust(BODY, b"b"),
    "a target as long as it may be": b"GET /".ljust(15_999, b"%") + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "a long target": b"GET /".ljust(BODY, b"%"),
    "a long host": b"GET / HTTP/1.1\r\nHost: ".ljust(HEAD, b"a") + b"@\r\n\r\n",
}


def spent(server: Server) -> float:
    """Return the CPU seconds of the thread that runs the event loop."""
    thread = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/schedstat")
    return int(thread.read_text().split()[0]) / 1e9


async def send(server: Server, data: bytes) -> bytes:
    """Send bytes until the server responds, and return the status."""
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(server.base_url).port)
    writing = asyncio.ensure_future(_write(writer, data))
    line = await asyncio.wait_for(reader.readline(), 10)
    # The server continues to read for a moment and discards the bytes.
    await asyncio.sleep(0.1)
    writing.cancel()
    writer.close()
    return line.split()[1]


async def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    # The server responds and closes the connection before everything is sent.
    with suppress(ConnectionError):
        writer.write(data)
        await writer.drain()


async def test_no_bytes_on_a_socket_block_the_event_loop(clone_url: str, subtests: pytest.Subtests) -> None:
    async with real_server(clone_url) as server:
        for name, data in WIRE.items():
            with subtests.test(name):
                times = []
                for _ in range(3):
                    before = spent(server)
                    assert (await send(server, data)).startswith(b"4")
                    times.append(spent(server) - before)

                assert min(times) < BOUND, f"{min(times) * 1000:.1f} ms"
