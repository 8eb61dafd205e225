"""TLS to PostgreSQL: both drivers treat a URL in the same way, and neither reads the home directory."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy import make_url, text

from app.auth.access.revocation import RevocationListener
from app.core.config import DatabaseSettings
from app.core.db import tls
from app.core.db.connections import create_engine
from app.core.db.failures import DatabaseUnavailableError
from app.core.errors import ConfigurationError
from app.jobs.library import conninfo
from app.migrations import runner
from app.migrations.errors import MigrationError
from tests.tls import Authority, TlsServer, binaries_with_tls, tls_server

needs_tls = pytest.mark.skipif(
    binaries_with_tls() is None, reason="needs a PostgreSQL of the system with OpenSSL: apt-get install postgresql"
)
ENCRYPTED = """SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"""
REFUSED = "refused"
STRANGER = Authority.create("Another authority")


class Paths(NamedTuple):
    """The paths of a system's certificates."""

    cafile: str | None
    capath: str | None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    """A server that requires TLS and has a certificate for `localhost`."""
    with tls_server(tmp_path_factory.mktemp("tls")) as server:
        yield server


@pytest.fixture
def files(server: TlsServer, tmp_path: Path) -> Path:
    """A directory with the certificates of two authorities."""
    (tmp_path / "ca.crt").write_bytes(server.authority.pem)
    (tmp_path / "stranger.crt").write_bytes(STRANGER.pem)
    return tmp_path


@pytest.fixture(autouse=True)
def _no_context_is_kept() -> Iterator[None]:
    tls._context.cache_clear()
    yield
    tls._context.cache_clear()


async def outcomes(url: str, **settings: object) -> tuple[object, object]:
    """Connect with both drivers. Returns for each whether TLS was used, or that the connection was refused."""
    database = DatabaseSettings.model_validate({"url": url, "connect_timeout": "20s", **settings})
    return await by_asyncpg(database), await by_libpq(database)


async def by_asyncpg(settings: DatabaseSettings) -> object:
    engine = create_engine(settings)
    try:
        async with engine.connect() as connection:
            return await connection.scalar(text(ENCRYPTED))
    except DatabaseUnavailableError:
        return REFUSED
    finally:
        await engine.dispose()


async def by_libpq(settings: DatabaseSettings) -> object:
    try:
        async with await psycopg.AsyncConnection.connect(conninfo(settings)) as connection:
            cursor = await connection.execute(ENCRYPTED)
            return (await cursor.fetchone() or (None,))[0]
    except psycopg.OperationalError:
        return REFUSED


@needs_tls
@pytest.mark.parametrize(
    ("mode", "host", "certificates", "outcome"),
    [
        (None, "localhost", None, True),
        ("disable", "localhost", None, REFUSED),
        ("allow", "localhost", None, True),
        ("prefer", "localhost", None, True),
        ("require", "127.0.0.1", None, True),
        ("require", "127.0.0.1", "ca.crt", True),
        ("require", "127.0.0.1", "stranger.crt", REFUSED),
        ("verify-ca", "127.0.0.1", "ca.crt", True),
        ("verify-ca", "localhost", "stranger.crt", REFUSED),
        ("verify-full", "localhost", "ca.crt", True),
        ("verify-full", "127.0.0.1", "ca.crt", REFUSED),
        ("verify-full", "localhost", "stranger.crt", REFUSED),
    ],
)
@pytest.mark.parametrize("is_setting", [False, True], ids=["sslrootcert", "setting"])
async def test_a_server_that_requires_tls(
    server: TlsServer,
    files: Path,
    mode: str | None,
    host: str,
    certificates: str | None,
    outcome: object,
    *,
    is_setting: bool,
) -> None:
    query = {"sslmode": mode} if mode else {}
    settings = {}
    if certificates and is_setting:
        settings["ca_file"] = files / certificates
    elif certificates:
        query["sslrootcert"] = str(files / certificates)

    assert await outcomes(server.url(host=host, **query), **settings) == (outcome, outcome)


@pytest.mark.parametrize(
    ("mode", "outcome"),
    [
        (None, False),
        ("disable", False),
        ("allow", False),
        ("prefer", False),
        ("require", REFUSED),
        ("verify-full", REFUSED),
    ],
)
async def test_a_server_without_tls(database_url: str, mode: str | None, outcome: object) -> None:
    url = make_url(database_url).set(query={"ssl": mode} if mode else {})

    assert await outcomes(url.render_as_string(hide_password=False)) == (outcome, outcome)


@needs_tls
@pytest.mark.parametrize("query", [{}, {"sslrootcert": "system"}])
@pytest.mark.parametrize(("store", "outcome"), [("ca.crt", True), ("stranger.crt", REFUSED)])
async def test_the_certificates_of_the_system_are_trusted_by_default(
    server: TlsServer,
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    query: dict[str, str],
    store: str,
    outcome: object,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(files / store))
    monkeypatch.setenv("SSL_CERT_DIR", str(files / "none"))

    assert await outcomes(server.url(ssl="verify-full", **query)) == (outcome, outcome)


