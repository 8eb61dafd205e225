"""The production listing of the README works unchanged, with a PostgreSQL server that accepts only TLS."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from httpx2 import AsyncClient, HTTPError

from app.dev.ports import free_port
from tests.conftest import ROOT, outside
from tests.core.db.test_tls import needs_tls
from tests.tls import TlsServer, tls_server

# A loopback address on which no other process uses the port of the listing.
ADDRESS = "127.53.0.1"
DATABASE_HOST = "db.internal"
PASSWORD = "a password of the database"
ADMIN_PASSWORD = "the first of all administrators"
_START_PATIENCE = 120.0
# /etc is a copy here. Files that the listing writes there disappear with the namespace.
_NAMESPACE = """
set -e
mount --bind "$PLACE/etc" /etc
exec "$@"
"""


def may_make_namespaces() -> bool:
    return os.geteuid() == 0 and not subprocess.run(["unshare", "--mount", "true"], check=False).returncode


pytestmark = [
    pytest.mark.slow,
    needs_tls,
    pytest.mark.skipif(not may_make_namespaces(), reason="needs root, for a mount namespace with an /etc of its own"),
]


def listings() -> tuple[str, list[str]]:
    """Return the setup commands, and the commands of the services."""
    _, section = (ROOT / "README.md").read_text().split("## In production\n")
    _, prepare, run = re.findall(r"```bash\n(.*?)```", section.split("\n## ")[0], re.DOTALL)
    return prepare, run.splitlines()


@dataclass(frozen=True)
class Machine:
    """A machine with host names in /etc/hosts, a trusted certificate authority and a virtual environment."""

    place: Path
    environment: dict[str, str]
    server: TlsServer

    def command(self, script: str) -> list[str]:
        return ["unshare", "--mount", "bash", "-c", _NAMESPACE, "namespace", "bash", "-ec", script]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    subprocess.run(["cp", "--archive", "/etc", tmp_path], check=True)
    with (tmp_path / "etc" / "hosts").open("a") as hosts:
        hosts.write(f"\n{ADDRESS} {DATABASE_HOST}\n127.0.0.1 mail.example.com\n")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    settings = (f"listen_addresses={ADDRESS},127.0.0.1",)
    with tls_server(tmp_path / "postgres", host=DATABASE_HOST, settings=settings, port=5432) as server:
        server.execute(f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'", "CREATE DATABASE app OWNER app")
        trusted = tmp_path / "etc" / "trusted.pem"
        trusted.write_bytes(server.authority.pem)
        inherited = {name: value for name, value in outside().items() if not name.startswith(("APP_", "DATABASE_URL"))}
        environment = inherited | {
            "PATH": f"{tmp_path / 'venv' / 'bin'}:{os.environ['PATH']}",
            "PLACE": str(tmp_path),
            "PORT": str(free_port()),
            "DATABASE_PASSWORD": PASSWORD.replace(" ", "%20"),
            "MAIL_PASSWORD": "x",
            "PYTHONDONTWRITEBYTECODE": "",
        }
        yield Machine(tmp_path, environment, server)


@asynccontextmanager
async def running(machine: Machine, script: str, log: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *machine.command(script),
            cwd=ROOT,
            env=machine.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), 40)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


async def test_the_production_listing_of_the_readme_starts_a_working_service(machine: Machine) -> None:
    prepare, (serve, work) = listings()
    # The listing uses the certificates of the system, so the test authority is added to them.
    trust = f"export SSL_CERT_FILE={machine.place}/etc/trusted.pem\n"
    exports = "".join(line + "\n" for line in prepare.splitlines() if line.startswith("export "))
    install, _, rest = prepare.partition("\n")

    output = ""
    for script in (install, trust + rest):
        prepared = await asyncio.to_thread(
            subprocess.run,
            machine.command(script),
            cwd=ROOT,
            env=machine.environment,
            input=f"{ADMIN_PASSWORD}\n",
            capture_output=True,
            text=True,
            check=False,
        )
        output = prepared.stdout
        assert prepared.returncode == 0, output + prepared.stderr
    logs = {name: machine.place / f"{name}.log" for name in ("serve", "worker")}
    async with (
        running(machine, trust + exports + serve, logs["serve"]),
        running(machine, trust + exports + work, logs["worker"]),
        AsyncClient(base_url=f"http://127.0.0.1:{machine.environment['PORT']}", timeout=30) as client,
    ):
        async with asyncio.timeout(_START_PATIENCE):
            while not await is_ready(client):
                assert "The settings cannot be used" not in logs["serve"].read_text()
                await asyncio.sleep(0.2)
        form = {"grant_type": "password", "username": "you@example.com", "password": ADMIN_PASSWORD}
        login = await client.post("/api/v1/auth/token", data=form)
        forgotten = await client.post("/api/v1/auth/password/forgot", json={"email": "nobody@example.com"})
        async with asyncio.timeout(_START_PATIENCE):
            while '"event":"job done"' not in logs["worker"].read_text():  # noqa: ASYNC110  # Another process writes.
                await asyncio.sleep(0.2)

    assert "Created administrator you@example.com" in output
    assert login.status_code == 200, login.text
    assert forgotten.status_code == 202


async def is_ready(client: AsyncClient) -> bool:
    with suppress(HTTPError):
        return (await client.get("/readyz")).status_code == 200
    return False
