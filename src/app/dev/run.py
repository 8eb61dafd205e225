"""``make run``: runs the application on its own database until Ctrl-C."""

import asyncio
import os
import secrets
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import typer
from sqlalchemy import make_url, text

from app.auth.settings import AuthSettings
from app.core.config import Settings
from app.core.db.database import Database
from app.core.errors import AppError, ConfigurationError
from app.core.listening import PortInUseError, listen
from app.core.observability.logs import configure
from app.core.security import rotation
from app.core.security.hashing import PasswordHasher
from app.core.security.keys import generate_key_set, load_key_ring
from app.dev.ports import free_port
from app.dev.postgres.cluster import Cluster, EmbeddedPostgresError
from app.dev.postgres.lock import try_lock
from app.dev.reload import ServingError, serve_and_reload
from app.mail.settings import MailSettings
from app.migrations import revisions, runner
from app.migrations.errors import MigrationError, MigrationFileError, UnknownRevisionError
from app.server.serve import serve
from app.settings import load_settings
from app.users import service as users_service

ROOT = Path(__file__).resolve().parents[3]
LOCAL = ROOT / ".local"
MAIL = LOCAL / "mail"
_KEYS = "keys.json"
DATABASE = "app"
ADMIN_EMAIL = "admin@example.com"
# The settings are checked before the embedded database starts, when its URL is not known yet.
_NOT_STARTED_YET = f"postgresql://postgres@127.0.0.1/{DATABASE}"


class AlreadyRunningError(Exception):
    """The application of this clone is already running."""


def run() -> int:
    """Run until stopped and return the exit code. Errors that a developer can correct are printed as one sentence."""
    # SIGTERM from make and SIGHUP from a closed terminal shut down in the same way as Ctrl-C.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        with exclusive():
            _run()
    except KeyboardInterrupt:
        return 0
    except (
        AlreadyRunningError,
        ConfigurationError,
        EmbeddedPostgresError,
        MigrationFileError,
        PortInUseError,
        ServingError,
        rotation.KeyChangeError,
    ) as error:
        reason = str(error)
    except MigrationError as error:
        reason = _migration_problem(error)
    except AppError as error:
        reason = error.detail
    except OSError as error:
        reason = f"The application cannot start: {error.strerror or error} ({error.filename or LOCAL})."
    else:
        return 0
    typer.echo(reason, err=True)
    return 1


def _migration_problem(error: MigrationError) -> str:
    if given_database():
        return f"DATABASE_URL: {error}"
    if isinstance(error, UnknownRevisionError):
        return f"The database: {error}. Switch to the branch with that migration, or delete the data: make reset"
    return f"The database: {error}"


def _run() -> None:
    given = given_database()
    settings = _settings(given or _NOT_STARTED_YET)
    # A port in use, invalid keys and invalid migrations are reported before the database starts.
    if (ROOT / ".env").exists():
        typer.echo(".env is not read. To use it, load it into the shell: set -a; . ./.env; set +a", err=True)
    listen(settings.server.host, settings.server.port).close()
    _check_keys(settings.of(AuthSettings))
    revisions.head()
    with database(given) as url:
        settings = _settings(url, port=settings.server.port)
        version, password = asyncio.run(_prepare(settings))
        welcome = _welcome_text(settings, version, password, is_embedded=given is None)
        announce = partial(typer.echo, welcome)
        if os.environ.get("RELOAD") == "0":
            serve(settings, announce=announce)
        else:
            configure(settings.log, readable=settings.environment == "local")
            serve_and_reload(_variables(settings), announce)


def given_database() -> str | None:
    return os.environ.get("DATABASE_URL") or os.environ.get("APP_DATABASE__URL")


def _settings(database_url: str, port: int | None = None) -> Settings:
    has_keys = os.environ.get("APP_AUTH__SIGNING_KEYS") or os.environ.get("APP_AUTH__SIGNING_KEYS_FILE")
    settings = load_settings(
        environment=os.environ.get("APP_ENVIRONMENT") or "local",
        database={"url": database_url},
        auth={} if has_keys else {"signing_keys_file": _signing_keys_file()},
        **({} if os.environ.get("APP_MAIL__URL") else {"mail": {"url": MAIL.as_uri()}}),
        **({"server": {"port": port}} if port else {}),
    )
    # The welcome text needs the port before the server listens.
    return settings if settings.server.port else _settings(database_url, free_port())


@contextmanager
def variables() -> Iterator[dict[str, str]]:
    """Provide the variables of this clone's database: the running one, or one that is started for the block."""
    with database(given_database() or _running_database()) as url:
        yield _variables(_settings(url))


@contextmanager
def local_database() -> Iterator[str | None]:
    """Provide the URL of this clone's own database, which is started if it does not run. None if there is none."""
    if not (LOCAL / "postgres").exists():
        yield None
    elif url := _running_database():
        yield url
    else:
        with exclusive(), database(None) as url:
            yield url


