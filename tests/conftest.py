"""The test fixtures: one server per run, one database per pytest worker, and one connection per test, which is rolled back."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, override
from uuid import uuid4

import asyncpg
import pytest
import structlog
from fastapi import FastAPI
from httpx2 import ASGITransport, AsyncClient
from pydantic import SecretStr
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, async_sessionmaker
from starlette.types import Receive, Scope, Send

from app.auth.settings import AuthSettings
from app.core.config import DatabaseSettings, Settings
from app.core.db.database import Database, ReadSession, StreamSession, WriteSession
from app.core.db.reads import SessionReads
from app.core.environment import forget_libpq
from app.core.security.hashing import PasswordHasher
from app.core.security.keys import generate_key_set
from app.dev.postgres.cluster import EmbeddedPostgresError, server_for_tests
from app.main import create_app
from app.migrations import runner
from app.migrations.errors import MigrationError
from app.settings import settings_model
from tests.declared import Declarations
from tests.factories import PASSWORD, make_user

ROOT = Path(__file__).parent.parent
# Stores the original value of `no_proxy`.
_PROXY_EXCEPTIONS = "TEST_PROXY_EXCEPTIONS"
_SERVER = pytest.StashKey[Any]()
_TEMPLATE = pytest.StashKey[str]()
KEY_SET = generate_key_set()
# Mutation testing creates one template for a thousand runs, and passes its URL in this variable.
TEMPLATE_VARIABLE = "TEST_TEMPLATE_URL"
_LOGGERS = ("", "uvicorn", "uvicorn.error", "uvicorn.access", "sqlalchemy", "alembic", "procrastinate", "psycopg")

type Login = Callable[..., Awaitable[dict[str, str]]]
type Clone = Callable[[], Awaitable[str]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--logs", action="store_true", help="show the log lines of level info of tests that fail")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Leave the log lines of level info out of the report of a failed test, which often has dozens."""
    report = yield
    if not item.config.getoption("--logs"):
        report.sections = [(title, without_info(text)) for title, text in report.sections]
    return report


def without_info(output: str) -> str:
    """Return the captured output without log lines of level info."""
    lines = output.splitlines(keepends=True)
    kept = [line for line in lines if not (line.startswith("{") and '"level":"info"' in line)]
    hidden = len(lines) - len(kept)
    return "".join(kept) + (f"({hidden} log lines of level info; --logs shows them)\n" if hidden else "")


def pytest_configure(config: pytest.Config) -> None:
    """Start the server and create the template. With several pytest workers, only their controller does this."""
    _reset_environment()
    if hasattr(config, "workerinput") or config.option.collectonly:
        return
    if template := os.environ.get(TEMPLATE_VARIABLE):
        config.stash[_TEMPLATE] = template
        return
    server = server_for_tests(ROOT)
    try:
        url = server.__enter__()  # `pytest_unconfigure` exits it.
        config.stash[_SERVER] = server
        config.stash[_TEMPLATE] = asyncio.run(make_template(url))
    except (EmbeddedPostgresError, MigrationError, OSError, asyncpg.PostgresError) as error:
        pytest.exit(f"The database for the tests cannot be created: {error}", returncode=1)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Run tests in this process if files are named: it starts faster, and `breakpoint()` works. None: one process per core."""
    return 0 if all(argument.partition("::")[0].endswith(".py") for argument in config.args) else None


def _reset_environment() -> None:
    """Remove the database and proxy variables of the shell. The tests connect only to this machine."""
    forget_libpq()
    os.environ.setdefault(_PROXY_EXCEPTIONS, os.environ.get("no_proxy", os.environ.get("NO_PROXY", "")))
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = "*"


def outside() -> dict[str, str]:
    """Return the environment with the original proxies, for a program that installs packages."""
    exceptions = os.environ[_PROXY_EXCEPTIONS]
    return {**os.environ, "no_proxy": exceptions, "NO_PROXY": exceptions}


def pytest_configure_node(node: Any) -> None:
    """Pass the URL of the template to a pytest worker."""
    node.workerinput["template"] = node.config.stash[_TEMPLATE]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Drop the template and stop the server, unless it is an external one."""
    if server := config.stash.get(_SERVER, None):
        if template := config.stash.get(_TEMPLATE, None):
            asyncio.run(_drop(template))
        server.__exit__(None, None, None)


