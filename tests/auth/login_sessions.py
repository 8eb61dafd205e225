"""Helpers for login sessions: as a client sees them, and as the database stores them."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from httpx2 import AsyncClient, Response
from sqlalchemy import Row, text

from app.core.db.database import ReadSession, WriteSession
from tests.auth.forge import read_part
from tests.factories import PASSWORD

TOKEN = "/api/v1/auth/token"
REVOKE = "/api/v1/auth/revoke"
ME = "/api/v1/users/me"
SESSIONS = f"{ME}/sessions"
TICKETS = "/api/v1/auth/socket-tickets"


@dataclass(frozen=True)
class Pair:
    """What the token endpoint gave."""

    body: dict[str, Any]

    @property
    def access(self) -> str:
        return str(self.body["access_token"])

    @property
    def refresh(self) -> str:
        return str(self.body["refresh_token"])

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.access}"}

    @property
    def claims(self) -> dict[str, Any]:
        return read_part(self.access, 1)

    @property
    def session_id(self) -> UUID:
        return UUID(self.claims["sid"])


def pair(response: Response) -> Pair:
    """Take the tokens out of an answer that must have them."""
    assert response.status_code == 200, response.text
    return Pair(response.json())


async def start(client: AsyncClient, email: str, *, user_agent: str | None = None, **more: str) -> Pair:
    """Log in."""
    form = {"grant_type": "password", "username": email, "password": PASSWORD, **more}
    return pair(await client.post(TOKEN, data=form, headers={"User-Agent": user_agent} if user_agent else {}))


async def send_refresh(client: AsyncClient, token: str, **more: str) -> Response:
    return await client.post(TOKEN, data={"grant_type": "refresh_token", "refresh_token": token, **more})


async def refresh(client: AsyncClient, tokens: Pair, **more: str) -> Pair:
    """Trade a refresh token that must be good."""
    return pair(await send_refresh(client, tokens.refresh, **more))


async def is_accepted(client: AsyncClient, tokens: Pair) -> bool:
    """Say whether the access token opens its owner's account; a refusal must be the right one."""
    response = await client.get(ME, headers=tokens.headers)
    assert response.status_code == 200 or response.json()["code"] == "invalid_token", response.text
    return response.status_code == 200


async def can_refresh(client: AsyncClient, tokens: Pair) -> bool:
    """Say whether the refresh token still works, which spends it; a refusal must be the right one."""
    response = await send_refresh(client, tokens.refresh)
    assert response.status_code == 200 or response.json()["error"] == "invalid_grant", response.text
    return response.status_code == 200


async def ticket_of(client: AsyncClient, headers: dict[str, str]) -> str:
    """Get a ticket for a WebSocket."""
    response = await client.post(TICKETS, headers=headers)
    assert response.status_code == 201, response.text
    return str(response.json()["ticket"])


async def row(session: ReadSession, session_id: UUID) -> Row[Any]:
    """Read a session as it is now."""
    return (await session.execute(text("SELECT * FROM sessions WHERE id = :id"), {"id": session_id})).one()


async def shift(session: WriteSession, session_id: UUID, assignments: str) -> None:
    """Change a session as time or an operator would: `rotated_at = rotated_at - interval '31 s'`."""
    statement = text(f"UPDATE sessions SET {assignments} WHERE id = :id")  # noqa: S608  # Our own words.
    await session.execute(statement, {"id": session_id})
    await session.commit()
