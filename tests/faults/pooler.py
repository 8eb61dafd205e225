"""Runs PgBouncer in transaction mode in front of the server of the tests."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy import URL, make_url

from app.dev.ports import free_port

_START_TIMEOUT = 30.0
# Fewer than the connections of the application, so that transactions of one connection use different sessions.
_SESSIONS = 3
_CLIENTS = 200
_AUTH = "scram-sha-256"


def program() -> str | None:
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")


@asynccontextmanager
async def pooled(
    url: str, *, sessions: int = _SESSIONS, clients: int = _CLIENTS, auth: str = _AUTH
) -> AsyncIterator[str]:
    """Provide the URL of this database through a pooler. With `auth="trust"`, opening many connections takes little time."""
    target, port = make_url(url), free_port()
    with TemporaryDirectory(prefix="pooler-") as directory:
        configuration = _write(Path(directory), target, port, sessions=sessions, clients=clients, auth=auth)
        # PgBouncer refuses to run as root. It reads its files before it changes its user.
        identity = ["-u", "nobody"] if os.geteuid() == 0 else []
        process = await asyncio.create_subprocess_exec(
            *(program() or "pgbouncer", "-q", *identity, str(configuration)), stderr=asyncio.subprocess.DEVNULL
        )
        try:
            await _wait_for(port)
            yield target.set(host="127.0.0.1", port=port, query={}).render_as_string(hide_password=False)
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _write(directory: Path, target: URL, port: int, *, sessions: int, clients: int, auth: str) -> Path:
    users, configuration = directory / "users.txt", directory / "pgbouncer.ini"
    users.write_text(f'"{target.username}" "{target.password}"\n')
    configuration.write_text(
        f"[databases]\n* = host={target.host} port={target.port or 5432}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = {auth}\nauth_file = {users}\n"
        f"pool_mode = transaction\ndefault_pool_size = {sessions}\nmax_client_conn = {clients}\n"
    )
    # After the change of user, PgBouncer must still be able to read the files.
    for path, mode in ((directory, 0o755), (users, 0o644), (configuration, 0o644)):
        path.chmod(mode)
    return configuration


async def _wait_for(port: int) -> None:
    async with asyncio.timeout(_START_TIMEOUT):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return