async def make_template(server_url: str) -> str:
    url = await _create_database(server_url, name=f"template_{uuid4().hex[:12]}")
    await runner.upgrade(DatabaseSettings(url=SecretStr(url)))
    return url


@asynccontextmanager
async def template(server_url: str) -> AsyncIterator[str]:
    """A migrated, empty database to clone others from."""
    url = await make_template(server_url)
    try:
        yield url
    finally:
        await _drop(url)


@asynccontextmanager
async def empty(server_url: str) -> AsyncIterator[str]:
    """A database without a schema."""
    url = await _create_database(server_url, name=f"empty_{uuid4().hex[:12]}")
    try:
        yield url
    finally:
        await _drop(url)


async def _create_database(server_url: str, *, name: str, template: str | None = None) -> str:
    source = f' TEMPLATE "{template}"' if template else ""
    await _administer(server_url, f'CREATE DATABASE "{name}"{source}')
    return make_url(server_url).set(database=name).render_as_string(hide_password=False)


async def _drop(url: str) -> None:
    await _administer(url, f'DROP DATABASE "{make_url(url).database}" WITH (FORCE)')


async def _administer(url: str, statement: str) -> None:
    parsed = make_url(url).set(drivername="postgresql", database="postgres")
    connection = await asyncpg.connect(parsed.render_as_string(hide_password=False))
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@asynccontextmanager
async def cloned(template_url: str) -> AsyncIterator[str]:
    """A new clone of the template, for tests that need several real connections."""
    name = f"clone_{uuid4().hex[:12]}"
    url = await _create_database(template_url, name=name, template=make_url(template_url).database)
    try:
        yield url
    finally:
        await _drop(url)


@pytest.fixture(scope="session")
def template_url(request: pytest.FixtureRequest) -> str:
    """The migrated, empty database that the others are cloned from."""
    worker: dict[str, Any] = getattr(request.config, "workerinput", {})
    return worker.get("template") or request.config.stash[_TEMPLATE]


@pytest.fixture(scope="session")
async def database_url(template_url: str) -> AsyncIterator[str]:
    """The database of this pytest worker."""
    async with cloned(template_url) as url:
        yield url


def make_settings(url: str, **groups: Any) -> Settings:
    """Return settings like those of production, but with cheap hashing and with the keys of this run."""
    # Only the connection of a test sees its commits, so a revocation listener on another connection would miss them.
    auth = {"signing_keys": KEY_SET, "bcrypt_cost": 4, "access_check": "database", **groups.pop("auth", {})}
    database = {"url": url, **groups.pop("database", {})}
    return settings_model().model_validate({"environment": "test", "database": database, "auth": auth, **groups})


@pytest.fixture(scope="session")
def settings(database_url: str) -> Settings:
    """The settings of most tests."""
    return make_settings(database_url)


@pytest.fixture(scope="session")
async def worker_database(settings: Settings) -> AsyncIterator[Database]:
    """The database of this pytest worker, for tests that really commit and clean up."""
    database = Database(settings.database)
    yield database
    await database.dispose()


class JoinedDatabase(Database):
    """A database whose sessions share one connection. They see each other's commits, and all are rolled back at the end."""

    def __init__(self) -> None:
        """Open no pools. The application is created once per pytest worker, and each test calls `join` with its connection."""

    def join(self, connection: AsyncConnection) -> None:
        """Use this connection for all further sessions."""
        options: Any = {"expire_on_commit": False, "join_transaction_mode": "create_savepoint"}
        self.sessions = async_sessionmaker(connection, class_=WriteSession, **options)
        self.read_sessions = async_sessionmaker(connection, class_=ReadSession, autoflush=False, **options)
        self.stream_sessions = async_sessionmaker(connection, class_=StreamSession, autoflush=False, **options)
        self.reads = SessionReads(self.read_sessions)
        # The readiness check uses the engines directly.
        self.engine = self.read_engine = connection.engine

    @override
    async def dispose(self) -> None:
        """Do nothing: the fixture that opened the connection closes it."""


