"""A database that is large enough to reveal bad query plans, and the plans of statements on it."""

import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, override

import asyncpg
from sqlalchemy import event, make_url

from app.core.db.database import Database, WriteSession
from tests.conftest import cloned, make_settings

ROWS = 100_000

# Addresses and names do not follow the order of creation, so no order by one of them matches the order of another. The rare roles
# and states have the worst frequency without an index of their own: too many rows to sort, too few to find by scanning.
USERS = f"""
    INSERT INTO users (id, email, email_key, full_name, name_key, role, is_active, created_at)
    SELECT gen_random_uuid(), key || '@example.com', key || '@example.com', name, lower(name),
           CASE WHEN n % 50 = 7 THEN 'admin' ELSE 'user' END, n % 40 <> 11,
           timestamptz '2020-01-01 00:00+00' + n * interval '10 minutes'
    FROM (SELECT n, md5(n::text) AS key, CASE WHEN n % 3 > 0 THEN initcap(md5('name' || n)) END AS name
          FROM generate_series(1, {ROWS}) AS n) AS numbered
"""  # noqa: S608  # A constant of this file.
# A thousand accounts act on each other. One in a thousand events is of a rare kind.
EVENTS = f"""
    INSERT INTO audit_events (id, event, occurred_at, actor_id, subject_id, detail)
    SELECT gen_random_uuid(), CASE WHEN n % 1000 = 7 THEN 'users.deleted' ELSE 'auth.login_succeeded' END,
           timestamptz '2020-01-01 00:00+00' + n * interval '10 minutes',
           md5('account' || n::bigint * 7919 % 1009)::uuid, md5('account' || n::bigint * 104729 % 1013)::uuid, '{{}}'
    FROM generate_series(1, {ROWS}) AS n
"""  # noqa: S608  # As above.

_FETCHING = {"Seq Scan", "Index Scan", "Index Only Scan", "Bitmap Heap Scan"}
_REMOVED = ("Rows Removed by Filter", "Rows Removed by Index Recheck")


@dataclass(frozen=True)
class Plan:
    """The executed plan of a statement."""

    nodes: list[dict[str, Any]]

    @property
    def cost(self) -> float:
        """The cost that PostgreSQL estimated."""
        cost: float = self.nodes[0]["Total Cost"]
        return cost

    @property
    def scans_a_table(self) -> bool:
        return any(node["Node Type"] == "Seq Scan" for node in self.nodes)

    @property
    def indexes(self) -> set[str]:
        return {node["Index Name"] for node in self.nodes if "Index Name" in node}

    @property
    def rows_fetched(self) -> float:
        """Rows read from tables, including those that a filter removed."""
        fetched: float = sum(
            (node["Actual Rows"] + sum(node.get(removed, 0) for removed in _REMOVED)) * node["Actual Loops"]
            for node in self.nodes
            if node["Node Type"] in _FETCHING
        )
        return fetched

    @property
    def rows_sorted(self) -> float:
        """Number of sorted rows."""
        sorts = [node for node in self.nodes if node["Node Type"] in {"Sort", "Incremental Sort"}]
        rows: float = sum(child["Actual Rows"] * child["Actual Loops"] for node in sorts for child in node["Plans"])
        return rows

    @override
    def __str__(self) -> str:
        names = [f"{node['Node Type']} {node.get('Index Name', '')}".strip() for node in self.nodes]
        return f"{self.rows_fetched:.0f} fetched, {self.rows_sorted:.0f} sorted: {' < '.join(names)}"


@dataclass(frozen=True)
class Plans:
    """The custom plan for these parameters, and the generic plan that PostgreSQL may use for any parameters."""

    statement: str
    custom: Plan
    generic: Plan


@asynccontextmanager
async def filled(
    template_url: str, statement: str, *, analyze: str = "VACUUM ANALYZE users, audit_events", **settings: Any
) -> AsyncIterator[Database]:
    """A database with the rows that this SQL inserts."""
    async with cloned(template_url) as url:
        connection = await asyncpg.connect(plain(url))
        await connection.execute(statement)
        await connection.execute(analyze)
        await connection.close()
        database = Database(make_settings(url, database=settings).database)
        yield database
        await database.dispose()


def plain(url: str) -> str:
    """Return the URL in the form that asyncpg accepts."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


async def plans_of(database: Database, run: Callable[[WriteSession], Awaitable[Any]]) -> list[Plan]:
    """Return the plan of each different statement that a function executes. Nothing is committed."""
    plans = []
    async with explaining(database) as explainer:
        for statement, parameters in dict(await _statements(database, run)).items():
            plans.append(await explainer.rolled_back(statement, parameters))
    return plans


async def _statements(
    database: Database, run: Callable[[WriteSession], Awaitable[Any]]
) -> list[tuple[str, tuple[Any, ...]]]:
    statements: list[tuple[str, tuple[Any, ...]]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        statements.append((statement, parameters))

    engine = database.engine.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    async with database.sessions() as session:
        await run(session)
        await session.rollback()
    event.remove(engine, "before_cursor_execute", note)
    return statements


class Explainer:
    """Explains the single statement that a function of the application executes."""

    def __init__(self, database: Database, connection: asyncpg.Connection) -> None:
        self._database = database
        self._connection = connection

    async def __call__(self, run: Callable[[WriteSession], Awaitable[Any]]) -> Plans:
        ((statement, parameters),) = await _statements(self._database, run)
        custom, generic = [await self._explain(statement, parameters, mode) for mode in ("custom", "generic")]
        return Plans(statement, custom, generic)

    async def rolled_back(self, statement: str, parameters: tuple[Any, ...]) -> Plan:
        """Explain a statement that may write, and roll it back."""
        transaction = self._connection.transaction()
        await transaction.start()
        explain = f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {statement}"
        plan = json.loads(await self._connection.fetchval(explain, *parameters))[0]["Plan"]
        await transaction.rollback()
        return Plan(list(_walk(plan)))

    async def _explain(self, statement: str, parameters: tuple[Any, ...], mode: str) -> Plan:
        await self._connection.execute(f"SET plan_cache_mode = force_{mode}_plan")
        await self._connection.execute(f"PREPARE explained AS {statement}")
        values = ", ".join(_literal(value) for value in parameters)
        call = f"explained({values})" if values else "explained"
        (record,) = await self._connection.fetch(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) EXECUTE {call}")
        await self._connection.execute("DEALLOCATE explained")
        return Plan(list(_walk(json.loads(record[0])[0]["Plan"])))


@asynccontextmanager
async def explaining(database: Database) -> AsyncIterator[Explainer]:
    """Open a connection for EXPLAIN, without JIT like those of the application."""
    url = database.engine.url.render_as_string(hide_password=False)
    connection = await asyncpg.connect(plain(url), server_settings={"jit": "off"})
    yield Explainer(database, connection)
    await connection.close()


def _literal(value: object) -> str:
    if isinstance(value, list):
        return f"ARRAY[{', '.join(map(_literal, value))}]::uuid[]"
    return str(value) if isinstance(value, int) else "'" + str(value).replace("'", "''") + "'"


def _walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return itertools.chain([node], *(_walk(child) for child in node.get("Plans", [])))
