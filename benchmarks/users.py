"""What the operations on accounts cost: `python -m benchmarks.users [ROWS]`, over HTTP inside one process.

A private PostgreSQL is filled through COPY; the cases take turns within each round, so that a drift of the machine hits
all of them alike. The milliseconds belong to the machine; the ratio of the deep page to the first is what carries over.
"""

import asyncio
import sys
import tempfile
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from time import perf_counter
from uuid import UUID

import asyncpg
from httpx2 import ASGITransport, AsyncClient, Response
from sqlalchemy import make_url
from starlette.types import Receive, Scope, Send

from app.core.config import Settings
from app.core.database import Database
from app.core.keys import generate_key_set
from app.core.security import PasswordHasher
from app.core.telemetry import configure
from app.dev.embedded_postgres import Cluster
from app.main import create_app
from app.migrations import runner
from app.users import service as users_service

ROUNDS = 200
WARM_UP = 20
PAGE = 50
DEEP_PAGE = 20_000
EMAIL, PASSWORD = "admin@example.com", "correct horse battery staple"
EPOCH = datetime(2020, 1, 1, tzinfo=UTC)
COLUMNS = ["id", "email", "email_key", "full_name", "name_key", "role", "created_at", "updated_at"]

type Case = Callable[[], Awaitable[Response]]


async def main(rows: int, url: str) -> None:
    """Fill the database, take the measurements, print them."""
    settings = Settings.model_validate(
        {
            "environment": "test",
            "database": {"url": url},
            "auth": {"signing_keys": generate_key_set(), "bcrypt_cost": 4},
            "log": {"level": "warning"},
        }
    )
    # The table is what belongs on the screen; access lines are left out of all cases alike.
    configure(settings.log, readable=False)
    await runner.upgrade(settings.database)
    await seed(url, rows)
    await make_admin(settings)
    app = create_app(settings)
    async with app.router.lifespan_context(app) as state:

        async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "state": dict(state or {})}, receive, send)

        async with AsyncClient(transport=ASGITransport(with_state), base_url="http://benchmark") as client:
            await log_in(client)
            show(await measure(await cases(client, rows)), rows)


async def seed(url: str, rows: int) -> None:
    """Insert accounts, a second apart."""
    connection = await asyncpg.connect(make_url(url).set(drivername="postgresql").render_as_string(hide_password=False))
    try:
        records = (record(number) for number in range(rows))
        await connection.copy_records_to_table("users", records=records, columns=COLUMNS)
        await connection.execute("VACUUM ANALYZE users")
    finally:
        await connection.close()


def record(number: int) -> tuple[object, ...]:
    """Make the row of one account."""
    email, name, created = f"user{number:07}@example.com", f"User {number:07}", EPOCH + timedelta(seconds=number)
    return (UUID(int=number), email, email, name, name.lower(), "user", created, created)


async def make_admin(settings: Settings) -> None:
    """Make the account that asks."""
    database, hasher = Database(settings.database), PasswordHasher(settings.auth)
    async with database.begin() as session:
        await users_service.create_admin(session, hasher, email=EMAIL, password=PASSWORD, min_length=15)
    hasher.close()
    await database.dispose()


async def log_in(client: AsyncClient) -> None:
    """Let the client speak for the administrator."""
    form = {"grant_type": "password", "username": EMAIL, "password": PASSWORD}
    pair = (await client.post("/api/v1/auth/token", data=form)).raise_for_status().json()
    client.headers["Authorization"] = f"Bearer {pair['access_token']}"


async def cases(client: AsyncClient, rows: int) -> dict[str, Case]:
    """Give each case as something to call; the deep page is reached by its cursor, as a client would."""
    deep = await cursor_of_page(client, min(DEEP_PAGE, rows // PAGE - 1))
    numbers = iter(range(10**9))
    target = f"/api/v1/users/{UUID(int=rows // 2)}"

    def create() -> Awaitable[Response]:
        return client.post("/api/v1/users", json={"email": f"new{next(numbers)}@example.com"})

    def patch() -> Awaitable[Response]:
        return client.patch(target, json={"full_name": f"Name {next(numbers)}"})

    return {
        "who am I": lambda: client.get("/api/v1/users/me"),
        "page 1 of 50": lambda: client.get("/api/v1/users", params={"limit": PAGE}),
        "deep page of 50": lambda: client.get("/api/v1/users", params={"limit": PAGE, "cursor": deep}),
        "create": create,
        "patch": patch,
    }


async def cursor_of_page(client: AsyncClient, page: int) -> str:
    """Walk there, as a client would: only the server can make a cursor."""
    cursor = ""
    # Pages of 100 reach the same row in half the steps; the size of a page is no part of a cursor.
    for _ in range(page // 2):
        parameters = {"limit": "100", **({"cursor": cursor} if cursor else {})}
        cursor = (await client.get("/api/v1/users", params=parameters)).raise_for_status().json()["next_cursor"]
    return cursor


async def measure(measured: dict[str, Case]) -> dict[str, list[float]]:
    """Time every case once a round, in turn."""
    times: dict[str, list[float]] = {name: [] for name in measured}
    for number in range(WARM_UP + ROUNDS):
        for name, case in measured.items():
            started = perf_counter()
            response = await case()
            elapsed = perf_counter() - started
            response.raise_for_status()
            if number >= WARM_UP:
                times[name].append(elapsed * 1000)
    return times


def show(times: dict[str, list[float]], rows: int) -> None:
    """Print medians and quartiles in milliseconds, and the ratio of the deep page to the first."""
    print(f"{rows:,} accounts, {ROUNDS} interleaved rounds, one client, in process; milliseconds")
    for name, values in times.items():
        ordered = sorted(values)
        low, high = ordered[len(ordered) // 4], ordered[3 * len(ordered) // 4]
        print(f"  {name:18} median {median(values):7.2f}   quartiles {low:7.2f} to {high:7.2f}")
    ratios = [deep / first for deep, first in zip(times["deep page of 50"], times["page 1 of 50"], strict=True)]
    print(f"  deep page / page 1: median of the ratios {median(ratios):.2f}")


def run() -> None:
    """Start a private server for the run and stop it afterwards."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as directory, Cluster(Path(directory), durable=False) as cluster:
        cluster.make_database("benchmark")
        asyncio.run(main(rows, cluster.url("benchmark")))


if __name__ == "__main__":
    run()