@pytest.fixture(scope="session")
def joined_database() -> JoinedDatabase:
    """The database of the shared application. The tests use it one after the other."""
    return JoinedDatabase()


@pytest.fixture
async def database(worker_database: Database, joined_database: JoinedDatabase) -> AsyncIterator[Database]:
    """The database of one test. All commits are rolled back at its end."""
    async with worker_database.engine.connect() as connection:
        transaction = await connection.begin()
        joined_database.join(connection)
        yield joined_database
        await transaction.rollback()


@pytest.fixture
async def session(database: Database) -> AsyncIterator[WriteSession]:
    """A session of the test, to insert rows and to read what the application committed."""
    async with database.sessions() as session:
        yield session


@pytest.fixture(scope="session")
def hasher(settings: Settings) -> Iterator[PasswordHasher]:
    """A password hasher with the lowest cost."""
    hasher = PasswordHasher(settings.of(AuthSettings))
    yield hasher
    hasher.close()


@asynccontextmanager
async def running(app: FastAPI, **options: Any) -> AsyncIterator[AsyncClient]:
    """Run the lifespan of the application, and yield an HTTP client for it."""
    async with app.router.lifespan_context(app) as state:

        async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "state": dict(state or {})}, receive, send)

        hooks: dict[str, list[Any]] = {"response": [Declarations(app).check]}
        transport = ASGITransport(with_state)
        async with AsyncClient(transport=transport, base_url="http://test", event_hooks=hooks, **options) as client:
            yield client


@pytest.fixture(scope="session")
def joined_app(settings: Settings, joined_database: JoinedDatabase) -> FastAPI:
    """The application. It is created once, and its lifespan runs for each test."""
    return create_app(settings, joined_database)


@pytest.fixture
async def client(joined_app: FastAPI, database: Database) -> AsyncIterator[AsyncClient]:  # noqa: ARG001  # The application uses it.
    """A client of the application, which uses the database of the test."""
    async with running(joined_app) as client:
        yield client


@pytest.fixture
async def clone_url(template_url: str) -> AsyncIterator[str]:
    """A new database for one test with real connections, for races."""
    async with cloned(template_url) as url:
        yield url


@dataclass(frozen=True)
class LoggedIn:
    """An account, and the Authorization header of its login."""

    user_id: str
    email: str
    headers: dict[str, str]


@pytest.fixture
async def user(session: WriteSession, hasher: PasswordHasher, client: AsyncClient) -> LoggedIn:
    """An ordinary account, logged in."""
    account = await make_user(session, hasher)
    await session.commit()
    headers = await log_in(client, account.email)
    return LoggedIn(str(account.id), account.email, headers)


@pytest.fixture
async def admin(session: WriteSession, hasher: PasswordHasher, client: AsyncClient) -> LoggedIn:
    """An administrator, logged in."""
    account = await make_user(session, hasher, role="admin")
    await session.commit()
    headers = await log_in(client, account.email)
    return LoggedIn(str(account.id), account.email, headers)


async def log_in(client: AsyncClient, email: str, password: str = PASSWORD) -> dict[str, str]:
    """Log in over HTTP and return the Authorization header."""
    form = {"grant_type": "password", "username": email, "password": password}
    response = await client.post("/api/v1/auth/token", data=form)
    assert response.status_code == 200, response.text
    return {"Authorization": f"Bearer {response.json()['access_token']}"}


@pytest.fixture
def restored_logging() -> Iterator[None]:
    """Restore the logging of the process after the test."""
    before = [(log, log.handlers[:], log.level, log.propagate) for log in map(logging.getLogger, _LOGGERS)]
    yield
    for log, handlers, level, propagate in before:
        log.handlers, log.propagate = handlers, propagate
        log.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