def _running_database() -> str | None:
    """Return the URL of the database that `make run` or `make database` has started, unless they were killed."""
    with suppress(OSError):
        url = (LOCAL / "database-url").read_text()
        socket.create_connection(("127.0.0.1", make_url(url).port or 0)).close()
        return url
    return None


def _variables(settings: Settings) -> dict[str, str]:
    """Return the variables that give another process of this clone the settings of this run."""
    keys = settings.of(AuthSettings).signing_keys_file
    return {
        "APP_ENVIRONMENT": settings.environment,
        "APP_DATABASE__URL": settings.database.url.get_secret_value(),
        "APP_SERVER__PORT": str(settings.server.port),
        "APP_MAIL__URL": settings.of(MailSettings).url.get_secret_value(),
        **({"APP_AUTH__SIGNING_KEYS_FILE": str(keys)} if keys else {}),
    }


def _signing_keys_file() -> Path:
    path = LOCAL / _KEYS
    if not path.exists():
        _write_secret(path, generate_key_set())
    return path


def _check_keys(settings: AuthSettings) -> None:
    ring = load_key_ring(settings)
    # An earlier release has created the file of this clone without a seal key. A file of the developer's own is not changed.
    if ring.active_seal_key is None and settings.signing_keys_file == LOCAL / _KEYS:
        with rotation.changing(settings) as keys:
            rotation.add(keys, "seal", "ES256")


def _write_secret(path: Path, content: str) -> None:
    """Write a file atomically that only the current user can read."""
    path.parent.mkdir(exist_ok=True)
    staging = path.with_suffix(".new")
    staging.unlink(missing_ok=True)
    staging.touch(mode=0o600)
    staging.write_text(content)
    staging.rename(path)


@contextmanager
def database(given: str | None) -> Iterator[str]:
    """Provide the URL of the given database, or else start the one of this clone."""
    if given:
        yield given
        return
    cluster = Cluster(LOCAL / "postgres")
    url_file = LOCAL / "database-url"
    try:
        cluster.start()
        cluster.create_database(DATABASE)
        _write_secret(url_file, cluster.url(DATABASE))
        yield cluster.url(DATABASE)
    finally:
        # PostgreSQL stops quickly. A second Ctrl-C would only cause a recovery at the next start, so it is ignored.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        url_file.unlink(missing_ok=True)
        cluster.stop()


@contextmanager
def exclusive() -> Iterator[None]:
    """Hold the lock of this clone. The kernel releases it when the process ends, so a stale lock is impossible."""
    LOCAL.mkdir(exist_ok=True)
    with (LOCAL / "run.lock").open("a+") as lock:
        if not try_lock(lock.fileno()):
            lock.seek(0)
            message = (
                f"The application is already running in this directory (pid {lock.read().strip()}). Stop it first."
            )
            raise AlreadyRunningError(message)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


async def _prepare(settings: Settings) -> tuple[str, str | None]:
    """Return the version of the server, and the password of the administrator if this start created the account."""
    await runner.upgrade(settings.database)
    connections = Database(settings.database)
    hasher = PasswordHasher(settings.of(AuthSettings))
    password = secrets.token_urlsafe(18)
    try:
        async with connections.begin() as session:
            admin = await users_service.create_first_admin(session, hasher, email=ADMIN_EMAIL, password=password)
            version = await session.scalar(text("SELECT split_part(current_setting('server_version'), ' ', 1)"))
    finally:
        hasher.close()
        await connections.dispose()
    return str(version), password if admin else None


def _welcome_text(settings: Settings, version: str, password: str | None, *, is_embedded: bool) -> str:
    address = f"http://127.0.0.1:{settings.server.port}"
    data = "data in .local/postgres" if is_embedded else "DATABASE_URL"
    lines = [
        "",
        f"  Running on PostgreSQL {version} ({data}). Ctrl-C stops it.",
        "",
        f"  address         {address}",
    ]
    if settings.serves_docs:
        lines.append(f"  documentation   {address}/docs")
    if settings.of(MailSettings).directory:
        lines.append(f"  mails           {address}/local/mails")
    lines += _introduction(address, password) if password else _reminder(is_embedded=is_embedded)
    return "\n".join([*lines, ""])


def _introduction(address: str, password: str) -> list[str]:
    return [
        f"  administrator   {ADMIN_EMAIL}",
        f"  password        {password}   (shown only once; not stored)",
        "",
        "  Log in and read your own account:",
        "",
        f"    TOKEN=$(curl -s {address}/api/v1/auth/token -d grant_type=password \\",
        f"      -d username={ADMIN_EMAIL} -d 'password={password}' \\",
        """      | sed 's/.*"access_token": *"\\([^"]*\\)".*/\\1/')""",
        f'    curl -s {address}/api/v1/users/me -H "Authorization: Bearer $TOKEN"',
    ]


def _reminder(*, is_embedded: bool) -> list[str]:
    url = "" if is_embedded else "DATABASE_URL=… "
    return [
        "  administrator   exists already; to create another one:",
        "",
        f'    {url}make app ARGS="users create-admin you@example.com"',
    ]
