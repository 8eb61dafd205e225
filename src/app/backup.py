"""`app backup-check`: whether this release, with these keys, can serve a database that was restored from a backup. It only reads."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import ForeignKeyConstraint, Table, func, select, text
from sqlalchemy.dialects import postgresql

from app import features
from app.core.commands import with_database
from app.core.config import KeySettings, Settings
from app.core.db.database import Database, StreamSession
from app.core.db.timeouts import statement_timeout
from app.core.security.keys import KeyRing, load_key_ring, seal_kid
from app.core.security.resealing import SealedColumn
from app.core.security.sealing import SealBrokenError, Sealer
from app.migrations import revisions
from app.models import Base

# It reads whole tables.
_STATEMENT_TIMEOUT = timedelta(hours=1)
_PAGE = 1000
# When a row was added, by the names that the models use.
_ADDED = ("created_at", "occurred_at")
_NAMES = text("""
    SELECT conname FROM pg_constraint WHERE connamespace = current_schema()::regnamespace AND convalidated
    UNION ALL
    SELECT relname FROM pg_class JOIN pg_index ON indexrelid = oid
    WHERE relnamespace = current_schema()::regnamespace AND indisvalid
""")
_JOBS = text("SELECT status::text, count(*) FROM procrastinate_jobs GROUP BY status ORDER BY status")
_KEYS_OF_THEN = 'add the key from the key set of that time: docs/operations/backups.md, "Keys"'


@dataclass
class Report:
    """What the database contains, and the reasons why it cannot be served."""

    facts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    newest: tuple[datetime, str] | None = None

    def add(self, name: str, fact: str) -> None:
        self.facts.append(f"{name:<18} {fact}")


def check(settings: Settings) -> Report:
    keys = load_key_ring(settings.of(KeySettings))

    async def run(database: Database) -> Report:
        # One snapshot: the counts fit together even if the database is in use.
        with statement_timeout(_STATEMENT_TIMEOUT):
            async with database.stream_sessions() as session:
                return await _check(session, keys)

    return with_database(settings.database, run)


async def _check(session: StreamSession, keys: KeyRing) -> Report:
    report = Report()
    applied = await revisions.applied(session)
    report.add("schema", revisions.named(applied))
    if problem := revisions.mismatch(applied):
        # The tables may lack what the other checks read.
        report.problems.append(f"{problem}; {_advice(set(applied))}")
        return report
    await _check_completeness(session, report)
    for table in Base.metadata.sorted_tables:
        await _count(session, table, report)
    await _count_jobs(session, report)
    for sealed in features.sealed_columns():
        await _check_sealed(session, sealed, Sealer(keys), report)
    if report.newest:
        report.add("newest row", f"{report.newest[0]:%Y-%m-%d %H:%M:%S}Z, in {report.newest[1]}")
    else:
        report.problems.append(
            "the tables are empty: restore the backup first, or name the database that it was restored into"
        )
    return report


def _advice(applied: set[str]) -> str:
    if not applied:
        return "restore the backup first, or name the database that it was restored into"
    if applied <= revisions.known():
        return "run `app migrate`, then this command again"
    return "use the release that made the backup, or a newer one"


async def _check_completeness(session: StreamSession, report: Report) -> None:
    """Find the indexes and foreign keys that the restore left out. It creates them last."""
    present = set((await session.scalars(_NAMES)).all())
    if missing := sorted(set(_expected()) - present):
        report.problems.append(
            f"the schema lacks {', '.join(missing)}: the restore was interrupted or had errors; restore again into an empty "
            "database, with --exit-on-error"
        )


def _expected() -> Iterator[str]:
    preparer = postgresql.dialect().identifier_preparer  # type: ignore[no-untyped-call]  # SQLAlchemy does not annotate it.
    for table in Base.metadata.tables.values():
        yield from (str(index.name) for index in table.indexes)
        yield from (
            str(preparer.format_constraint(one)) for one in table.constraints if isinstance(one, ForeignKeyConstraint)
        )


async def _count(session: StreamSession, table: Table, report: Report) -> None:
    added = next((table.c[name] for name in _ADDED if name in table.c), None)
    columns = [func.count()] if added is None else [func.count(), func.max(added)]
    rows, *newest = (await session.execute(select(*columns).select_from(table))).one()
    report.add(table.name, str(rows))
    for moment in filter(None, newest):
        report.newest = max((moment, table.name), report.newest or (moment, table.name))


async def _count_jobs(session: StreamSession, report: Report) -> None:
    states = [f"{number} {status}" for status, number in await session.execute(_JOBS)]
    report.add("jobs", ", ".join(states) or "0")


async def _check_sealed(session: StreamSession, sealed: SealedColumn, sealer: Sealer, report: Report) -> None:
    """Unseal every value: a key of the same number in another key set is another key."""
    opened, broken = Counter[str](), Counter[str]()
    statement = select(sealed.owner.label("owner"), sealed.column.label("value")).execution_options(yield_per=_PAGE)
    async for row in await session.stream(statement):
        try:
            sealer.unseal(row.value, purpose=sealed.purpose, owner=row.owner)
            opened[seal_kid(row.value[0])] += 1
        except SealBrokenError as error:
            broken[str(error)] += 1
    keys = ", ".join(f"{rows} opened by {kid}" for kid, rows in sorted(opened.items()))
    report.add("sealed", f"{sealed.name}: {keys or 'no row opened'}")
    report.problems += [
        f"{reason}, and {rows - 1} more in {sealed.name}; {_KEYS_OF_THEN}" for reason, rows in sorted(broken.items())
    ]
