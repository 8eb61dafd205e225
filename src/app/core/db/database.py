"""PostgreSQL: the two engines, the two kinds of session, the declarative base and its column types."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Annotated, Any, NoReturn, override
from uuid import UUID

from sqlalchemy import BigInteger, Connection, DateTime, Engine, MetaData, Text, event, func, text
from sqlalchemy.ext.asyncio import AsyncResult, AsyncSession, async_sessionmaker
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Mapper,
    ORMExecuteState,
    Session,
    SessionTransaction,
    mapped_column,
)
from sqlalchemy.util.concurrency import in_greenlet
from uuid_utils.compat import uuid7

from app.core.config import DatabaseSettings
from app.core.db.connections import Recycling, close_permanently, create_engine, create_read_engine
from app.core.db.query_log import QueryLog
from app.core.db.reads import DirectReads, Reads, SessionReads
from app.core.db.retries import note_committed, with_retries
from app.core.db.timeouts import current_statement_timeout
from app.core.errors import PreconditionFailedError

MINIMUM_VERSION = 15

# Ways to load a relationship that need no statement on access. `select`, the default, raises `NotLoadedError` there.
_LOADING = frozenset({"select", "raise", "raise_on_sql", "selectin", "joined", "write_only"})

# These stay plain assignments: SQLAlchemy reads Annotated directly, a `type` alias would need a registry entry.
PrimaryKey = Annotated[UUID, mapped_column(primary_key=True, default=uuid7)]
CreatedAt = Annotated[datetime, mapped_column(server_default=func.now())]
UpdatedAt = Annotated[datetime, mapped_column(server_default=func.now(), onupdate=func.now())]
Version = Annotated[int, mapped_column(server_default=text("1"))]


class Base(DeclarativeBase):
    """Base class of all models: names for constraints, instants with time zones, and no lazy loading.

    A relationship or column that is not loaded raises `NotLoadedError` on access.
    """

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: DateTime(timezone=True), str: Text(), int: BigInteger()}  # noqa: RUF012  # Declared an instance variable by SQLAlchemy.
    # The INSERT returns values that the server generates, because async code cannot load them later.
    __mapper_args__ = {"eager_defaults": True}  # noqa: RUF012  # As above.


@event.listens_for(Base, "mapper_configured", propagate=True)
def refuse_other_loading(mapper: Mapper[Any], model: type[Any]) -> None:
    """Raise ValueError if a relationship of a model runs statements that a reader of the code does not see."""
    for relationship in mapper.relationships:
        if relationship.lazy not in _LOADING:
            message = (
                f'{model.__name__}.{relationship.key} is declared with lazy="{relationship.lazy}", which runs statements that '
                'nobody sees or that async code cannot run: leave it out, or use lazy="raise", "selectin" or "joined". '
                'See docs/recipes.md, "Relate models"'
            )
            raise ValueError(message)


# The versions that a row may have for a change; None allows any.
type Versions = frozenset[int] | None


class VersionedBase(Base):
    """Base class of models that clients read and change by id. The version becomes the `ETag`."""

    __abstract__ = True

    # The id stands first in the table, and the others last.
    id: Mapped[PrimaryKey] = mapped_column(sort_order=-1)
    created_at: Mapped[CreatedAt] = mapped_column(sort_order=1)
    updated_at: Mapped[UpdatedAt] = mapped_column(sort_order=1)
    version: Mapped[Version] = mapped_column(sort_order=1)

    def require_version(self, versions: Versions) -> None:
        """Raise `PreconditionFailedError` if the version is not in `versions`. Lock the row first."""
        if versions is not None and self.version not in versions:
            raise PreconditionFailedError


class SessionEndedError(RuntimeError):
    """A session was used after the end of its request, job or command."""

    def __init__(self) -> None:
        super().__init__(
            "this session has ended with the request, job or command that opened it. To stream rows to the client, use "
            "StreamSessionDep. To do something after the response, enqueue a job or open a unit of work with "
            "Database.unit. See docs/recipes.md"
        )


_SYNC_STATEMENT = (
    "this statement runs outside of the async session; use a method of the session itself, such as session.execute"
)


class NotLoadedError(RuntimeError):
    """An attribute was read that is not loaded. Async code cannot load it on access."""

    def __init__(self, message: str) -> None:
        super().__init__(f"{message}; see docs/recipes.md")


class _EndingSession(Session):
    """A session that cannot be used after `close`. Otherwise it would take a connection that nothing returns to the pool.

    It runs statements only for an `AsyncSession`, and none on access to an attribute.
    """

    _has_ended = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        # This option rejects transactions that begin in any other way than by the method below.
        super().__init__(*arguments, close_resets_only=False, **options)

    @override
    def close(self) -> None:
        self._has_ended = True
        super().close()

    @override
    def execute(self, *arguments: Any, **options: Any) -> Any:
        if in_greenlet():
            return super().execute(*arguments, **options)
        # The event knows the attribute. As a permanent listener it would cost time in each statement.
        event.listen(self, "do_orm_execute", _refuse_lazy_load)
        try:
            return super().execute(*arguments, **options)
        finally:
            event.remove(self, "do_orm_execute", _refuse_lazy_load)

    @override
    def _autobegin_t(self, begin: bool = False) -> SessionTransaction:
        if self._has_ended:
            raise SessionEndedError
        return super()._autobegin_t(begin)


def _refuse_lazy_load(state: ORMExecuteState) -> NoReturn:
    raise NotLoadedError(_missing_relationship(state) or _missing_column(state) or _SYNC_STATEMENT)


def _missing_relationship(state: ORMExecuteState) -> str | None:
    if not state.is_relationship_load or state.lazy_loaded_from is None:
        return None
    parent = state.lazy_loaded_from
    model = parent.class_.__name__
    unloaded = [one for one in parent.mapper.relationships if one.key in parent.unloaded]
    # The statement tells only the other model, to which several relationships may lead.
    keys = [one.key for one in unloaded if one.mapper in state.all_mappers]
    names = [f"{model}.{key}" for key in keys]
    return (
        f"{' or '.join(names)} is not loaded, and async code cannot load it on access; load it in crud.py: "
        f"select({model}).options({', '.join(f'selectinload({name})' for name in names)}), or for a new row "
        f"await session.refresh(..., {keys})"
    )


def _missing_column(state: ORMExecuteState) -> str | None:
    if not state.is_column_load:
        return None
    statement: Any = state.statement
    model = statement.column_descriptions[0]["entity"].__name__
    return (
        f"a column of this {model} is not loaded, and async code cannot load it on access; if it is deferred, load it in crud.py: "
        f"select({model}).options(undefer(...)); if a rollback or session.expire has expired it, await session.refresh first"
    )


class _NoFlushSession(_EndingSession):
    @override
    def get_bind(self, *arguments: Any, **options: Any) -> Engine | Connection:
        bind = super().get_bind(*arguments, **options)
        # A statement timeout of its own needs a transaction, and a plain session for reading has none.
        if current_statement_timeout() and isinstance(bind, Engine) and not bind.get_execution_options():
            return bind.execution_options(isolation_level="READ COMMITTED")
        return bind

    @override
    def flush(self, objects: Sequence[Any] | None = None) -> None:
        if self.new or self.dirty or self.deleted:
            raise RuntimeError("a read session cannot write; use a WriteSession")


class _CommittingSession(_EndingSession):
    @override
    def commit(self) -> None:
        super().commit()
        note_committed()


class ReadSession(AsyncSession):
    """A session for reading. PostgreSQL rejects writes on its connections.

    Each statement is a transaction of its own and costs one round trip, so two statements may see different data. Behind a
    transaction pooler, the session is one read-only transaction, but each statement still sees the data of its own start.
    """

    sync_session_class: type[Session] = _NoFlushSession
    _streams: Sequence[AsyncResult[Any]] = ()

    @override
    async def stream(self, *arguments: Any, **options: Any) -> AsyncResult[Any]:
        """Run a statement, and return its rows as they arrive. A plain `ReadSession` raises `TypeError`: it has no transaction."""
        if type(self) is ReadSession:
            raise TypeError(
                "a ReadSession has no transaction to stream rows in; use StreamSessionDep, see docs/recipes.md"
            )
        result: AsyncResult[Any] = await super().stream(*arguments, **options)
        self._streams = [*self._streams, result]
        return result

    @override
    async def close(self) -> None:
        """Close the session and the results of `stream`.

        An open result would read from a connection that another session may use by then.
        """
        for result in self._streams:
            await result.close()
        await super().close()


class StreamSession(ReadSession):
    """A session for reading that lasts until the end of the response. In its one transaction, every statement sees the same data."""


class WriteSession(ReadSession):
    """A session for one atomic change. It is accepted wherever a `ReadSession` is, but not the reverse."""

    sync_session_class = _CommittingSession


class Database:
    """The engines and sessions for PostgreSQL, created when the application starts and disposed of when it stops."""

    def __init__(self, settings: DatabaseSettings, *, slow_query: timedelta | None = None) -> None:
        # A mistake in a model is an error at the start instead of at the first statement.
        Base.registry.configure()
        self.engine = create_engine(settings)
        self.read_engine = create_read_engine(settings)
        Recycling().watch(self.engine, self.read_engine)
        self.query_log = QueryLog(slow=slow_query.total_seconds() if slow_query else None)
        for engine in (self.engine, self.read_engine):
            self.query_log.listen(engine.sync_engine)
        self.sessions = async_sessionmaker(self.engine, class_=WriteSession, expire_on_commit=False)
        self.read_sessions = async_sessionmaker(
            self.read_engine, class_=ReadSession, expire_on_commit=False, autoflush=False
        )
        # A cursor of the server needs a transaction.
        streaming = self.read_engine.execution_options(isolation_level="REPEATABLE READ")
        self.stream_sessions = async_sessionmaker(
            streaming, class_=StreamSession, expire_on_commit=False, autoflush=False
        )
        # Behind a transaction pooler even a single read is a transaction.
        self.reads: Reads = (
            SessionReads(self.read_sessions)
            if settings.transaction_pooler
            else DirectReads(self.read_engine, self.read_sessions, self.query_log)
        )

    async def dispose(self) -> None:
        """Close every connection permanently. Later attempts to connect fail."""
        for engine in (self.engine, self.read_engine):
            await close_permanently(engine)

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[WriteSession]:
        """Open a unit of work that commits at the end. For jobs and commands; HTTP requests use `SessionDep`."""
        async with self.sessions() as session:
            yield session
            await session.commit()

    async def unit[T](self, work: Callable[[WriteSession], Awaitable[T]]) -> T:
        """Run the work in a separate unit of work, and retry it after a deadlock or a lost connection; see `retries`."""

        async def attempt() -> T:
            async with self.begin() as session:
                return await work(session)

        return await with_retries(attempt)