def test_libpq_gets_the_paths_of_the_system_s_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    monkeypatch.setattr("ssl.get_default_verify_paths", lambda: Paths("/somewhere/all.pem", None))

    conninfo(DatabaseSettings(url=SecretStr("postgresql://a@b/c?ssl=verify-full")))

    assert os.environ["SSL_CERT_FILE"] == "/somewhere/all.pem"
    assert "SSL_CERT_DIR" not in os.environ


@needs_tls
async def test_an_expired_certificate_is_rejected_if_it_is_verified(server: TlsServer, files: Path) -> None:
    query = {"sslrootcert": str(files / "ca.crt")}
    await asyncio.to_thread(server.present, "localhost", days=-1)
    try:
        checked = await outcomes(server.url(ssl="verify-full", **query))
        unchecked = await outcomes(server.url(ssl="require"))
    finally:
        await asyncio.to_thread(server.present, "localhost")

    assert checked == (REFUSED, REFUSED)
    assert unchecked == (True, True)
    assert await outcomes(server.url(ssl="verify-full", **query)) == (True, True)


@needs_tls
async def test_a_client_can_use_a_certificate(server: TlsServer, files: Path) -> None:
    await server._execute(("DROP ROLE IF EXISTS client", "CREATE ROLE client LOGIN"), "postgres")
    for name, content in zip(("client.crt", "client.key"), server.authority.sign("client"), strict=True):
        (files / name).touch(mode=0o600)
        (files / name).write_bytes(content)
    url = make_url(server.url(ssl="verify-full")).set(username="client", password=None)
    query = {"ssl": "verify-full", "sslrootcert": str(files / "ca.crt")}
    own = {"sslcert": str(files / "client.crt"), "sslkey": str(files / "client.key")}

    with_it = await outcomes(url.set(query=query | own).render_as_string(hide_password=False))
    without = await outcomes(url.set(query=query).render_as_string(hide_password=False))

    assert with_it == (True, True)
    assert without == (REFUSED, REFUSED)


@needs_tls
@pytest.mark.parametrize("mode", ["allow", "prefer"])
async def test_a_wrong_password_causes_no_second_attempt(server: TlsServer, mode: str) -> None:
    url = make_url(server.url(ssl=mode)).set(password="wrong")

    assert await outcomes(url.render_as_string(hide_password=False)) == (REFUSED, REFUSED)


@needs_tls
async def test_migrations_and_the_revocation_listener_trust_the_same_certificates(
    server: TlsServer, files: Path
) -> None:
    await server._execute(("DROP DATABASE IF EXISTS app", "CREATE DATABASE app"), "postgres")
    settings = DatabaseSettings(url=SecretStr(server.url(database="app", ssl="verify-full")), ca_file=files / "ca.crt")
    listener = RevocationListener(settings)

    await runner.upgrade(settings)
    await runner.check(settings)
    listener.start()
    try:
        await asyncio.wait_for(listener.loaded.wait(), 10)
    finally:
        await listener.stop()
    stranger = settings.model_copy(update={"ca_file": files / "stranger.crt"})
    with pytest.raises(MigrationError, match="certificate verify failed"):
        await runner.check(stranger)


@pytest.mark.parametrize("name", ["sslrootcert", "sslcert"])
def test_unreadable_certificates_are_reported_at_the_start(tmp_path: Path, name: str) -> None:
    missing = tmp_path / "missing.pem"
    query = {"ssl": "require", "sslkey": str(missing), name: str(missing)}
    url = make_url("postgresql://a@b/c").set(
        query=query if name == "sslcert" else {"ssl": "require", name: str(missing)}
    )

    with pytest.raises(ConfigurationError, match=r"^DATABASE_URL: .*missing\.pem.*No such file or directory$"):
        tls.check(DatabaseSettings(url=SecretStr(url.render_as_string(hide_password=False))))


@needs_tls
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user with root's home directory")
@pytest.mark.parametrize("mode", ["allow", "prefer", "require", "verify-full"])
def test_an_unreadable_home_directory_has_no_effect(server: TlsServer, mode: str) -> None:
    program = """
import asyncio, json, os, sys
from tests.core.db.test_tls import outcomes
print(json.dumps(asyncio.run(outcomes(sys.argv[1]))))
# All modules are loaded now. The other user may not be able to read them.
os.setgroups([]), os.setgid(65534), os.setuid(65534)
print(json.dumps(asyncio.run(outcomes(sys.argv[1]))))
"""
    with TemporaryDirectory() as directory:
        place = Path(directory)
        place.chmod(0o755)
        (place / "ca.crt").write_bytes(server.authority.pem)
        # With these files, the connection would fail if a driver read them. Root can read them.
        own = place / "home" / ".postgresql"
        own.mkdir(parents=True)
        for name in ("root.crt", "root.crl", "postgresql.crt", "postgresql.key"):
            (own / name).write_text("no certificate")
        own.parent.chmod(0o700)

        finished = subprocess.run(
            [sys.executable, "-c", program, server.url(ssl=mode)],
            env={"PATH": os.environ["PATH"], "HOME": str(own.parent), "SSL_CERT_FILE": str(place / "ca.crt")},
            capture_output=True,
            text=True,
            check=False,
        )

    assert finished.stderr == ""
    assert finished.stdout == "[true, true]\n" * 2
