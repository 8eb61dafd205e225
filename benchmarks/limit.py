"""The limit: a minimal application with the same responses, as the reference of the benchmarks.

It uses FastAPI, an asyncpg pool, HS256 tokens and JSON written from the row. It has no middleware, sessions, revocation, log,
metrics, limits or problem documents, so it must not be used in production. It shows the cost of framework and driver alone.
"""

import asyncio
import os
import time
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hmac import digest
from typing import Any
from uuid import UUID

import asyncpg
import bcrypt
import jwt
from fastapi import FastAPI, Request, Response
from pydantic_core import to_json

_COLUMNS = "id, email, full_name, role, is_active, email_verified_at, created_at, updated_at"
_ONE = f"SELECT {_COLUMNS} FROM users WHERE id = $1"  # noqa: S608  # The column names are constants.
_LIST = f"SELECT {_COLUMNS} FROM users ORDER BY created_at, id LIMIT $1"  # noqa: S608  # As above.
_LOGIN = "SELECT id, hashed_password FROM users WHERE email_key = $1"
_SECRET = os.environ.get("LIMIT_SECRET", "")
_POOL_SIZE = 10
_LIFETIME = 3600


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    # The default `reset` costs a second round trip when a connection returns to the pool.
    async with asyncpg.create_pool(
        os.environ["DATABASE_URL"], min_size=_POOL_SIZE, max_size=_POOL_SIZE, reset=_do_not_reset
    ) as pool:
        app.state.pool = pool
        yield


async def _do_not_reset(_connection: object) -> None:
    """Do nothing: single statements leave no session state."""


app = FastAPI(openapi_url=None, lifespan=_lifespan)


def token_for(user_id: UUID, secret: str) -> str:
    """Sign an access token for an account."""
    return jwt.encode({"sub": str(user_id), "exp": int(time.time()) + _LIFETIME}, secret, "HS256")


@app.get("/livez")
async def read_liveness() -> Response:
    """Report that the process runs."""
    return _json({"status": "ok"})


@app.get("/api/v1/users/me")
async def read_me(request: Request) -> Response:
    """Return the account of the caller."""
    row = await request.app.state.pool.fetchrow(_ONE, _caller(request))
    return _json(dict(row)) if row else Response(status_code=401)


@app.get("/api/v1/users")
async def list_users(request: Request, limit: int = 50) -> Response:
    """List the first accounts."""
    _caller(request)
    rows = await request.app.state.pool.fetch(_LIST, limit + 1)
    return _json({"items": [dict(row) for row in rows[:limit]], "next_cursor": str(rows[limit - 1]["id"])})


@app.post("/api/v1/auth/token")
async def create_token(request: Request) -> Response:
    """Log in."""
    form = await request.form()
    row = await request.app.state.pool.fetchrow(_LOGIN, form["username"])
    if row is None or not await asyncio.to_thread(_matches, str(form["password"]), row["hashed_password"]):
        return Response(status_code=400)
    return _json({"access_token": token_for(row["id"], _SECRET), "token_type": "Bearer"})


def _caller(request: Request) -> str:
    claims = jwt.decode(request.headers["authorization"].removeprefix("Bearer "), _SECRET, ["HS256"])
    subject: str = claims["sub"]
    return subject


def _matches(password: str, stored: str) -> bool:
    # `$bcrypt-sha256$v=2,t=2b,r=12$salt$checksum`: bcrypt over an HMAC of the password.
    _, _, options, salt, checksum = stored.split("$")
    rounds = options.rpartition("=")[2]
    prehash = b64encode(digest(salt.encode(), password.encode(), "sha256"))
    return bcrypt.checkpw(prehash, f"$2b${rounds}${salt}{checksum}".encode())


def _json(content: dict[str, Any]) -> Response:
    return Response(to_json(content), media_type="application/json")
