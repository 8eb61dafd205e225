"""The test kit: one server a run, one database a worker, one rolled-back connection a test."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
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
# Keeps the hosts that the shell excepts from its proxies.
_PROXY_EXCEPTIONS = "TEST_PROXY_EXCEPTIONS"
_SERVER = pytest.StashKey[Any]()
_TEMPLATE = pytest.StashKey[str]()
KEY_SET = generate_key_set()
# Mutation testing makes one template for a thousand runs, and says where it is.
TEMPLATE_VARIABLE = "TEST_TEMPLATE_URL"
_LOGGERS = ("", "uvicorn", "uvicorn.error", "uvicorn.access", "sqlalchemy", "alembic", "procrastinate", "psycopg")

type Login = Callable[..., Awaitable[dict[str, str]]]
type Clone = Callable[[], Awaitable[str]]


def pytest_configure(config: pytest.Config) -> None:
    """Start the server and make the template, once: in the controller, or in the only process there is."""
    _leave_shell()
    if hasattr(config, "workerinput") or config.option.collectonly:
        return
    if template := os.environ.get(TEMPLATE_VARIABLE):
        config.stash[_TEMPLATE] = template
        return
    server = server_for_tests(ROOT)
    try:
        url = server.__enter__()  # Left in pytest_unconfigure.
        config.stash[_SERVER] = server
        config.stash[_TEMPLATE] = asyncio.run(make_template(url))
    except (EmbeddedPostgresError, MigrationError, OSError, asyncpg.PostgresError) as error:
        pytest.exit(f"The database for the tests cannot be made: {error}", returncode=1)


def _leave_shell() -> None:
    """Drop what the developer's shell says about databases and proxies: everything that the tests speak to is on this machine."""
    forget_libpq()
    os.environ.setdefault(_PROXY_EXCEPTIONS, os.environ.get("no_proxy", os.environ.get("NO_PROXY", "")))
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = "*"


def outside() -> dict[str, str]:
    """Give the environment for a program that installs packages, for which proxies are meant."""
    exceptions = os.environ[_PROXY_EXCEPTIONS]
    return {**os.environ, "no_proxy": exceptions, "NO_PROXY": exceptions}


def pytest_configure_node(node: Any) -> None:
    """Tell a worker where the template is."""
    node.workerinput["template"] = node.config.stash[_TEMPLATE]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the server; its databases go with it, or are dropped where the server is not ours."""
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
    """Give a migrated, empty database to clone others from."""
    url = await make_template(server_url)
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
    """Give a database of its own to whoever needs several connections at once."""
    name = f"clone_{uuid4().hex[:12]}"
    url = await _create_database(template_url, name=name, template=make_url(template_url).database)
    try:
        yield url
    finally:
        await _drop(url)


@pytest.fixture(scope="session")
def template_url(request: pytest.FixtureRequest) -> str:
    """The migrated, empty database that others are cloned from."""
    worker: dict[str, Any] = getattr(request.config, "workerinput", {})
    return worker.get("template") or request.config.stash[_TEMPLATE]


@pytest.fixture(scope="session")
async def database_url(template_url: str) -> AsyncIterator[str]:
    """The worker's own database."""
    async with cloned(template_url) as url:
        yield url


def make_settings(url: str, **groups: Any) -> Settings:
    """Settings of a production-like application on this database, with cheap hashing and keys of the run."""
    # What a test commits is seen on its own connection alone: no listener on another could learn of it.
    auth = {"signing_keys": KEY_SET, "bcrypt_cost": 4, "access_check": "database", **groups.pop("auth", {})}
    database = {"url": url, **groups.pop("database", {})}
    return settings_model().model_validate({"environment": "test", "database": database, "auth": auth, **groups})


@pytest.fixture(scope="session")
def settings(database_url: str) -> Settings:
    """The settings most tests run under."""
    return make_settings(database_url)


@pytest.fixture(scope="session")
async def worker_database(settings: Settings) -> AsyncIterator[Database]:
    """The worker's database, for tests that commit for real and clean up."""
    database = Database(settings.database)
    yield database
    await database.dispose()


