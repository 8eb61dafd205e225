"""The assembled application: CORS, its database, and its OpenAPI document."""

import pytest
from fastapi import FastAPI
from httpx2 import AsyncClient
from sqlalchemy import text

from app.core.db.database import Database
from app.main import create_app
from tests.conftest import make_settings, running

ORIGIN = "https://app.example.com"
PREFLIGHT = {"Origin": ORIGIN, "Access-Control-Request-Method": "PATCH"}


@pytest.fixture
def cross_origin(database_url: str, database: Database) -> FastAPI:
    """An application that pages of one other origin may call."""
    return create_app(make_settings(database_url, server={"cors_origins": ORIGIN}), database)


async def test_without_cors_origins_no_other_origin_may_call(client: AsyncClient) -> None:
    simple = await client.get("/livez", headers={"Origin": ORIGIN})
    preflight = await client.options("/api/v1/users/me", headers=PREFLIGHT)

    assert preflight.status_code == 405
    assert "access-control-allow-origin" not in {*simple.headers, *preflight.headers}


async def test_a_configured_origin_may_call(cross_origin: FastAPI) -> None:
    async with running(cross_origin) as client:
        simple = await client.get("/livez", headers={"Origin": ORIGIN})
        preflight = await client.options("/api/v1/users/me", headers=PREFLIGHT)

    assert simple.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "WWW-Authenticate" in simple.headers["Access-Control-Expose-Headers"]
    assert preflight.status_code == 200
    assert "PATCH" in preflight.headers["Access-Control-Allow-Methods"]
    # For the cookie with the refresh token.
    assert preflight.headers["Access-Control-Allow-Credentials"] == "true"
    assert preflight.headers["X-Request-ID"]


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "https://evil.example",
        "https://app.example.com.evil.example",
        "https://evil-app.example.com",
        "http://app.example.com",
        "https://app.example.com:8443",
        "HTTPS://APP.EXAMPLE.COM",
    ],
)
async def test_other_origins_may_not_call(cross_origin: FastAPI, origin: str) -> None:
    async with running(cross_origin) as client:
        simple = await client.get("/livez", headers={"Origin": origin})
        preflight = await client.options("/api/v1/users/me", headers=PREFLIGHT | {"Origin": origin})

    assert "access-control-allow-origin" not in {*simple.headers, *preflight.headers}
    assert preflight.status_code == 403


async def test_an_application_with_its_own_database_closes_its_connections(clone_url: str) -> None:
    async with running(create_app(make_settings(clone_url))) as client:
        assert (await client.get("/readyz")).status_code == 200

    observer = Database(make_settings(clone_url).database)
    async with observer.read_sessions() as session:
        query = text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        others = await session.scalar(query)
    await observer.dispose()

    assert others == 0


async def test_a_database_that_was_passed_in_stays_open(client: AsyncClient, database: Database) -> None:
    assert (await client.get("/readyz")).status_code == 200

    async with database.read_sessions() as session:
        assert await session.scalar(text("SELECT 1")) == 1


async def test_the_documents_can_be_turned_off(database_url: str) -> None:
    async with running(create_app(make_settings(database_url, server={"docs": False}))) as client:
        statuses = [(await client.get(path)).status_code for path in ("/docs", "/openapi.json", "/docs/start.js")]

    assert statuses == [404, 404, 404]


async def test_every_operation_has_a_stable_id(client: AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    ids = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]

    assert {"create_token", "read_me", "read_key_set", "read_liveness", "read_readiness"} <= set(ids)
    assert len(ids) == len(set(ids))
