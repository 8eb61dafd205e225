"""PostgreSQL: the two engines, the two kinds of session, the declarative base and its column types."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Annotated, Any, override
from uuid import UUID

from sqlalchemy import BigInteger, DateTime, MetaData, Text, func, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Session, mapped_column
from uuid_utils.compat import uuid7

from app.core.attempts import note_committed, repeating
from app.core.config import DatabaseSettings
from app.core.connections import Recycling, create_engine, create_read_engine
from app.core.metrics import Reading
from app.core.reads import DirectReads, Reads, SessionReads
from app.core.statements import Watch

MINIMUM_VERSION = 15

# These stay plain assignments: SQLAlchemy reads Annotated directly, a `type` alias would need a registry entry.
PrimaryKey = Annotated[UUID, mapped_column(primary_key=True, default=uuid7)]
CreatedAt = Annotated[datetime, mapped_column(server_default=func.now())]
UpdatedAt = Annotated[datetime, mapped_column(server_default=func.now(), onupdate=func.now())]
Version = Annotated[int, mapped_column(server_default=text("1"))]


class Base(DeclarativeBase):
    """What every model inherits: names for constraints, time zones, and no lazy loading."""

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
    # Values made by the server come back with the INSERT: async code can never load them later.
    __mapper_args__ = {"eager_defaults": True}  # noqa: RUF012  # As above.


class _NoFlushSession(Session):
    @override
    def flush(self, objects: Sequence[Any] | None = None) -> None:
        if self.new or self.dirty or self.deleted:
            message = "a read session writes nothing; take the writing session"
            raise RuntimeError(message)


class _CommittingSession(Session):
    @override
    def commit(self) -> None:
        super().commit()
        note_committed()


class ReadSession(AsyncSession):
    """A session for reading: each statement is its own transaction and costs one round trip.

    PostgreSQL itself refuses a write on its connections (`default_transaction_read_only`).
    """

    sync_session_class: type[Session] = _NoFlushSession


class WriteSession(ReadSession):
    """A session for one atomic change. A function that takes a `ReadSession` also takes this one, never the reverse."""

    sync_session_class = _CommittingSession


class Database:
    """The way to PostgreSQL, made when the application starts and disposed of when it stops."""

    def __init__(self, settings: DatabaseSettings, *, slow_query: timedelta | None = None) -> None:
        self.engine = create_engine(settings)
        self.read_engine = create_read_engine(settings)
        Recycling().watch(self.engine, self.read_engine)
        self.watch = Watch(slow=slow_query.total_seconds() if slow_query else None)
        for engine in (self.engine, self.read_engine):
            self.watch.listen(engine.sync_engine)
        self.sessions = async_sessionmaker(self.engine, class_=WriteSession, expire_on_commit=False)
        self.read_sessions = async_sessionmaker(
            self.read_engine, class_=ReadSession, expire_on_commit=False, autoflush=False
        )
        # Behind a transaction pooler even a single read is a transaction.
        self.reads: Reads = (
            SessionReads(self.read_sessions)
            if settings.transaction_pooler
            else DirectReads(self.read_engine, self.read_sessions, self.watch)
        )

    async def dispose(self) -> None:
        """Close every connection."""
        await self.engine.dispose()
        await self.read_engine.dispose()

    def readings(self) -> Iterator[Reading]:
        """Show how the pools are used."""
        for name, engine in (("write", self.engine), ("read", self.read_engine)):
            pool: Any = engine.pool
            labels = {"pool": name}
            yield Reading("database_pool_size", "Connections that the pool may have.", pool.size(), labels)
            yield Reading("database_pool_in_use", "Connections taken from the pool.", pool.checkedout(), labels)
            yield Reading("database_pool_waiting", "Tasks that wait for a connection.", pool.waiting, labels)

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[WriteSession]:
        """Open a unit of work that commits at the end, for the edges that are not HTTP."""
        async with self.sessions() as session:
            yield session
            await session.commit()

    async def unit[T](self, work: Callable[[WriteSession], Awaitable[T]]) -> T:
        """Do the work in a unit of its own, and again after a deadlock or on a connection that broke; see `attempts`."""

        async def once() -> T:
            async with self.begin() as session:
                return await work(session)

        return await repeating(once)