class JoinedDatabase(Database):
    """A database whose sessions share one connection: what they commit is real for each other and rolled back at the end."""

    def __init__(self) -> None:
        """Wait for `join`: the application is made once a worker, and each test has a connection of its own."""

    def join(self, connection: AsyncConnection) -> None:
        """Open the sessions to come on this connection."""
        options: Any = {"expire_on_commit": False, "join_transaction_mode": "create_savepoint"}
        self.sessions = async_sessionmaker(connection, class_=WriteSession, **options)
        self.read_sessions = async_sessionmaker(connection, class_=ReadSession, autoflush=False, **options)
        self.stream_sessions = async_sessionmaker(connection, class_=StreamSession, autoflush=False, **options)
        self.reads = SessionReads(self.read_sessions)
        # The probes ask the pools themselves.
        self.engine = self.read_engine = connection.engine

    @override
    async def dispose(self) -> None:
        """Leave the connection to the fixture that opened it."""


@pytest.fixture(scope="session")
def joined_database() -> JoinedDatabase:
    """What every test's application and sessions go through, one test after the other."""
    return JoinedDatabase()


@pytest.fixture
async def database(worker_database: Database, joined_database: JoinedDatabase) -> AsyncIterator[Database]:
    """The database of one test: all commits end in one rollback."""
    async with worker_database.engine.connect() as connection:
        transaction = await connection.begin()
        joined_database.join(connection)
        yield joined_database
        await transaction.rollback()


@pytest.fixture
async def session(database: Database) -> AsyncIterator[WriteSession]:
    """A session beside the application's: arranges rows, and sees afterwards what was committed."""
    async with database.sessions() as session:
        yield session


@pytest.fixture(scope="session")
def hasher(settings: Settings) -> Iterator[PasswordHasher]:
    """A password hasher of the least cost."""
    hasher = PasswordHasher(settings.of(AuthSettings))
    yield hasher
    hasher.close()


@asynccontextmanager
async def running(app: FastAPI, **options: Any) -> AsyncIterator[AsyncClient]:
    """Run the application's lifespan and give a client that speaks HTTP to it."""
    async with app.router.lifespan_context(app) as state:

        async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "state": dict(state or {})}, receive, send)

        hooks: dict[str, list[Any]] = {"response": [Declarations(app).check]}
        transport = ASGITransport(with_state)
        async with AsyncClient(transport=transport, base_url="http://test", event_hooks=hooks, **options) as client:
            yield client


@pytest.fixture(scope="session")
def joined_app(settings: Settings, joined_database: JoinedDatabase) -> FastAPI:
    """The application, made once: its lifespan begins and ends with each test."""
    return create_app(settings, joined_database)


@pytest.fixture
async def client(joined_app: FastAPI, database: Database) -> AsyncIterator[AsyncClient]:  # noqa: ARG001  # The application's.
    """A client of the application on the test's own database."""
    async with running(joined_app) as client:
        yield client


@pytest.fixture
async def clone_url(template_url: str) -> AsyncIterator[str]:
    """A database of the test's own, for races: every connection to it is a real one."""
    async with cloned(template_url) as url:
        yield url


@dataclass(frozen=True)
class LoggedIn:
    """An account and the header that speaks for it."""

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
    """Log in over HTTP and give the Authorization header."""
    form = {"grant_type": "password", "username": email, "password": password}
    response = await client.post("/api/v1/auth/token", data=form)
    assert response.status_code == 200, response.text
    return {"Authorization": f"Bearer {response.json()['access_token']}"}


@pytest.fixture
def restored_logging() -> Iterator[None]:
    """Leave logging as it was found: it belongs to the process."""
    before = [(log, log.handlers[:], log.level, log.propagate) for log in map(logging.getLogger, _LOGGERS)]
    yield
    for log, handlers, level, propagate in before:
        log.handlers, log.propagate = handlers, propagate
        log.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
