"""Real proxies with the files of `deploy/proxy`, each in a process of its own.

A test uses the shipped file. It replaces only what cannot be the same on each machine: the two addresses of the instances, the
ports that the proxy listens on, and the certificate. For nginx and Caddy it puts around the file what belongs to the whole program.
"""

import asyncio
import getpass
import os
import re
import shutil
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import cycle
from pathlib import Path

from httpx2 import AsyncClient, AsyncHTTPTransport, HTTPError, Request

from app.dev.ports import free_port
from tests.conftest import ROOT
from tests.tls import Authority

_START_TIMEOUT = 15.0
_STOP_TIMEOUT = 10.0
_TIMEOUT = 20.0
_POLL = 0.05
# Debian's nginx and haproxy are where an ordinary user does not look.
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
_ADDRESS = re.compile(r"\b(?:\d+\.){3}\d+:\d+\b")
_NAME = re.compile(r"(?m)(?:\bserver_name |^)((?:[\w-]+\.)+\w+)(?:;| \{)")
_DEFAULT_NAME = "api.example.com"


@dataclass(frozen=True)
class Program:
    """How to run a proxy with its shipped file. Words such as `@https` stand for values of the test."""

    file: str
    # Patterns of the shipped file, and their replacements.
    replaced: Mapping[str, str]
    command: Sequence[str]
    # The configuration around the shipped file.
    frame: str = "@file"


PROGRAMS = {
    "nginx": Program(
        "nginx.conf",
        {
            r"listen 80;": "listen 127.0.0.1:@http;",
            r"listen 443 ": "listen 127.0.0.1:@https ",
            r"(ssl_certificate +)\S+;": r"\1@directory/chain.pem;",
            r"(ssl_certificate_key +)\S+;": r"\1@directory/key.pem;",
        },
        ("nginx", "-p", "@directory", "-c", "@directory/configuration", "-g", "daemon off;"),
        "user @user;\npid @directory/pid;\nerror_log stderr;\nevents {}\nhttp {\naccess_log off;\n"
        + "".join(
            f"{kind}_temp_path @directory/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        + "@file}\n",
    ),
    "haproxy": Program(
        "haproxy.cfg",
        {
            r"bind :80\b": "bind 127.0.0.1:@http",
            r"bind :443 ": "bind 127.0.0.1:@https ",
            r" crt \S+": " crt @directory/combined.pem",
        },
        # Fewer connections than in the file, which needs a limit of 40,000 open files.
        ("haproxy", "-db", "-n", "1000", "-f", "@directory/configuration"),
    ),
    "caddy": Program(
        "Caddyfile",
        {r"(?m)^([\w.-]+) \{$": r"\1:@https {" + "\n\ttls @directory/chain.pem @directory/key.pem"},
        ("caddy", "run", "--adapter", "caddyfile", "--config", "@directory/configuration"),
        "{\n\tadmin off\n\thttp_port @http\n}\n@file",
    ),
}


def path_of(name: str) -> str | None:
    return shutil.which(name, path=_PATH)


@dataclass
class Proxy:
    """A running proxy, and how its clients reach it."""

    name: str
    directory: Path
    authority: Authority
    https: int = field(default_factory=free_port)
    http: int = field(default_factory=free_port)
    # The host name in the shipped file.
    host: str = _DEFAULT_NAME

    @cached_property
    def tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=self.authority.pem.decode())
        # The certificates of the tests have no key identifiers.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        return context

    def client(self, address: str = "127.0.0.1") -> AsyncClient:
        """Return a client that connects from this address."""

        async def name_the_host(request: Request) -> None:
            request.extensions = {**request.extensions, "sni_hostname": self.host}

        return AsyncClient(
            transport=AsyncHTTPTransport(verify=self.tls, local_address=address),
            base_url=f"https://127.0.0.1:{self.https}",
            headers={"Host": self.host},
            event_hooks={"request": [name_the_host]},
            timeout=_TIMEOUT,
        )

    def write_files(self, instances: Sequence[int]) -> None:
        """Write the shipped file with the values of this test, and the certificate."""
        program = PROGRAMS[self.name]
        text = (ROOT / "deploy" / "proxy" / program.file).read_text()
        if found := _NAME.search(text):
            self.host = found[1]
        addresses = cycle(f"127.0.0.1:{port}" for port in instances)
        text, count = _ADDRESS.subn(lambda _: next(addresses), text)
        assert count >= len(instances), f"{program.file} has {count} addresses of instances"
        for pattern, replacement in program.replaced.items():
            text, count = re.subn(pattern, replacement, text)
            assert count, f"{program.file} has no {pattern}"
        certificate, key = self.authority.sign(self.host)
        files = {
            "configuration": self.fill(program.frame.replace("@file", text)).encode(),
            "chain.pem": certificate,
            "key.pem": key,
            "combined.pem": certificate + key,
        }
        for name, content in files.items():
            (self.directory / name).write_bytes(content)

    def fill(self, text: str) -> str:
        values = {"https": self.https, "http": self.http, "directory": self.directory, "user": getpass.getuser()}
        return re.sub(rf"@({'|'.join(values)})\b", lambda found: str(values[found[1]]), text)

    async def wait_until_it_answers(self, process: asyncio.subprocess.Process) -> None:
        """Wait until a request gets through to an instance."""
        async with asyncio.timeout(_START_TIMEOUT), self.client() as client:
            while True:
                assert process.returncode is None, (self.directory / "log").read_text()
                with suppress(HTTPError):
                    if (await client.get("/livez")).status_code == 200:
                        return
                await asyncio.sleep(_POLL)


@asynccontextmanager
async def running_proxy(name: str, directory: Path, instances: Sequence[int]) -> AsyncIterator[Proxy]:
    """Run a proxy in front of the instances on these ports. The block begins when a request gets through."""
    program = path_of(name)
    assert program
    proxy = Proxy(name, directory, Authority.create("Test authority"))
    proxy.write_files(instances)
    _, *arguments = PROGRAMS[name].command
    with (directory / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(program, *map(proxy.fill, arguments)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={"PATH": _PATH, "HOME": str(directory)},
        )
    try:
        await proxy.wait_until_it_answers(process)
        yield proxy
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _STOP_TIMEOUT)
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
