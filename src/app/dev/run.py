"""``make run``: the application on a database of its own, until Ctrl-C."""

import asyncio
import fcntl
import os
import secrets
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from app.auth.tokens import generate_key_set
from app.core.config import Settings, load_settings
from app.core.database import Database
from app.core.errors import ConfigurationError
from app.core.security import PasswordHasher
from app.dev import database_access, ports
from app.dev.embedded_postgres import Cluster, EmbeddedPostgresError
from app.migrations import runner
from app.server import PortInUseError, serve
from app.users import service as users_service

ROOT = Path(__file__).resolve().parents[3]
LOCAL = ROOT / ".local"
DATABASE = "app"
ADMIN_EMAIL = "admin@example.com"
# Settings are checked before anything slow; the embedded database's URL is known only after.
_NOT_STARTED_YET = f"postgresql://postgres@127.0.0.1/{DATABASE}"


class AlreadyRunningError(Exception):
    """This clone's application is running already."""


@dataclass(frozen=True)
class Admin:
    email: str
    password: str


def run() -> int:
    """Everything that a person can put right is told in one sentence; a traceback means a bug."""
    # The server that `make run` starts is ended by make's SIGTERM and by a closed terminal as it is by Ctrl-C.
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)
    try:
        with _only_one(LOCAL):
            _run()
    except KeyboardInterrupt:
        return 0
    except (
        AlreadyRunningError,
        ConfigurationError,
        EmbeddedPostgresError,
        PortInUseError,
        database_access.DatabaseAccessError,
        ports.PortUnavailableError,
    ) as error:
        return _refuse(str(error))
    except DBAPIError as error:
        return _refuse(f"The database refused a statement: {error.orig}")
    except OSError as error:
        return _refuse(f"The application cannot start: {error.strerror or error} ({error.filename or LOCAL}).")
    return 0


def _run() -> None:
    given = _given_database()
    settings = _settings(given or _NOT_STARTED_YET)
    ports.claim(settings.server.host, settings.server.port)
    with _database(given) as url:
        settings = _settings(url, port=settings.server.port)
        version, admin = asyncio.run(_prepare(settings))
        serve(settings, announce=lambda: _say(_card(settings, version, admin, is_embedded=given is None)))


def _given_database() -> str | None:
    return os.environ.get("DATABASE_URL") or os.environ.get("APP_DATABASE__URL")


def _settings(database_url: str, port: int | None = None) -> Settings:
    auth = {} if os.environ.get("APP_AUTH__SIGNING_KEYS") else {"signing_keys_file": _signing_keys_file()}
    settings = load_settings(
        environment=os.environ.get("APP_ENVIRONMENT") or "local",
        database={"url": database_url},
        auth=auth,
        **({"server": {"port": port}} if port else {}),
    )
    # The card needs the port before the server has one.
    return settings if settings.server.port else _settings(database_url, ports.free_port())


def _signing_keys_file() -> Path:
    if named := os.environ.get("APP_AUTH__SIGNING_KEYS_FILE"):
        return Path(named)
    path = LOCAL / "keys.json"
    if not path.exists():
        _write_secret(path, generate_key_set())
    return path


def _write_secret(path: Path, text: str) -> None:
    """Write a file that only we can read, whole or not at all."""
    staging = path.with_suffix(".new")
    staging.unlink(missing_ok=True)
    staging.touch(mode=0o600)
    staging.write_text(text)
    staging.rename(path)


@contextmanager
def _database(given: str | None) -> Iterator[str]:
    if given:
        yield given
        return
    cluster = Cluster(LOCAL / "postgres")
    url_file = LOCAL / "database-url"
    try:
        cluster.start()
        asyncio.run(database_access.make_database(cluster.url(), DATABASE))
        _write_secret(url_file, cluster.url(DATABASE))
        yield cluster.url(DATABASE)
    finally:
        # The server is down within moments; a second Ctrl-C would only leave the next start a recovery to do.
        for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(ending, signal.SIG_IGN)
        url_file.unlink(missing_ok=True)
        cluster.stop()


@contextmanager
def _only_one(directory: Path) -> Iterator[None]:
    """The kernel gives the lock back however its holder ends, so there is no stale one to remove."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "run.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            message = (
                f"The application is already running in this directory (pid {lock.read().strip()}): stop it first."
            )
            raise AlreadyRunningError(message) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


async def _prepare(settings: Settings) -> tuple[str, Admin | None]:
    version = await database_access.usable_version(settings.database.sqlalchemy_url())
    await runner.upgrade(settings.database)
    return version, await _create_first_admin(settings)


async def _create_first_admin(settings: Settings) -> Admin | None:
    """None when the database has users, whose passwords nobody knows but they."""
    admin = Admin(ADMIN_EMAIL, secrets.token_urlsafe(18))
    database = Database(settings.database)
    hasher = PasswordHasher(settings.auth)
    try:
        async with database.begin() as session:
            user = await users_service.create_first_admin(session, hasher, email=admin.email, password=admin.password)
    finally:
        await database.dispose()
    return admin if user else None


def _card(settings: Settings, version: str, admin: Admin | None, *, is_embedded: bool) -> str:
    address = f"http://127.0.0.1:{settings.server.port}"
    lines = [
        "",
        f"  Running on PostgreSQL {version} ({'data in .local/postgres' if is_embedded else 'DATABASE_URL'}). Ctrl-C stops it.",
        "",
        f"  address         {address}",
        *([f"  documentation   {address}/docs"] if settings.serves_docs else []),
        *(_introduction(address, admin) if admin else _reminder(is_embedded=is_embedded)),
        "",
    ]
    return "\n".join(lines)


def _introduction(address: str, admin: Admin) -> list[str]:
    return [
        f"  administrator   {admin.email}",
        f"  password        {admin.password}   (shown this once and stored nowhere)",
        "",
        "  Log in and read your own account:",
        "",
        f"    TOKEN=$(curl -s {address}/api/v1/auth/token -d grant_type=password \\",
        f"      -d username={admin.email} -d 'password={admin.password}' \\",
        """      | sed 's/.*"access_token": *"\\([^"]*\\)".*/\\1/')""",
        f'    curl -s {address}/api/v1/users/me -H "Authorization: Bearer $TOKEN"',
    ]


def _reminder(*, is_embedded: bool) -> list[str]:
    url = "DATABASE_URL=$(cat .local/database-url) " if is_embedded else ""
    return [
        "  administrator   made when the database was empty; for another one, while this runs:",
        "",
        f"    {url}APP_ENVIRONMENT=local .venv/bin/app users create-admin",
    ]


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _refuse(reason: str) -> int:
    sys.stderr.write(f"{reason}\n")
    return 1
